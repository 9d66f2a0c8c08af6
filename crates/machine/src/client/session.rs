//! Many streams at once over one connection.
//!
//! A reader thread sorts what arrives to whoever waits for it. It never waits itself: what may arrive
//! unasked is bounded by the credit that was given, so a slow reader blocks its own stream and no other.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::net::Shutdown;
use serde::Serialize;
use testyard_model::EnvironmentId;
use testyard_protocol::{
    Command, Credit, Event, Exec, FrameHeader, FrameKind, Request, Role, StreamTarget, TerminalSize,
};

use super::connection::{parse_event, word};
use super::gate::CreditGate;
use super::streams::{StreamReader, StreamWriter};
use super::{ClientError, Connection, Finished, Reply};
use crate::wire::{FrameReader, Received, WireError, send_frame};

/// A connection that many threads share.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

/// What the reader thread, the commands and their streams share.
#[derive(Debug)]
pub(super) struct Shared {
    socket: OwnedFd,
    machine: String,
    writing: Mutex<Writing>,
    streams: Mutex<Streams>,
}

#[derive(Debug)]
struct Writing {
    next_stream: u32,
    encoded: Vec<u8>,
}

#[derive(Debug, Default)]
struct Streams {
    open: HashMap<u32, Stream>,
    ended: bool,
}

/// Where a stream's frames go.
#[derive(Debug)]
struct Stream {
    events: Sender<Result<Reply, ClientError>>,
    channels: [Option<Sender<Vec<u8>>>; 3],
    input: Option<Arc<CreditGate>>,
}

impl Session {
    /// Connects to the machine behind a socket. `machine` is its name, for errors.
    pub fn open(path: &Path, role: Role, machine: &str) -> Result<Self, ClientError> {
        Self::over(Connection::open(path, role, machine)?)
    }

    /// Takes a connection over.
    pub fn over(connection: Connection) -> Result<Self, ClientError> {
        let Connection { socket, reader, machine, .. } = connection;
        let next_stream = 1 << 20; // above any stream that the connection has used before
        let shared = Arc::new(Shared {
            socket,
            machine,
            writing: Mutex::new(Writing { next_stream, encoded: Vec::new() }),
            streams: Mutex::default(),
        });
        let reading = Arc::clone(&shared);
        let reader = std::thread::Builder::new()
            .name("testyard session".to_owned())
            .spawn(move || reading.read(reader))
            .map_err(|error| ClientError::local("start a session's reader", error))?;
        Ok(Self { shared, reader: Some(reader) })
    }

    /// Sends a request and waits for its last event. Not for commands: see [`Session::exec`].
    pub fn request(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        let (stream, events) = self.shared.begin(request, descriptors, [None, None, None], None)?;
        let reply = self.shared.next(&events, "it was answering a request");
        self.shared.forget(stream);
        reply
    }

    /// Runs a command. What `exec` asks to be frames is in the result as streams: a terminal's as
    /// [`SessionCommand::stdin`] and [`SessionCommand::stdout`].
    pub fn exec(&self, exec: Exec, descriptors: &[BorrowedFd<'_>]) -> Result<SessionCommand, ClientError> {
        let terminal = exec.terminal.is_some();
        let framed = |target: StreamTarget| target == StreamTarget::Frames;
        let input = (terminal || framed(exec.stdin)).then(|| Arc::new(CreditGate::default()));
        let pair = |wanted: bool| if wanted { Some(channel()) } else { None };
        let (out, out_reader) = pair(terminal || framed(exec.stdout)).unzip();
        let (err, err_reader) = pair(!terminal && framed(exec.stderr)).unzip();
        let request = Request::Exec(Box::new(exec));
        let (stream, events) = self.shared.begin(&request, descriptors, [None, out, err], input.clone())?;
        let reader =
            |pieces: Receiver<Vec<u8>>, number| StreamReader::new(Arc::clone(&self.shared), stream, number, pieces);
        Ok(SessionCommand {
            handle: CommandHandle { shared: Arc::clone(&self.shared), stream },
            events,
            stdin: input.map(|gate| StreamWriter::new(Arc::clone(&self.shared), stream, gate)),
            stdout: out_reader.map(|pieces| reader(pieces, 1)),
            stderr: err_reader.map(|pieces| reader(pieces, 2)),
            started: None,
        })
    }

    /// Opens a stream whose bytes travel as data frames on channel 0, both ways where the request allows.
    pub(super) fn open_stream(&self, request: &Request) -> Result<OpenStream, ClientError> {
        let gate = Arc::new(CreditGate::default());
        let (pieces, arriving) = channel();
        let (stream, events) = self.shared.begin(request, &[], [Some(pieces), None, None], Some(Arc::clone(&gate)))?;
        Ok(OpenStream {
            stream,
            events,
            writer: StreamWriter::new(Arc::clone(&self.shared), stream, gate),
            reader: StreamReader::new(Arc::clone(&self.shared), stream, 0, arriving),
        })
    }

    /// The last event of an open stream.
    pub(super) fn finish(
        &self,
        stream: u32,
        events: &Receiver<Result<Reply, ClientError>>,
    ) -> Result<Event, ClientError> {
        let reply = self.shared.next(events, "files were being moved");
        self.shared.forget(stream);
        reply.map(|reply| reply.event)
    }

    pub(super) fn machine(&self) -> &str {
        &self.shared.machine
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Ends the reader thread; the machine ends the commands of a connection that has gone.
        let _ = rustix::net::shutdown(&self.shared.socket, Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A stream of bytes beside its events.
pub(super) struct OpenStream {
    pub(super) stream: u32,
    pub(super) events: Receiver<Result<Reply, ClientError>>,
    pub(super) writer: StreamWriter,
    pub(super) reader: StreamReader,
}

/// A command that runs over a session. It is ended when it is dropped before its end, unless detached.
#[derive(Debug)]
pub struct SessionCommand {
    /// Its standard input or its terminal, where frames were asked for. Dropped, it is at its end.
    pub stdin: Option<StreamWriter>,
    /// Its standard output or its terminal, where frames were asked for.
    pub stdout: Option<StreamReader>,
    /// Its error output, where frames were asked for.
    pub stderr: Option<StreamReader>,
    handle: CommandHandle,
    events: Receiver<Result<Reply, ClientError>>,
    started: Option<(i32, Option<EnvironmentId>)>,
}

/// Speaks to a running command from any thread.
#[derive(Debug, Clone)]
pub struct CommandHandle {
    shared: Arc<Shared>,
    stream: u32,
}

impl CommandHandle {
    /// Sends it a signal (to its group where it has a terminal).
    pub fn signal(&self, signal: i32) -> Result<(), ClientError> {
        self.shared.send(self.stream, &Command::Signal(signal))
    }

    /// Tells it the new size of its terminal.
    pub fn resize(&self, size: TerminalSize) -> Result<(), ClientError> {
        self.shared.send(self.stream, &Command::Resize(size))
    }

    /// Ends it and all it started.
    pub fn kill(&self) -> Result<(), ClientError> {
        self.shared.send(self.stream, &Command::Kill)
    }
}

impl SessionCommand {
    /// Speaks to it from other threads.
    #[must_use]
    pub fn handle(&self) -> CommandHandle {
        self.handle.clone()
    }

    /// Waits until it has been started, which [`SessionCommand::wait`] does not need and a quiet command does not
    /// say; its process id on the host. A program that could not be started is [`ClientError::Refused`].
    pub fn wait_started(&mut self) -> Result<i32, ClientError> {
        if let Some((pid, _)) = self.started {
            return Ok(pid);
        }
        match self.handle.shared.next(&self.events, "a command was being started")?.event {
            Event::Started { pid, environment } => {
                self.started = Some((pid, environment));
                Ok(pid)
            }
            other => Err(self.handle.shared.unexpected(&other)),
        }
    }

    /// Waits for its end. Its output was sent before: read it until its end, in this or another thread.
    pub fn wait(&mut self) -> Result<Finished, ClientError> {
        loop {
            match self.handle.shared.next(&self.events, "a command was running")?.event {
                Event::Started { pid, environment } => self.started = Some((pid, environment)),
                Event::Exited { status, usage, environment: lingering } => {
                    let (pid, environment) = self.started.unwrap_or_default();
                    return Ok(Finished { status, usage, pid, environment, lingering });
                }
                other => return Err(self.handle.shared.unexpected(&other)),
            }
        }
    }
}

impl Drop for SessionCommand {
    fn drop(&mut self) {
        if self.handle.shared.forget(self.handle.stream) {
            // Where the command has ended this goes to a stream that nobody serves, which is allowed.
            let _ = self.handle.kill();
        }
    }
}

impl Shared {
    fn begin(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        channels: [Option<Sender<Vec<u8>>>; 3],
        input: Option<Arc<CreditGate>>,
    ) -> Result<(u32, Receiver<Result<Reply, ClientError>>), ClientError> {
        let (events, arriving) = channel();
        let mut writing = self.lock_writing();
        let stream = writing.next_stream;
        writing.next_stream = stream.checked_add(1).unwrap_or(1);
        {
            let mut streams = self.lock_streams();
            if streams.ended {
                return Err(self.lost("sending it a request"));
            }
            // Before it is sent, because the answer may come at once.
            streams.open.insert(stream, Stream { events, channels, input });
        }
        match self.write(&mut writing, stream, request, descriptors) {
            Ok(()) => Ok((stream, arriving)),
            Err(error) => {
                self.forget(stream);
                Err(error)
            }
        }
    }

    fn send(&self, stream: u32, message: &impl Serialize) -> Result<(), ClientError> {
        self.write(&mut self.lock_writing(), stream, message, &[])
    }

    fn write(
        &self,
        writing: &mut Writing,
        stream: u32,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        writing.encoded.clear();
        serde_json::to_writer(&mut writing.encoded, message)
            .map_err(|source| ClientError::Message { machine: self.machine.clone(), source })?;
        send_frame(&self.socket, FrameHeader::message(stream), &writing.encoded, descriptors)
            .map_err(|error| ClientError::wire(&self.machine, "sending it a request", error))
    }

    /// Sends data, credit or end on a channel.
    pub(super) fn send_raw(&self, kind: FrameKind, stream: u32, channel: u8, payload: &[u8]) -> Result<(), WireError> {
        let _writing = self.lock_writing();
        send_frame(&self.socket, FrameHeader { kind, channel, attached: 0, stream }, payload, &[])
    }

    fn next(&self, events: &Receiver<Result<Reply, ClientError>>, during: &'static str) -> Result<Reply, ClientError> {
        let reply = events.recv().map_err(|_| self.lost(during))??;
        match reply.event {
            Event::Failed(problem) => Err(ClientError::Refused(Box::new(problem))),
            _ => Ok(reply),
        }
    }

    fn lost(&self, during: &'static str) -> ClientError {
        ClientError::Lost { machine: self.machine.clone(), during }
    }

    fn unexpected(&self, event: &Event) -> ClientError {
        ClientError::Unexpected { machine: self.machine.clone(), event: word(event) }
    }

    /// Whether the stream was still open.
    fn forget(&self, stream: u32) -> bool {
        self.lock_streams().open.remove(&stream).is_some()
    }

    /// The reader thread.
    fn read(&self, mut reader: FrameReader) {
        let error = loop {
            match reader.receive(self.socket.as_fd()) {
                Ok(received) => self.sort(received),
                Err(error) => break error,
            }
        };
        let mut streams = self.lock_streams();
        streams.ended = true;
        let mad = !error.is_gone();
        let mut error = Some(error);
        for (_, stream) in streams.open.drain() {
            if let Some(gate) = &stream.input {
                gate.close();
            }
            // One stream learns what exactly came; the others that the machine is lost to them.
            if let (true, Some(source)) = (mad, error.take()) {
                let _ = stream.events.send(Err(ClientError::Wire { machine: self.machine.clone(), source }));
            }
        }
    }

    fn sort(&self, received: Received) {
        let header = received.frame.header;
        let mut streams = self.lock_streams();
        let Some(stream) = streams.open.get_mut(&header.stream) else { return };
        let channel = stream.channels.get_mut(header.channel as usize);
        match header.kind {
            FrameKind::Data => {
                if let Some(Some(pieces)) = channel {
                    let _ = pieces.send(received.frame.payload);
                }
            }
            FrameKind::End => {
                if let Some(channel) = channel {
                    *channel = None;
                }
            }
            FrameKind::Credit => {
                let granted = received.frame.payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                if let Some(gate) = &stream.input {
                    gate.grant(u64::from(granted).min(Credit::MAXIMUM));
                }
            }
            FrameKind::Message => {
                let event = parse_event(&self.machine, &received.frame.payload);
                let last = !matches!(event, Ok(Event::Started { .. }));
                let reply = event.map(|event| Reply { event, descriptors: received.descriptors });
                let _ = stream.events.send(reply);
                let ended = if last { streams.open.remove(&header.stream) } else { None };
                if let Some(gate) = ended.and_then(|stream| stream.input) {
                    gate.close();
                }
            }
        }
    }

    // Each change under these locks is complete in itself, so a panic elsewhere leaves them sound.
    fn lock_writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
