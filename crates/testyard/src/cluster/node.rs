//! What is done on one node: commands of root's, and daemons that stay.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use testyard_cluster::setup::{self, FILES_OF_NOBODY, MISSING_PROGRAMS, TOO_FEW_IDS};
use testyard_cluster::{Daemon, Node, Readiness};
use testyard_linux::files::in_memory;
use testyard_machine::client::{Awaited, Captured, ClientError, PortWait, RunningCommand};
use testyard_model::{CommandStatus, EnvironmentId, MachineName, Problem, ProblemKind, UserSpec, milliseconds};
use testyard_protocol::{Exec, StreamTarget};

use crate::machine::Machine;
use crate::yard::Testyard;

/// Whom a command runs as, and how long it may take.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) user: UserSpec,
    pub(super) patience: Duration,
}

impl Terms {
    pub(super) fn root(patience: Duration) -> Self {
        Self { user: UserSpec::Root, patience }
    }
}

/// Runs a script of a shell's to its end. It comes through standard input: keys in it are no arguments.
pub(super) fn run_script(
    yard: &Testyard,
    node: &MachineName,
    shell: &str,
    script: &str,
    terms: &Terms,
) -> Result<Captured, Problem> {
    let failed = |error: std::io::Error| {
        Problem::new(ProblemKind::System, format!("cannot hand node {node} its orders")).because(error)
    };
    let file = in_memory("testyard-orders", script.as_bytes()).map_err(failed)?;
    let exec = Exec { stdin: StreamTarget::Attached(0), ..exec(&[shell, "-s"], terms) };
    yard.connect(node)?.connection().capture(exec, &[file.as_fd()]).map_err(|error| error.problem())
}

/// Runs a command to its end.
pub(super) fn run(machine: &mut Machine, argv: &[&str], terms: &Terms) -> Result<Captured, Problem> {
    machine.capture(exec(argv, terms))
}

fn exec(argv: &[&str], terms: &Terms) -> Exec {
    Exec {
        argv: argv.iter().map(|word| (*word).into()).collect(),
        cwd: Some("/".into()),
        user: Some(terms.user.clone()),
        timeout_ms: Some(milliseconds(terms.patience)),
        ..Exec::default()
    }
}

/// What a command wrote, where it ended well; else why not, under the name of what was being done.
pub(super) fn expect(captured: Captured, node: &MachineName, doing: &str) -> Result<String, Problem> {
    let printed = String::from_utf8_lossy(&captured.stdout).into_owned();
    let said = String::from_utf8_lossy(&captured.stderr).into_owned();
    let ended = match captured.finished.status {
        CommandStatus::Exited(0) => return Ok(printed),
        CommandStatus::TimedOut => {
            return Err(because_of(
                Problem::new(ProblemKind::TimedOut, format!("node {node} did not {doing} in time")),
                &said,
            ));
        }
        status => status.shell_code(),
    };
    if ended == TOO_FEW_IDS {
        return Err(too_few_ids(node));
    }
    if ended == FILES_OF_NOBODY {
        return Err(files_of_nobody(node));
    }
    if ended == MISSING_PROGRAMS {
        return Err(missing(node, said.trim()));
    }
    let problem = Problem::new(ProblemKind::Unavailable, format!("node {node} could not {doing} (exit code {ended})"));
    Err(because_of(problem, &said))
}

/// The image lacks programs that a node needs.
fn missing(node: &MachineName, programs: &str) -> Problem {
    let words: Vec<&str> = programs.split_whitespace().collect();
    let names: Vec<&str> = words.iter().map(|word| word.rsplit('/').next().unwrap_or(word)).collect();
    let mut packages: Vec<&str> = words.iter().filter_map(|word| setup::package_of(word)).collect();
    packages.dedup();
    Problem::new(ProblemKind::Unsupported, format!("the image of node {node} has no {}", names.join(", ")))
        .hint("take an image that has them: testyard image build slurm, then --image slurm")
        .hint(format!("or install them here: apt-get install --no-install-recommends {}", packages.join(" ")))
}

/// A node whose daemons cannot be different users: it has other ids than were to be expected.
fn too_few_ids(node: &MachineName) -> Problem {
    let message = format!("node {node} has too few user ids: Slurm's daemons run as several users");
    Problem::new(ProblemKind::Unsupported, message)
        .hint("see what `user-namespace-range` needs here: testyard doctor --refresh")
}

/// This kernel lets an ordinary user see the host's files, and not have them.
fn files_of_nobody(node: &MachineName) -> Problem {
    let message = format!("the host's files belong to nobody on node {node}, and accounts cannot be written");
    Problem::new(ProblemKind::Unsupported, message)
        .because("its root is a composed one: see what `overlay-data-only` says in testyard doctor")
        .hint("take an image instead of the host: testyard image build slurm, then --image slurm")
}

/// The last lines as causes.
pub(super) fn because_of(problem: Problem, said: &str) -> Problem {
    // Every daemon of Debian's complains of a library for MPI that it does without.
    let matters = |line: &&str| !line.trim().is_empty() && !line.contains("mpi/pmix") && !line.contains("MPI:");
    let lines: Vec<&str> = said.lines().filter(matters).collect();
    lines.iter().skip(lines.len().saturating_sub(8)).fold(problem, |problem, line| problem.because(line.trim()))
}

/// Starts a daemon, and waits until it serves. Where its readiness is said by another, it is watched until `stop` can
/// be read: one that ends before that is an error at once.
pub(super) fn start(yard: &Testyard, node: &Node, daemon: Daemon, stop: BorrowedFd<'_>) -> Result<(), Problem> {
    start_until(yard, node, daemon, daemon.readiness(), stop)
}

fn start_until(
    yard: &Testyard,
    node: &Node,
    daemon: Daemon,
    ready: Readiness,
    stop: BorrowedFd<'_>,
) -> Result<(), Problem> {
    let failed = |error: ClientError| error.problem();
    let patience = daemon.patience();
    let deadline = Instant::now() + patience;
    let (mut keeper, mut waiter) = (yard.connect(&node.name)?, yard.connect(&node.name)?);
    let command = daemon.command();
    let started = Exec { detach: true, timeout_ms: None, ..exec(&["/bin/sh", "-c", &command], &Terms::root(patience)) };
    let mut running = keeper.connection().exec(started, &[]).map_err(failed)?;
    let mut watch = match ready {
        Readiness::Later => Watch::Stop(stop),
        Readiness::Port(port) => {
            Watch::Port(waiter.connection().listening(EnvironmentId(0), port, patience).map_err(failed)?)
        }
        Readiness::Socket(path) => {
            let look = format!("until test -S {path}; do sleep 0.01; done");
            let look = exec(&["/bin/sh", "-c", &look], &Terms::root(patience));
            Watch::Socket(waiter.connection().exec(look, &[]).map_err(failed)?)
        }
    };
    loop {
        match running.wait_or(&[watch.as_fd()], Some(deadline)).map_err(failed)? {
            Awaited::Finished(_) => return Err(ended(yard, node, daemon)),
            Awaited::Started => {}
            Awaited::DeadlinePassed => return Err(silent(yard, node, daemon)),
            Awaited::Readable(_) => match watch.is_ready() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(_) => return Err(silent(yard, node, daemon)),
            },
        }
    }
}

/// As [`start`], for one whose readiness is asked for afterwards.
pub(super) fn launch(yard: &Testyard, node: &Node, daemon: Daemon) -> Result<(), Problem> {
    launch_until(yard, node, daemon, daemon.readiness())
}

/// As [`launch`], for one that others know already: it returns once they reach it.
pub(super) fn launch_again(yard: &Testyard, node: &Node, daemon: Daemon) -> Result<(), Problem> {
    launch_until(yard, node, daemon, daemon.address())
}

fn launch_until(yard: &Testyard, node: &Node, daemon: Daemon, ready: Readiness) -> Result<(), Problem> {
    let (stop, theirs) = std::os::unix::net::UnixStream::pair()
        .map_err(|error| Problem::new(ProblemKind::System, "cannot make a socket pair").because(error))?;
    drop(theirs);
    start_until(yard, node, daemon, ready, stop.as_fd())
}

/// What says that a daemon serves, while it is waited for.
enum Watch<'c> {
    Stop(BorrowedFd<'c>),
    Port(PortWait<'c>),
    Socket(RunningCommand<'c>),
}

impl Watch<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stop(stop) => *stop,
            Self::Port(port) => port.as_fd(),
            Self::Socket(looking) => looking.as_fd(),
        }
    }

    fn is_ready(&mut self) -> Result<bool, ClientError> {
        match self {
            Self::Stop(_) => Ok(true),
            Self::Port(port) => port.look(),
            Self::Socket(looking) => {
                Ok(looking.look()?.is_some_and(|finished| finished.status == CommandStatus::Exited(0)))
            }
        }
    }
}

fn ended(yard: &Testyard, node: &Node, daemon: Daemon) -> Problem {
    let message = format!("{} ended on node {} as soon as it was started", daemon.program(), node.name);
    with_log(Problem::new(ProblemKind::Unavailable, message), yard, node, daemon)
}

fn silent(yard: &Testyard, node: &Node, daemon: Daemon) -> Problem {
    let seconds = daemon.patience().as_secs();
    let message = format!("{} on node {} did not serve within {seconds} s", daemon.program(), node.name);
    with_log(Problem::new(ProblemKind::TimedOut, message), yard, node, daemon)
}

/// The daemon's own last words as causes.
pub(super) fn with_log(problem: Problem, yard: &Testyard, node: &Node, daemon: Daemon) -> Problem {
    let script = format!("tail -n 8 {}\n", daemon.output());
    let terms = Terms::root(Duration::from_secs(5));
    match run_script(yard, &node.name, "/bin/sh", &script, &terms) {
        Ok(captured) => because_of(problem, &String::from_utf8_lossy(&captured.stdout)),
        Err(_) => problem,
    }
}
