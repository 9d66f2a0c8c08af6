//! What an environment is asked to be, and what it is found to have used.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::EnvironmentId;
use crate::units::ByteSize;
use crate::user::UserSpec;

/// How far a test is kept from others: a minimum, ordered from weakest to strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// A plain process on the machine.
    None,
    /// Own working folder, `TMPDIR`, ports and process tree.
    Workspace,
    /// Own root, processes, IPC, host name and network.
    #[default]
    Namespace,
    /// A machine of its own.
    Machine,
}

impl Isolation {
    /// Every level, weakest first.
    pub const ALL: [Self; 4] = [Self::None, Self::Workspace, Self::Namespace, Self::Machine];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Workspace => "workspace",
            Self::Namespace => "namespace",
            Self::Machine => "machine",
        }
    }
}

/// An environment's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Its own loopback, up, and nothing else.
    #[default]
    Private,
    /// Its own loopback and a route out.
    Outbound,
    /// The machine's network, shared.
    Host,
    /// Its own, with loopback down.
    None,
}

impl Network {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Private, Self::Outbound, Self::Host, Self::None];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Outbound => "outbound",
            Self::Host => "host",
            Self::None => "none",
        }
    }
}

/// A word that is none of those allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is not {article} {what}; choose one of {choices}")]
pub struct WordError {
    word: String,
    article: &'static str,
    what: &'static str,
    choices: String,
}

macro_rules! word {
    ($kind:ty, $article:literal, $what:literal) => {
        impl FromStr for $kind {
            type Err = WordError;

            fn from_str(word: &str) -> Result<Self, WordError> {
                Self::ALL.into_iter().find(|choice| choice.as_str() == word).ok_or_else(|| WordError {
                    word: word.to_owned(),
                    article: $article,
                    what: $what,
                    choices: Self::ALL.map(Self::as_str).join(", "),
                })
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

word!(Isolation, "an", "isolation level");
word!(Network, "a", "network");

/// Limits of one environment. What the host cannot set is reported in [`Usage::unavailable`].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentLimits {
    /// Memory in bytes, page cache included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Processor time, in cores: 0.5 is half of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Bytes written over the machine's root, on a tmpfs. Default [`EnvironmentLimits::DEFAULT_DISK`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
}

impl EnvironmentLimits {
    /// What an environment may write unless told otherwise.
    pub const DEFAULT_DISK: ByteSize = ByteSize::mebibytes(1024);
}

/// What an environment is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentSpec {
    /// [`Isolation::Workspace`] or [`Isolation::Namespace`]; the others are not made by an agent.
    pub isolation: Isolation,
    /// Its network. Below [`Isolation::Namespace`] there is only the machine's: [`Network::Outbound`] and [`Network::None`]
    /// are refused, and [`Network::Private`] means nothing, as older clients say it by default.
    #[serde(default)]
    pub network: Network,
    /// Whom its commands run as unless they say otherwise.
    pub user: UserSpec,
    /// Its limits.
    #[serde(default)]
    pub limits: EnvironmentLimits,
    /// Its host name; the default is its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// Where the working tree appears, when one is given with the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// Fail rather than run without a limit that the host cannot set.
    #[serde(default)]
    pub strict_limits: bool,
    /// A layer that was sealed on the machine before, seen above its own files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// It shares the network of this environment, which is held, instead of having its own; with
    /// [`Network::Private`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joins: Option<EnvironmentId>,
    /// Its own control groups are mounted at `/sys/fs/cgroup`: what runs containers inside needs them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cgroups: bool,
    /// It sees the machine's shared folders ([`crate::MachineSpec::share`]) as they are, and what it writes there stays.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

impl EnvironmentSpec {
    /// With nothing else asked for: a private network where there is one to be had, else the machine's.
    #[must_use]
    pub fn new(isolation: Isolation, user: UserSpec) -> Self {
        Self {
            isolation,
            network: if isolation >= Isolation::Namespace { Network::Private } else { Network::Host },
            user,
            limits: EnvironmentLimits::default(),
            host_name: None,
            source: None,
            strict_limits: false,
            layer: None,
            joins: None,
            cgroups: false,
            shared: false,
        }
    }
}

/// What an environment used, read from its cgroup where it has one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// From the command's start to its end.
    pub wall_us: u64,
    /// Processor time of everything in the environment.
    pub cpu_us: u64,
    /// The most memory at once, in bytes, page cache included where a cgroup told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak: Option<u64>,
    /// Bytes read from block devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_read: Option<u64>,
    /// Bytes written to block devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_write: Option<u64>,
    /// The memory limit ended something inside.
    #[serde(default)]
    pub out_of_memory: bool,
    /// Limits and readings that this host could not give, by name (`memory`, `pids`, `cpus`, `io`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<String>,
}
