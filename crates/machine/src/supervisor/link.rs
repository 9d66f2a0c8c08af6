//! The supervisor's end of its link to the agent. It never waits for the agent: what does not fit into the
//! socket now is kept until it does.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use testyard_linux::socket;
use testyard_protocol::{FrameHeader, FrameKind, Order, RawText, Report, frame};

use super::SupervisorError;
use crate::wire::{FrameReader, Look};

/// The agent does not take its orders: it hangs.
const MOST_WAITING: usize = 1024;

#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    reader: FrameReader,
    waiting: VecDeque<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    attached: Option<OwnedFd>,
}

impl Link {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, reader: FrameReader::new(4096), waiting: VecDeque::new() }
    }

    /// Skips the agent's introduction (its process id, with its pidfd), which a backend reads and an adopting
    /// supervisor may meet: it is told from a frame by the descriptor that comes with it.
    pub(super) fn skip_preamble(&mut self) -> Result<(), SupervisorError> {
        let mut bytes = [0; 4];
        let mut descriptors = Vec::new();
        let count = socket::receive(&self.socket, &mut bytes, &mut descriptors).map_err(SupervisorError::Link)?;
        if count == 0 {
            return Err(SupervisorError::AgentGone);
        }
        if descriptors.is_empty() {
            self.reader.feed(&bytes[..count]);
        }
        Ok(())
    }

    pub(super) fn order(&mut self, order: &Order, attached: Option<OwnedFd>) -> Result<(), SupervisorError> {
        if self.waiting.len() >= MOST_WAITING {
            return Err(SupervisorError::AgentHangs);
        }
        let payload = serde_json::to_vec(order).expect("orders are plain data");
        let header = FrameHeader { attached: u8::from(attached.is_some()), ..FrameHeader::message(0) };
        let mut bytes = Vec::with_capacity(frame::HEADER + payload.len());
        frame::encode(header, &payload, &mut bytes);
        self.waiting.push_back(Outgoing { bytes, sent: 0, attached });
        self.flush()
    }

    /// Hands a client over to the agent, with what was read of it.
    pub(super) fn adopt(&mut self, client: OwnedFd, read: Vec<u8>) -> Result<(), SupervisorError> {
        self.order(&Order::Adopt { read: RawText(read) }, Some(client))
    }

    /// Whether something waits for room in the socket.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn flush(&mut self) -> Result<(), SupervisorError> {
        while let Some(next) = self.waiting.front_mut() {
            let attached: Vec<_> = next.attached.iter().map(AsFd::as_fd).collect();
            let sent = socket::try_send(&self.socket, &[IoSlice::new(&next.bytes[next.sent..])], &attached)
                .map_err(SupervisorError::Link)?;
            let Some(sent) = sent else { return Ok(()) };
            // Descriptors go with the first byte.
            next.attached = None;
            next.sent += sent;
            if next.sent == next.bytes.len() {
                self.waiting.pop_front();
            }
        }
        Ok(())
    }

    /// The next report, if one is there.
    pub(super) fn report(&mut self) -> Result<Option<Report>, SupervisorError> {
        loop {
            match self.reader.look(&self.socket) {
                Ok(Look::Nothing) => return Ok(None),
                Ok(Look::Frame(received)) if received.frame.header.kind == FrameKind::Message => {
                    return serde_json::from_slice(&received.frame.payload).map(Some).map_err(SupervisorError::Report);
                }
                Ok(Look::Frame(_)) => {}
                Err(error) if error.is_gone() => return Err(SupervisorError::AgentGone),
                Err(error) => return Err(SupervisorError::Wire(error)),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
