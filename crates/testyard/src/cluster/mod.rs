//! Clusters: machines on one network of their own with Slurm on them, made together and gone together.
//!
//! A row is written before the first machine. Its lease is held by whoever makes, changes or removes the cluster; a row
//! that says `creating` or `deleting` while nobody holds that lease is one to be removed, with every machine on the
//! cluster's network. A cluster of which no machine is left is forgotten.

mod changing;
mod claim;
mod ending;
mod faults;
mod holding;
mod making;
mod node;
mod resting;
mod secrets;

use std::net::Ipv4Addr;

use testyard_backends::namespace::expect_several;
use testyard_cluster::{
    ClusterInfo, ClusterName, ClusterSpec, ClusterState, Layout, Node, NodeInfo, NodeState, SshAccess, files,
};
use testyard_linux::step::{self, Step};
use testyard_model::{MachineInfo, MachineName, Problem, ProblemKind, UserSpec};
use testyard_registry::{ClusterRow, Registry};

use crate::machine::Machine;
use crate::yard::Testyard;
use claim::Claim;
pub(crate) use ending::{ReapedCluster, reap};
use secrets::Folder;

/// A home's clusters.
#[derive(Debug, Clone, Copy)]
pub struct Clusters<'y> {
    yard: &'y Testyard,
}

impl Testyard {
    /// Creating, changing and ending clusters.
    #[must_use]
    pub fn clusters(&self) -> Clusters<'_> {
        Clusters { yard: self }
    }
}

impl Clusters<'_> {
    /// Creates a cluster. Once this returns every node is idle, has answered a job, and its SSH server has sent its
    /// banner; otherwise nothing of it is left.
    ///
    /// # Errors
    /// The specification cannot be met, a name or port is taken, this host or the image lacks what nodes need, or a
    /// daemon did not come up: then its own last words are among the causes.
    pub fn create(&self, name: &ClusterName, spec: &ClusterSpec) -> Result<ClusterInfo, Problem> {
        spec.check().map_err(|error| Problem::from_error(ProblemKind::Usage, &error))?;
        if !spec.cgroups {
            expect_several(&format!("cluster {name}"), &spec.image)?;
        } else if !rustix::process::geteuid().is_root() {
            let message = "only root of the host lets control groups hold the jobs of a cluster";
            return Err(Problem::new(ProblemKind::Unsupported, message)
                .hint("leave --cgroups out: jobs then run without limits on their memory"));
        }
        let registry = self.yard.registry()?;
        self.create_by(&registry, name, spec, |row| self.make(row, name, spec))
    }

    fn make(&self, row: &ClusterRow, name: &ClusterName, spec: &ClusterSpec) -> Result<(), Problem> {
        let setup = secrets::fresh(name, spec)?;
        self.folder(&row.id).save(&setup)?;
        step::reach(Step::ClusterKeys);
        let layout = Layout::new(name, spec);
        let begin = |node: &Node| making::make(self.yard, &layout, &row.id, node);
        making::bring_up(self.yard, &layout, &setup, making::Queue::Empty, begin)
    }

    /// Every cluster of this home, by name, those that are being created or deleted too. Controllers are not asked.
    ///
    /// # Errors
    /// The registry failed.
    pub fn list(&self) -> Result<Vec<ClusterInfo>, Problem> {
        let registry = self.yard.registry()?;
        let rows = registry.list_clusters().map_err(|error| error.problem())?;
        let machines = self.yard.machines().list()?;
        rows.iter().map(|row| self.describe(row, &machines)).collect()
    }

    /// One cluster, with what its controller says of each node, where that answers.
    ///
    /// # Errors
    /// There is none of this name, or the registry failed.
    pub fn info(&self, name: &ClusterName) -> Result<ClusterInfo, Problem> {
        let registry = self.yard.registry()?;
        let row = self.row(&registry, name)?;
        let mut info = self.describe(&row, &self.yard.machines().list()?)?;
        if info.state == ClusterState::Running
            && info.nodes.first().is_some_and(|node| node.state == NodeState::Running)
        {
            let states = making::node_states(self.yard, &info.controller);
            for node in &mut info.nodes {
                let said = states.iter().find(|(known, _)| known == node.name.as_str());
                node.slurm = said.map(|(_, state)| state.clone());
            }
        }
        Ok(info)
    }

    /// A connection to a node, by its number (`2`) or name (`lab-2`).
    ///
    /// # Errors
    /// There is no such cluster or node, or the node is not running.
    pub fn connect(&self, name: &ClusterName, node: &str) -> Result<Machine, Problem> {
        self.yard.connect(&self.node(name, node)?.1.name)
    }

    /// Whom a cluster's commands run as, and the node that is meant.
    ///
    /// # Errors
    /// There is no such cluster or node.
    pub fn node(&self, name: &ClusterName, node: &str) -> Result<(UserSpec, Node), Problem> {
        let (_, layout, node) = self.find_node(name, node)?;
        Ok((UserSpec::Named(layout.spec.user().name.to_string()), node))
    }

    /// A node, with its cluster's row and layout.
    fn find_node(&self, name: &ClusterName, node: &str) -> Result<(ClusterRow, Layout, Node), Problem> {
        let registry = self.yard.registry()?;
        let row = self.row(&registry, name)?;
        let layout = layout_of(&row)?;
        let found = layout.find(node).cloned().ok_or_else(|| {
            let names: Vec<&str> = layout.nodes.iter().map(|node| node.name.as_str()).collect();
            Problem::new(ProblemKind::NotFound, format!("cluster {name} has no node {node:?}"))
                .because(format!("its nodes are {}", names.join(", ")))
                .hint(format!("testyard cluster info {name}"))
        })?;
        self.expect_own(&row.id, std::slice::from_ref(&found))?;
        Ok((row, layout, found))
    }

    /// Names prove nothing: a machine that was made under a node's name is not ours to run anything in, or to end.
    fn expect_own(&self, cluster: &str, nodes: &[Node]) -> Result<(), Problem> {
        let machines = self.yard.machines().list()?;
        let named = |node: &Node| machines.iter().find(|machine| machine.name == node.name);
        match nodes.iter().find(|node| named(node).is_some_and(|machine| !is_of(machine, cluster))) {
            None => Ok(()),
            Some(node) => {
                let message = format!("machine {} is no node of the cluster, and has the name of one", node.name);
                Err(Problem::new(ProblemKind::WrongState, message)
                    .hint(format!("call it something else: testyard rename {} NAME", node.name)))
            }
        }
    }

    /// Removes a cluster and all that is in it, whatever runs there.
    ///
    /// # Errors
    /// There is none of this name, another command is changing it, or something could not be removed: then the row
    /// stays, and a reaper tries again.
    pub fn delete(&self, name: &ClusterName) -> Result<(), Problem> {
        let registry = self.yard.registry()?;
        let claim = Claim::take(&registry, self.row(&registry, name)?, "delete the cluster")?;
        ending::remove(self.yard, &registry, claim)
    }

    fn row(&self, registry: &Registry, name: &ClusterName) -> Result<ClusterRow, Problem> {
        registry.find_cluster(name.as_str()).map_err(|error| error.problem())?.ok_or_else(|| {
            Problem::new(ProblemKind::NotFound, format!("there is no cluster {name}"))
                .hint("see those there are: testyard cluster list")
                .hint(format!("make it: testyard cluster create slurm {name} --nodes 3"))
        })
    }

    fn folder(&self, id: &str) -> Folder {
        Folder::new(self.yard.options().home.clusters_folder(), id)
    }

    fn describe(&self, row: &ClusterRow, machines: &[MachineInfo]) -> Result<ClusterInfo, Problem> {
        let layout = layout_of(row)?;
        let state = state_of(row)?;
        let find =
            |name: &MachineName| machines.iter().find(|machine| machine.name == *name && is_of(machine, &row.id));
        let nodes = layout.nodes.iter().map(|node| NodeInfo {
            number: node.number,
            name: node.name.clone(),
            address: node.address,
            state: NodeState::of(find(&node.name).map(|machine| machine.state)),
            slurm: None,
        });
        let controller = layout.controller();
        let port = |inside: u16| {
            let published = find(&controller.name)?.spec.network.private()?.publish.iter();
            published.copied().find(|one| one.machine == inside && one.host != 0).map(|one| one.host)
        };
        let host_key = || {
            let setup = self.folder(&row.id).load().ok()?;
            let words: Vec<&str> = setup.host_key.public.split_whitespace().take(2).collect();
            Some(words.join(" "))
        };
        let ssh = port(files::SSH_PORT).and_then(|port| {
            Some(SshAccess {
                host: Ipv4Addr::LOCALHOST,
                port,
                user: layout.spec.user().name.clone(),
                identity: self.folder(&row.id).identity(),
                host_key: host_key()?,
            })
        });
        Ok(ClusterInfo {
            id: row.id.clone(),
            name: layout.name.clone(),
            kind: layout.spec.kind,
            state,
            created_ms: row.created_ms,
            controller: controller.name.clone(),
            nodes: nodes.collect(),
            ssh,
            rest: port(files::REST_PORT).map(|port| format!("http://127.0.0.1:{port}")),
            spec: layout.spec,
        })
    }
}

/// Whether a machine is a node of this cluster: that is said by its own row, never by its name.
fn is_of(machine: &MachineInfo, cluster: &str) -> bool {
    machine.spec.network.private().is_some_and(|network| network.name.as_str() == cluster)
}

fn layout_of(row: &ClusterRow) -> Result<Layout, Problem> {
    let damaged = |why: String| {
        Problem::new(ProblemKind::System, format!("the row of cluster {} cannot be read", row.name)).because(why)
    };
    let name = row.name.parse::<ClusterName>().map_err(|error| damaged(error.to_string()))?;
    let spec: ClusterSpec = serde_json::from_value(row.spec.clone()).map_err(|error| damaged(error.to_string()))?;
    spec.check().map_err(|error| damaged(error.to_string()))?;
    Ok(Layout::new(&name, &spec))
}

fn state_of(row: &ClusterRow) -> Result<ClusterState, Problem> {
    ClusterState::from_word(&row.state).ok_or_else(|| {
        Problem::new(
            ProblemKind::System,
            format!("cluster {} is in a state that is not known: {}", row.name, row.state),
        )
    })
}
