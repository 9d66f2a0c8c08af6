//! The services of one environment, watched together by one thread.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_machine::client::{ClientError, Connection, RunningCommand};
use testyard_model::{CommandStatus, EnvironmentId, Problem, ProblemKind, Span, milliseconds};
use testyard_protocol::{Exec, Place, RawText, StreamTarget};

use super::log::LineWatch;
use super::{Readiness, Service, State};
use crate::warm::local;

/// Between two runs of a command that tells whether a service is ready: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// Longer than it was told to wait an agent does not stay silent.
const GRACE: Duration = Duration::from_secs(10);
/// How long the last words of an ended service are read, in pieces.
const LAST_WORDS: usize = 64;

/// Where services run, and what all of them are given.
pub(super) struct Ground<'a> {
    pub(super) environment: EnvironmentId,
    /// The working tree, which the first command in the environment mounts.
    pub(super) source: Option<u32>,
    pub(super) ports: &'a [u16],
    /// Readable once everything is to end; then `cancelled` is asked.
    pub(super) cancel: Option<BorrowedFd<'a>>,
    pub(super) cancelled: &'a dyn Fn() -> bool,
}

/// The services of one environment that were started, in that order.
#[derive(Default)]
pub(super) struct Company<'c> {
    members: Vec<Member<'c>>,
}

struct Member<'c> {
    service: Service,
    state: Arc<State>,
    command: RunningCommand<'c>,
    pipe: Option<OwnedFd>,
    line: Option<LineWatch>,
    ended: bool,
}

/// Why a service is not ready.
pub(super) enum Unready {
    /// The machine could not be talked to.
    Client(ClientError),
    /// It is to blame itself.
    Service(Problem),
    /// Everything is to end.
    Cancelled,
}

impl From<ClientError> for Unready {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl<'c> Company<'c> {
    /// Starts a service and waits until it is ready. `control` is a connection on which nothing runs.
    pub(super) fn start(
        &mut self,
        service: &Service,
        state: &Arc<State>,
        link: &'c mut Connection,
        control: &mut Connection,
        ground: &Ground<'_>,
    ) -> Result<(), Unready> {
        let begun = Instant::now();
        let first = self.members.is_empty();
        self.members.push(Member::start(service, state, link, ground, first)?);
        self.await_ready(control, ground, begun)?;
        state.known().ready_after = Some(begun.elapsed());
        Ok(())
    }

    /// Waits for the member that was started last.
    fn await_ready(&mut self, control: &mut Connection, ground: &Ground<'_>, begun: Instant) -> Result<(), Unready> {
        let newest = self.members.len() - 1;
        let (ready, patience) = {
            let service = &self.members[newest].service;
            (service.ready.clone(), service.patience)
        };
        let until = begun + patience;
        match ready {
            Readiness::Started => self.until(ground, newest, until, |member| member.command.is_started()),
            Readiness::Line(_) => {
                self.until(ground, newest, until, |member| member.line.as_ref().is_some_and(LineWatch::found))
            }
            Readiness::Port(port) => {
                let mut wait = control.listening(ground.environment, port, patience)?;
                loop {
                    match wait.look() {
                        Ok(true) => return Ok(()),
                        Ok(false) => {}
                        Err(ClientError::Refused(problem)) if problem.kind == ProblemKind::TimedOut => {
                            return Err(self.late(newest));
                        }
                        Err(error) => return Err(error.into()),
                    }
                    self.watch_one(ground, newest, wait.as_fd(), until + GRACE)?;
                }
            }
            Readiness::Command(argv) => self.until_command(control, ground, newest, until, &argv),
        }
    }

    fn until(
        &mut self,
        ground: &Ground<'_>,
        newest: usize,
        until: Instant,
        ready: impl Fn(&Member<'_>) -> bool,
    ) -> Result<(), Unready> {
        while !ready(&self.members[newest]) {
            if Instant::now() >= until {
                return Err(self.late(newest));
            }
            let watched: Vec<_> = ground.cancel.into_iter().collect();
            self.watch(&watched, Some(until))?;
            self.check(ground, newest)?;
        }
        Ok(())
    }

    fn until_command(
        &mut self,
        control: &mut Connection,
        ground: &Ground<'_>,
        newest: usize,
        until: Instant,
        argv: &[RawText],
    ) -> Result<(), Unready> {
        let mut pause = PAUSES.0;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.late(newest));
            }
            let exec = Exec {
                argv: argv.to_vec(),
                timeout_ms: Some(milliseconds(left).max(1)),
                quiet: true,
                ..self.members[newest].exec(ground)
            };
            let mut command = control.exec(exec, &[])?;
            let status = loop {
                match command.look() {
                    Ok(Some(finished)) => break finished.status,
                    Ok(None) => self.watch_one(ground, newest, command.as_fd(), until + GRACE)?,
                    // It may need something that the service is yet to make; the deadline says when it does not.
                    Err(ClientError::Refused(_)) => break CommandStatus::Exited(127),
                    Err(error) => return Err(error.into()),
                }
            };
            if status.success() {
                return Ok(());
            }
            let next = (Instant::now() + pause).min(until);
            while Instant::now() < next {
                let watched: Vec<_> = ground.cancel.into_iter().collect();
                self.watch(&watched, Some(next))?;
                self.check(ground, newest)?;
            }
            pause = (pause * 3 / 2).min(PAUSES.1);
        }
    }

    /// Watches until something happens; one other descriptor too.
    fn watch_one(
        &mut self,
        ground: &Ground<'_>,
        newest: usize,
        other: BorrowedFd<'_>,
        until: Instant,
    ) -> Result<(), Unready> {
        let watched: Vec<_> = [other].into_iter().chain(ground.cancel).collect();
        self.watch(&watched, Some(until))?;
        self.check(ground, newest)?;
        if Instant::now() >= until { Err(self.late(newest)) } else { Ok(()) }
    }

    /// Whether the wait for the newest may go on.
    fn check(&self, ground: &Ground<'_>, newest: usize) -> Result<(), Unready> {
        if (ground.cancelled)() {
            return Err(Unready::Cancelled);
        }
        self.refusal().map_or(Ok(()), |problem| Err(Unready::Service(problem)))?;
        let dead = self.members[..=newest].iter().find_map(|member| Some((member, member.state.known().died?)));
        let Some((member, status)) = dead else { return Ok(()) };
        let name = &member.service.name;
        let when = if std::ptr::eq(member, &raw const self.members[newest]) { "before it was ready" } else { "early" };
        let problem = Problem::new(ProblemKind::Service, format!("service `{name}` ended {when}: {}", shown(status)))
            .hint("a service stays in the foreground: see its log, and remove what makes it a daemon");
        Err(Unready::Service(problem))
    }

    /// Why one of the members could not be started, where that is so. A command counts as started before its program is
    /// known to be there, so this may show only later.
    pub(super) fn refusal(&self) -> Option<Problem> {
        self.members.iter().find_map(|member| {
            let refused = member.state.known().refused.clone()?;
            let message = format!("service `{}` could not be started", member.service.name);
            let mut problem = Problem::new(ProblemKind::Service, message).because(refused.message);
            problem.causes.extend(refused.causes);
            problem.hints = refused.hints;
            Some(problem)
        })
    }

    fn late(&self, newest: usize) -> Unready {
        let service = &self.members[newest].service;
        let what = match &service.ready {
            Readiness::Started => "it did not start".to_owned(),
            Readiness::Port(port) => format!("nothing accepted connections on port {port} of its loopback"),
            Readiness::Line(pattern) => format!("it wrote no line that matches `{pattern}`"),
            Readiness::Command(argv) => {
                let name = argv.first().map(|word| String::from_utf8_lossy(&word.0).into_owned());
                format!("`{}` never exited with 0", name.unwrap_or_default())
            }
        };
        let message = format!("service `{}` was not ready after {}", service.name, Span(service.patience));
        Unready::Service(
            Problem::new(ProblemKind::Service, message)
                .because(what)
                .hint("see its log; where it only needs longer, give its `ready` a longer `timeout`"),
        )
    }

    /// Waits until something can be read, from a member or one of the others, or the deadline passes; attends to the
    /// members, and says which others can be read.
    pub(super) fn watch(
        &mut self,
        others: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<Vec<bool>, ClientError> {
        let own = self.members.iter().flat_map(Member::watched);
        let mut polled: Vec<_> =
            others.iter().copied().chain(own).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| left.try_into().map_err(|_| local("wait")(Errno::INVAL))).transpose()?;
        match poll(&mut polled, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(local("wait for services")(errno)),
        }
        let ready: Vec<bool> = polled[..others.len()].iter().map(|fd| !fd.revents().is_empty()).collect();
        let any = polled[others.len()..].iter().any(|fd| !fd.revents().is_empty());
        drop(polled);
        if any {
            self.attend()?;
        }
        Ok(ready)
    }

    /// Reads what members wrote and notes which have ended.
    pub(super) fn attend(&mut self) -> Result<(), ClientError> {
        for member in &mut self.members {
            member.attend()?;
        }
        Ok(())
    }

    /// Asks the members to end, the last one first, each given its time.
    pub(super) fn stop(&mut self) -> Result<(), ClientError> {
        const KILL: i32 = 9;
        self.attend()?;
        for place in (0..self.members.len()).rev() {
            let member = &mut self.members[place];
            member.state.known().stopping = true;
            if member.ended || member.service.stop_signal == KILL {
                continue;
            }
            member.command.signal(member.service.stop_signal)?;
            let until = Instant::now() + member.service.stop_patience;
            while !self.members[place].ended && Instant::now() < until {
                self.watch(&[], Some(until))?;
            }
        }
        Ok(())
    }
}

impl<'c> Member<'c> {
    fn start(
        service: &Service,
        state: &Arc<State>,
        link: &'c mut Connection,
        ground: &Ground<'_>,
        first: bool,
    ) -> Result<Self, ClientError> {
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(local("open /dev/null"))?;
        let (pipe, inside) = pipe_with(PipeFlags::CLOEXEC).map_err(local("make a pipe"))?;
        rustix::io::ioctl_fionbio(&pipe, true).map_err(local("prepare a pipe"))?;
        let exec = Exec {
            stdin: StreamTarget::Attached(0),
            // Both into one, so that they stay in order.
            stdout: StreamTarget::Attached(1),
            stderr: StreamTarget::Attached(1),
            source: ground.source.filter(|_| first),
            ..exec_of(service, ground)
        };
        let command = link.exec(exec, &[null.as_fd(), inside.as_fd()])?;
        let line = match &service.ready {
            Readiness::Line(pattern) => Some(LineWatch::new(pattern.clone())),
            _ => None,
        };
        Ok(Self { service: service.clone(), state: Arc::clone(state), command, pipe: Some(pipe), line, ended: false })
    }

    fn exec(&self, ground: &Ground<'_>) -> Exec {
        exec_of(&self.service, ground)
    }

    fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let socket = (!self.ended).then(|| self.command.as_fd());
        socket.into_iter().chain(self.pipe.as_ref().map(|pipe| pipe.as_fd()))
    }

    fn attend(&mut self) -> Result<(), ClientError> {
        self.read();
        if self.ended {
            return Ok(());
        }
        let status = match self.command.look() {
            Ok(None) => return Ok(()),
            Ok(Some(finished)) => finished.status,
            Err(ClientError::Refused(problem)) => {
                self.state.known().refused = Some(*problem);
                CommandStatus::Exited(127)
            }
            Err(error) => return Err(error),
        };
        self.ended = true;
        // What it wrote before its end is in the pipe.
        self.read();
        let mut known = self.state.known();
        if !known.stopping {
            known.died = Some(status);
        }
        Ok(())
    }

    fn read(&mut self) {
        let mut buffer = [0; 16 << 10];
        // Bounded: something that writes without end must not keep the others waiting.
        for _ in 0..LAST_WORDS {
            let Some(pipe) = &self.pipe else { return };
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    self.state.known().log.take(&buffer[..count]);
                    if let Some(line) = &mut self.line {
                        line.take(&buffer[..count]);
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => self.pipe = None,
            }
        }
    }
}

fn exec_of(service: &Service, ground: &Ground<'_>) -> Exec {
    Exec {
        argv: service.argv.clone(),
        cwd: service.cwd.as_deref().map(RawText::from),
        env: service.env.clone(),
        user: Some(service.user.clone()),
        place: Place::Environment(ground.environment),
        ports: ground.ports.to_vec(),
        ..Exec::default()
    }
}

/// How something ended, in words.
pub(super) fn shown(status: CommandStatus) -> String {
    match status {
        CommandStatus::Exited(code) => format!("exit code {code}"),
        CommandStatus::Signalled(signal) => format!("signal {signal}"),
        CommandStatus::TimedOut => "its time was up".to_owned(),
    }
}
