//! A command that runs over a [`Connection`].

use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::step::{Step, reach};
use testyard_model::{CommandStatus, EnvironmentId, Usage};
use testyard_protocol::{Command, Event, Exec, Request, StreamTarget, TerminalSize};

use super::connection::wait_readable;
use super::{ClientError, Connection};
use crate::wire::Look;

/// How a command ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// How.
    pub status: CommandStatus,
    /// What it used.
    pub usage: Usage,
    /// Its process id on the host; 0 where it is only known inside, or for a quiet command.
    pub pid: i32,
    /// The environment it ran in, if any.
    pub environment: Option<EnvironmentId>,
    /// That environment, where it outlived the command.
    pub lingering: Option<EnvironmentId>,
}

/// A finished command and what it wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Captured {
    /// How it ended.
    pub finished: Finished,
    /// What it wrote on standard output.
    pub stdout: Vec<u8>,
    /// What it wrote as error output.
    pub stderr: Vec<u8>,
}

/// What [`RunningCommand::wait_or`] saw first.
#[derive(Debug, Clone, PartialEq)]
pub enum Awaited {
    /// The command ended.
    Finished(Finished),
    /// The command was started; only [`RunningCommand::wait_next`] says so, once, and not of a quiet command.
    Started,
    /// The descriptor with this index can be read, or has ended.
    Readable(usize),
    /// The deadline passed.
    DeadlinePassed,
}

/// A command that runs. It is ended when its connection is dropped, unless it was detached.
#[derive(Debug)]
pub struct RunningCommand<'c> {
    connection: &'c mut Connection,
    stream: u32,
    started: Option<(i32, Option<EnvironmentId>)>,
}

impl Connection {
    /// Runs a command whose standard streams are `/dev/null` or the attached `descriptors`.
    ///
    /// Returns at once: a program that cannot be started is an error of [`RunningCommand::wait`].
    /// For terminals and data frames use a [`super::Session`].
    pub fn exec(&mut self, exec: Exec, descriptors: &[BorrowedFd<'_>]) -> Result<RunningCommand<'_>, ClientError> {
        let stream = self.begin(&Request::Exec(Box::new(exec)), descriptors)?;
        reach(Step::ClientRequested);
        Ok(RunningCommand { connection: self, stream, started: None })
    }

    /// Runs a command to its end and collects what it writes. Its standard input stays as `exec` says.
    pub fn capture(&mut self, mut exec: Exec, descriptors: &[BorrowedFd<'_>]) -> Result<Captured, ClientError> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| ClientError::local("make a pipe", errno));
        let ((out, out_inside), (err, err_inside)) = (pipe()?, pipe()?);
        exec.stdout = StreamTarget::Attached(descriptors.len() as u8);
        exec.stderr = StreamTarget::Attached(descriptors.len() as u8 + 1);
        let mut attached = descriptors.to_vec();
        attached.extend([out_inside.as_fd(), err_inside.as_fd()]);
        let mut command = self.exec(exec, &attached)?;
        drop(attached);
        drop((out_inside, err_inside));
        let (mut out, mut err) = (Collected::new(out), Collected::new(err));
        let mut finished = None;
        loop {
            let open: Vec<_> = [&out, &err].into_iter().filter_map(|pipe| pipe.open.as_ref()).collect();
            let readable: Vec<_> = open.iter().map(|file| file.as_fd()).collect();
            match &finished {
                // What still holds the pipes open was left behind by the command: it is not waited for.
                Some(_) if !readable.iter().any(|fd| is_readable(*fd)) => break,
                Some(_) => {}
                None => {
                    if let Awaited::Finished(end) = command.wait_or(&readable, None)? {
                        finished = Some(end);
                    }
                }
            }
            out.read_available()?;
            err.read_available()?;
        }
        let finished = finished.expect("the loop ends only after the command");
        Ok(Captured { finished, stdout: out.bytes, stderr: err.bytes })
    }
}

struct Collected {
    open: Option<std::fs::File>,
    bytes: Vec<u8>,
}

impl Collected {
    fn new(pipe: OwnedFd) -> Self {
        Self { open: Some(pipe.into()), bytes: Vec::new() }
    }

    fn read_available(&mut self) -> Result<(), ClientError> {
        let Some(file) = &mut self.open else { return Ok(()) };
        let mut buffer = [0; 16 * 1024];
        if is_readable(file.as_fd()) {
            match file.read(&mut buffer).map_err(|error| ClientError::local("read a command's output", error))? {
                0 => self.open = None,
                count => self.bytes.extend_from_slice(&buffer[..count]),
            }
        }
        Ok(())
    }
}

fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    wait_readable(&[descriptor], Some(Instant::now())).is_ok_and(|ready| ready[0])
}

impl AsFd for RunningCommand<'_> {
    /// The connection's socket, readable when there is something to look at.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl RunningCommand<'_> {
    /// Waits for its end. A program that could not be started is [`ClientError::Refused`].
    pub fn wait(mut self) -> Result<Finished, ClientError> {
        loop {
            let event = self.connection.event(self.stream, "a command was running", None)?.event;
            if let Some(finished) = self.take(event)? {
                return Ok(finished);
            }
        }
    }

    /// Waits until it has been started, which [`RunningCommand::wait`] does not need and a quiet command does not
    /// say; its process id on the host. A program that could not be started is [`ClientError::Refused`].
    pub fn wait_started(&mut self) -> Result<i32, ClientError> {
        if let Some((pid, _)) = self.started {
            return Ok(pid);
        }
        match self.connection.event(self.stream, "a command was being started", None)?.event {
            Event::Started { pid, environment } => {
                self.started = Some((pid, environment));
                Ok(pid)
            }
            other => Err(self.connection.unexpected(&other)),
        }
    }

    /// Waits for its end, or for one of `others`, or for the deadline, whatever comes first.
    pub fn wait_or(&mut self, others: &[BorrowedFd<'_>], deadline: Option<Instant>) -> Result<Awaited, ClientError> {
        loop {
            match self.wait_next(others, deadline)? {
                Awaited::Started => {}
                other => return Ok(other),
            }
        }
    }

    /// As [`Self::wait_or`], and its start is one more thing to wait for.
    pub fn wait_next(&mut self, others: &[BorrowedFd<'_>], deadline: Option<Instant>) -> Result<Awaited, ClientError> {
        loop {
            let was_started = self.is_started();
            if let Some(finished) = self.look()? {
                return Ok(Awaited::Finished(finished));
            }
            if self.is_started() && !was_started {
                return Ok(Awaited::Started);
            }
            let mut polled = vec![self.connection.socket.as_fd()];
            polled.extend_from_slice(others);
            let ready = wait_readable(&polled, deadline)?;
            if ready[0] {
                continue;
            }
            match ready.iter().position(|ready| *ready) {
                Some(index) => return Ok(Awaited::Readable(index - 1)),
                None => return Ok(Awaited::DeadlinePassed),
            }
        }
    }

    /// Whether it is known to have been started, which a quiet command never says.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.started.is_some()
    }

    /// Whether it has ended, without waiting.
    pub fn look(&mut self) -> Result<Option<Finished>, ClientError> {
        while let Look::Frame(received) = self.connection.look("a command was running")? {
            let Some(reply) = self.connection.reply(self.stream, received)? else { continue };
            if let Some(finished) = self.take(reply.event)? {
                return Ok(Some(finished));
            }
        }
        Ok(None)
    }

    /// Sends it a signal (to its group where it has a terminal).
    pub fn signal(&mut self, signal: i32) -> Result<(), ClientError> {
        self.say(&Command::Signal(signal))
    }

    /// Tells it the new size of its terminal.
    pub fn resize(&mut self, size: TerminalSize) -> Result<(), ClientError> {
        self.say(&Command::Resize(size))
    }

    /// Ends it and all it started.
    pub fn kill(&mut self) -> Result<(), ClientError> {
        self.say(&Command::Kill)
    }

    fn say(&mut self, command: &Command) -> Result<(), ClientError> {
        self.connection.send(self.stream, command, &[])
    }

    fn take(&mut self, event: Event) -> Result<Option<Finished>, ClientError> {
        match event {
            Event::Started { pid, environment } => {
                self.started = Some((pid, environment));
                Ok(None)
            }
            Event::Exited { status, usage, environment: lingering } => {
                let (pid, environment) = self.started.unwrap_or_default();
                Ok(Some(Finished { status, usage, pid, environment, lingering }))
            }
            other => Err(self.connection.unexpected(&other)),
        }
    }
}
