//! The connection that carries a link for now: two descriptors, frames in and out, never waiting.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use testyard_protocol::frame::{Decoded, encode};
use testyard_protocol::{Frame, FrameDecoder, FrameError, FrameHeader, FrameKind};

use crate::hub::{Arrival, Hub};
use crate::message::{WIRE, WireMessage};
use crate::numbered::Mismatch;

/// So much is put into one write where it is there.
const BATCH: usize = 128 * 1024;
/// One read takes at most so much.
const READ: usize = 128 * 1024;
/// Between two signs of life on a link that has nothing to say, at most this part of the time after which it counts
/// as dead.
const PINGS: u32 = 3;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
    /// It was closed.
    #[error("the connection was closed")]
    Closed,
    /// The kernel says why.
    #[error("the connection broke")]
    Broken(#[source] std::io::Error),
    /// Nothing was heard.
    #[error("nothing was heard for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// What came is no frame.
    #[error("what came is not of the link")]
    Frame(#[from] FrameError),
    /// Both sides count differently.
    #[error("the two sides do not agree on what was sent")]
    Mismatch(#[from] Mismatch),
    /// The other side says that it does not go on.
    #[error("the other side refused to go on")]
    Refused,
}

/// A connection.
#[derive(Debug)]
pub struct Wire {
    input: OwnedFd,
    output: OwnedFd,
    decoder: FrameDecoder,
    out: Vec<u8>,
    at: usize,
    words: Vec<WireMessage>,
    alive: Duration,
    heard: Instant,
    pinged: Instant,
}

impl Wire {
    /// Over these, of which `read` was read already. It is dead when nothing was heard for `alive`.
    pub fn new(input: OwnedFd, output: OwnedFd, read: &[u8], alive: Duration) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&input, true)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        let mut decoder = FrameDecoder::new();
        decoder.feed(read);
        let now = Instant::now();
        Ok(Self { input, output, decoder, out: Vec::new(), at: 0, words: Vec::new(), alive, heard: now, pinged: now })
    }

    /// What to wait for.
    pub fn interests(&self, hub: &Hub) -> [(BorrowedFd<'_>, PollFlags); 2] {
        let writes = self.at < self.out.len() || !self.words.is_empty() || hub.has_more();
        let out = if writes { PollFlags::OUT } else { PollFlags::empty() };
        [(self.input.as_fd(), PollFlags::IN), (self.output.as_fd(), out)]
    }

    /// Whether all was sent that there was to say.
    #[must_use]
    pub fn is_done(&self, hub: &Hub) -> bool {
        self.at == self.out.len() && self.words.is_empty() && !hub.has_more()
    }

    /// When [`Wire::keep_alive`] has something to do next.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        (self.pinged + self.alive / PINGS).min(self.heard + self.alive)
    }

    /// Asks for a sign of life, or finds that none came.
    pub fn keep_alive(&mut self, now: Instant) -> Result<(), Cut> {
        if now >= self.heard + self.alive {
            return Err(Cut::Silent(self.alive));
        }
        if now >= self.pinged + self.alive / PINGS {
            self.pinged = now;
            self.words.push(WireMessage::Ping);
        }
        Ok(())
    }

    /// Says something outside of the numbered frames.
    pub fn say(&mut self, word: WireMessage) {
        self.words.push(word);
    }

    /// Sends what waits, as far as it goes.
    pub fn send(&mut self, hub: &mut Hub) -> Result<(), Cut> {
        loop {
            if self.at == self.out.len() {
                self.fill(hub);
            }
            if self.at == self.out.len() {
                return Ok(());
            }
            match rustix::io::write(&self.output, &self.out[self.at..]) {
                Ok(count) => self.at += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE) => return Err(Cut::Closed),
                Err(errno) => return Err(Cut::Broken(errno.into())),
            }
        }
    }

    fn fill(&mut self, hub: &mut Hub) {
        self.out.clear();
        self.at = 0;
        if hub.inbox().is_due() {
            self.words.push(WireMessage::Received(hub.inbox().tell()));
        }
        for word in self.words.drain(..) {
            let payload = serde_json::to_vec(&word).unwrap_or_default();
            encode(FrameHeader::message(WIRE), &payload, &mut self.out);
        }
        while self.out.len() < BATCH {
            let Some(frame) = hub.outbox().give() else { return };
            self.out.extend_from_slice(frame);
        }
    }

    /// Reads once; what came for the hub's owner.
    pub fn receive(&mut self, hub: &mut Hub, mut arrived: impl FnMut(&mut Hub, Arrival)) -> Result<(), Cut> {
        let mut buffer = vec![0; READ];
        let count = match rustix::io::read(&self.input, &mut buffer) {
            Ok(0) => return Err(Cut::Closed),
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(errno) => return Err(Cut::Broken(errno.into())),
        };
        self.heard = Instant::now();
        self.decoder.feed(&buffer[..count]);
        self.decode(hub, &mut arrived)
    }

    /// Sees to what was read before.
    pub fn decode(&mut self, hub: &mut Hub, arrived: &mut impl FnMut(&mut Hub, Arrival)) -> Result<(), Cut> {
        while let Some(decoded) = self.decoder.next()? {
            let Decoded::Frame(frame) = decoded else { continue };
            if frame.header.stream == WIRE {
                self.word(hub, &frame)?;
            } else if let Some(arrival) = hub.receive(frame) {
                arrived(hub, arrival);
            }
        }
        if hub.inbox().is_due() {
            self.words.push(WireMessage::Received(hub.inbox().tell()));
        }
        Ok(())
    }

    fn word(&mut self, hub: &mut Hub, frame: &Frame) -> Result<(), Cut> {
        if frame.header.kind != FrameKind::Message {
            return Ok(());
        }
        match serde_json::from_slice(&frame.payload) {
            Ok(WireMessage::Received(count)) => hub.acknowledge(count)?,
            Ok(WireMessage::Ping) => self.words.push(WireMessage::Received(hub.inbox().tell())),
            Ok(WireMessage::Refused(_)) => return Err(Cut::Refused),
            _ => {}
        }
        Ok(())
    }
}
