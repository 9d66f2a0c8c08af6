//! `testyard cluster scale`, `fork`, `stop` and `start`

use testyard_cluster::{ClusterInfo, ClusterName};

use super::{DONE, Outcome, show};
use crate::output::Output;
use crate::yard;

/// Give a running cluster more nodes, or fewer.
///
/// Jobs on nodes that stay go on. Nodes go from the last one on; their jobs are ended, or begun
/// anew elsewhere, as they ask for.
///
/// Example:
///     testyard cluster scale lab --nodes 5
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Scale {
    /// The cluster's name
    name: ClusterName,
    /// How many nodes it is to have
    #[arg(long, short, value_name = "N")]
    nodes: u16,
}

/// Create a cluster with the files of a stopped one.
///
/// Its nodes begin with the other's roots, homes and accounts. Keys are its own, its daemons start,
/// and it remembers no job of the other's.
///
/// Examples:
///     testyard cluster stop lab
///     testyard cluster fork lab lab2
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Fork {
    /// The cluster to begin with
    name: ClusterName,
    /// What to call the new one
    new: ClusterName,
    /// The port of this host's 127.0.0.1 that leads to the first node's SSH server [default: a free one]
    #[arg(long, value_name = "PORT")]
    ssh_port: Option<u16>,
}

/// Stop a cluster: its daemons in good order, then its machines; its files stay.
///
/// Example:
///     testyard cluster stop lab
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Stop {
    /// The cluster's name
    name: ClusterName,
}

/// Start a stopped cluster, or what has ended of one that runs.
///
/// Example:
///     testyard cluster start lab
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Start {
    /// The cluster's name
    name: ClusterName,
}

impl Scale {
    pub(super) fn run(self, output: Output) -> Outcome {
        tell(&yard::open()?.clusters().scale(&self.name, self.nodes)?, "scaled", output)
    }
}

impl Fork {
    pub(super) fn run(self, output: Output) -> Outcome {
        tell(&yard::open()?.clusters().fork(&self.name, &self.new, self.ssh_port)?, "created", output)
    }
}

impl Stop {
    pub(super) fn run(self, output: Output) -> Outcome {
        tell(&yard::open()?.clusters().stop(&self.name)?, "stopped", output)
    }
}

impl Start {
    pub(super) fn run(self, output: Output) -> Outcome {
        tell(&yard::open()?.clusters().start(&self.name)?, "started", output)
    }
}

/// What has become of a cluster: its description for programs, a remark for people.
pub(super) fn tell(cluster: &ClusterInfo, done: &str, output: Output) -> Outcome {
    if output.json {
        return show(cluster, output);
    }
    let way = cluster.ssh.as_ref().map_or_else(String::new, |ssh| format!(", ssh on port {}", ssh.port));
    output.say(format_args!("{done} cluster {}: {} nodes{way}", cluster.name, cluster.nodes.len()));
    DONE
}
