//! Where everything is: a state folder that lasts, and a runtime folder for sockets and locks of this boot.
//!
//! | folder | where, first that holds |
//! |---|---|
//! | state | `$TESTYARD_HOME` · `$XDG_STATE_HOME/testyard` · `$HOME/.local/state/testyard` |
//! | runtime | `$TESTYARD_HOME/run` · `$XDG_RUNTIME_DIR/testyard/<key>` · `/run/user/<uid>/testyard/<key>` · `/run/testyard/<key>` (root) · `<state>/run` |
//!
//! `<key>` is 10 characters made from the state folder's real path, so that two homes never share a runtime folder.
//! A place whose sockets' paths would not fit into 107 bytes, or that is not a folder of this user's alone, is passed
//! over; a shared folder such as `/tmp` is never one. The first client of a boot chooses and leaves the link
//! `<state>/runtime`, so that one from another session (cron, sudo) finds the same sockets.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use testyard_model::{MachineId, Problem, ProblemKind};

use crate::file_systems::network_file_system;
use crate::stable_hash::stable_hash;

/// The longest path that fits into a socket's address with its closing zero byte.
const LONGEST_SOCKET_PATH: usize = 107;

/// What comes after the runtime folder in a machine's socket path: `/<10 characters>/machine.sock`.
const SOCKET_SUFFIX: usize = 1 + 10 + 1 + SOCKET_NAME.len();

const SOCKET_NAME: &str = "machine.sock";

/// What a home is resolved from. Empty variables count as unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HomeEnvironment {
    /// `$TESTYARD_HOME`.
    pub testyard_home: Option<OsString>,
    /// `$XDG_STATE_HOME`; ignored unless absolute, as its specification says.
    pub xdg_state_home: Option<OsString>,
    /// `$XDG_RUNTIME_DIR`; likewise.
    pub xdg_runtime_dir: Option<OsString>,
    /// `$HOME`.
    pub home: Option<OsString>,
    /// The effective user id.
    pub uid: u32,
}

impl HomeEnvironment {
    /// This process's own.
    #[must_use]
    pub fn from_process() -> Self {
        let variable = std::env::var_os;
        Self {
            testyard_home: variable("TESTYARD_HOME"),
            xdg_state_home: variable("XDG_STATE_HOME"),
            xdg_runtime_dir: variable("XDG_RUNTIME_DIR"),
            home: variable("HOME"),
            uid: rustix::process::geteuid().as_raw(),
        }
    }
}

/// The two folders of one home, made and verified: 0700, this user's, local.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    state: PathBuf,
    runtime: PathBuf,
}

/// Why there is no usable home.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// No variable says where.
    #[error("no place for testyard's state: neither TESTYARD_HOME, XDG_STATE_HOME nor HOME is set")]
    Unset,
    /// `TESTYARD_HOME` depends on the working folder.
    #[error("TESTYARD_HOME is {path:?}, which is not absolute")]
    Relative {
        /// As given.
        path: PathBuf,
    },
    /// The registry keeps paths as text.
    #[error("the path {path:?} is not valid UTF-8")]
    NotText {
        /// As given.
        path: PathBuf,
    },
    /// Locks and memory maps do not work there as needed.
    #[error("{} is on a {file_system} file system, where locks of this host mean nothing to others", path.display())]
    Network {
        /// The folder.
        path: PathBuf,
        /// Which sort of file system.
        file_system: &'static str,
    },
    /// Somebody else's.
    #[error("{} belongs to user {owner}, not to user {uid}", path.display())]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// This user.
        uid: u32,
    },
    /// Others may enter it, and it holds something already.
    #[error("{} is open to others (mode {mode:03o}), and not empty", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Others may replace it.
    #[error("{} lies in {}, in which every user can replace it", path.display(), parent.display())]
    Replaceable {
        /// The folder.
        path: PathBuf,
        /// The one above it that everybody may write.
        parent: PathBuf,
    },
    /// There is something else of that name.
    #[error("{} is not a folder", path.display())]
    NotFolder {
        /// The path.
        path: PathBuf,
    },
    /// No runtime folder leaves room for a socket's name.
    #[error("no runtime folder is short enough: {} leaves no room for a socket's path of {LONGEST_SOCKET_PATH} bytes", state.display())]
    TooLong {
        /// The state folder.
        state: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    System {
        /// What was being done.
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl HomeError {
    /// The error as people see it, with what to do next.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let elsewhere = "set TESTYARD_HOME to a short absolute path on a local disk";
        let problem = |kind| Problem::from_error(kind, self);
        match self {
            Self::Unset | Self::Relative { .. } | Self::NotText { .. } => problem(ProblemKind::Usage).hint(elsewhere),
            Self::Network { .. } => problem(ProblemKind::Unsupported).hint(elsewhere),
            Self::Owner { uid: 0, .. } => problem(ProblemKind::Denied)
                .hint("sudo keeps HOME; give root its own: sudo -H testyard …")
                .hint(elsewhere),
            Self::NotFolder { .. } => problem(ProblemKind::Usage).hint(elsewhere),
            Self::Owner { .. } | Self::Replaceable { .. } => problem(ProblemKind::Denied).hint(elsewhere),
            Self::Open { path, .. } => {
                problem(ProblemKind::Denied).hint(format!("chmod 700 {}", path.display())).hint(elsewhere)
            }
            Self::TooLong { .. } => problem(ProblemKind::Usage)
                .hint(elsewhere)
                .hint("or give the session a runtime folder: XDG_RUNTIME_DIR"),
            Self::System { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                problem(ProblemKind::Denied).hint(elsewhere)
            }
            Self::System { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                problem(ProblemKind::Exhausted).hint("free some space, or set TESTYARD_HOME to another disk")
            }
            Self::System { .. } => problem(ProblemKind::System).hint(elsewhere),
        }
    }
}

impl Home {
    /// Finds this home's folders; makes those that are absent, and verifies them all.
    ///
    /// # Errors
    /// No place is given, or the one given is not this user's alone, not local, or too long.
    pub fn load(environment: &HomeEnvironment) -> Result<Self, HomeError> {
        let wanted = state_place(environment)?;
        refuse_network(&wanted)?;
        make_private(&wanted, environment.uid)?;
        let state = fs::canonicalize(&wanted).map_err(system("resolve", &wanted))?;
        if state.to_str().is_none() {
            return Err(HomeError::NotText { path: state });
        }
        refuse_replaceable(&state)?;
        let runtime = runtime_folder(environment, &state)?;
        let home = Self { state, runtime };
        for folder in [
            home.leases_folder(),
            home.machines_folder(),
            home.images_folder(),
            home.sync_folder(),
            home.returning_folder(),
            home.frozen_folder(),
        ] {
            make_private(&folder, environment.uid)?;
        }
        Ok(home)
    }

    /// What lasts: the registry, images, machines' files.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Sockets and locks of this boot.
    #[must_use]
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// The registry's SQLite file.
    #[must_use]
    pub fn registry_file(&self) -> PathBuf {
        self.state.join("registry.sqlite")
    }

    /// What became of each test lately: an SQLite file of its own.
    #[must_use]
    pub fn history_file(&self) -> PathBuf {
        self.state.join("history.sqlite")
    }

    /// Lock files of leases.
    #[must_use]
    pub fn leases_folder(&self) -> PathBuf {
        self.state.join("leases")
    }

    /// All machines' files.
    #[must_use]
    pub fn machines_folder(&self) -> PathBuf {
        self.state.join("machines")
    }

    /// Stored images.
    #[must_use]
    pub fn images_folder(&self) -> PathBuf {
        self.state.join("images")
    }

    /// Where runs are kept, each in a folder named by its id.
    #[must_use]
    pub fn runs_folder(&self) -> PathBuf {
        self.state.join("runs")
    }

    /// What is remembered of working trees between runs.
    #[must_use]
    pub fn sync_folder(&self) -> PathBuf {
        self.state.join("sync")
    }

    /// What is just being brought out of environments: a journal and a staging folder each.
    #[must_use]
    pub fn returning_folder(&self) -> PathBuf {
        self.state.join("returning")
    }

    /// What clusters are known by and log in with, in a folder each.
    #[must_use]
    pub fn clusters_folder(&self) -> PathBuf {
        self.state.join("clusters")
    }

    /// What private networks of machines have in common, in a folder each.
    #[must_use]
    pub fn networks_folder(&self) -> PathBuf {
        self.state.join("networks")
    }

    /// Immutable copies of working trees.
    #[must_use]
    pub fn frozen_folder(&self) -> PathBuf {
        self.state.join("frozen")
    }

    /// One machine's lasting files.
    #[must_use]
    pub fn machine_folder(&self, id: &MachineId) -> PathBuf {
        self.machines_folder().join(id.as_str())
    }

    /// One machine's sockets and locks.
    #[must_use]
    pub fn machine_runtime(&self, id: &MachineId) -> PathBuf {
        self.runtime.join(id.as_str())
    }

    /// The socket that one machine's supervisor listens on; at most 107 bytes.
    #[must_use]
    pub fn machine_socket(&self, id: &MachineId) -> PathBuf {
        self.machine_runtime(id).join(SOCKET_NAME)
    }
}

/// The state folder as the environment says.
fn state_place(environment: &HomeEnvironment) -> Result<PathBuf, HomeError> {
    if let Some(path) = environment.testyard_home.as_ref().filter(|text| !text.is_empty()).map(PathBuf::from) {
        return if path.is_absolute() { Ok(path) } else { Err(HomeError::Relative { path }) };
    }
    absolute(environment.xdg_state_home.as_ref())
        .or_else(|| Some(absolute(environment.home.as_ref())?.join(".local/state")))
        .map(|folder| folder.join("testyard"))
        .ok_or(HomeError::Unset)
}

fn absolute(variable: Option<&OsString>) -> Option<PathBuf> {
    variable.map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The places for a runtime folder in order of preference, with the folder that must already be there and be this
/// user's alone, if the place depends on one.
fn runtime_places(environment: &HomeEnvironment, state: &Path) -> Vec<(Option<PathBuf>, PathBuf)> {
    let key = MachineId::from_bits(stable_hash(state.as_os_str().as_bytes()));
    let in_session = |folder: PathBuf| {
        let place = folder.join("testyard").join(key.as_str());
        (Some(folder), place)
    };
    let own = (None, state.join("run"));
    let mut places = Vec::new();
    if environment.testyard_home.as_ref().is_some_and(|text| !text.is_empty()) {
        places.push(own.clone());
    }
    places.extend(absolute(environment.xdg_runtime_dir.as_ref()).map(in_session));
    places.push(in_session(PathBuf::from(format!("/run/user/{}", environment.uid))));
    if environment.uid == 0 {
        places.push((None, Path::new("/run/testyard").join(key.as_str())));
    }
    places.push(own);
    places.retain(|(_, place)| fits(place));
    places
}

/// Whether a machine's socket below this runtime folder can be addressed.
fn fits(runtime: &Path) -> bool {
    runtime.as_os_str().len() + SOCKET_SUFFIX <= LONGEST_SOCKET_PATH
}

/// Makes the runtime folder in the first place that can hold it.
fn runtime_folder(environment: &HomeEnvironment, state: &Path) -> Result<PathBuf, HomeError> {
    let uid = environment.uid;
    let link = state.join("runtime");
    if let Some(chosen) = fs::read_link(&link).ok().filter(|place| fits(place) && is_private(place, uid)) {
        return Ok(chosen);
    }
    let mut refused = None;
    for (session, place) in runtime_places(environment, state) {
        if session.is_some_and(|folder| !is_private(&folder, uid)) {
            continue;
        }
        // Two levels at most are ours to make, and both must be this user's alone.
        let parent = place.parent().filter(|parent| *parent != state && parent.ends_with("testyard"));
        match parent.map_or(Ok(()), |parent| make_private(parent, uid)).and_then(|()| make_private(&place, uid)) {
            Ok(()) => {
                remember(&link, &place)?;
                return Ok(place);
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| HomeError::TooLong { state: state.to_owned() }))
}

/// Leaves the link to the chosen runtime folder; one that points to an earlier boot's is replaced.
fn remember(link: &Path, place: &Path) -> Result<(), HomeError> {
    let fresh = link.with_extension(std::process::id().to_string());
    // One of a killed process, or none: both are fine.
    let _ = fs::remove_file(&fresh);
    symlink(place, &fresh)
        .and_then(|()| fs::rename(&fresh, link))
        .map_err(system("remember the runtime folder in", link))
}

/// Whether a folder is there and is this user's alone.
fn is_private(path: &Path, uid: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0)
}

/// Makes a folder of mode 0700 with what is missing above it, or verifies the one that is there. An empty folder
/// of this user's that is open to others is closed to them; a filled one is refused, as it may be there for them.
fn make_private(path: &Path, uid: u32) -> Result<(), HomeError> {
    // Links are followed: the last name of TESTYARD_HOME may be one that the user made.
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(system("make the folder", path))?;
            fs::metadata(path).map_err(system("look at", path))?
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(HomeError::NotFolder { path: path.to_owned() });
        }
        Err(error) => return Err(system("look at", path)(error)),
    };
    verify_private(path, &found, uid)
}

fn verify_private(path: &Path, found: &Metadata, uid: u32) -> Result<(), HomeError> {
    if !found.is_dir() {
        return Err(HomeError::NotFolder { path: path.to_owned() });
    }
    if found.uid() != uid {
        return Err(HomeError::Owner { path: path.to_owned(), owner: found.uid(), uid });
    }
    if found.mode() & 0o077 == 0 {
        return Ok(());
    }
    let mut entries = fs::read_dir(path).map_err(system("list", path))?;
    if entries.next().is_some() {
        return Err(HomeError::Open { path: path.to_owned(), mode: found.mode() & 0o777 });
    }
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(system("close to others", path))
}

/// Refuses a folder below one that everybody may write without the sticky bit: its name could be given to another.
fn refuse_replaceable(path: &Path) -> Result<(), HomeError> {
    for parent in path.ancestors().skip(1) {
        let mode = fs::symlink_metadata(parent).map_err(system("look at", parent))?.mode();
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            return Err(HomeError::Replaceable { path: path.to_owned(), parent: parent.to_owned() });
        }
    }
    Ok(())
}

/// Looks at the nearest folder that is there, so that nothing is made on a file system that is refused.
fn refuse_network(path: &Path) -> Result<(), HomeError> {
    for folder in path.ancestors() {
        match rustix::fs::statfs(folder) {
            Ok(found) => {
                return match network_file_system(found.f_type.cast_unsigned()) {
                    Some(file_system) => Err(HomeError::Network { path: path.to_owned(), file_system }),
                    None => Ok(()),
                };
            }
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) => return Err(HomeError::NotFolder { path: path.to_owned() }),
            Err(errno) => return Err(system("look at the file system of", path)(errno.into())),
        }
    }
    Ok(())
}

fn system(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HomeError {
    move |source| HomeError::System { action, path: path.to_owned(), source }
}
