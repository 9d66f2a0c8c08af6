//! `testyard cluster node`

use testyard_cluster::ClusterName;

use super::{Outcome, show};
use crate::output::Output;
use crate::yard;

/// Make nodes fail, and bring them back.
///
/// Examples:
///     testyard cluster node fail lab 3
///     testyard cluster node cut lab 2 && testyard cluster node restore lab 2
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Nodes {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// End everything on a node at once, as if its power had failed
    ///
    /// Example:
    ///     testyard cluster node fail lab 3
    #[command(verbatim_doc_comment)]
    Fail(Which),
    /// Take a node out of service: its jobs go on, it gets no others
    ///
    /// Example:
    ///     testyard cluster node drain lab 2
    #[command(verbatim_doc_comment)]
    Drain(Which),
    /// Cut a node off from the others: it goes on alone, and the controller notices within some seconds
    ///
    /// Example:
    ///     testyard cluster node cut lab 2
    #[command(verbatim_doc_comment)]
    Cut(Which),
    /// Bring back a node, or daemons of it that have ended; returns once it would get a job
    ///
    /// Example:
    ///     testyard cluster node restore lab 2
    #[command(verbatim_doc_comment)]
    Restore(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The cluster's name
    name: ClusterName,
    /// The node: its number or name
    node: String,
}

impl Nodes {
    pub(super) fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        let clusters = yard.clusters();
        let (which, done) = match &self.action {
            Action::Fail(which) => (which, clusters.fail(&which.name, &which.node).map(|()| "failed")?),
            Action::Drain(which) => (which, clusters.drain(&which.name, &which.node).map(|()| "drained")?),
            Action::Cut(which) => (which, clusters.cut(&which.name, &which.node).map(|()| "cut off")?),
            Action::Restore(which) => (which, clusters.restore(&which.name, &which.node).map(|()| "restored")?),
        };
        if output.json {
            return show(&clusters.info(&which.name)?, output);
        }
        let (_, node) = clusters.node(&which.name, &which.node)?;
        output.say(format_args!("{done} node {}", node.name));
        super::DONE
    }
}
