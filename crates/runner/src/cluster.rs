//! A suite's cluster: what tests that use it are told of. It is made by the executor, and outlives no run.

use testyard_model::{ByteSize, ImageReference};

/// The cluster that a suite asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuiteCluster {
    /// How many nodes it has, 1 to [`SuiteCluster::MOST_NODES`].
    pub nodes: u16,
    /// Processors that each node declares; none leaves it to the executor, as everywhere below.
    pub cpus: Option<u16>,
    /// Memory that each node declares.
    pub memory: Option<ByteSize>,
    /// Its partitions as they are written: `debug`, or `long:1-2` for some nodes only.
    pub partitions: Vec<String>,
    /// Jobs are accounted for.
    pub accounting: bool,
    /// Its nodes reach what this host reaches.
    pub outbound: bool,
    /// Who logs in.
    pub user: Option<String>,
    /// What opens it.
    pub password: Option<String>,
    /// What its nodes start from.
    pub image: Option<ImageReference>,
    /// Every node sees the working tree, read-only, as it is at each moment.
    pub source: bool,
}

impl SuiteCluster {
    /// The most nodes, as of every cluster.
    pub const MOST_NODES: u16 = 200;
    /// The most processors that a node declares.
    pub const MOST_CPUS: u16 = 1024;
}
