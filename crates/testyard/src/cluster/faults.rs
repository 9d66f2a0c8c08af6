//! Making nodes fail, and bringing them back.

use std::time::Duration;

use testyard_cluster::{ClusterName, Daemon, Layout, Node, revive, start};
use testyard_model::{Problem, ProblemKind};

use super::claim::Claim;
use super::node::{self, Terms};
use super::{Clusters, making};

/// How long the controller may take to do as it is told.
const ORDER: Duration = Duration::from_secs(15);

impl Clusters<'_> {
    /// Takes a node out of service: its jobs go on, it gets no others.
    ///
    /// # Errors
    /// There is no such cluster or node, or the controller does not answer.
    pub fn drain(&self, name: &ClusterName, node: &str) -> Result<(), Problem> {
        self.held(name, || {
            let (_, layout, node) = self.find_node(name, node)?;
            self.order(&layout, &start::set_state(&node, "DRAIN"))
        })
    }

    /// Ends everything on a node at once, as if its power had failed, and tells the controller, which would notice by
    /// itself some seconds later. Its jobs are ended or begun anew elsewhere, as they ask for. Its files stay.
    ///
    /// # Errors
    /// There is no such cluster or node, or it is the one with the controller.
    pub fn fail(&self, name: &ClusterName, node: &str) -> Result<(), Problem> {
        let (_, layout, node) = self.find_node(name, node)?;
        if node.is_controller() {
            let message = format!("node {} runs the controller: without it the cluster is none", node.name);
            return Err(Problem::new(ProblemKind::Usage, message)
                .hint(format!("fail another node, such as {}-2", layout.name))
                .hint(format!(
                    "or end the controller alone: testyard cluster exec {name} 1 --user root -- pkill slurmctld"
                ))
                .hint(format!("which comes back with: testyard cluster node restore {name} 1")));
        }
        self.held(name, || {
            self.yard.machines().stop(&node.name, true)?;
            self.order(&layout, &start::set_state(&node, "DOWN"))
        })
    }

    /// Cuts a node off from the others. What runs on it goes on; the controller notices within some seconds.
    ///
    /// # Errors
    /// There is no such cluster or node, or it is not running.
    pub fn cut(&self, name: &ClusterName, node: &str) -> Result<(), Problem> {
        self.held(name, || {
            let (_, _, node) = self.find_node(name, node)?;
            self.yard.machines().set_connected(&node.name, false)
        })
    }

    /// Brings a node back that was failed, drained or cut off, or whose daemons have ended; returns once the controller
    /// would give it a job. One that is well is left alone.
    ///
    /// # Errors
    /// There is no such cluster or node, the controller has ended, the node and the controller do not trust each other,
    /// or a daemon did not come up in time: its own last words are among the causes.
    pub fn restore(&self, name: &ClusterName, node: &str) -> Result<(), Problem> {
        self.held(name, || {
            let (row, layout, node) = self.find_node(name, node)?;
            if !node.is_controller() {
                self.expect_controller(&layout)?;
            }
            if self.is_up(&node) {
                self.yard.machines().set_connected(&node.name, true)?;
                self.revive(&layout, &node)?;
            } else {
                self.bring_back(&row.id, &layout, &node)?;
            }
            self.expect_trust(&layout, &node)?;
            // Refused for a node that is neither drained nor down: then there is nothing to be resumed.
            let _ = self.order(&layout, &start::set_state(&node, "RESUME"));
            making::await_usable(self.yard, &layout, std::slice::from_ref(&node))
        })
    }

    /// Without a controller no node is ever ready, and nobody would say why.
    fn expect_controller(&self, layout: &Layout) -> Result<(), Problem> {
        let controller = layout.controller();
        if !self.is_up(controller) {
            return Err(controller_is_down(layout));
        }
        if self.ended(controller, &revive::find_ended(&[Daemon::Controller]))?.is_empty() {
            return Ok(());
        }
        let message = format!("slurmctld does not run on node {}, and without it no node gets a job", controller.name);
        let problem = Problem::new(ProblemKind::WrongState, message);
        Err(node::with_log(problem, self.yard, controller, Daemon::Controller)
            .hint(format!("bring it back first: testyard cluster node restore {} 1", layout.name)))
    }

    /// Daemons of nodes with different keys hear nothing of each other, and each says so only in its own log.
    fn expect_trust(&self, layout: &Layout, node: &Node) -> Result<(), Problem> {
        let controller = &layout.controller().name;
        let ran = node::run_script(self.yard, &node.name, "/bin/sh", revive::PROVE, &Terms::root(ORDER))?;
        let printed = node::expect(ran, &node.name, "prove itself")?;
        let examined = match revive::examine(&printed) {
            None => Err(Problem::new(ProblemKind::Unavailable, format!("munge on node {} gives no proof", node.name))),
            Some(script) => node::run_script(self.yard, controller, "/bin/sh", &script, &Terms::root(ORDER))
                .and_then(|ran| node::expect(ran, controller, &format!("take node {} for one of its own", node.name))),
        };
        examined.map(drop).map_err(|problem| match node.is_controller() {
            true => problem,
            false => problem.hint(format!(
                "its munge key is written anew by testyard cluster node fail {0} {1}, then testyard cluster node restore {0} {1}",
                layout.name, node.number
            )),
        })
    }

    /// Starts those daemons of a running node that have ended.
    pub(super) fn revive(&self, layout: &Layout, node: &Node) -> Result<(), Problem> {
        let daemons = revive::daemons(layout, node);
        let ended = self.ended(node, &revive::begin(&daemons))?;
        let ended = daemons.into_iter().filter(|daemon| ended.lines().any(|line| line == daemon.program()));
        ended.into_iter().try_for_each(|daemon| node::launch_again(self.yard, node, daemon))
    }

    fn ended(&self, node: &Node, script: &str) -> Result<String, Problem> {
        let ran = node::run_script(self.yard, &node.name, "/bin/sh", script, &Terms::root(making::SETUP))?;
        node::expect(ran, &node.name, "look after its daemons")
    }

    /// Does something to a cluster while nobody else changes it.
    fn held(&self, name: &ClusterName, work: impl FnOnce() -> Result<(), Problem>) -> Result<(), Problem> {
        let registry = self.yard.registry()?;
        let claim = Claim::await_turn(&registry, |registry| self.row(registry, name), "change a node of the cluster")?;
        let done = work();
        claim.release(&registry)?;
        done
    }

    /// Starts the machine of a node that was down, and its daemons.
    pub(super) fn bring_back(&self, cluster: &str, layout: &Layout, node: &Node) -> Result<(), Problem> {
        if node.is_controller() {
            return Err(controller_is_down(layout));
        }
        let setup = self.folder(cluster).load()?;
        self.yard.machines().start(&node.name)?;
        making::set_up(self.yard, layout, node, &setup)?;
        node::launch(self.yard, node, Daemon::Node)
    }

    fn order(&self, layout: &Layout, script: &str) -> Result<(), Problem> {
        let controller = &layout.controller().name;
        let ran = node::run_script(self.yard, controller, "/bin/sh", script, &Terms::root(ORDER))?;
        node::expect(ran, controller, "tell its daemons").map(drop)
    }
}

fn controller_is_down(layout: &Layout) -> Problem {
    let message = format!("node {} runs the controller, and is down", layout.controller().name);
    Problem::new(ProblemKind::WrongState, message).hint(format!("testyard cluster start {}", layout.name))
}
