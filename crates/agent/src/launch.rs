//! The last steps before a command runs, in the forked child that becomes it.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::io::Errno;
use testyard_linux::namespace::{self, IdMap};
use testyard_linux::process::{self, CloneFlags};
use testyard_linux::{Error, signal, terminal};
use testyard_model::{Problem, ProblemKind, UserSpec};
use testyard_protocol::RawText;

use crate::account::{self, Account};

/// A command as the child needs it: already in its namespaces and root.
pub(crate) struct Launch<'a> {
    pub(crate) argv: &'a [RawText],
    pub(crate) cwd: Option<&'a Path>,
    /// Where it starts without one, if that is there; else at home.
    pub(crate) folder: Option<&'a Path>,
    /// Every variable, later ones over earlier ones.
    pub(crate) env: Vec<(&'a [u8], &'a [u8])>,
    pub(crate) user: &'a UserSpec,
    /// Standard input, output and error output; a terminal is all three.
    pub(crate) streams: Streams,
    /// In a user namespace with one id, a user other than root needs one more namespace to be itself.
    pub(crate) single_id: bool,
}

impl Launch<'_> {
    /// Whether the child may borrow its parent's memory until it execs: not where its memory must become readable to
    /// be somebody else, which would show the parent's.
    pub(crate) fn may_borrow(&self) -> bool {
        let own = rustix::process::getuid().as_raw();
        let stays = match self.user {
            UserSpec::Root => own == 0,
            UserSpec::Numbered { uid, .. } => own == *uid,
            UserSpec::Named(_) | UserSpec::Machine => false,
        };
        matches!(self.streams, Streams::Separate(_)) && (stays || !self.single_id)
    }
}

/// A command's standard streams.
pub(crate) enum Streams {
    Separate([OwnedFd; 3]),
    Terminal(OwnedFd),
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Becomes the command. Returns only if that fails.
pub(crate) fn launch(launch: Launch<'_>) -> Problem {
    match Ready::prepare(launch).and_then(|ready| ready.become_command()) {
        Ok(never) => match never {},
        Err(problem) => problem,
    }
}

fn system(error: Error) -> Problem {
    error.problem()
}

enum Never {}

/// A command whose every byte is there: what is left to do are system calls.
pub(crate) struct Ready {
    account: Account,
    cwd: CString,
    cwd_asked_for: bool,
    name: String,
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    streams: Streams,
    single_id: bool,
}

impl Ready {
    /// Looks the account up and puts every string together.
    pub(crate) fn prepare(launch: Launch<'_>) -> Result<Self, Problem> {
        let account = account::resolve(launch.user, Path::new("/"))?;
        let wanted = launch
            .cwd
            .or(launch.folder)
            .map(|cwd| cwd.as_os_str().as_bytes().to_vec())
            .or_else(|| account.home.clone().map(|home| home.into_os_string().into_encoded_bytes()));
        let cwd = CString::new(wanted.unwrap_or_else(|| b"/".to_vec()))
            .map_err(|_| Problem::new(ProblemKind::Usage, "the working folder's path contains a NUL byte"))?;
        let env = environment(&launch, &account)?;
        let argv = launch.argv.iter().map(|word| c_string(&word.0, "an argument")).collect::<Result<Vec<_>, _>>()?;
        let search = env.iter().find_map(|pair| pair.as_bytes().strip_prefix(b"PATH=")).unwrap_or(PATH.as_bytes());
        let name = launch.argv.first().map(|word| OsStr::from_bytes(&word.0)).unwrap_or_default();
        let candidates = process::resolve_program(name, Some(OsStr::from_bytes(search)), Path::new("."));
        let name = name.to_string_lossy().into_owned();
        let (cwd_asked_for, single_id) = (launch.cwd.is_some(), launch.single_id);
        Ok(Self { account, cwd, cwd_asked_for, name, candidates, argv, env, streams: launch.streams, single_id })
    }

    /// Becomes the command. Returns only if that fails.
    pub(crate) fn launch(&self) -> Problem {
        match self.become_command() {
            Ok(never) => match never {},
            Err(problem) => problem,
        }
    }

    fn become_command(&self) -> Result<Never, Problem> {
        signal::restore_default(signal::Signal::PIPE).map_err(system)?;
        signal::unblock_all().map_err(system)?;
        match &self.streams {
            // On a terminal the session starts together with taking it over.
            Streams::Terminal(terminal) => {
                terminal::make_controlling(terminal).map_err(system)?;
                install([terminal.as_fd(), terminal.as_fd(), terminal.as_fd()])?;
            }
            Streams::Separate([input, output, error]) => {
                process::set_session().map_err(system)?;
                install([input.as_fd(), output.as_fd(), error.as_fd()])?;
            }
        }
        self.become_user()?;
        enter_folder(&self.cwd, self.cwd_asked_for)?;
        let failure = process::execute_first(&self.candidates, &self.argv, &self.env);
        Err(command_problem(&self.name, &failure))
    }

    /// In a user namespace with one id, whoever is not that id needs one more namespace.
    fn needs_user_namespace(&self) -> bool {
        self.single_id && rustix::process::getuid().as_raw() != self.account.credentials.uid
    }

    fn become_user(&self) -> Result<(), Problem> {
        let Self { account, single_id, .. } = self;
        let mut credentials = account.credentials.clone();
        if *single_id {
            credentials.groups.clear();
        }
        if self.needs_user_namespace() {
            let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            // The maps of a process that may not be dumped belong to the host's root. Nobody but this user is inside.
            process::set_dumpable(true).map_err(system)?;
            namespace::unshare(CloneFlags::NEWUSER).map_err(system)?;
            let own = |inside, outside| [IdMap { inside, outside, count: 1 }];
            let (uids, gids) = (own(credentials.uid, uid), own(credentials.gid, gid));
            namespace::write_id_maps(rustix::process::getpid(), &uids, &gids, true).map_err(system)?;
        }
        process::become_user(&credentials, account.capable).map_err(|error| {
            error.problem().hint(
                "ids above 65535 do not exist in a machine that an ordinary user or root made from the host's ids",
            )
        })?;
        if account.capable { Ok(()) } else { process::drop_all_capabilities().map_err(system) }
    }
}

fn enter_folder(cwd: &CString, asked_for: bool) -> Result<(), Problem> {
    match rustix::process::chdir(cwd.as_c_str()) {
        Ok(()) => Ok(()),
        // A home that the image does not have is no reason to fail.
        Err(_) if !asked_for => rustix::process::chdir("/").map_err(|error| errno_problem("enter /", error)),
        Err(error) => Err(errno_problem(&format!("enter the working folder {}", cwd.to_string_lossy()), error)
            .hint("give an absolute path of a folder that is there and that the user may enter")),
    }
}

fn errno_problem(what: &str, error: Errno) -> Problem {
    Problem::new(ProblemKind::Command, format!("cannot {what}")).because(std::io::Error::from(error))
}

/// What went wrong at exec, in the words of a shell.
fn command_problem(name: &str, failure: &Error) -> Problem {
    let problem = Problem::new(ProblemKind::Command, format!("cannot run `{name}`"))
        .because(std::io::Error::from(failure.errno()));
    match failure.errno() {
        Errno::NOENT => problem.hint("check the name, the PATH inside the machine, and the interpreter of a script"),
        Errno::ACCESS => problem.hint("make it executable, or run it through its interpreter"),
        Errno::TOOBIG => problem
            .because("the kernel takes 2 MiB of arguments and variables together, and 128 KiB in one of them")
            .hint("pass long data on standard input or in a file"),
        _ => problem,
    }
}

fn environment(launch: &Launch<'_>, account: &Account) -> Result<Vec<CString>, Problem> {
    let mut merged: Vec<(&[u8], &[u8])> = Vec::with_capacity(launch.env.len() + 5);
    merged.push((b"PATH", PATH.as_bytes()));
    let (home, shell) = (account.home.as_deref(), account.shell.as_deref());
    let (home, shell) = (home.map(|path| path.as_os_str().as_bytes()), shell.map(|path| path.as_os_str().as_bytes()));
    let name = account.name.as_deref().map(str::as_bytes);
    let own: [(&[u8], Option<&[u8]>); 4] = [(b"HOME", home), (b"USER", name), (b"LOGNAME", name), (b"SHELL", shell)];
    merged.extend(own.into_iter().filter_map(|(name, value)| Some((name, value?))));
    for (name, value) in &launch.env {
        match merged.iter_mut().find(|pair| pair.0 == *name) {
            Some(pair) => pair.1 = value,
            None => merged.push((name, value)),
        }
    }
    merged
        .into_iter()
        .map(|(name, value)| {
            let mut pair = Vec::with_capacity(name.len() + value.len() + 1);
            pair.extend_from_slice(name);
            pair.push(b'=');
            pair.extend_from_slice(value);
            c_string(&pair, "an environment variable")
        })
        .collect()
}

fn c_string(bytes: &[u8], what: &str) -> Result<CString, Problem> {
    CString::new(bytes).map_err(|_| Problem::new(ProblemKind::Usage, format!("{what} contains a NUL byte")))
}

/// Puts three descriptors at 0, 1 and 2.
fn install(streams: [BorrowedFd<'_>; 3]) -> Result<(), Problem> {
    process::install_standard_streams(streams).map_err(system)
}
