//! Clusters from clusters: more nodes or fewer, and others with the same files.

use std::sync::{Mutex, PoisonError};

use testyard_cluster::setup::{self, NodeSetup};
use testyard_cluster::{ClusterInfo, ClusterName, ClusterSpec, ClusterState, Daemon, Layout, Node, start};
use testyard_linux::step::{self, Step};
use testyard_model::{MachineSpec, Problem, ProblemKind};
use testyard_registry::{ClusterRow, Registry};

use super::claim::Claim;
use super::making::Queue;
use super::node::{self, Terms};
use super::secrets::{self, Folder};
use super::{Clusters, ending, is_of, layout_of, making, state_of};

impl Clusters<'_> {
    /// Gives a running cluster so many nodes. Jobs on nodes that stay go on; those on nodes that go are ended, or begun
    /// anew elsewhere, as they ask for.
    ///
    /// # Errors
    /// The cluster is not running, a partition names a node that would go, or a new node did not come up: then the
    /// cluster is as it was.
    pub fn scale(&self, name: &ClusterName, nodes: u16) -> Result<ClusterInfo, Problem> {
        let registry = self.yard.registry()?;
        let claim = Claim::take(&registry, self.row(&registry, name)?, "scale the cluster")?;
        let before = layout_of(&claim.row)?;
        let spec = ClusterSpec { nodes, ..before.spec.clone() };
        spec.check().map_err(|error| Problem::from_error(ProblemKind::Usage, &error))?;
        expect_state(&claim, ClusterState::Running)?;
        let after = Layout::new(name, &spec);
        self.expect_own(&claim.row.id, &before.nodes)?;
        self.expect_own(&claim.row.id, &after.nodes)?;
        if nodes > before.spec.nodes {
            self.grow(&claim, &before, &after)?;
            claim.record(&registry, ClusterState::Running, &spec)?;
        } else if nodes < before.spec.nodes {
            // Written down first: a node that is to go is no part of the cluster any more, whoever is killed now.
            claim.record(&registry, ClusterState::Running, &spec)?;
            self.shrink(&before, &after, &self.folder(&claim.row.id).load()?)?;
        } else {
            // Whoever scaled it last may have been killed before every node was told.
            self.reconfigure(&after, &after.nodes, &self.folder(&claim.row.id).load()?)?;
        }
        claim.release(&registry)?;
        self.info(name)
    }

    fn grow(&self, claim: &Claim, before: &Layout, after: &Layout) -> Result<(), Problem> {
        let new: Vec<Node> = after.nodes[before.nodes.len()..].to_vec();
        let setup = self.folder(&claim.row.id).load()?;
        let made = making::at_once(&new, |node| {
            making::make(self.yard, after, &claim.row.id, node)?;
            making::set_up(self.yard, after, node, &setup)
        });
        let grown = made
            .and_then(|()| self.reconfigure(after, &before.nodes, &setup))
            .and_then(|()| making::at_once(&new, |node| node::launch(self.yard, node, Daemon::Node)))
            .and_then(|()| making::await_usable(self.yard, after, &new));
        grown.map_err(|problem| {
            let undone = self.shrink(after, before, &setup);
            undone.map_or_else(|other| problem.clone().because(other.message), |()| problem.clone())
        })
    }

    fn shrink(&self, before: &Layout, after: &Layout, setup: &NodeSetup) -> Result<(), Problem> {
        let gone = &before.nodes[after.nodes.len()..];
        let machines = self.yard.machines();
        making::at_once(gone, |node| match machines.delete(&node.name, true) {
            Err(problem) if problem.kind != ProblemKind::NotFound => Err(problem),
            _ => Ok(()),
        })?;
        self.reconfigure(after, &after.nodes, setup)
    }

    /// Tells every node what the cluster is now. The controller is started anew, because it counts its nodes only then;
    /// jobs do not notice.
    pub(super) fn reconfigure(&self, layout: &Layout, nodes: &[Node], setup: &NodeSetup) -> Result<(), Problem> {
        let up: Vec<Node> = nodes.iter().filter(|node| self.is_up(node)).cloned().collect();
        making::at_once(&up, |node| {
            let script = setup::rewrite(layout, setup);
            let ran = node::run_script(self.yard, &node.name, "/bin/sh", &script, &Terms::root(making::SETUP))?;
            node::expect(ran, &node.name, "be told of the cluster's nodes").map(drop)
        })?;
        let controller = layout.controller();
        let script = start::end_one(Daemon::Controller);
        let ran = node::run_script(self.yard, &controller.name, "/bin/sh", &script, &Terms::root(making::SETUP))?;
        node::expect(ran, &controller.name, "end its controller")?;
        node::launch(self.yard, controller, Daemon::Controller)?;
        making::at_once(&up, |node| {
            let script = start::end_one(Daemon::Node);
            let ran = node::run_script(self.yard, &node.name, "/bin/sh", &script, &Terms::root(making::SETUP))?;
            node::expect(ran, &node.name, "end its daemon")?;
            node::launch(self.yard, node, Daemon::Node)
        })
    }

    /// A new cluster with the files of a stopped one: its nodes' roots, the homes, the accounts. Its keys are its own, its
    /// daemons start, and it remembers no job of the other's.
    ///
    /// # Errors
    /// The other is not stopped, the name or the port is taken, or a daemon did not come up: then nothing of the new one
    /// is left.
    pub fn fork(&self, from: &ClusterName, to: &ClusterName, ssh_port: Option<u16>) -> Result<ClusterInfo, Problem> {
        let registry = self.yard.registry()?;
        // Nobody starts or removes it while it is copied.
        let source = Claim::await_turn(&registry, |registry| self.row(registry, from), "fork the cluster")?;
        let spec = at_rest(&source.row).and_then(|layout| {
            let spec = ClusterSpec { ssh_port, ..layout.spec };
            spec.check().map_err(|error| Problem::from_error(ProblemKind::Usage, &error))?;
            Ok(spec)
        });
        let spec = match spec {
            Ok(spec) => spec,
            Err(problem) => {
                source.release(&registry)?;
                return Err(problem);
            }
        };
        self.create_by(&registry, to, &spec, |row| self.make_from(source, &row.id, &Layout::new(to, &spec)))
    }

    /// Makes a cluster with the files of another, which is let go of as soon as they are copied.
    fn make_from(&self, source: Claim, cluster: &str, layout: &Layout) -> Result<(), Problem> {
        let original = layout_of(&source.row)?.name;
        let id = source.row.id.clone();
        let mut setup = secrets::fresh(&layout.name, &layout.spec)?;
        self.folder(cluster).save(&setup)?;
        // The other's jobs and keys, once: what is written down is for later starts.
        setup.forget = true;
        let former = self.folder(&id).load()?.accounts;
        for account in &mut setup.accounts {
            let of_same = former.iter().find(|other| other.name == account.name);
            account.former = of_same.map(|other| other.key.public.clone());
        }
        step::reach(Step::ClusterKeys);
        let networks = self.yard.options().home.networks_folder();
        Folder::new(networks.clone(), cluster).copy_homes(&Folder::new(networks, &id))?;
        let held = Mutex::new((layout.nodes.len(), Some(source)));
        let made = making::bring_up(self.yard, layout, &setup, Queue::Empty, |node| {
            self.copy_node(&original, &id, layout, cluster, node)?;
            step::reach(Step::ClusterNode);
            let (left, source) = &mut *held.lock().unwrap_or_else(PoisonError::into_inner);
            *left -= 1;
            match source.take_if(|_| *left == 0) {
                Some(source) => source.release(&self.yard.registry()?),
                None => Ok(()),
            }
        });
        if let (_, Some(source)) = held.into_inner().unwrap_or_else(PoisonError::into_inner) {
            source.release(&self.yard.registry()?)?;
        }
        made
    }

    fn copy_node(
        &self,
        original: &ClusterName,
        source: &str,
        layout: &Layout,
        cluster: &str,
        node: &Node,
    ) -> Result<(), Problem> {
        let wanted = making::machine_spec(layout, cluster, node)?;
        let name = Node::of(original, node.number).name;
        if !self.yard.machines().info(&name).is_ok_and(|machine| is_of(&machine, source)) {
            let message = format!("node {name} of cluster {original} is gone");
            return Err(Problem::new(ProblemKind::NotFound, message));
        }
        let elsewhere = |spec: &MachineSpec| MachineSpec { network: wanted.network.clone(), ..spec.clone() };
        self.yard.machines().clone_as(&name, &node.name, elsewhere).map(drop)
    }

    /// Writes down a cluster, has it made, and removes it again where that fails.
    pub(super) fn create_by(
        &self,
        registry: &Registry,
        name: &ClusterName,
        spec: &ClusterSpec,
        make: impl FnOnce(&ClusterRow) -> Result<(), Problem>,
    ) -> Result<ClusterInfo, Problem> {
        let claim = Claim::reserve(self.yard, registry, name, spec)?;
        step::reach(Step::ClusterIntent);
        match make(&claim.row) {
            Ok(()) => {
                step::reach(Step::ClusterReady);
                claim.record(registry, ClusterState::Running, spec)?;
                claim.release(registry)?;
                let mut info = self.describe(&self.row(registry, name)?, &self.yard.machines().list()?)?;
                // So they were a moment ago; to ask again would take as long as a job.
                info.nodes.iter_mut().for_each(|node| node.slurm = Some("idle".to_owned()));
                Ok(info)
            }
            Err(problem) => Err(match ending::remove(self.yard, registry, claim) {
                Ok(()) => problem,
                Err(other) => problem
                    .because(format!("and removing what was made failed: {}", other.message))
                    .hint("testyard reap"),
            }),
        }
    }
}

/// A cluster that is stopped.
fn at_rest(row: &ClusterRow) -> Result<Layout, Problem> {
    if state_of(row)? == ClusterState::Stopped {
        return layout_of(row);
    }
    let message = format!("cluster {} is {}, and a fork begins with files at rest", row.name, row.state);
    Err(Problem::new(ProblemKind::WrongState, message)
        .hint(format!("stop it first: testyard cluster stop {}", row.name)))
}

fn expect_state(claim: &Claim, wanted: ClusterState) -> Result<(), Problem> {
    if state_of(&claim.row)? == wanted {
        return Ok(());
    }
    let message = format!("cluster {} is {}, not {}", claim.row.name, claim.row.state, wanted.as_str());
    Err(Problem::new(ProblemKind::WrongState, message).hint(format!("testyard cluster start {}", claim.row.name)))
}
