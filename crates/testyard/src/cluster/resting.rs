//! Stopping a cluster, so that its files are at rest, and starting it again.

use std::time::Duration;

use testyard_cluster::{ClusterInfo, ClusterName, ClusterState, Layout, Node, start};
use testyard_model::{MachineState, Problem, ProblemKind};

use super::claim::Claim;
use super::making::Queue;
use super::node::{self, Terms};
use super::{Clusters, layout_of, making, state_of};

/// How long daemons may take to write down what they know and end.
const ENDING: Duration = Duration::from_secs(30);

impl Clusters<'_> {
    /// Ends a cluster's daemons in good order, then its machines. Its files stay: [`Clusters::start`] goes on with them,
    /// [`Clusters::fork`] begins others with them. One that is stopped is left alone.
    ///
    /// # Errors
    /// There is none of this name, another command is changing it, or a machine could not be stopped.
    pub fn stop(&self, name: &ClusterName) -> Result<ClusterInfo, Problem> {
        let registry = self.yard.registry()?;
        let claim = Claim::take(&registry, self.row(&registry, name)?, "stop the cluster")?;
        let layout = layout_of(&claim.row)?;
        self.expect_own(&claim.row.id, &layout.nodes)?;
        match state_of(&claim.row)? {
            ClusterState::Stopped => {}
            ClusterState::Running => {
                self.rest(&layout)?;
                claim.record(&registry, ClusterState::Stopped, &layout.spec)?;
            }
            // Whoever was making or removing it was killed.
            ClusterState::Creating | ClusterState::Deleting => return Err(unfinished(&claim)),
        }
        claim.release(&registry)?;
        self.info(name)
    }

    fn rest(&self, layout: &Layout) -> Result<(), Problem> {
        let up: Vec<Node> = layout.nodes.iter().filter(|node| self.is_up(node)).cloned().collect();
        making::at_once(&up, |node| {
            let script = start::end_daemons(node.is_controller());
            let ended = node::run_script(self.yard, &node.name, "/bin/sh", &script, &Terms::root(ENDING))?;
            node::expect(ended, &node.name, "end its daemons")?;
            self.yard.machines().stop(&node.name, true).map(drop)
        })
    }

    /// Starts a stopped cluster, or the nodes and daemons that have ended of one that runs; returns once every node
    /// answers.
    ///
    /// # Errors
    /// There is none of this name, another command is changing it, or a daemon did not come up.
    pub fn start(&self, name: &ClusterName) -> Result<ClusterInfo, Problem> {
        let registry = self.yard.registry()?;
        let claim = Claim::take(&registry, self.row(&registry, name)?, "start the cluster")?;
        let layout = layout_of(&claim.row)?;
        let state = state_of(&claim.row)?;
        if !matches!(state, ClusterState::Running | ClusterState::Stopped) {
            return Err(unfinished(&claim));
        }
        self.expect_own(&claim.row.id, &layout.nodes)?;
        if state == ClusterState::Running && self.is_up(layout.controller()) {
            self.revive(&layout, layout.controller())?;
            making::at_once(&layout.nodes[1..], |node| match self.is_up(node) {
                true => self.revive(&layout, node),
                false => self.bring_back(&claim.row.id, &layout, node),
            })?;
            making::await_nodes(self.yard, &layout, &layout.nodes, start::is_answering)?;
        } else {
            // Nodes whose controller was away are begun anew: their daemons would come back one by one. So are those that
            // somebody who was killed had begun to start, and not set up.
            self.rest(&layout)?;
            let setup = self.folder(&claim.row.id).load()?;
            let begin = |node: &Node| self.yard.machines().start(&node.name).map(drop);
            making::bring_up(self.yard, &layout, &setup, Queue::Kept, begin)?;
        }
        claim.record(&registry, ClusterState::Running, &layout.spec)?;
        claim.release(&registry)?;
        self.info(name)
    }

    pub(super) fn is_up(&self, node: &Node) -> bool {
        self.yard.machines().info(&node.name).is_ok_and(|machine| machine.state == MachineState::Running)
    }
}

fn unfinished(claim: &Claim) -> Problem {
    let message = format!("cluster {} is {}", claim.row.name, claim.row.state);
    Problem::new(ProblemKind::WrongState, message).hint("testyard reap")
}
