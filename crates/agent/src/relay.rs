//! Standard streams as frames: pipes and terminals on one side, credit on the other.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use testyard_protocol::Credit;
use testyard_protocol::credit::{Consumed, CreditError};

/// Output of a command on its way to a client.
pub(crate) struct Output {
    pub(crate) channel: u8,
    pipe: Option<OwnedFd>,
    credit: Credit,
}

/// What a read of an output gave.
pub(crate) enum Read {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing now.
    Nothing,
    /// The client must give credit first.
    NoCredit,
    /// Nothing ever again.
    End,
}

impl Output {
    /// Over the reading end of a pipe, or a terminal's controlling side; non-blocking.
    pub(crate) fn new(channel: u8, pipe: OwnedFd) -> Self {
        Self { channel, pipe: Some(pipe), credit: Credit::new() }
    }

    /// The descriptor, while it is open.
    pub(crate) fn pipe(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref()
    }

    /// Reads at most one frame's worth.
    pub(crate) fn read(&mut self) -> Read {
        let Some(pipe) = &self.pipe else { return Read::End };
        let allowed = self.credit.available().min(64 * 1024) as usize;
        if allowed == 0 {
            return Read::NoCredit;
        }
        let mut bytes = vec![0; allowed];
        match rustix::io::read(pipe, &mut bytes) {
            Ok(0) => self.close(),
            Ok(length) => {
                bytes.truncate(length);
                self.credit.take(length as u64);
                Read::Bytes(bytes)
            }
            Err(Errno::AGAIN | Errno::INTR) => Read::Nothing,
            // A terminal whose last user is gone says EIO.
            Err(_) => self.close(),
        }
    }

    fn close(&mut self) -> Read {
        self.pipe = None;
        Read::End
    }

    /// The client read some.
    pub(crate) fn grant(&mut self, bytes: u64) -> Result<(), CreditError> {
        self.credit.grant(bytes)
    }
}

/// Input of a command on its way from a client.
pub(crate) struct Input {
    way: Way,
    waiting: VecDeque<u8>,
    ended: bool,
    consumed: Consumed,
    /// A terminal is not closed by the end of input.
    terminal: bool,
}

/// Where input goes.
enum Way {
    /// The command's terminal is still being made: what is typed meanwhile waits.
    Awaited,
    Open(OwnedFd),
    /// The command takes no more.
    Closed,
}

/// The client sent more than it had credit for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

impl Input {
    /// Over the writing end of a pipe; non-blocking.
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self::over(Way::Open(pipe), false)
    }

    /// To a terminal that will be [attached](Self::attach).
    pub(crate) fn of_terminal() -> Self {
        Self::over(Way::Awaited, true)
    }

    fn over(way: Way, terminal: bool) -> Self {
        Self { way, waiting: VecDeque::new(), ended: false, consumed: Consumed::default(), terminal }
    }

    /// The terminal's controlling side, non-blocking, is here. Returns credit to give back.
    pub(crate) fn attach(&mut self, controller: OwnedFd) -> Option<u64> {
        self.way = Way::Open(controller);
        self.write()
    }

    /// The descriptor, while it is open and something waits for it.
    pub(crate) fn wanting(&self) -> Option<&OwnedFd> {
        match &self.way {
            Way::Open(pipe) if !self.waiting.is_empty() => Some(pipe),
            _ => None,
        }
    }

    /// Takes bytes from the client. Returns credit to give back.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Option<u64>, Overrun> {
        if self.waiting.len() as u64 + bytes.len() as u64 > Credit::INITIAL + Credit::STEP {
            return Err(Overrun);
        }
        self.waiting.extend(bytes);
        Ok(self.write())
    }

    /// No more will come.
    pub(crate) fn end(&mut self) {
        self.ended = true;
        self.write();
    }

    /// Writes what the command takes. Returns credit to give back.
    pub(crate) fn write(&mut self) -> Option<u64> {
        let mut written = 0;
        while let (Way::Open(pipe), false) = (&self.way, self.waiting.is_empty()) {
            let (front, _) = self.waiting.as_slices();
            match rustix::io::write(pipe.as_fd(), front) {
                Ok(length) => {
                    self.waiting.drain(..length);
                    written += length as u64;
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                // The command does not want any more: swallow the rest, as a shell's pipe would.
                Err(_) => self.way = Way::Closed,
            }
        }
        if matches!(self.way, Way::Closed) {
            written += self.waiting.len() as u64;
            self.waiting.clear();
        }
        if self.ended && self.waiting.is_empty() && !self.terminal {
            self.way = Way::Closed;
        }
        if written > 0 { self.consumed.add(written) } else { None }
    }
}
