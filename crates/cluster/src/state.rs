//! A cluster as `list` and `info` show it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use testyard_model::{MachineName, MachineState};

use crate::names::{ClusterName, UserName};
use crate::spec::{ClusterKind, ClusterSpec};

/// Where a cluster is in its life.
///
/// ```text
/// creating ─► running ⇄ stopped
///     └──────────┴─► deleting ─► (gone)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterState {
    /// Written down; not every node answers yet.
    Creating,
    /// It was ready once. What its nodes are now is said of each.
    Running,
    /// It was stopped: its files are at rest, and others may be forked from them.
    Stopped,
    /// Being removed. A reaper finishes what was begun.
    Deleting,
}

impl ClusterState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Creating, Self::Running, Self::Stopped, Self::Deleting];

    /// The word for it, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Deleting => "deleting",
        }
    }

    /// From the word for it.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// A cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// Its stable id, and the name of its network.
    pub id: String,
    /// Its name.
    pub name: ClusterName,
    /// What runs it.
    pub kind: ClusterKind,
    /// Where it is in its life.
    pub state: ClusterState,
    /// What it was asked to be.
    pub spec: ClusterSpec,
    /// When it was created, in milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// The node with the controller.
    pub controller: MachineName,
    /// Its nodes, in order.
    pub nodes: Vec<NodeInfo>,
    /// The way in from this host, while the first node runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshAccess>,
    /// Where `slurmrestd` answers on this host, as `http://127.0.0.1:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<String>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// From 1 on.
    pub number: u16,
    /// Its host name, which is also its machine's name.
    pub name: MachineName,
    /// Its address in the cluster's network.
    pub address: Ipv4Addr,
    /// What its machine is.
    pub state: NodeState,
    /// What the controller says of it (`idle`, `mixed`, `down*` …), where it was asked and answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slurm: Option<String>,
}

/// What a node's machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Its machine runs.
    Running,
    /// Its machine runs, and its network leads nowhere.
    Cut,
    /// Its machine is stopped, failed, or between states.
    Down,
    /// There is no such machine.
    Absent,
}

impl NodeState {
    /// Of a machine in this state.
    #[must_use]
    pub fn of(machine: Option<MachineState>) -> Self {
        match machine {
            Some(MachineState::Running) => Self::Running,
            Some(_) => Self::Down,
            None => Self::Absent,
        }
    }

    /// The word for it, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Cut => "cut",
            Self::Down => "down",
            Self::Absent => "absent",
        }
    }
}

/// How to log in to the first node from this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshAccess {
    /// Always 127.0.0.1.
    pub host: Ipv4Addr,
    /// The port there.
    pub port: u16,
    /// As whom.
    pub user: UserName,
    /// The user's private key, a file that only you can read.
    pub identity: PathBuf,
    /// The servers' public key, as a line of `known_hosts` has it behind the host.
    pub host_key: String,
}
