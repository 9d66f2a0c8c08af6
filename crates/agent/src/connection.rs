//! One connection: frames in, frames out, never blocking.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use serde::Serialize;
use testyard_linux::socket;
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::frame::{Decoded, encode};
use testyard_protocol::{Event, Frame, FrameDecoder, FrameHeader, FrameKind, Report};

/// A frame with the descriptors that came with it.
pub(crate) struct Received {
    pub(crate) frame: Frame,
    pub(crate) attached: Vec<OwnedFd>,
}

struct Outgoing {
    bytes: Vec<u8>,
    attached: Vec<OwnedFd>,
}

/// A connected socket with its queues.
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    decoder: FrameDecoder,
    attached: VecDeque<OwnedFd>,
    outgoing: VecDeque<Outgoing>,
    /// What the loop waits for on it.
    pub(crate) watched: EventFlags,
    /// The protocol version agreed on; none before the hello.
    pub(crate) version: Option<u16>,
    /// Output waits in its pipes, because the client does not read what it was sent.
    pub(crate) paused: bool,
}

/// More than this waiting for a client that does not read ends its connection.
const MAX_QUEUED: usize = 4096;
/// With so much waiting, no more output is read.
const FULL: usize = 64;

impl Connection {
    /// Over a socket from which `read` was already received.
    pub(crate) fn new(socket: OwnedFd, read: &[u8]) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.feed(read);
        Self {
            socket,
            decoder,
            attached: VecDeque::new(),
            outgoing: VecDeque::new(),
            watched: EventFlags::IN,
            version: None,
            paused: false,
        }
    }

    /// Receives once. False when the other side is gone.
    pub(crate) fn receive(&mut self) -> Result<bool, Problem> {
        let mut buffer = [0; 64 * 1024];
        let mut attached = Vec::new();
        let received = socket::try_receive(&self.socket, &mut buffer, &mut attached)
            .map_err(|error| Problem::from_error(ProblemKind::Unavailable, &error))?;
        self.attached.extend(attached);
        let Some(length) = received else { return Ok(true) };
        self.decoder.feed(&buffer[..length]);
        Ok(length > 0)
    }

    /// The next whole frame.
    pub(crate) fn next(&mut self) -> Result<Option<Received>, Problem> {
        let decoded = self.decoder.next().map_err(|error| Problem::from_error(ProblemKind::Protocol, &error))?;
        let Some(Decoded::Frame(frame)) = decoded else { return Ok(None) };
        let count = usize::from(frame.header.attached);
        if count > self.attached.len() {
            let message = format!("a frame announced {count} descriptors, but {} came", self.attached.len());
            return Err(Problem::new(ProblemKind::Protocol, message));
        }
        let attached = self.attached.drain(..count).collect();
        Ok(Some(Received { frame, attached }))
    }

    /// Sends a message.
    pub(crate) fn send(&mut self, stream: u32, message: &impl Serialize, attached: Vec<OwnedFd>) {
        let payload = serde_json::to_vec(message).unwrap_or_default();
        let header = FrameHeader { attached: attached.len() as u8, ..FrameHeader::message(stream) };
        self.send_frame(header, &payload, attached);
    }

    /// Sends the event that ends a stream, or any other.
    pub(crate) fn event(&mut self, stream: u32, event: &Event) {
        self.send(stream, event, Vec::new());
    }

    /// Sends any frame; queues what the socket does not take now.
    pub(crate) fn send_frame(&mut self, header: FrameHeader, payload: &[u8], attached: Vec<OwnedFd>) {
        let mut bytes = Vec::with_capacity(12 + payload.len());
        encode(header, payload, &mut bytes);
        self.outgoing.push_back(Outgoing { bytes, attached });
        if self.outgoing.len() == 1 {
            // A broken socket is noticed by the next read of it.
            let _ = self.flush();
        }
    }

    /// Sends what is queued. True when nothing is left.
    pub(crate) fn flush(&mut self) -> Result<bool, Problem> {
        while let Some(front) = self.outgoing.front_mut() {
            let attached: Vec<BorrowedFd<'_>> = front.attached.iter().map(|fd| fd.as_fd()).collect();
            let sent = socket::try_send(&self.socket, &[IoSlice::new(&front.bytes)], &attached)
                .map_err(|error| Problem::from_error(ProblemKind::Unavailable, &error))?;
            match sent {
                None => return Ok(false),
                Some(length) if length < front.bytes.len() => {
                    front.bytes.drain(..length);
                    front.attached.clear();
                }
                Some(_) => {
                    self.outgoing.pop_front();
                }
            }
        }
        Ok(true)
    }

    /// Whether something waits to be sent.
    pub(crate) fn has_queued(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether so much waits to be sent that no more output should be read.
    pub(crate) fn is_full(&self) -> bool {
        self.outgoing.len() >= FULL
    }

    /// Whether the client has stopped reading altogether.
    pub(crate) fn is_stuck(&self) -> bool {
        self.outgoing.len() > MAX_QUEUED
    }

    /// Grants credit for a channel.
    pub(crate) fn grant(&mut self, stream: u32, channel: u8, bytes: u64) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let header = FrameHeader { kind: FrameKind::Credit, channel, attached: 0, stream };
        self.send_frame(header, &bytes.to_le_bytes(), Vec::new());
    }
}

/// Tells a supervisor that this agent never came to be. Used before there is a loop.
pub(crate) fn report_broken(link: BorrowedFd<'_>, problem: &Problem) {
    let payload = serde_json::to_vec(&Report::Broken(problem.clone())).unwrap_or_default();
    let mut bytes = Vec::new();
    encode(FrameHeader::message(0), &payload, &mut bytes);
    // The supervisor sees the closed link if this fails.
    let _ = socket::send(link, &[IoSlice::new(&bytes)], &[]);
}
