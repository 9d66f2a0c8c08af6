//! One end of a channel: a descriptor of this host, what waits to be written to it, and what was read from it.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use testyard_linux::socket;
use testyard_machine::wire::{FrameReader, Look, WireError};
use testyard_protocol::frame::HEADER;

use crate::message::Direction;

/// A sender begins with so much credit on each channel.
pub(crate) const CREDIT: u32 = 1024 * 1024;
/// Credit is given back in pieces of at least so much.
const GRANT: u32 = CREDIT / 4;
/// The largest piece that is read and sent at once.
pub(crate) const PIECE: usize = 64 * 1024;

/// So much a pipe or a terminal takes without waiting when it says that it takes anything (a page, a line).
const AT_ONCE: usize = 256;

/// What a channel is for.
#[derive(Debug)]
pub(crate) enum Role {
    /// A client's connection, or that to the agent which stands for it: whole frames are read from it.
    Connection(FrameReader),
    /// A descriptor that came with a frame of this connection.
    Flow {
        /// The connection's channel.
        owner: u32,
    },
}

/// That a flow has got so far.
pub(crate) type Mark = (u32, u64);

/// Bytes from the link, for the descriptor.
#[derive(Debug)]
pub(crate) struct Incoming {
    bytes: Vec<u8>,
    at: usize,
    attached: Vec<OwnedFd>,
    /// Said by this side itself: it counts for no credit.
    own: bool,
    /// What must have been written to flows before: a command's output comes before its end.
    pub(crate) after: Vec<Mark>,
}

/// Bytes from the descriptor, for the link.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Bytes, once those flows have sent so much.
    Bytes(Vec<u8>, Vec<Mark>),
    /// A message, which takes no credit.
    Message(crate::message::LinkMessage),
    /// There is no more.
    End,
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
    /// How much more may be sent.
    pub(crate) credit: u64,
    /// How much was read and sent.
    pub(crate) sent: u64,
    /// What was read and waits for credit or for flows.
    pub(crate) held: VecDeque<Outgoing>,
    queue: VecDeque<Incoming>,
    /// What this side itself has to say, once what came from the link ends with a whole frame.
    unsaid: VecDeque<Vec<u8>>,
    /// Whether a write may wait although it was not to: the descriptor is another's, and could not be opened anew.
    waits: bool,
    /// How much came from the link.
    pub(crate) received: u64,
    /// How much of it was written.
    pub(crate) written: u64,
    owed: u32,
    ending: bool,
    boundary: Boundary,
}

/// Where in a connection's frames the bytes are that came from the link.
#[derive(Debug, Default)]
struct Boundary {
    head: Vec<u8>,
    payload: usize,
}

impl Boundary {
    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let passed = self.payload.min(bytes.len());
                self.payload -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let (head, rest) = bytes.split_at(bytes.len().min(HEADER - self.head.len()));
            self.head.extend_from_slice(head);
            bytes = rest;
            if let Some(length) = self.head.first_chunk::<4>().filter(|_| self.head.len() == HEADER) {
                self.payload = u32::from_le_bytes(*length) as usize;
                self.head.clear();
            }
        }
    }
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
    pub(crate) fn flow(descriptor: OwnedFd, owner: u32, direction: Direction) -> Self {
        let kind = kind_of(&descriptor);
        let opened = if kind == FileType::Fifo { without_waiting(&descriptor, direction) } else { None };
        let waits = opened.is_none() && matches!(kind, FileType::Fifo | FileType::CharacterDevice);
        let channel = Self::new(opened.unwrap_or(descriptor), kind, Role::Flow { owner }, direction);
        Self { waits, ..channel }
    }

    fn new(descriptor: OwnedFd, kind: FileType, role: Role, direction: Direction) -> Self {
        Self {
            descriptor: Some(descriptor),
            kind,
            role,
            reads: direction != Direction::In,
            writes: direction != Direction::Out,
            credit: u64::from(CREDIT),
            sent: 0,
            held: VecDeque::new(),
            queue: VecDeque::new(),
            unsaid: VecDeque::new(),
            waits: false,
            received: 0,
            written: 0,
            owed: 0,
            ending: false,
            boundary: Boundary::default(),
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

    /// What to wait for on the descriptor; none where nothing that could happen there matters now. `ready` says
    /// whether flows are as far as the front of the queue needs them.
    pub(crate) fn interest(&self, room: bool, ready: bool) -> Option<PollFlags> {
        self.descriptor.as_ref()?;
        let mut flags = PollFlags::empty();
        if self.reads && room && self.held.is_empty() && (self.is_connection() || self.credit > 0) {
            flags |= PollFlags::IN;
        }
        if self.writes && ready && !self.queue.is_empty() {
            flags |= PollFlags::OUT;
        }
        // The end of a pipe's reader is told without being asked for.
        let watched = self.writes && !self.reads && self.kind == FileType::Fifo && self.queue.is_empty();
        (watched || !flags.is_empty()).then_some(flags)
    }

    /// The first piece that waits to be written: what it waits for.
    pub(crate) fn front(&self) -> Option<&Incoming> {
        self.queue.front()
    }

    /// The next frame of a connection, without waiting.
    pub(crate) fn look(&mut self) -> Result<Look, WireError> {
        match (&mut self.role, &self.descriptor) {
            (Role::Connection(reader), Some(socket)) => reader.look(socket),
            _ => Err(WireError::Closed),
        }
    }

    /// Takes bytes from the link; false where they are more than there was credit for.
    pub(crate) fn take(&mut self, bytes: Vec<u8>, attached: Vec<OwnedFd>, after: Vec<Mark>) -> bool {
        if bytes.is_empty() {
            return true;
        }
        self.received += bytes.len() as u64;
        if self.received - self.written > u64::from(CREDIT) {
            return false;
        }
        if self.is_connection() {
            self.boundary.pass(&bytes);
        }
        self.queue.push_back(Incoming { bytes, at: 0, attached, own: false, after });
        self.say_unsaid();
        true
    }

    /// Queues frames of this side's own, between those that come from the link.
    pub(crate) fn say(&mut self, frames: Vec<u8>) {
        self.unsaid.push_back(frames);
        self.say_unsaid();
    }

    fn say_unsaid(&mut self) {
        if self.is_between_frames() {
            let own = |bytes| Incoming { bytes, at: 0, attached: Vec::new(), own: true, after: Vec::new() };
            self.queue.extend(self.unsaid.drain(..).map(own));
        }
    }

    /// Whether what came from the link ends with a whole frame.
    fn is_between_frames(&self) -> bool {
        self.boundary.head.is_empty() && self.boundary.payload == 0
    }

    /// Writes what is there as far as it goes without waiting.
    pub(crate) fn write_all_now(&mut self) {
        loop {
            let front = |channel: &Self| (channel.queue.len(), channel.queue.front().map(|front| front.at));
            let before = front(self);
            if self.write() != Written::Open || front(self) == before {
                return;
            }
        }
    }

    /// Nothing more comes for the descriptor.
    pub(crate) fn end(&mut self) {
        self.ending = true;
    }

    /// Reads once, without waiting, at most `most` bytes. None is nothing now, an empty piece the end.
    pub(crate) fn read(&mut self, most: usize) -> Option<Vec<u8>> {
        let descriptor = self.descriptor.as_ref()?;
        let mut buffer = vec![0; most.min(PIECE)];
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

    /// Writes the front piece as far as it goes without waiting.
    pub(crate) fn write(&mut self) -> Written {
        let Some(descriptor) = &self.descriptor else { return Written::Refused };
        if let Some(front) = self.queue.front_mut() {
            let written = match self.waits {
                true if !takes_now(descriptor) => Err(Errno::AGAIN),
                waits => write_some(descriptor, self.kind, front, waits),
            };
            match written {
                Ok(count) => {
                    front.at += count;
                    if !front.own {
                        self.written += count as u64;
                        self.owed = self.owed.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
                    }
                    if front.at == front.bytes.len() {
                        self.queue.pop_front();
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

fn write_some(descriptor: &OwnedFd, kind: FileType, front: &mut Incoming, waits: bool) -> rustix::io::Result<usize> {
    let bytes = &front.bytes[front.at..];
    let bytes = if waits { &bytes[..bytes.len().min(AT_ONCE)] } else { bytes };
    if kind != FileType::Socket {
        return rustix::io::write(descriptor, bytes);
    }
    let attached: Vec<_> = front.attached.iter().map(|fd| fd.as_fd()).collect();
    match socket::try_send(descriptor, &[IoSlice::new(bytes)], &attached) {
        Ok(Some(count)) => {
            drop(attached);
            // They went with the first byte.
            front.attached.clear();
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
