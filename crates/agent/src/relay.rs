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
    pipe: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    ended: bool,
    consumed: Consumed,
    /// A terminal is not closed by the end of input.
    terminal: bool,
}

/// The client sent more than it had credit for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

impl Input {
    /// Over the writing end of a pipe, or a terminal's controlling side; non-blocking.
    pub(crate) fn new(pipe: OwnedFd, terminal: bool) -> Self {
        Self { pipe: Some(pipe), waiting: VecDeque::new(), ended: false, consumed: Consumed::default(), terminal }
    }

    /// The descriptor, while it is open and something waits for it.
    pub(crate) fn wanting(&self) -> Option<&OwnedFd> {
        if self.waiting.is_empty() { None } else { self.pipe.as_ref() }
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
        while let (Some(pipe), false) = (&self.pipe, self.waiting.is_empty()) {
            let (front, _) = self.waiting.as_slices();
            match rustix::io::write(pipe.as_fd(), front) {
                Ok(length) => {
                    self.waiting.drain(..length);
                    written += length as u64;
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                // The command does not want any more: swallow the rest, as a shell's pipe would.
                Err(_) => self.pipe = None,
            }
        }
        if self.pipe.is_none() {
            written += self.waiting.len() as u64;
            self.waiting.clear();
        }
        if self.ended && self.waiting.is_empty() && !self.terminal {
            self.pipe = None;
        }
        if written > 0 { self.consumed.add(written) } else { None }
    }
}
