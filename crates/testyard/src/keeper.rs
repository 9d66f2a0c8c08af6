//! The supervisor process: how it is started, and what it runs.
//!
//! ```text
//! client ── spawns ─► testyard supervise ── forks ─► the supervisor (own session, child of init)
//!    │                     (ends at once)                │
//!    └── reads ◄──────── one line: ready, or why not ────┘
//! ```
//!
//! The supervisor's standard input is the machine's lock, its output the pipe to whoever waits, its error output the
//! machine's log: so the lock is held without a gap from before the row is written until the machine has ended.

use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_link::asking::Asking;
use testyard_linux::process::{self, CloneFlags, CloneOptions, Forked, SingleThreaded};
use testyard_linux::signal::{self, Signal, SignalFd};
use testyard_linux::step::{self, Step};
use testyard_machine::backend::{KernelIdentity, MachinePlace, ResourceKind};
use testyard_machine::supervisor::{
    Announcement, Creator, Records as _, Setup, Task, await_announcement, prove_folder, supervise,
};
use testyard_model::{ExitCode, MachineId, MachineInfo, MachineState, Problem, ProblemKind, Transport};
use testyard_registry::Lease;

use crate::options::Options;
use crate::records::{RegistryRecords, info_of};
use crate::yard::Testyard;

/// Starts the machine's supervisor, which takes the lease over, and waits until the machine is up.
pub(crate) fn start(
    yard: &Testyard,
    place: &MachinePlace,
    lease: Lease,
    from: Option<&MachineId>,
    adopt: bool,
) -> Result<Box<MachineInfo>, Problem> {
    make_folder(yard, place)?;
    // Until the machine is up, or is not.
    let _asking = if adopt { None } else { ask(yard, place)? };
    let log = open_log(place)?;
    let (heard, told) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| local("make a pipe", errno.into()))?;
    let lock = lease.as_fd().try_clone_to_owned().map_err(|error| local("hand the lock on", error))?;
    let mut command = Command::new(&yard.options().program);
    command.arg("supervise").arg("--id").arg(place.id.as_str());
    if let Some(from) = from {
        command.arg("--from").arg(from.as_str());
    }
    if adopt {
        command.arg("--adopt");
    }
    if let Some(home) = &yard.options().testyard_home {
        command.env("TESTYARD_HOME", home);
    }
    command.stdin(Stdio::from(lock)).stdout(Stdio::from(told)).stderr(Stdio::from(log));
    let mut child = command.spawn().map_err(|error| {
        let program = yard.options().program.display();
        Problem::new(ProblemKind::NotFound, format!("cannot start the supervisor's program {program}"))
            .because(error)
            .hint("install it: cargo xtask install")
    })?;
    // The command holds our ends of what the child was given.
    drop(command);
    step::reach(Step::CreateSupervisorSpawned);
    // It forks and ends; what stays is the supervisor.
    child.wait().map_err(|error| local("wait for the supervisor's start", error))?;
    drop(lease);
    await_announcement(heard, &place.log())
}

/// Answers what the machine's login asks, where somebody is there who can.
fn ask(yard: &Testyard, place: &MachinePlace) -> Result<Option<Asking>, Problem> {
    let socket = place.asking_socket();
    Asking::forget(&socket);
    let logs_in = place
        .spec
        .remote
        .as_ref()
        .is_some_and(|remote| matches!(&remote.transport, Transport::Ssh(ssh) if ssh.password.is_none()));
    yard.options().ask.filter(|_| logs_in).map(|answer| Asking::begin(&socket, answer)).transpose()
}

/// Makes the machine's folder and writes down which it is; one that somebody put in its place is refused.
fn make_folder(yard: &Testyard, place: &MachinePlace) -> Result<(), Problem> {
    let mut records = RegistryRecords::open(&yard.options().home).map_err(|error| error.problem())?;
    let mut recorder = records.recorder(&place.id);
    prove_folder(place, &*recorder).map_err(|error| error.problem())?;
    let known = recorder.all().map_err(|error| *error.problem)?;
    let known = known.into_iter().find(|one| one.kind == ResourceKind::Folder && one.place == place.folder);
    let id = match known {
        Some(known) => known.id,
        None => {
            let ids = recorder.intend(&[(ResourceKind::Folder, &place.folder)]).map_err(|error| *error.problem)?;
            ids.into_iter().next().ok_or_else(|| Problem::new(ProblemKind::Bug, "a folder was not written down"))?
        }
    };
    match DirBuilder::new().mode(0o700).create(&place.folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(no_folder(place, error)),
        _ => {}
    }
    let identity = KernelIdentity::of_path(&place.folder).map_err(|error| error.problem())?;
    let made: Vec<_> = identity.into_iter().map(|identity| (id, identity)).collect();
    recorder.made(&made).map_err(|error| *error.problem)
}

fn open_log(place: &MachinePlace) -> Result<File, Problem> {
    let opened = File::options().create(true).append(true).mode(0o600).open(place.log());
    opened.map_err(|error| no_folder(place, error))
}

fn no_folder(place: &MachinePlace, error: std::io::Error) -> Problem {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ProblemKind::Exhausted,
        _ => ProblemKind::System,
    };
    Problem::new(kind, format!("cannot make the folder of machine {}", place.name))
        .because(format!("{}: {error}", place.folder.display()))
}

fn local(what: &str, error: std::io::Error) -> Problem {
    Problem::new(ProblemKind::System, format!("cannot {what}")).because(error)
}

/// What the hidden command `supervise` runs: becomes the machine's supervisor, and never returns.
///
/// To be called before any thread is started, in a process that [`start`] made: with the machine's lock as standard
/// input and somebody at the other end of standard output.
pub fn supervise_main(options: Options, id: &MachineId, from: Option<&MachineId>, adopt: bool) -> ! {
    step::prepare();
    let code = match detach(&options, id) {
        Ok((lock, told)) => match prepare(options, id, from, adopt, lock) {
            Ok(mut setup) => {
                setup.creator = Creator::new(Some(told));
                let place = setup.place.clone();
                match supervise(setup) {
                    Ok(()) => ExitCode::Passed,
                    Err(error) => {
                        let problem = error.problem(&place);
                        log_problem(&problem);
                        ExitCode::of_problem(problem.kind)
                    }
                }
            }
            Err(problem) => {
                log_problem(&problem);
                // When nobody listens, the row tells whoever looks next.
                let _ = Creator::new(Some(told)).tell(&Announcement::Failed(problem.clone()));
                ExitCode::of_problem(problem.kind)
            }
        },
        Err(problem) => {
            log_problem(&problem);
            ExitCode::of_problem(problem.kind)
        }
    };
    process::exit_immediately(code.code().into())
}

/// [`supervise_main`] with the words that came after `supervise`.
pub fn supervise_command(options: Options, words: impl IntoIterator<Item = String>) -> ! {
    let mut words = words.into_iter();
    let (mut id, mut from, mut adopt) = (None, None, false);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--id" => id = words.next().and_then(|id| id.parse().ok()),
            "--from" => from = words.next().and_then(|id| id.parse().ok()),
            "--adopt" => adopt = true,
            _ => {}
        }
    }
    match id {
        Some(id) => supervise_main(options, &id, from.as_ref(), adopt),
        None => process::exit_immediately(ExitCode::Usage.code().into()),
    }
}

/// Writes to the machine's log.
fn log_problem(problem: &Problem) {
    let mut text = format!("supervisor: {problem}\n");
    for cause in &problem.causes {
        text.push_str(&format!("supervisor:   because {cause}\n"));
    }
    // There is nowhere to say that the log cannot be written.
    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
}

/// Leaves the client's session, and takes the lock and the pipe away from the standard streams.
fn detach(options: &Options, id: &MachineId) -> Result<(OwnedFd, OwnedFd), Problem> {
    let failed = |error: testyard_linux::Error| error.problem();
    let system = |errno: rustix::io::Errno| local("set up the supervisor", errno.into());
    let lock = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(system)?;
    let told = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).map_err(system)?;
    let file = options.home.leases_folder().join(format!("{id}.supervisor"));
    let (ours, theirs) = (rustix::fs::fstat(&lock).map_err(system)?, rustix::fs::stat(&file).map_err(system)?);
    if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino) {
        return Err(Problem::new(ProblemKind::Usage, "`supervise` is started by testyard itself only"));
    }
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(system)?;
    rustix::stdio::dup2_stdin(&null).map_err(system)?;
    rustix::stdio::dup2_stdout(&null).map_err(system)?;
    drop(null);
    // What else the client had open is not ours to keep open for the machine's whole life.
    let kept: Vec<_> = [lock.as_fd(), told.as_fd()].into_iter().chain(step::log()).collect();
    process::close_range_from(3, &kept).map_err(failed)?;
    // Nor is what it keeps from its threads: see `Asking`.
    signal::unblock_all().map_err(failed)?;
    let alone = SingleThreaded::check().map_err(failed)?;
    match process::clone3(alone, CloneFlags::NONE, CloneOptions::default()).map_err(failed)? {
        Forked::Parent(_) => process::exit_immediately(0),
        Forked::Child => {}
    }
    process::set_session().map_err(failed)?;
    rustix::process::chdir("/").map_err(system)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    process::set_subreaper(true).map_err(failed)?;
    Ok((lock, told))
}

fn prepare(
    options: Options,
    id: &MachineId,
    from: Option<&MachineId>,
    adopt: bool,
    lock: OwnedFd,
) -> Result<Setup, Problem> {
    // Not `open`: a supervisor does not reap.
    let yard = Testyard::bare(options);
    let registry = yard.registry()?;
    let load = |id: &MachineId| {
        let row = registry.load(id).map_err(|error| error.problem())?;
        row.map(info_of).ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no machine {id}")))
    };
    let info = load(id)?;
    let task = match (info.state, from) {
        (MachineState::Creating, None) => Task::Create,
        (MachineState::Creating, Some(from)) => Task::Copy(Box::new(yard.place_of_info(&load(from)?))),
        (MachineState::Running, _) if adopt => Task::Adopt,
        (MachineState::Stopped | MachineState::Failed, _) => Task::Start,
        (state, _) => {
            let message = format!("machine {} is {state}, which no supervisor begins with", info.name);
            return Err(Problem::new(ProblemKind::WrongState, message));
        }
    };
    let signals = SignalFd::new(&[Signal::TERM, Signal::INT, Signal::HUP, Signal::CHLD]);
    let home = yard.options().home.clone();
    Ok(Setup {
        place: yard.place_of_info(&info),
        backend: yard.backend(&info.spec.backend)?,
        info,
        runtime: home.runtime().to_path_buf(),
        open_records: Box::new(move || RegistryRecords::open_boxed(&home)),
        task,
        lock,
        creator: Creator::new(None),
        signals: signals.map_err(|error| error.problem())?,
        own_process: true,
    })
}
