//! One running machine, with connections that are kept between commands.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_machine::client::{Awaited, ClientError, Connection, Finished, RunningCommand};
use testyard_model::{EnvironmentSpec, Isolation, Problem, milliseconds};
use testyard_protocol::{Exec, Linger, Place, RawText, Role, StreamTarget};

use crate::outcome::{Ended, Output};
use crate::source::Sources;
use crate::synced::Copies;

/// How much longer than its deadline a command may take until the machine counts as lost.
pub(crate) const GRACE: Duration = Duration::from_secs(20);

/// A running machine.
#[derive(Debug)]
pub struct WarmMachine {
    name: String,
    socket: PathBuf,
    idle: Mutex<Vec<Link>>,
    copies: Option<Arc<Copies>>,
}

/// A kept connection and what was shown over it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    sources: Sources,
    copies: Option<Arc<Copies>>,
}

impl Link {
    /// The number of the working tree for an environment that shows it.
    pub(crate) fn source(&mut self, spec: &EnvironmentSpec, tree: Option<&Path>) -> Result<Option<u32>, Problem> {
        let Some(tree) = tree.filter(|_| spec.isolation >= Isolation::Workspace) else { return Ok(None) };
        let elsewhere = self.connection.welcome().elsewhere;
        match self.copies.as_deref().filter(|copies| elsewhere || copies.is_copied(tree)) {
            Some(copies) => self.sources.copied(&mut self.connection, tree, copies).map(Some),
            None => self.sources.number(&mut self.connection, tree).map(Some).map_err(|error| error.problem()),
        }
    }
}

/// A command, and the environment it wants.
#[derive(Debug, Clone)]
pub struct EnvironmentRun<'a> {
    /// The environment; its `source` is where `tree` appears.
    pub spec: &'a EnvironmentSpec,
    /// Program and arguments, verbatim.
    pub argv: Vec<RawText>,
    /// Where it runs; none means the source, the workspace or the user's home.
    pub cwd: Option<&'a Path>,
    /// Variables over the machine's own.
    pub env: Vec<(RawText, RawText)>,
    /// The working tree, shown copy-on-write at `spec.source`; from isolation `workspace` on.
    pub tree: Option<&'a Path>,
    /// Its whole tree is ended after so long.
    pub timeout: Option<Duration>,
    /// Host ports leased for it.
    pub ports: Vec<u16>,
    /// Whether its environment outlives it; then see [`Ended::lingering`].
    pub linger: Linger,
}

/// What a caller does with a command's output, and when it wants it ended.
pub struct Attendance<'a> {
    /// Takes output as it comes.
    pub output: &'a mut dyn FnMut(Output, &[u8]),
    /// Readable once the command is to be ended; then `cancelled` is asked.
    pub cancel: Option<BorrowedFd<'a>>,
    /// Whether it really is to be ended.
    pub cancelled: &'a dyn Fn() -> bool,
    /// Called when the command was handed over.
    pub started: &'a mut dyn FnMut(),
    /// Called when its environment is there and it runs, where it is not run beside services; a message more.
    pub running: Option<&'a mut dyn FnMut()>,
}

impl WarmMachine {
    /// A machine that is known to run.
    #[must_use]
    pub fn new(name: String, socket: PathBuf) -> Self {
        Self { name, socket, idle: Mutex::new(Vec::new()), copies: None }
    }

    /// With copies of the trees that it cannot, or shall not, be shown themselves.
    #[must_use]
    pub fn with_copies(self, copies: Arc<Copies>) -> Self {
        Self { copies: Some(copies), ..self }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes sure that it answers.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self) -> Result<(), Problem> {
        let mut link = self.take()?;
        link.connection.status().map_err(|error| error.problem())?;
        self.put(link);
        Ok(())
    }

    pub(crate) fn take(&self) -> Result<Link, Problem> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match kept {
            Some(link) => Ok(link),
            None => {
                let connection =
                    Connection::open(&self.socket, Role::Agent, &self.name).map_err(|error| error.problem())?;
                Ok(Link { connection, sources: Sources::default(), copies: self.copies.clone() })
            }
        }
    }

    pub(crate) fn put(&self, link: Link) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(link);
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// A [`Problem`] of kind `Command` when the program could not be started, `Unsupported` when the machine cannot
    /// give the environment, `Unavailable` when the machine went away.
    pub fn run(&self, run: EnvironmentRun<'_>, attendance: Attendance<'_>) -> Result<Ended, Problem> {
        let mut link = self.take()?;
        let source = link.source(run.spec, run.tree)?;
        if run.linger != Linger::Never {
            link.connection.check_keeping().map_err(|error| error.problem())?;
        }
        let deadline = run.timeout.map(|timeout| Instant::now() + timeout + GRACE);
        let place = Place::Fresh(Box::new(run.spec.clone()));
        let exec = exec_of(run, place, source);
        let ended = attend(&mut link.connection, exec, attendance, deadline);
        match ended {
            Ok(finished) => {
                self.put(link);
                Ok(Ended {
                    status: finished.status,
                    usage: finished.usage,
                    environment: finished.environment.or(finished.lingering),
                    lingering: finished.lingering,
                })
            }
            Err(error) => {
                // A refusal leaves the connection as good as before; anything else may have cut it in the middle.
                if matches!(error, ClientError::Refused { .. }) {
                    self.put(link);
                }
                Err(error.problem())
            }
        }
    }
}

/// The request for a command whose streams are a [`Piped`]'s.
pub(crate) fn exec_of(run: EnvironmentRun<'_>, place: Place, source: Option<u32>) -> Exec {
    Exec {
        argv: run.argv,
        cwd: run.cwd.map(RawText::from),
        env: run.env,
        // Not attached: on the way to another host each descriptor is a channel with an end of its own.
        stdin: StreamTarget::Null,
        stdout: StreamTarget::Attached(0),
        stderr: StreamTarget::Attached(1),
        timeout_ms: run.timeout.map(milliseconds),
        place,
        source,
        ports: run.ports,
        quiet: true,
        linger: run.linger,
        ..Exec::default()
    }
}

pub(crate) fn local(operation: &'static str) -> impl Fn(Errno) -> ClientError {
    move |errno| ClientError::Local { operation, source: errno.into() }
}

fn attend(
    connection: &mut Connection,
    exec: Exec,
    attendance: Attendance<'_>,
    deadline: Option<Instant>,
) -> Result<Finished, ClientError> {
    let machine = connection.machine().to_owned();
    let Attendance { output, cancel, cancelled, started, mut running } = attendance;
    let exec = Exec { quiet: running.is_none(), ..exec };
    let Piped { mut command, mut pipes } = Piped::start(connection, exec)?;
    started();
    let mut watching = cancel;
    loop {
        let (mut watched, kinds) = pipes.watched();
        watched.extend(watching);
        match command.wait_next(&watched, deadline)? {
            Awaited::Finished(finished) => {
                drop(watched);
                pipes.drain(output);
                return Ok(finished);
            }
            Awaited::Started => running.iter_mut().for_each(|running| running()),
            Awaited::Readable(index) => match kinds.get(index) {
                Some(kind) => {
                    let kind = *kind;
                    drop(watched);
                    pipes.read(kind, output);
                }
                None => {
                    drop(watched);
                    if cancelled() {
                        watching = None;
                        command.kill()?;
                    }
                }
            },
            Awaited::DeadlinePassed => {
                return Err(ClientError::Silent { machine, seconds: GRACE.as_secs() });
            }
        }
    }
}

/// A command that runs, and its outputs.
pub(crate) struct Piped<'c> {
    pub(crate) command: RunningCommand<'c>,
    pub(crate) pipes: Pipes,
}

impl<'c> Piped<'c> {
    /// Starts a command made by [`exec_of`].
    pub(crate) fn start(connection: &'c mut Connection, exec: Exec) -> Result<Self, ClientError> {
        let (out, out_inside) = pipe_with(PipeFlags::CLOEXEC).map_err(local("make a pipe"))?;
        let (err, err_inside) = pipe_with(PipeFlags::CLOEXEC).map_err(local("make a pipe"))?;
        for pipe in [&out, &err] {
            rustix::io::ioctl_fionbio(pipe, true).map_err(local("prepare a pipe"))?;
        }
        let command = connection.exec(exec, &[out_inside.as_fd(), err_inside.as_fd()])?;
        Ok(Self { command, pipes: Pipes { open: [Some(out), Some(err)], buffer: vec![0; 64 * 1024] } })
    }
}

/// Both outputs of a command, read as they come.
pub(crate) struct Pipes {
    open: [Option<OwnedFd>; 2],
    buffer: Vec<u8>,
}

impl Pipes {
    pub(crate) fn watched(&self) -> (Vec<BorrowedFd<'_>>, Vec<Output>) {
        let kinds = [Output::Standard, Output::Error];
        self.open.iter().zip(kinds).filter_map(|(pipe, kind)| Some((pipe.as_ref()?.as_fd(), kind))).unzip()
    }

    /// Reads once. False when there is nothing now, or never again.
    pub(crate) fn read(&mut self, kind: Output, output: &mut dyn FnMut(Output, &[u8])) -> bool {
        let slot = &mut self.open[usize::from(kind == Output::Error)];
        let Some(pipe) = slot else { return false };
        match rustix::io::read(&*pipe, &mut self.buffer) {
            Ok(0) => {
                *slot = None;
                false
            }
            Ok(length) => {
                output(kind, &self.buffer[..length]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => {
                *slot = None;
                false
            }
        }
    }

    /// What was written before the command ended is in the pipes; what still holds them was left behind by it.
    pub(crate) fn drain(&mut self, output: &mut dyn FnMut(Output, &[u8])) {
        for kind in [Output::Standard, Output::Error] {
            // Bounded: something left behind may go on writing until it is ended.
            for _ in 0..1024 {
                if !self.read(kind, output) {
                    break;
                }
            }
        }
    }
}
