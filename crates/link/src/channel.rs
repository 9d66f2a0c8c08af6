//! One end of a channel: a descriptor of this host, what waits to be written to it, and what was read from it.

use std::collections::{BTreeSet, VecDeque};
use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use testyard_linux::socket;
use testyard_machine::wire::{FrameReader, Look, WireError};
use testyard_protocol::frame::HEADER;

use crate::attach::comes_after_output;
use crate::breach::Breach;
use crate::cutter::{Cutter, Part};
use crate::held::{Held, Released};
use crate::message::Direction;

/// A sender begins with so much credit on each channel.
pub(crate) const CREDIT: u32 = 1024 * 1024;
/// Credit is given back in pieces of at least so much.
const GRANT: u32 = CREDIT / 4;
/// The largest piece that is read and sent at once.
pub(crate) const PIECE: usize = 64 * 1024;

/// A piece of at most so much is put to the one before it.
const SMALL: usize = 4 * 1024;
/// So much a pipe or a terminal takes without waiting when it says that it takes anything (a page, a line).
const AT_ONCE: usize = 256;

/// What a channel is for.
#[derive(Debug)]
pub(crate) enum Role {
    /// A client's connection, or that to the agent which stands for it: whole frames are read from it.
    Connection(FrameReader),
    /// A descriptor that came with a frame of this connection.
    Flow(Owner),
}

/// Whose a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The connection's channel.
    pub(crate) connection: u32,
    /// The stream of the request that it came with, in that connection.
    pub(crate) stream: u32,
}

/// That a flow has got so far.
pub(crate) type Mark = (u32, u64);

/// Bytes from the link, for the descriptor; of a connection, those of one frame.
#[derive(Debug)]
pub(crate) struct Incoming {
    bytes: Vec<u8>,
    at: usize,
    attached: Vec<OwnedFd>,
    part: Part,
    /// What must have been written to flows before: a command's output comes before its end.
    after: Vec<Mark>,
}

/// One end of a channel.
#[derive(Debug)]
pub(crate) struct Channel {
    descriptor: Option<OwnedFd>,
    kind: FileType,
    pub(crate) role: Role,
    /// Whether more may be read from the descriptor.
    pub(crate) reads: bool,
    /// Whether the other side may send more for the descriptor.
    pub(crate) writes: bool,
    /// Whether the other side knows of it, or will before anything that is sent from now on.
    pub(crate) known: bool,
    /// How much more may be sent.
    pub(crate) credit: u64,
    /// How much was read and sent.
    pub(crate) sent: u64,
    /// What was read and waits for credit or for flows.
    pub(crate) held: Held,
    /// What waits to be written. Frames of one stream stay in order; one that waits for flows holds up no other stream.
    queue: VecDeque<Incoming>,
    /// The frame of which a part was written.
    begun: Option<u64>,
    /// Descriptors that go with the frame that is about to come.
    coming: Vec<OwnedFd>,
    /// Whether a write may wait although it was not to: the descriptor is another's, and could not be opened anew.
    waits: bool,
    /// How much came from the link.
    pub(crate) received: u64,
    /// How much of it was written.
    pub(crate) written: u64,
    owed: u32,
    ending: bool,
    cutter: Cutter,
}

/// What a try to write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// It goes on.
    Open,
    /// All was written, and nothing more comes.
    Ended,
    /// Nobody reads it.
    Refused,
}

impl Channel {
    pub(crate) fn connection(socket: OwnedFd, read: &[u8]) -> Self {
        let mut reader = FrameReader::new(PIECE);
        reader.feed(read);
        Self::new(socket, FileType::Socket, Role::Connection(reader), Direction::Both)
    }

    /// `direction` as this side sees it: [`Direction::Out`] is read here.
    pub(crate) fn flow(descriptor: OwnedFd, owner: Owner, direction: Direction) -> Self {
        let kind = kind_of(&descriptor);
        let opened = if kind == FileType::Fifo { without_waiting(&descriptor, direction) } else { None };
        let waits = opened.is_none() && matches!(kind, FileType::Fifo | FileType::CharacterDevice);
        let channel = Self::new(opened.unwrap_or(descriptor), kind, Role::Flow(owner), direction);
        Self { waits, ..channel }
    }

    fn new(descriptor: OwnedFd, kind: FileType, role: Role, direction: Direction) -> Self {
        Self {
            descriptor: Some(descriptor),
            kind,
            role,
            reads: direction != Direction::In,
            writes: direction != Direction::Out,
            known: true,
            credit: u64::from(CREDIT),
            sent: 0,
            held: Held::default(),
            queue: VecDeque::new(),
            begun: None,
            coming: Vec::new(),
            waits: false,
            received: 0,
            written: 0,
            owed: 0,
            ending: false,
            cutter: Cutter::default(),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        !self.reads && !self.writes && self.held.is_empty()
    }

    pub(crate) fn is_connection(&self) -> bool {
        matches!(self.role, Role::Connection(_))
    }

    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.descriptor.as_ref().map(|fd| fd.as_fd())
    }

    /// Whose flow it is.
    pub(crate) fn owner(&self) -> Option<Owner> {
        match self.role {
            Role::Connection(_) => None,
            Role::Flow(owner) => Some(owner),
        }
    }

    /// What to wait for on the descriptor; none where nothing that could happen there matters now. `ready` says
    /// whether something may be written.
    pub(crate) fn interest(&self, room: bool, ready: bool) -> Option<PollFlags> {
        // What happened at one that the other side does not know could not be told.
        self.descriptor.as_ref().filter(|_| self.known)?;
        let mut flags = PollFlags::empty();
        if self.reads && room && !self.held.is_full() && (self.is_connection() || self.credit > 0) {
            flags |= PollFlags::IN;
        }
        if self.writes && ready {
            flags |= PollFlags::OUT;
        }
        // The end of a pipe's reader is told without being asked for.
        let watched = self.writes && !self.reads && self.kind == FileType::Fifo && self.queue.is_empty();
        (watched || !flags.is_empty()).then_some(flags)
    }

    /// Takes what may be sent next of what was read of a connection.
    pub(crate) fn release(&mut self, next: usize) -> Option<Released> {
        let released = self.held.release(next, self.credit)?;
        if let Released::Bytes(bytes) = &released {
            self.sends(bytes.len());
        }
        Some(released)
    }

    fn sends(&mut self, count: usize) {
        self.credit -= count as u64;
        self.sent += count as u64;
    }

    /// The piece that may be written next: the rest of a frame that was begun, else the first frame that waits for
    /// nothing and is behind no other of its stream.
    pub(crate) fn next(&self, is_written: impl Fn(&[Mark]) -> bool) -> Option<usize> {
        if let Some(frame) = self.begun {
            return self.queue.iter().position(|piece| piece.part.frame == frame);
        }
        let mut waiting = BTreeSet::new();
        for (at, piece) in self.queue.iter().enumerate().filter(|(_, piece)| piece.part.begins) {
            if !waiting.contains(&piece.part.stream) && is_written(&piece.after) {
                return Some(at);
            }
            waiting.insert(piece.part.stream);
        }
        None
    }

    #[cfg(test)]
    pub(crate) fn pieces(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing waits to be written.
    pub(crate) fn is_written_out(&self) -> bool {
        self.queue.is_empty()
    }

    /// The next frame of a connection, without waiting.
    pub(crate) fn look(&mut self) -> Result<Look, WireError> {
        match (&mut self.role, &self.descriptor) {
            (Role::Connection(reader), Some(socket)) => reader.look(socket),
            _ => Err(WireError::Closed),
        }
    }

    /// Takes bytes from the link. `unwritten` has, for streams, which flows must be how far before a message of theirs.
    pub(crate) fn take(
        &mut self,
        bytes: Vec<u8>,
        attached: Vec<OwnedFd>,
        unwritten: &[(u32, Mark)],
    ) -> Result<(), Breach> {
        self.received += bytes.len() as u64;
        if self.received - self.written > u64::from(CREDIT) {
            return Err(Breach::Window);
        }
        if bytes.is_empty() || !self.writes {
            // The other side has been told, and did not know when it sent this.
            return Ok(());
        }
        if !self.is_connection() {
            self.put(Part::FLOW, bytes, attached, Vec::new());
            return Ok(());
        }
        self.coming.extend(attached);
        for (part, bytes) in self.cutter.cut(bytes)? {
            let attached = if part.begins { std::mem::take(&mut self.coming) } else { Vec::new() };
            let waits = !unwritten.is_empty() && part.begins && part.message && comes_after_output(&bytes[HEADER..]);
            let marks = unwritten.iter().filter(|(stream, _)| waits && *stream == part.stream);
            let after = marks.map(|(_, mark)| *mark).collect();
            self.put(part, bytes, attached, after);
        }
        Ok(())
    }

    fn put(&mut self, part: Part, bytes: Vec<u8>, attached: Vec<OwnedFd>, after: Vec<Mark>) {
        match self.queue.back_mut() {
            // So that many small pieces take hardly more room than their bytes.
            Some(last)
                if last.part.frame == part.frame
                    && attached.is_empty()
                    && bytes.len() <= SMALL
                    && last.bytes.len() + bytes.len() <= PIECE =>
            {
                last.bytes.extend_from_slice(&bytes);
                last.part.ends = part.ends;
            }
            _ => self.queue.push_back(Incoming { bytes, at: 0, attached, part, after }),
        }
    }

    /// Queues a frame of this side's own, which comes between those from the link.
    pub(crate) fn say(&mut self, bytes: Vec<u8>) {
        let part = self.cutter.own();
        self.queue.push_back(Incoming { bytes, at: 0, attached: Vec::new(), part, after: Vec::new() });
    }

    /// Writes what is there as far as it goes without waiting, for whatever it waits.
    pub(crate) fn write_all_now(&mut self) {
        while let Some(next) = self.next(|_| true) {
            let before = (self.queue.len(), self.queue[next].at);
            let written = self.write(Some(next));
            let now = (self.queue.len(), self.queue.get(next).map_or(0, |piece| piece.at));
            if written != Written::Open || now == before {
                return;
            }
        }
    }

    /// Nothing more comes for the descriptor.
    pub(crate) fn end(&mut self) {
        self.ending = true;
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending
    }

    /// Reads a flow once, without waiting, as far as there is credit. None is nothing now, an empty piece the end.
    pub(crate) fn read(&mut self) -> Option<Vec<u8>> {
        let most = usize::try_from(self.credit).unwrap_or(PIECE).min(PIECE);
        let descriptor = self.descriptor.as_ref().filter(|_| most > 0)?;
        let mut buffer = vec![0; most];
        let read = match self.kind {
            FileType::Socket => match socket::try_receive(descriptor, &mut buffer, &mut Vec::new()) {
                Ok(count) => count,
                Err(_) => Some(0),
            },
            _ => match rustix::io::read(descriptor, &mut buffer) {
                Ok(count) => Some(count),
                Err(Errno::AGAIN | Errno::INTR) => None,
                Err(_) => Some(0),
            },
        };
        buffer.truncate(read?);
        self.sends(buffer.len());
        Some(buffer)
    }

    /// How much of what was written to a pipe or socket waits to be read now.
    pub(crate) fn unread(&self) -> u64 {
        let Some(descriptor) = self.descriptor.as_ref().filter(|_| self.reads) else { return 0 };
        match self.kind {
            FileType::Fifo | FileType::Socket => rustix::io::ioctl_fionread(descriptor).unwrap_or(0),
            _ => 0,
        }
    }

    /// Writes a piece, if any, as far as it goes without waiting.
    pub(crate) fn write(&mut self, next: Option<usize>) -> Written {
        let Some(descriptor) = &self.descriptor else { return Written::Refused };
        if let Some((at, piece)) = next.and_then(|at| Some((at, self.queue.get_mut(at)?))) {
            let written = match self.waits {
                true if !takes_now(descriptor) => Err(Errno::AGAIN),
                waits => write_some(descriptor, self.kind, piece, waits),
            };
            match written {
                Ok(count) => {
                    piece.at += count;
                    if !piece.part.own {
                        self.written += count as u64;
                        self.owed = self.owed.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
                    }
                    let whole = piece.at == piece.bytes.len();
                    self.begun = Some(piece.part.frame).filter(|_| !(whole && piece.part.ends));
                    if whole {
                        self.queue.remove(at);
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return Written::Refused,
            }
        }
        if self.ending && self.queue.is_empty() { Written::Ended } else { Written::Open }
    }

    /// Credit to give back, once it is worth a frame.
    pub(crate) fn grant(&mut self) -> Option<u32> {
        (self.owed >= GRANT && self.writes && !self.ending).then(|| std::mem::take(&mut self.owed))
    }

    /// Nothing more is written.
    pub(crate) fn stop_writing(&mut self) {
        self.writes = false;
        self.queue.clear();
        match &self.descriptor {
            Some(descriptor) if self.reads && self.kind == FileType::Socket => {
                // Whoever reads the other end sees that this was all; one that is gone needs to see nothing.
                let _ = rustix::net::shutdown(descriptor, rustix::net::Shutdown::Write);
            }
            _ if !self.reads => self.descriptor = None,
            _ => {}
        }
    }

    /// Nothing more is read.
    pub(crate) fn stop_reading(&mut self) {
        self.reads = false;
        if !self.writes {
            self.descriptor = None;
        }
    }
}

/// Whether a write of a little would not wait.
fn takes_now(descriptor: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::OUT)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    // Errors are told by the write itself.
    rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
}

fn write_some(descriptor: &OwnedFd, kind: FileType, piece: &mut Incoming, waits: bool) -> rustix::io::Result<usize> {
    let bytes = &piece.bytes[piece.at..];
    let bytes = if waits { &bytes[..bytes.len().min(AT_ONCE)] } else { bytes };
    if kind != FileType::Socket {
        return rustix::io::write(descriptor, bytes);
    }
    let attached: Vec<_> = piece.attached.iter().map(|fd| fd.as_fd()).collect();
    match socket::try_send(descriptor, &[IoSlice::new(bytes)], &attached) {
        Ok(Some(count)) => {
            drop(attached);
            // They went with the first byte.
            piece.attached.clear();
            Ok(count)
        }
        Ok(None) => Err(Errno::AGAIN),
        Err(error) => Err(error.errno()),
    }
}

pub(crate) fn kind_of(descriptor: &OwnedFd) -> FileType {
    rustix::fs::fstat(descriptor).map_or(FileType::Unknown, |facts| FileType::from_raw_mode(facts.st_mode))
}

/// The same pipe, opened anew: whether an open file waits is shared with everybody who has it. `None` for a pipe of
/// another user's, which was handed to us all the same.
fn without_waiting(descriptor: &OwnedFd, direction: Direction) -> Option<OwnedFd> {
    let flags = match direction {
        Direction::Out => OFlags::RDONLY,
        Direction::In => OFlags::WRONLY,
        Direction::Both => OFlags::RDWR,
    };
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(descriptor));
    rustix::fs::open(path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()
}
