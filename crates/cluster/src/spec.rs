//! What a cluster is asked to be, and why it cannot be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use testyard_model::{ByteSize, Exposure, ImageReference};

use crate::names::{NameError, UserName, check_partition};

/// What runs the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterKind {
    /// Slurm: `slurmctld` on the first node, `slurmd` on all of them.
    #[default]
    Slurm,
}

impl ClusterKind {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slurm => "slurm",
        }
    }
}

impl fmt::Display for ClusterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a cluster is to be. [`ClusterSpec::check`] says what is wrong with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    /// What runs it.
    #[serde(default)]
    pub kind: ClusterKind,
    /// How many nodes; the first is also the controller.
    pub nodes: u16,
    /// Processors that each node declares, whatever the host has.
    #[serde(default = "usual_cpus")]
    pub cpus: u16,
    /// Memory that each node declares.
    #[serde(default = "usual_memory")]
    pub memory: ByteSize,
    /// Its partitions; the first is the default one.
    #[serde(default = "usual_partitions")]
    pub partitions: Vec<Partition>,
    /// Whether jobs are accounted for: `slurmdbd` over MariaDB on the first node.
    #[serde(default)]
    pub accounting: bool,
    /// Whether `slurmrestd` answers on the first node.
    #[serde(default)]
    pub slurmrestd: bool,
    /// Pretended graphics processors of each node (`--gres=gpu:N`).
    #[serde(default)]
    pub gpus: u16,
    /// Whether memory and processes of jobs are held by control groups, which end a job as `OUT_OF_MEMORY`; else Slurm
    /// counts what jobs ask for, and ends none of them for what it takes: public suites ask for less than their jobs
    /// need. Needs root on hosts with control groups of version 1.
    #[serde(default)]
    pub cgroups: bool,
    /// A way out to what the host reaches.
    #[serde(default)]
    pub outbound: bool,
    /// Who has a home in it; the first is whom its commands run as.
    #[serde(default = "usual_users")]
    pub users: Vec<User>,
    /// The host's port on 127.0.0.1 that leads to the first node's SSH server; none takes a free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_port: Option<u16>,
    /// What its nodes start from.
    #[serde(default = "usual_image")]
    pub image: ImageReference,
    /// Paths of this host that every node sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<Exposure>,
}

/// Somebody with a home in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The name.
    pub name: UserName,
    /// The password that this cluster's SSH servers take; without one only keys open them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// A part of the nodes that jobs ask for by name: `debug`, or `long:1-2+4` for some nodes only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The name.
    pub name: String,
    /// Which nodes; none means all of them.
    pub nodes: Vec<NodeRange>,
}

/// Nodes by number, both ends included; the first node is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// Why a cluster cannot be as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Too few or too many nodes.
    #[error("a cluster of {0} nodes cannot be made: ask for 1 to {max}", max = ClusterSpec::MAX_NODES)]
    Nodes(u16),
    /// Too few or too many processors.
    #[error("a node cannot declare {0} processors: ask for 1 to {max}", max = ClusterSpec::MAX_CPUS)]
    Cpus(u16),
    /// Too little memory.
    #[error("a node cannot declare {0} of memory: ask for {least} at least", least = ClusterSpec::LEAST_MEMORY)]
    Memory(ByteSize),
    /// Too many pretended processors.
    #[error("a node cannot pretend to have {0} graphics processors: ask for at most {max}", max = ClusterSpec::MAX_GPUS)]
    Gpus(u16),
    /// No partition at all.
    #[error("a cluster without a partition runs no job: name one, such as debug")]
    NoPartition,
    /// Not a partition.
    #[error(
        "{0:?} is not a partition: write a name, and its nodes behind a colon where it has not all, such as long:1-2+4"
    )]
    Partition(String),
    /// The same name twice.
    #[error("partition {0} is named twice")]
    PartitionTwice(String),
    /// A node that the cluster does not have.
    #[error("partition {partition} has node {node}, and the cluster only nodes 1 to {nodes}")]
    NoSuchNode {
        /// The partition.
        partition: String,
        /// The node that is not there.
        node: u16,
        /// How many there are.
        nodes: u16,
    },
    /// Nobody.
    #[error("a cluster needs a user whom its commands run as")]
    NoUser,
    /// The same user twice.
    #[error("user {0} is named twice")]
    UserTwice(UserName),
    /// A password that cannot be typed.
    #[error("the password of {0} is empty, longer than 128 bytes, or holds a control character")]
    Password(UserName),
    /// Not a port.
    #[error("port 0 is none: leave the SSH port out, and a free one is taken")]
    Port,
    /// A name.
    #[error(transparent)]
    Name(#[from] NameError),
}

fn usual_cpus() -> u16 {
    4
}

fn usual_memory() -> ByteSize {
    ByteSize::mebibytes(4096)
}

fn usual_partitions() -> Vec<Partition> {
    vec![Partition { name: "debug".to_owned(), nodes: Vec::new() }]
}

fn usual_users() -> Vec<User> {
    vec![User { name: UserName::usual(), password: None }]
}

fn usual_image() -> ImageReference {
    ImageReference::Host
}

impl ClusterSpec {
    /// The most nodes.
    pub const MAX_NODES: u16 = 200;
    /// The most processors that a node declares.
    pub const MAX_CPUS: u16 = 1024;
    /// The most graphics processors that a node pretends to have.
    pub const MAX_GPUS: u16 = 64;
    /// The least memory that a node declares.
    pub const LEAST_MEMORY: ByteSize = ByteSize::mebibytes(16);

    /// So many nodes, everything else as usual.
    #[must_use]
    pub fn new(nodes: u16) -> Self {
        Self {
            kind: ClusterKind::Slurm,
            nodes,
            cpus: usual_cpus(),
            memory: usual_memory(),
            partitions: usual_partitions(),
            accounting: false,
            slurmrestd: false,
            gpus: 0,
            cgroups: false,
            outbound: false,
            users: usual_users(),
            ssh_port: None,
            image: usual_image(),
            expose: Vec::new(),
        }
    }

    /// Whom its commands run as.
    ///
    /// # Panics
    /// It was not checked, and has no user.
    #[must_use]
    pub fn user(&self) -> &User {
        &self.users[0]
    }

    /// Whether it can be made as it is written.
    ///
    /// # Errors
    /// What is wrong with it, the first that is found.
    pub fn check(&self) -> Result<(), SpecError> {
        if !(1..=Self::MAX_NODES).contains(&self.nodes) {
            return Err(SpecError::Nodes(self.nodes));
        }
        if !(1..=Self::MAX_CPUS).contains(&self.cpus) {
            return Err(SpecError::Cpus(self.cpus));
        }
        if self.memory < Self::LEAST_MEMORY {
            return Err(SpecError::Memory(self.memory));
        }
        if self.gpus > Self::MAX_GPUS {
            return Err(SpecError::Gpus(self.gpus));
        }
        if self.ssh_port == Some(0) {
            return Err(SpecError::Port);
        }
        self.check_partitions()?;
        self.check_users()
    }

    fn check_partitions(&self) -> Result<(), SpecError> {
        if self.partitions.is_empty() {
            return Err(SpecError::NoPartition);
        }
        for (index, partition) in self.partitions.iter().enumerate() {
            check_partition(&partition.name)?;
            if self.partitions[..index].iter().any(|other| other.name.eq_ignore_ascii_case(&partition.name)) {
                return Err(SpecError::PartitionTwice(partition.name.clone()));
            }
            let beyond = partition.nodes.iter().flat_map(|range| [range.first, range.last]);
            if let Some(node) = beyond.into_iter().find(|node| *node > self.nodes) {
                return Err(SpecError::NoSuchNode { partition: partition.name.clone(), node, nodes: self.nodes });
            }
        }
        Ok(())
    }

    fn check_users(&self) -> Result<(), SpecError> {
        if self.users.is_empty() {
            return Err(SpecError::NoUser);
        }
        for (index, user) in self.users.iter().enumerate() {
            if self.users[..index].iter().any(|other| other.name == user.name) {
                return Err(SpecError::UserTwice(user.name.clone()));
            }
            let fits =
                |password: &String| (1..=128).contains(&password.len()) && !password.chars().any(char::is_control);
            if user.password.as_ref().is_some_and(|password| !fits(password)) {
                return Err(SpecError::Password(user.name.clone()));
            }
        }
        Ok(())
    }
}

impl FromStr for Partition {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let bad = || SpecError::Partition(text.to_owned());
        let Some((name, nodes)) = text.split_once(':') else {
            check_partition(text)?;
            return Ok(Self { name: text.to_owned(), nodes: Vec::new() });
        };
        check_partition(name)?;
        let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0).ok_or_else(bad);
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let range = NodeRange { first: number(first)?, last: number(last)? };
            if range.first <= range.last { Ok(range) } else { Err(bad()) }
        };
        Ok(Self { name: name.to_owned(), nodes: nodes.split('+').map(range).collect::<Result<_, _>>()? })
    }
}

impl fmt::Display for NodeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (index, range) in self.nodes.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { ':' } else { '+' })?;
        }
        Ok(())
    }
}

impl Serialize for Partition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Partition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(change: impl FnOnce(&mut ClusterSpec)) -> String {
        let mut spec = ClusterSpec::new(3);
        change(&mut spec);
        spec.check().expect_err("it cannot be made").to_string()
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(ClusterSpec::new(3).check(), Ok(()));
        assert!(refused(|spec| spec.nodes = 0).contains("0 nodes"));
        assert!(refused(|spec| spec.nodes = 201).contains("1 to 200"));
        assert!(refused(|spec| spec.cpus = 0).contains("0 processors"));
        assert!(refused(|spec| spec.memory = ByteSize(1)).contains("16M at least"));
        assert!(refused(|spec| spec.gpus = 65).contains("65 graphics"));
        assert!(refused(|spec| spec.ssh_port = Some(0)).contains("port 0"));
        assert!(refused(|spec| spec.partitions.clear()).contains("without a partition"));
        assert!(refused(|spec| spec.partitions = vec!["a:4".parse().expect("a partition")]).contains("node 4"));
        let twice = vec!["a".parse().expect("a partition"), "A:1".parse().expect("a partition")];
        assert!(refused(|spec| spec.partitions = twice).contains("named twice"));
        assert!(refused(|spec| spec.users.clear()).contains("needs a user"));
        assert!(refused(|spec| spec.users[0].password = Some("a\nb".to_owned())).contains("password of slurm"));
        assert!(refused(|spec| spec.users = [usual_users(), usual_users()].concat()).contains("slurm is named twice"));
    }

    #[test]
    fn partitions_name_their_nodes() {
        for text in ["debug", "long:1-2+4", "gpu:3"] {
            assert_eq!(text.parse::<Partition>().expect(text).to_string(), text);
        }
        for bad in ["", "a:", "a:0", "a:2-1", "a:x", "a:1,2", ":1", "a:1-", "a=1"] {
            assert!(bad.parse::<Partition>().is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_keys_are_errors() {
        assert!(serde_json::from_str::<ClusterSpec>(r#"{"nodes": 3}"#).is_ok());
        assert!(serde_json::from_str::<ClusterSpec>(r#"{"nodes": 3, "node": 1}"#).is_err());
    }

    proptest! {
        #[test]
        fn a_spec_survives_json(nodes in 1..200_u16, cpus in 1..99_u16, gpus in 0..9_u16, accounting: bool) {
            let partitions = vec![format!("long:1-{nodes}").parse().expect("a partition")];
            let spec = ClusterSpec { cpus, gpus, accounting, partitions, ..ClusterSpec::new(nodes) };
            prop_assert_eq!(spec.check(), Ok(()));
            let json = serde_json::to_string(&spec).expect("plain data");
            prop_assert_eq!(serde_json::from_str::<ClusterSpec>(&json).expect("its own output"), spec);
        }

        #[test]
        fn no_text_is_read_as_a_partition_that_says_more(text in "\\PC{0,20}") {
            if let Ok(partition) = text.parse::<Partition>() {
                prop_assert!(partition.name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')));
            }
        }
    }
}
