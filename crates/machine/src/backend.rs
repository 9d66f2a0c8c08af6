//! What a backend is: it makes, starts, stops and removes machines, and yields a socket to the agent inside.
//!
//! Everything else (commands, files, environments, names, expiry) is written once, above and below it.
//! A backend writes down what it is about to make before it makes it, and what it made afterwards, so that
//! [`Backend::stopped`] and [`Backend::remove`] can work from the records alone.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use testyard_linux::identity::ProcessIdentity;
use testyard_model::{BackendName, MachineId, MachineName, MachineSpec, Problem, ProblemKind};

/// Where a machine's files are and what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct MachinePlace {
    /// Its stable id.
    pub id: MachineId,
    /// Its name now.
    pub name: MachineName,
    /// What it was asked to be.
    pub spec: MachineSpec,
    /// Its durable folder, `<state>/machines/<id>`, mode 0700; exists before any backend call.
    pub folder: PathBuf,
    /// Its folder for sockets, `<run>/<id>`, mode 0700; exists before any backend call.
    pub runtime: PathBuf,
    /// The folder of stored images.
    pub images: PathBuf,
    /// The agent's binary.
    pub agent: PathBuf,
    /// Testyard's own folders, which the machine must not see.
    pub masked: Vec<PathBuf>,
}

impl MachinePlace {
    /// The socket on which the supervisor listens for clients.
    #[must_use]
    pub fn machine_socket(&self) -> PathBuf {
        self.runtime.join("machine.sock")
    }

    /// The socket on which the agent itself listens, for a supervisor that replaces a dead one.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.runtime.join("agent.sock")
    }

    /// The socket at which whoever starts the machine answers what its login asks; there only while somebody does.
    #[must_use]
    pub fn asking_socket(&self) -> PathBuf {
        self.folder.join("ask.sock")
    }

    /// What the supervisor and the agent write about themselves.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("supervisor.log")
    }
}

/// What sort of thing a backend made; says what its place is. Its word is the registry's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    /// A control group; its place is its folder, one record a hierarchy.
    Cgroup,
    /// A folder with all that is in it.
    Folder,
    /// A pinned network namespace; its place is the file it is bound to.
    NetworkNamespace,
    /// A network interface; its place is its name.
    Interface,
    /// A process; its place is its role (`agent`, `pasta`).
    Process,
    /// A mount on the host; its place is the mount point.
    Mount,
    /// A file or socket.
    File,
}

/// What the kernel says a resource is, right after it was made: the only proof on which anything is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelIdentity {
    /// A folder, file, cgroup or pinned namespace.
    Inode {
        /// Device number as `stat` gives it.
        device: u64,
        /// Inode number.
        inode: u64,
    },
    /// A process.
    Process {
        /// Its number in the recording pid namespace.
        pid: i32,
        /// When it started, in clock ticks since the boot.
        start_ticks: u64,
    },
    /// A mount.
    Mount {
        /// Its unique id.
        id: u64,
    },
    /// A network interface.
    Interface {
        /// Its index in its network namespace.
        index: u32,
        /// Its hardware address, as the index alone is reused.
        address: [u8; 6],
    },
}

impl KernelIdentity {
    /// Of what is at `path` now, links not followed; none if nothing is.
    pub fn of_path(path: &Path) -> Result<Option<Self>, testyard_linux::Error> {
        match rustix::fs::lstat(path) {
            Ok(found) => Ok(Some(Self::Inode { device: found.st_dev, inode: found.st_ino })),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(errno) => Err(testyard_linux::Error::new("identify", path.display(), errno)),
        }
    }
}

/// A recorded resource's number, unique in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId(pub i64);

/// One resource as it was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedResource {
    /// Its number.
    pub id: ResourceId,
    /// What it is.
    pub kind: ResourceKind,
    /// Where it is: a path, a name or a role, as [`ResourceKind`] says.
    pub place: PathBuf,
    /// The kernel's identity of what was made; none while only intended: then it is removed only where the place
    /// itself proves whose it is (a path with the machine's id in it, in Testyard's own folders).
    pub identity: Option<KernelIdentity>,
}

/// Writing something down failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} in the registry")]
pub struct RecordError {
    /// What was tried, as a verb and its object.
    pub operation: &'static str,
    /// Why it failed, as the store says it.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
    /// The store's own account of it for people.
    pub problem: Box<Problem>,
}

impl RecordError {
    /// From the store's error and its account of it.
    pub fn new(
        operation: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
        problem: Problem,
    ) -> Self {
        Self { operation, source: source.into(), problem: Box::new(problem) }
    }

    /// For people.
    #[must_use]
    pub fn problem(&self) -> Problem {
        (*self.problem).clone()
    }
}

/// Writes down what a backend is about to make and what it has made.
pub trait Recorder {
    /// Before making things: the ids are in the order given. One commit, however many they are.
    fn intend(&mut self, resources: &[(ResourceKind, &Path)]) -> Result<Vec<ResourceId>, RecordError>;
    /// After making them: the kernel's identity of each.
    fn made(&mut self, made: &[(ResourceId, KernelIdentity)]) -> Result<(), RecordError>;
    /// They are no longer there.
    fn gone(&mut self, gone: &[ResourceId]) -> Result<(), RecordError>;
    /// All that is written down for this machine, oldest first.
    fn all(&self) -> Result<Vec<RecordedResource>, RecordError>;
}

/// A started agent.
#[derive(Debug)]
pub struct AgentLink {
    /// A stream socket to the agent for the supervisor's orders; passes descriptors.
    pub socket: OwnedFd,
    /// The agent's process as the host sees it.
    pub process: ProcessIdentity,
    /// The same process, to wait for and to signal.
    pub pidfd: OwnedFd,
}

/// Why a backend could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The specification asks for something that this backend, or this host, does not have.
    #[error("backend {backend} cannot give a machine {ability}")]
    Unsupported {
        /// Which backend.
        backend: BackendName,
        /// What was asked for: `4 processors`, `architecture aarch64`.
        ability: String,
        /// What would provide it, if anything: the next command to type.
        hint: Option<String>,
    },
    /// No machine of this backend has it, on whatever host: another backend is meant.
    #[error("backend {backend} cannot give a machine {ability}")]
    NotOffered {
        /// Which backend.
        backend: BackendName,
        /// What was asked for.
        ability: String,
        /// Which backend has it, or what to leave out.
        hint: String,
    },
    /// The host refused something that should have worked.
    #[error("cannot {operation} of machine {machine}")]
    Host {
        /// What was tried, as a verb and its object: `make the folders`.
        operation: &'static str,
        /// Whose.
        machine: MachineName,
        /// The kernel's answer.
        #[source]
        source: testyard_linux::Error,
    },
    /// What was to be made could not be written down, so it was not made.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Something in between (an image, another program) failed and accounts for itself.
    #[error("{}", .0.message)]
    Refused(Box<Problem>),
}

impl BackendError {
    /// For people.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Unsupported { hint, .. } => {
                let problem = Problem::from_error(ProblemKind::Unsupported, self);
                match hint {
                    Some(hint) => problem.hint(hint),
                    None => problem.hint("run `testyard doctor` to see what this host can do"),
                }
            }
            Self::NotOffered { hint, .. } => Problem::from_error(ProblemKind::Usage, self).hint(hint),
            Self::Host { source, .. } => Problem::from_error(kind_of_errno(source.source.raw_os_error()), self),
            Self::Record(error) => error.problem(),
            Self::Refused(problem) => (**problem).clone(),
        }
    }
}

impl From<Problem> for BackendError {
    fn from(problem: Problem) -> Self {
        Self::Refused(Box::new(problem))
    }
}

/// What a refusal of the kernel means to a person.
pub(crate) fn kind_of_errno(errno: Option<i32>) -> ProblemKind {
    match errno {
        Some(libc::EACCES | libc::EPERM) => ProblemKind::Denied,
        Some(libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN) => {
            ProblemKind::Exhausted
        }
        _ => ProblemKind::System,
    }
}

/// Makes, starts, stops and removes machines of one kind.
pub trait Backend: Send + Sync {
    /// Its name on the command line and in the registry.
    fn name(&self) -> BackendName;

    /// Refuses a specification that it cannot fulfil whole; nothing is ever silently dropped.
    fn check(&self, spec: &MachineSpec) -> Result<(), BackendError>;

    /// Makes the machine's files. No process of it runs afterwards.
    fn create(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError>;

    /// Starts the agent; its caller waits for it to say that it serves.
    fn start(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<AgentLink, BackendError>;

    /// The agent has ended: removes what only a running machine has. Works from the records alone, and
    /// again after being interrupted.
    fn stopped(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError>;

    /// Removes everything that [`Backend::create`] made. Works from the records alone, and again after being
    /// interrupted. The folders of `place` themselves are removed by the caller.
    fn remove(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError>;

    /// Why a machine has ended that nobody asked to end, where somebody else knows; asked before [`Backend::stopped`].
    /// `said` is what its agent said of it, where that could.
    fn ending(&self, _place: &MachinePlace, _said: Option<&Problem>) -> Option<Problem> {
        None
    }

    /// Makes `to` a machine with the same files as `from`, in place of [`Backend::create`].
    fn copy(&self, from: &MachinePlace, to: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError>;
}

/// Makes a backend when a machine of it is met.
pub type BackendFactory = fn() -> Box<dyn Backend>;

/// The backends there are, by name.
#[derive(Debug, Clone, Default)]
pub struct BackendTable {
    factories: BTreeMap<String, BackendFactory>,
}

/// No backend has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no backend `{name}`; there are: {known}")]
pub struct UnknownBackend {
    name: String,
    known: String,
}

impl UnknownBackend {
    /// For people.
    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem::from_error(ProblemKind::Usage, self).hint("leave --backend out to let testyard choose")
    }
}

impl BackendTable {
    /// A table without any.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a backend, in place of one that has the same name.
    #[must_use]
    pub fn with(mut self, name: &BackendName, factory: BackendFactory) -> Self {
        self.factories.insert(name.as_str().to_owned(), factory);
        self
    }

    /// The backend of this name.
    pub fn get(&self, name: &BackendName) -> Result<Box<dyn Backend>, UnknownBackend> {
        match self.factories.get(name.as_str()) {
            Some(factory) => Ok(factory()),
            None => Err(UnknownBackend {
                name: name.as_str().to_owned(),
                known: self.factories.keys().cloned().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.factories.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_backend_lists_those_there_are() {
        fn none() -> Box<dyn Backend> {
            unreachable!("nothing asks for it")
        }
        let table = BackendTable::new().with(&BackendName::host(), none).with(&BackendName::namespace(), none);
        let Err(error) = table.get(&"qemu".parse().expect("a name")) else { panic!("there is no such backend") };
        assert_eq!(error.to_string(), "there is no backend `qemu`; there are: host, namespace");
        assert_eq!(error.problem().kind, ProblemKind::Usage);
    }
}
