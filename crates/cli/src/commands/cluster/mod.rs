//! `testyard cluster`

mod change;
mod create;
mod node;

use testyard_cluster::{ClusterInfo, ClusterName, NodeState};

use super::delete::delete_each;
use super::exec::Order;
use super::{DONE, Outcome};
use crate::describe::{age, now_ms};
use crate::output::{Output, table};
use crate::yard;

pub(crate) use create::Create as CreateCluster;

/// Clusters: machines on one network of their own, with Slurm on them.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Cluster {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ClusterCommand {
    Create(create::Create),
    List(List),
    Info(Info),
    Exec(Exec),
    Scale(change::Scale),
    Fork(change::Fork),
    Stop(change::Stop),
    Start(change::Start),
    Node(node::Nodes),
    Delete(Delete),
}

impl Cluster {
    pub(crate) fn run(self, output: Output) -> Outcome {
        match self.command {
            ClusterCommand::Create(command) => command.run(output),
            ClusterCommand::List(command) => command.run(output),
            ClusterCommand::Info(command) => command.run(output),
            ClusterCommand::Exec(command) => command.run(output),
            ClusterCommand::Scale(command) => command.run(output),
            ClusterCommand::Fork(command) => command.run(output),
            ClusterCommand::Stop(command) => command.run(output),
            ClusterCommand::Start(command) => command.run(output),
            ClusterCommand::Node(command) => command.run(output),
            ClusterCommand::Delete(command) => command.run(output),
        }
    }
}

/// List the clusters.
///
/// Example:
///     testyard cluster list
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, visible_alias = "ls")]
struct List {}

/// Show a cluster: its nodes, what Slurm says of each, and the way in.
///
/// Example:
///     testyard cluster info lab --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Info {
    /// The cluster's name
    name: ClusterName,
}

/// Run a command on a node.
///
/// It runs as the cluster's first user, in their home, unless told otherwise; everything else is
/// as with `testyard exec`.
///
/// Examples:
///     testyard cluster exec lab 1 -- srun -N3 hostname
///     testyard cluster exec lab lab-2 --user root -- scontrol show node lab-2
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Exec {
    /// The cluster's name
    name: ClusterName,
    /// The node: its number, 1 being the controller, or its name
    node: String,
    #[command(flatten)]
    order: Order,
}

/// Delete clusters: their machines, files and records, whatever runs there.
///
/// All of them are tried; the first error is the one that counts.
///
/// Example:
///     testyard cluster delete lab
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, visible_alias = "rm")]
struct Delete {
    /// The clusters' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<ClusterName>,
}

impl List {
    fn run(self, output: Output) -> Outcome {
        let clusters = yard::open()?.clusters().list()?;
        if output.json {
            output.json("clusters", &clusters)?;
            return DONE;
        }
        let now = now_ms();
        let rows: Vec<Vec<String>> = clusters
            .iter()
            .map(|cluster| {
                let running = cluster.nodes.iter().filter(|node| node.state == NodeState::Running).count();
                vec![
                    cluster.name.to_string(),
                    cluster.state.as_str().to_owned(),
                    cluster.kind.to_string(),
                    format!("{running}/{}", cluster.nodes.len()),
                    cluster.ssh.as_ref().map_or_else(String::new, |ssh| ssh.port.to_string()),
                    age(cluster.created_ms, now),
                ]
            })
            .collect();
        output.data(&table(&["NAME", "STATE", "KIND", "NODES", "SSH", "AGE"], &rows))?;
        DONE
    }
}

impl Info {
    fn run(self, output: Output) -> Outcome {
        let cluster = yard::open()?.clusters().info(&self.name)?;
        show(&cluster, output)
    }
}

impl Exec {
    fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        let (user, node) = yard.clusters().node(&self.name, &self.node)?;
        self.order.run(yard.connect(&node.name)?, Some(user), output)
    }
}

impl Delete {
    fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        delete_each("cluster", &self.names, output, |name| yard.clusters().delete(name))
    }
}

/// A cluster as data.
fn show(cluster: &ClusterInfo, output: Output) -> Outcome {
    if output.json {
        output.json("cluster", cluster)?;
        return DONE;
    }
    let mut text = format!("{} is {}, a cluster of {}\n", cluster.name, cluster.state.as_str(), cluster.kind);
    if let Some(ssh) = &cluster.ssh {
        text.push_str(&format!("ssh   ssh -i {} -p {} {}@{}\n", ssh.identity.display(), ssh.port, ssh.user, ssh.host));
    }
    if let Some(rest) = &cluster.rest {
        text.push_str(&format!("rest  {rest}\n"));
    }
    let rows: Vec<Vec<String>> = cluster
        .nodes
        .iter()
        .map(|node| {
            vec![
                node.name.to_string(),
                node.address.to_string(),
                node.state.as_str().to_owned(),
                node.slurm.clone().unwrap_or_default(),
            ]
        })
        .collect();
    text.push_str(&table(&["NODE", "ADDRESS", "MACHINE", "SLURM"], &rows));
    output.data(&text)?;
    DONE
}
