//! What a backend tells the agent that it starts: one JSON document, read once.
//!
//! The agent is started on the host with three descriptors: [`LINK`] (a stream socket to its supervisor),
//! [`CONFIGURATION`] (a file with an [`AgentStart`]), and [`LISTENER`] (a listening socket by which a new
//! supervisor finds it when the old one died). Its first bytes on the link are its process id on the host,
//! four bytes little-endian, with its pidfd attached; frames follow.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use testyard_model::{InterfaceAddress, Publish, UserSpec};

use crate::text::RawText;

/// Descriptor of the link to the supervisor.
pub const LINK: i32 = 3;
/// Descriptor of the configuration.
pub const CONFIGURATION: i32 = 4;
/// Descriptor of the listening socket for a new supervisor.
pub const LISTENER: i32 = 5;
/// Descriptor of a lock that the agent only keeps open, if there is one: a layer that nobody may prune.
pub const HELD: i32 = 6;

/// The agent's first argument for a trial: the paths after it are a metadata tree and its data layers. It mounts them
/// in a user namespace and reads a file; it exits with 0, or says on standard output why not.
pub const TRY_ROOT: &str = "try-root";

/// The agent's first argument for work on files that bear granted ids: then come the first user id, the first group id
/// and how many there are, and [`REMOVE`] or [`COPY`] with two paths. It exits with 0, or says on standard output why not.
pub const WITH_GRANTED: &str = "with-granted";
/// Remove what is in a folder under a name.
pub const REMOVE: &str = "remove";
/// Copy what is in a folder to another, empty one.
pub const COPY: &str = "copy";

/// What the agent is to become.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentStart {
    /// The machine's id, for marks on processes.
    pub machine: String,
    /// Container or plain processes.
    pub mode: AgentMode,
    /// Whom commands run as by default.
    pub user: UserSpec,
    /// Variables that every command gets.
    pub env: Vec<(RawText, RawText)>,
    /// Where commands start that do not say; none means at home. One that is not there is no reason to fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<RawText>,
    /// The machine's cgroup, already made, by its path below the cgroup in which the agent is started; none where this host
    /// gives no writable one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Sentences on what this machine cannot isolate or limit, as far as the backend knows.
    #[serde(default)]
    pub limits: Vec<String>,
    /// The words of a program that is started in a command's stead, where the machine is on a host on which no agent may
    /// run; see [`relay`]. None means that commands are started here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relay: Vec<RawText>,
}

/// What an agent tells the program that it starts in a command's stead. Behind that program's own words come [`EXEC`], the
/// working folder (empty: at home), whether there is a terminal ([`TERMINAL`] or empty) and the command; or
/// [`RECEIVE`] or [`SEND`] and a path, with the stream of files as standard input and output.
pub mod relay {
    /// Run a command.
    pub const EXEC: &str = "exec";
    /// Make files out of a stream.
    pub const RECEIVE: &str = "receive";
    /// Make a stream out of files.
    pub const SEND: &str = "send";
    /// The command has a terminal.
    pub const TERMINAL: &str = "terminal";
    /// What the names of the command's own variables begin with, so that the relay itself does not obey them.
    pub const VARIABLE: &str = "TESTYARD_RELAYED_";
    /// This variable holds the number of the descriptor that takes a `Problem`, where no command or no files came to be.
    pub const FAILURE: &str = "TESTYARD_RELAY_FAILURE";
    /// This one the mark of all that a command starts, wherever it starts it.
    pub const MARK: &str = "TESTYARD_COMMAND";
}

/// How the agent keeps its machine apart from the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentMode {
    /// Plain processes in workspaces below this folder.
    Process {
        /// Where workspaces are made.
        workspaces: PathBuf,
    },
    /// Namespaces over a flat list of layers.
    Namespace(Box<NamespaceStart>),
}

/// A namespace machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamespaceStart {
    /// The machine's host name.
    pub host_name: String,
    /// Which ids it has.
    pub ids: IdRange,
    /// An empty folder on the host over which the staging area is mounted, in the machine's own mount namespace.
    pub staging: PathBuf,
    /// Folder on the host that holds `upper`, `work` and `generations`, owned by the machine's root.
    pub store: PathBuf,
    /// The root's layers, topmost first.
    pub layers: Vec<LayerStart>,
    /// Data-only layers below them (unprivileged view of the host), in order.
    pub data: Vec<PathBuf>,
    /// File systems of the host mounted below its root that are also seen copy-on-write.
    pub submounts: Vec<SubmountStart>,
    /// Paths of the host shown as they are: masked ones and foreign file systems.
    pub exposed: Vec<ExposedStart>,
    /// A file on the host with an ext4 file system that is the store, in place of the folder: it limits what is written.
    /// Its files have the ids that the machine shall see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<PathBuf>,
    /// Generations are kept on a tmpfs: the kernel refuses a layer that lies inside another layer, and `store` does
    /// where the host's own root is one.
    #[serde(default)]
    pub generations_in_memory: bool,
    /// Paths of the host that stay hidden in a working tree that holds them: secrets at home, Testyard's own folders.
    #[serde(default)]
    pub hidden: Vec<PathBuf>,
    /// Folders that are kept apart from the root, in the store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<PathBuf>,
    /// Whether the machine is given the command `docker`, which is the agent's own program under another name.
    #[serde(default)]
    pub docker: bool,
    /// Its network of its own; none means the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStart>,
}

/// A machine's place in a network of machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStart {
    /// The network's name, for messages.
    pub name: String,
    /// A file on the host that is locked while a member looks for the others.
    pub lock: PathBuf,
    /// A folder on the host with a file for each machine that belongs to the network, a [`NetworkMember`] in each.
    pub members: PathBuf,
    /// Where this machine hands the network on to those that come later.
    pub socket: PathBuf,
    /// Its address.
    pub address: InterfaceAddress,
    /// Whether there is a way out.
    pub outbound: bool,
    /// Ports of the host's 127.0.0.1 that lead inside.
    pub publish: Vec<Publish>,
    /// The table of hosts that all members see.
    pub hosts: PathBuf,
    /// Folders that all members see as one.
    pub shares: Vec<ShareStart>,
}

/// What is written down of a machine that belongs to a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkMember {
    /// The machine's name.
    pub name: String,
    /// Its address.
    pub address: InterfaceAddress,
    /// Where it hands the network on.
    pub socket: PathBuf,
}

/// A folder of the host's that machines see as one of theirs, with the ids that are written there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareStart {
    /// Where it is on the host.
    pub from: PathBuf,
    /// Where it is inside.
    pub path: PathBuf,
}

/// Which ids a machine has on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdRange {
    /// `count` ids from `first` on; layers are idmapped. Needs root.
    Range {
        /// The host's id of root inside.
        first: u32,
        /// How many; 65,536.
        count: u32,
    },
    /// The user's own id, which is root inside, and those that the host grants to the user, from 1 on. Nothing is
    /// idmapped.
    Granted {
        /// The first user id that is granted.
        uids: u32,
        /// The first group id.
        gids: u32,
        /// How many of each; at most 65,535.
        count: u32,
    },
    /// The user's one id, which is root inside.
    Single,
    /// No user namespace: root inside is the host's root.
    Host,
}

/// One layer of a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStart {
    /// Its folder on the host.
    pub path: PathBuf,
    /// Whether its files carry the ids that the machine shall see (they are then mapped).
    pub mapped: bool,
    /// Whether it is a small tree to be copied to a tmpfs first, because it lies inside another layer.
    #[serde(default)]
    pub copied: bool,
}

/// A file system below the host's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmountStart {
    /// Where it is, on the host and inside.
    pub path: PathBuf,
    /// A mask layer of its own, if anything in it is hidden.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
}

/// A path of the host that is shown as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposedStart {
    /// Where it is, on the host and inside.
    pub path: PathBuf,
    /// Whether what is written there is written on the host.
    pub writable: bool,
}
