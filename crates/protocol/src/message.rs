//! What is said on a connection.
//!
//! A client opens a connection with [`Hello`] on stream 0 and is answered by [`Welcome`]. It then opens
//! streams, each with one [`Request`]; the other side answers with [`Event`]s on the same stream, the last
//! of which is `exited`, `done` or `failed`. During a command the client may send [`Command`] messages.

use serde::{Deserialize, Serialize};
use testyard_model::{
    CommandStatus, EnvironmentId, EnvironmentSpec, MachineInfo, MachineName, Problem, Usage, UserSpec,
};

use crate::changes::Fetch;
use crate::text::RawText;

/// Whom a connection wants to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The agent: commands, files, environments.
    Agent,
    /// The supervisor: the machine's life.
    Supervisor,
}

/// A client's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version it speaks.
    pub oldest: u16,
    /// Newest protocol version it speaks.
    pub newest: u16,
    /// Whom it wants.
    pub role: Role,
    /// Its name and version, for logs.
    pub client: String,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version spoken from here on.
    pub version: u16,
    /// The answering program's name and version.
    pub server: String,
    /// Counts forks of this machine; 0 for one that was never forked.
    pub generation: u64,
    /// The machine is on another host (version 5): pipes, sockets and files that are attached travel as bytes, and
    /// what is more than bytes (a working tree's folder, namespaces) is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub elsewhere: bool,
}

/// Where one of a command's standard streams goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StreamTarget {
    /// `/dev/null`.
    #[default]
    Null,
    /// Data frames on the stream.
    Frames,
    /// The attached descriptor with this index (never a terminal).
    Attached(u8),
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// Where a command runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On the machine itself.
    #[default]
    Machine,
    /// In an environment that this or another connection holds.
    Environment(EnvironmentId),
    /// In an environment made for this command alone, which ends with it.
    Fresh(Box<EnvironmentSpec>),
}

/// Whether an environment that was made for one command outlives it. One that does is held by the connection that asked,
/// until it is released or kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Linger {
    /// It ends with its command.
    #[default]
    Never,
    /// It stays when the command did not exit with 0.
    Failed,
    /// It stays.
    Always,
}

impl Linger {
    /// Whether the environment stays after a command with this wait status.
    #[must_use]
    pub fn applies(self, wait_status: i32) -> bool {
        self.applies_to(wait_status == 0)
    }

    /// Whether the environment stays after a command that succeeded, or did not.
    #[must_use]
    pub fn applies_to(self, success: bool) -> bool {
        match self {
            Self::Never => false,
            Self::Failed => !success,
            Self::Always => true,
        }
    }
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments, verbatim; at least one.
    pub argv: Vec<RawText>,
    /// Working folder; none means the user's home, or the source where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<RawText>,
    /// Variables, over the machine's own basic ones.
    #[serde(default)]
    pub env: Vec<(RawText, RawText)>,
    /// Whom it runs as; none means the machine's or environment's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserSpec>,
    /// Standard input.
    #[serde(default)]
    pub stdin: StreamTarget,
    /// Standard output.
    #[serde(default)]
    pub stdout: StreamTarget,
    /// Error output.
    #[serde(default)]
    pub stderr: StreamTarget,
    /// A terminal for all three; its bytes travel as frames on channels 0 and 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// End the whole tree after so many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Let it live on when this connection ends.
    #[serde(default)]
    pub detach: bool,
    /// Send no `started`: one message less where nobody waits for it.
    #[serde(default)]
    pub quiet: bool,
    /// Where it runs.
    #[serde(default)]
    pub place: Place,
    /// A source given before with [`Request::Source`], shown at the environment's `source` path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<u32>,
    /// Host ports leased by the client for this command, told to it as `TESTYARD_PORTS`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Whether the environment of [`Place::Fresh`] outlives the command (version 3).
    #[serde(default, skip_serializing_if = "is_default")]
    pub linger: Linger,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Where a tree's bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// Data frames on channel 0 of the stream.
    Frames,
    /// The one attached descriptor, a pipe or socket.
    Attached,
    /// The one attached descriptor, a pipe between processes of one host (version 3): the tree comes in the form that
    /// only the kernel need touch.
    Pipe,
}

/// Files to receive or send.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// The path in the machine; relative ones are below the user's home.
    pub path: RawText,
    /// Whom the files belong to and are read as; none means whom commands of the environment, or else of the machine,
    /// run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserSpec>,
    /// How the bytes travel.
    pub carrier: Carrier,
    /// The environment whose files are meant; none means the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvironmentId>,
}

/// A tree to receive in the form of the `trees` crate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sync {
    /// Whom its files belong to; none means the machine's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserSpec>,
    /// How the bytes travel, both ways: [`Carrier::Frames`], or [`Carrier::Attached`] with a socket.
    pub carrier: Carrier,
}

/// Trees that were synced, shown as one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Synced {
    /// Their hashes, in hexadecimal; no two of them hold the same path.
    pub trees: Vec<String>,
    /// Where they are on the client's side, and are to be seen.
    pub path: RawText,
    /// Whom their files belong to: as in [`Sync`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserSpec>,
}

/// What opens a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Stream 0 only.
    Hello(Hello),
    /// Run a command: `started`, then `exited` or `failed`.
    Exec(Box<Exec>),
    /// Receive a tree (in the form of the `transfer` crate): `done` or `failed`.
    Push(Transfer),
    /// Send a tree: `done` or `failed`.
    Pull(Transfer),
    /// Make or lease an environment, held until released or this connection ends: `environment`.
    Environment(Box<EnvironmentSpec>),
    /// End an environment: `done`.
    Release(EnvironmentId),
    /// Hand out an environment for a process that already runs (version 2): `entered` with descriptors.
    Enter(EnvironmentId),
    /// As `enter`, with a source given before shown at the environment's `source` path first (version 4).
    EnterWith {
        /// Which environment.
        environment: EnvironmentId,
        /// The number of the source on this connection.
        source: u32,
    },
    /// Wait until something in an environment's network accepts connections on a port of its loopback: `done`, or
    /// `failed` with kind `timed-out` (version 3).
    Listening {
        /// The environment.
        environment: EnvironmentId,
        /// The port.
        port: u16,
        /// How long to wait, in milliseconds.
        patience_ms: u64,
    },
    /// Keep this many environments of this kind parked: `done` once they are.
    Park(Box<EnvironmentSpec>, u32),
    /// Here is the working tree, one attached descriptor (a detached mount, or a folder): `source`.
    Source {
        /// Its path on the host.
        path: RawText,
    },
    /// Receive a tree as what changed, keep it, and tell its hash (version 5): `done`.
    Sync(Sync),
    /// Let commands show a tree that was synced (version 5): `source`, or `failed` with kind `not-found`.
    Synced(Synced),
    /// Show a tree that was synced on the machine itself, copy-on-write, in place of the one that is shown there
    /// (version 5): `done`, or `failed` with kind `not-found`.
    Present(Synced),
    /// The namespaces of the machine, attached (`user`, then `mount`): `done` (version 2).
    Namespaces,
    /// Let an environment live on without a holder, for so many milliseconds from now (version 3): `done`.
    Keep {
        /// Which.
        environment: EnvironmentId,
        /// How long.
        for_ms: u64,
    },
    /// What was written, changed and deleted in an environment (version 3). One attached descriptor takes a
    /// [`crate::changes::ChangeLine`] a line: `done`.
    Changes {
        /// Which.
        environment: EnvironmentId,
        /// At most so many entries.
        limit: u32,
    },
    /// Some files of an environment (version 3). The attached socket brings a JSON list of paths up to its end, and takes a
    /// tree in the form of the `transfer` crate: `done`.
    Fetch(Fetch),
    /// Another environment with the same files, kept like the first (version 3): `environment`.
    Fork {
        /// Of which.
        environment: EnvironmentId,
        /// How long it is kept, in milliseconds.
        for_ms: u64,
    },
    /// Keep what was changed in an environment as a layer for others, by this name (version 3): `done`.
    Seal {
        /// Of which.
        environment: EnvironmentId,
        /// Lower-case letters and digits; [`testyard_model::EnvironmentSpec::layer`] names it then.
        layer: String,
    },
    /// Cut the machine off from the others of its network, or bring it back (version 5): `done`.
    Link {
        /// Whether it shall be connected.
        connected: bool,
    },
    /// What is there: `status`.
    Status,
    /// To the supervisor: the machine's description: `info`.
    Info,
    /// To the supervisor: end the machine's processes, its files stay: `done`.
    Stop {
        /// Kill at once.
        force: bool,
    },
    /// To the supervisor: remove the machine: `done`.
    Delete {
        /// Even when commands are running in it.
        force: bool,
    },
    /// To the supervisor: its name changed in the registry: `done`.
    Renamed(MachineName),
    /// To the supervisor: hold still and give the upper layer's state for a clone: `done`.
    Quiesce,
}

/// What may be said to a command that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Send a signal to it (to its group where it has a terminal).
    Signal(i32),
    /// Its terminal has a new size.
    Resize(TerminalSize),
    /// End it and all it started.
    Kill,
}

/// What comes back on a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Stream 0 only.
    Welcome(Welcome),
    /// The command runs.
    Started {
        /// Its process id on the host; 0 where it is only known inside.
        pid: i32,
        /// The environment it runs in, if any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        environment: Option<EnvironmentId>,
    },
    /// The command ended. The last event of its stream; its output was sent before.
    Exited {
        /// How.
        status: CommandStatus,
        /// What it used.
        usage: Usage,
        /// Its environment, where that stays (see [`Linger`]).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        environment: Option<EnvironmentId>,
    },
    /// The request could not be served. The last event.
    Failed(Problem),
    /// The request was served. The last event.
    Done,
    /// Here is the environment.
    Environment {
        /// Its number.
        id: EnvironmentId,
        /// Whether it was parked and waiting.
        parked: bool,
    },
    /// Descriptors of an environment are attached: its init's pidfd; its namespaces (user, mount, pid, ipc, uts, network,
    /// cgroup); the folder of the source's changes, where `changes` says so; then one cgroup folder a hierarchy. Joining them one by one works for whoever owns the machine; the
    /// pidfd serves only those who may trace its init.
    Entered {
        /// Its init's process id on the host.
        pid: i32,
        /// How many namespaces there are: 7, or 0 on backend `host`.
        #[serde(default)]
        namespaces: u8,
        /// The folder in which `upper` holds what is written to the source is attached: to be read there after the
        /// environment's end, too. For `enter-with` only.
        #[serde(default)]
        changes: bool,
    },
    /// The source's number on this connection.
    Source(u32),
    /// What is there.
    Status(AgentStatus),
    /// The machine's description.
    Info(Box<MachineInfo>),
}

/// What an agent is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Connections of clients.
    pub clients: u32,
    /// Commands that run.
    pub commands: u32,
    /// Environments that are being made, in use, or ending.
    pub environments: u32,
    /// Environments waiting to be used.
    pub parked: u32,
    /// Environments made since the agent started.
    pub made: u64,
    /// Environments that outlive their commands, held or kept, by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lasting: Vec<EnvironmentId>,
    /// Layers that were sealed, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<String>,
}

/// What the supervisor says to its agent, on stream 0 of their own link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Serve the attached connection; these bytes were already read from it.
    Adopt {
        /// Its first frame, a hello.
        read: RawText,
    },
    /// End everything: SIGTERM, then SIGKILL after so long.
    Shutdown {
        /// Milliseconds between the two.
        grace_ms: u64,
    },
    /// The machine has another name now, which is its host name.
    Rename(MachineName),
    /// This many more environments may be made: a block of slots was reserved in the registry.
    Slots {
        /// The first number.
        first: u64,
        /// How many.
        count: u64,
    },
}

/// What the agent says to its supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// It serves.
    Ready {
        /// Sentences on what this machine cannot isolate or limit.
        limits: Vec<String>,
    },
    /// It could not start.
    Broken(Problem),
    /// It went from idle to busy or back.
    Activity {
        /// Client streams, environments or commands that are open.
        open: u32,
    },
    /// It is running out of slots.
    NeedSlots,
}
