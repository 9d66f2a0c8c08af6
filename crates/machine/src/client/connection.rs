//! One connection, one request at a time, in the caller's own thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde::Serialize;
use testyard_linux::socket;
use testyard_linux::step::{Step, reach};
use testyard_model::{EnvironmentId, EnvironmentSpec, MachineInfo, milliseconds};
use testyard_protocol::{
    AgentStatus, Event, FrameHeader, FrameKind, Hello, OLDEST_VERSION, Request, Role, VERSION, Welcome,
};

use super::ClientError;
use crate::wire::{FrameReader, Look, Received, WireError, send_frame};

/// A connection to a machine's agent or supervisor.
#[derive(Debug)]
pub struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) reader: FrameReader,
    pub(super) machine: String,
    welcome: Welcome,
    next_stream: u32,
    encoded: Vec<u8>,
}

/// A request's last event and the descriptors that came with it.
#[derive(Debug)]
pub struct Reply {
    /// The event; never `failed`.
    pub event: Event,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
}

/// How long a machine may take to say welcome.
const WELCOME: Duration = Duration::from_secs(20);
/// What one read takes at most; larger reads pay off only for data frames.
const READ: usize = 16 * 1024;

impl Connection {
    /// Connects to the machine behind a socket. `machine` is its name, for errors.
    pub fn open(path: &Path, role: Role, machine: &str) -> Result<Self, ClientError> {
        Self::call(path, role, machine)?.answered()
    }

    /// As [`Connection::open`], without waiting for the answer.
    pub fn call(path: &Path, role: Role, machine: &str) -> Result<Greeting, ClientError> {
        let socket =
            socket::connect(path).map_err(|source| ClientError::NotThere { machine: machine.to_owned(), source })?;
        Self::greet(socket, role, machine)
    }

    /// Over a socket that is connected already.
    pub fn over(socket: OwnedFd, role: Role, machine: &str) -> Result<Self, ClientError> {
        Self::greet(socket, role, machine)?.answered()
    }

    fn greet(socket: OwnedFd, role: Role, machine: &str) -> Result<Greeting, ClientError> {
        let nobody = Welcome { version: 0, server: String::new(), generation: 0, elsewhere: false };
        let mut connection = Self {
            socket,
            reader: FrameReader::new(READ),
            machine: machine.to_owned(),
            welcome: nobody,
            next_stream: 1,
            encoded: Vec::with_capacity(512),
        };
        let client = format!("testyard {}", env!("CARGO_PKG_VERSION"));
        let hello = Hello { oldest: OLDEST_VERSION, newest: VERSION, role, client };
        connection.send(0, &Request::Hello(hello), &[])?;
        Ok(Greeting { connection, role })
    }

    /// The socket alone, to see when the other side ends.
    #[must_use]
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// The version spoken, and who answers.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// The machine's name, as given when connecting.
    #[must_use]
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// Sends a request and waits for its last event. Not for commands: see [`Connection::exec`].
    pub fn request(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        let stream = self.begin(request, descriptors)?;
        self.event(stream, "it was answering a request", None)
    }

    /// As [`Connection::request`], for requests that are answered by `done`.
    pub fn ask(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match self.request(request, descriptors)?.event {
            Event::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// What the agent is doing.
    pub fn status(&mut self) -> Result<AgentStatus, ClientError> {
        match self.request(&Request::Status, &[])?.event {
            Event::Status(status) => Ok(status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The machine's description, from its supervisor.
    pub fn info(&mut self) -> Result<MachineInfo, ClientError> {
        match self.request(&Request::Info, &[])?.event {
            Event::Info(info) => Ok(*info),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Makes or leases an environment, held until released or until this connection ends.
    pub fn environment(&mut self, spec: &EnvironmentSpec) -> Result<EnvironmentId, ClientError> {
        match self.request(&Request::Environment(Box::new(spec.clone())), &[])?.event {
            Event::Environment { id, .. } => Ok(id),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Begins to wait until something in an environment accepts connections on a port of its loopback.
    pub fn listening(
        &mut self,
        environment: EnvironmentId,
        port: u16,
        patience: Duration,
    ) -> Result<PortWait<'_>, ClientError> {
        if self.welcome.version < 3 {
            return Err(ClientError::Version { machine: self.machine.clone(), version: self.welcome.version });
        }
        let patience_ms = milliseconds(patience);
        let stream = self.begin(&Request::Listening { environment, port, patience_ms }, &[])?;
        Ok(PortWait { connection: self, stream })
    }

    /// Ends an environment.
    pub fn release(&mut self, environment: EnvironmentId) -> Result<(), ClientError> {
        self.ask(&Request::Release(environment), &[])
    }

    /// Keeps so many environments of this kind parked; returns once they are.
    pub fn park(&mut self, spec: &EnvironmentSpec, count: u32) -> Result<(), ClientError> {
        self.ask(&Request::Park(Box::new(spec.clone()), count), &[])
    }

    /// Shows the machine a working tree (a detached mount, or a folder); its number for [`testyard_protocol::Exec::source`].
    pub fn source(&mut self, tree: impl AsFd, path: &Path) -> Result<u32, ClientError> {
        match self.request(&Request::Source { path: path.into() }, &[tree.as_fd()])?.event {
            Event::Source(number) => Ok(number),
            other => Err(self.unexpected(&other)),
        }
    }

    /// An environment's init (its process id in the machine) and its descriptors, for a process that joins it.
    pub fn enter(&mut self, environment: EnvironmentId) -> Result<(i32, Vec<OwnedFd>), ClientError> {
        let reply = self.request(&Request::Enter(environment), &[])?;
        match reply.event {
            Event::Entered { pid, .. } => Ok((pid, reply.descriptors)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Waits until the other side has closed the connection, as a supervisor does at its very end.
    pub fn await_end(mut self, patience: Duration) -> Result<(), ClientError> {
        match self.event(0, "it was ending", Some(Instant::now() + patience)) {
            Err(ClientError::Lost { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(reply) => Err(self.unexpected(&reply.event)),
        }
    }

    /// Sends a request on a new stream.
    pub(super) fn begin(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<u32, ClientError> {
        let stream = self.next_stream;
        self.send(stream, request, descriptors)?;
        // 4 billion requests on one connection wrap around to stream 1, which has long ended.
        self.next_stream = self.next_stream.checked_add(1).unwrap_or(1);
        Ok(stream)
    }

    /// Sends a message on a stream.
    pub(super) fn send(
        &mut self,
        stream: u32,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        self.encoded.clear();
        serde_json::to_writer(&mut self.encoded, message)
            .map_err(|source| ClientError::Message { machine: self.machine.clone(), source })?;
        match send_frame(&self.socket, FrameHeader::message(stream), &self.encoded, descriptors) {
            Ok(()) => Ok(()),
            // The other side may have said why before it closed; reading tells.
            Err(error) if error.is_gone() && stream != 0 => match self.event(0, "sending it a request", None) {
                Err(refused @ ClientError::Refused(_)) => Err(refused),
                _ => Err(ClientError::wire(&self.machine, "sending it a request", error)),
            },
            Err(error) => Err(ClientError::wire(&self.machine, "sending it a request", error)),
        }
    }

    /// Waits for the next event of a stream; `failed` is an error. Frames of earlier streams are dropped.
    pub(super) fn event(
        &mut self,
        stream: u32,
        during: &'static str,
        deadline: Option<Instant>,
    ) -> Result<Reply, ClientError> {
        loop {
            let received = self.receive(during, deadline)?;
            if let Some(reply) = self.reply(stream, received)? {
                return Ok(reply);
            }
        }
    }

    /// The event in a frame, when it belongs to `stream` (or to the whole connection).
    pub(super) fn reply(&self, stream: u32, received: Received) -> Result<Option<Reply>, ClientError> {
        let header = received.frame.header;
        if header.kind != FrameKind::Message || (header.stream != stream && header.stream != 0) {
            return Ok(None);
        }
        match parse_event(&self.machine, &received.frame.payload)? {
            Event::Failed(problem) => Err(ClientError::Refused(Box::new(problem))),
            event => Ok(Some(Reply { event, descriptors: received.descriptors })),
        }
    }

    fn receive(&mut self, during: &'static str, deadline: Option<Instant>) -> Result<Received, ClientError> {
        let Some(deadline) = deadline else {
            return self.reader.receive(&self.socket).map_err(|error| self.broken(during, error));
        };
        let patience = deadline.saturating_duration_since(Instant::now());
        loop {
            if let Look::Frame(received) = self.look(during)? {
                return Ok(received);
            }
            if !wait_readable(&[self.socket.as_fd()], Some(deadline))?[0] && Instant::now() >= deadline {
                let machine = self.machine.clone();
                return Err(ClientError::Silent { machine, seconds: patience.as_secs() });
            }
        }
    }

    pub(super) fn look(&mut self, during: &'static str) -> Result<Look, ClientError> {
        self.reader.look(&self.socket).map_err(|error| self.broken(during, error))
    }

    fn broken(&self, during: &'static str, error: WireError) -> ClientError {
        ClientError::wire(&self.machine, during, error)
    }

    pub(super) fn unexpected(&self, event: &Event) -> ClientError {
        ClientError::Unexpected { machine: self.machine.clone(), event: word(event) }
    }
}

/// A connection on which nobody has said welcome yet.
#[derive(Debug)]
pub struct Greeting {
    connection: Connection,
    role: Role,
}

impl Greeting {
    /// Waits for the answer.
    pub fn answered(self) -> Result<Connection, ClientError> {
        let Self { mut connection, role } = self;
        match connection.event(0, "greeting it", Some(Instant::now() + WELCOME))?.event {
            Event::Welcome(welcome) if (OLDEST_VERSION..=VERSION).contains(&welcome.version) => {
                connection.welcome = welcome;
                if role == Role::Agent {
                    reach(Step::ClientConnected);
                }
                Ok(connection)
            }
            Event::Welcome(welcome) => {
                Err(ClientError::Version { machine: connection.machine, version: welcome.version })
            }
            other => Err(connection.unexpected(&other)),
        }
    }
}

/// Waits for a port. Dropped, it waits no more.
#[derive(Debug)]
pub struct PortWait<'c> {
    connection: &'c mut Connection,
    stream: u32,
}

impl PortWait<'_> {
    /// Whether something accepts connections by now. Asks nobody and waits for nothing: the answer comes by itself.
    /// Once the time is up that was given for it, it is [`ClientError::Refused`].
    pub fn look(&mut self) -> Result<bool, ClientError> {
        while let Look::Frame(received) = self.connection.look("it was waiting for a port")? {
            match self.connection.reply(self.stream, received)? {
                Some(Reply { event: Event::Done, .. }) => return Ok(true),
                Some(other) => return Err(self.connection.unexpected(&other.event)),
                None => {}
            }
        }
        Ok(false)
    }
}

impl AsFd for PortWait<'_> {
    /// The connection's socket, readable when there is something to look at.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl AsFd for Connection {
    /// The socket, to wait for together with others.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

pub(super) fn parse_event(machine: &str, payload: &[u8]) -> Result<Event, ClientError> {
    serde_json::from_slice(payload).map_err(|source| ClientError::Message { machine: machine.to_owned(), source })
}

/// Waits until one of these can be read, has ended, or the deadline passes; which ones can.
pub(super) fn wait_readable(
    descriptors: &[BorrowedFd<'_>],
    deadline: Option<Instant>,
) -> Result<Vec<bool>, ClientError> {
    let mut polled: Vec<_> = descriptors.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        let timeout = match deadline {
            Some(deadline) => Some(
                deadline
                    .saturating_duration_since(Instant::now())
                    .try_into()
                    .map_err(|_| ClientError::local("wait", rustix::io::Errno::INVAL))?,
            ),
            None => None,
        };
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) => return Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(ClientError::local("wait for the machine", errno)),
        }
    }
}

/// An event's word on the wire.
pub(super) fn word(event: &Event) -> &'static str {
    match event {
        Event::Welcome(_) => "welcome",
        Event::Started { .. } => "started",
        Event::Exited { .. } => "exited",
        Event::Failed(_) => "failed",
        Event::Done => "done",
        Event::Environment { .. } => "environment",
        Event::Entered { .. } => "entered",
        Event::Source(_) => "source",
        Event::Status(_) => "status",
        Event::Info(_) => "info",
    }
}
