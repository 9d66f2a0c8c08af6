//! What a machine is that is an allocation of a Slurm cluster.

use serde::{Deserialize, Serialize};

use crate::remote::SshTransport;
use crate::units::Span;

/// A job of one node, asked for by `sbatch`. Its processors and memory are the machine's own limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct SlurmJob {
    /// Where; none means the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// For how long; none means the partition's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Span>,
    /// On whose account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// A whole node, whatever it has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
    /// How long it may wait for its node; none means five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<Span>,
    /// The host on which Slurm's commands are, where that is not this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submit: Option<SshTransport>,
}
