//! Frames over a Unix socket, with the descriptors that travel beside them.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use testyard_linux::socket;
use testyard_protocol::frame::{Decoded, HEADER, MAX_ATTACHED};
use testyard_protocol::{Frame, FrameDecoder, FrameError, FrameHeader};

/// Why no frame came or went.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side closed the connection, or died.
    #[error("the connection was closed by the other side")]
    Closed,
    /// The kernel refused.
    #[error("the connection broke")]
    System(#[source] testyard_linux::Error),
    /// What came is not a frame.
    #[error("what came is not a frame")]
    Frame(#[from] FrameError),
    /// A frame announced descriptors that did not come with it.
    #[error("a frame came without the {0} descriptors it announced")]
    Descriptors(u8),
    /// A message has to fit one frame.
    #[error("a message of {0} bytes does not fit a frame")]
    TooLong(usize),
}

impl WireError {
    /// Whether the other side is gone (rather than mad).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::System(error) => {
                matches!(error.source.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN))
            }
            _ => false,
        }
    }
}

impl From<testyard_linux::Error> for WireError {
    fn from(error: testyard_linux::Error) -> Self {
        let gone = Self::System(error);
        if gone.is_gone() { Self::Closed } else { gone }
    }
}

/// A frame and what came with it.
#[derive(Debug)]
pub struct Received {
    /// The frame.
    pub frame: Frame,
    /// Its descriptors, as many as its header says.
    pub descriptors: Vec<OwnedFd>,
}

/// Sends one frame whole; waits while the other side's buffer is full.
pub fn send_frame(
    socket: impl AsFd,
    header: FrameHeader,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    if payload.len() > header.kind.most() {
        return Err(WireError::TooLong(payload.len()));
    }
    debug_assert!(descriptors.len() <= MAX_ATTACHED);
    let head = FrameHeader { attached: descriptors.len() as u8, ..header }.bytes(payload.len());
    let socket = socket.as_fd();
    let mut sent = socket::send(socket, &[IoSlice::new(&head), IoSlice::new(payload)], descriptors)?;
    while sent < HEADER + payload.len() {
        sent += match sent.checked_sub(HEADER) {
            Some(of_payload) => socket::send(socket, &[IoSlice::new(&payload[of_payload..])], &[])?,
            None => socket::send(socket, &[IoSlice::new(&head[sent..]), IoSlice::new(payload)], &[])?,
        };
    }
    Ok(())
}

/// The receiving half of a connection: bytes in, frames out.
#[derive(Debug)]
pub struct FrameReader {
    decoder: FrameDecoder,
    descriptors: VecDeque<OwnedFd>,
    arrived: Vec<OwnedFd>,
    buffer: Box<[u8]>,
}

/// What a look without waiting found.
#[derive(Debug)]
pub enum Look {
    /// A frame.
    Frame(Received),
    /// Nothing yet.
    Nothing,
}

impl FrameReader {
    /// Reads up to `buffer` bytes at a time.
    #[must_use]
    pub fn new(buffer: usize) -> Self {
        Self {
            decoder: FrameDecoder::new(),
            descriptors: VecDeque::new(),
            arrived: Vec::new(),
            buffer: vec![0; buffer].into_boxed_slice(),
        }
    }

    /// Adds bytes that were received elsewhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.decoder.feed(bytes);
    }

    /// The next frame; waits for it. The end of the connection is [`WireError::Closed`].
    pub fn receive(&mut self, socket: impl AsFd) -> Result<Received, WireError> {
        let socket = socket.as_fd();
        loop {
            if let Some(received) = self.decoded()? {
                return Ok(received);
            }
            let count = socket::receive(socket, &mut self.buffer, &mut self.arrived)?;
            self.take(count)?;
        }
    }

    /// The next frame, if it is there.
    pub fn look(&mut self, socket: impl AsFd) -> Result<Look, WireError> {
        let socket = socket.as_fd();
        loop {
            if let Some(received) = self.decoded()? {
                return Ok(Look::Frame(received));
            }
            match socket::try_receive(socket, &mut self.buffer, &mut self.arrived)? {
                Some(count) => self.take(count)?,
                None => return Ok(Look::Nothing),
            }
        }
    }

    /// A frame that was received before, if one is whole.
    pub fn decoded(&mut self) -> Result<Option<Received>, WireError> {
        let Some(decoded) = self.decoder.next()? else { return Ok(None) };
        let Decoded::Frame(frame) = decoded else { unreachable!("a decoder without a marker knows no resets") };
        let attached = frame.header.attached;
        if self.descriptors.len() < attached as usize {
            return Err(WireError::Descriptors(attached));
        }
        let descriptors = self.descriptors.drain(..attached as usize).collect();
        Ok(Some(Received { frame, descriptors }))
    }

    fn take(&mut self, count: usize) -> Result<(), WireError> {
        if count == 0 {
            return Err(WireError::Closed);
        }
        self.decoder.feed(&self.buffer[..count]);
        self.descriptors.extend(self.arrived.drain(..));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use testyard_linux::socket::{Kind, pair};
    use testyard_protocol::FrameKind;

    use super::*;

    #[test]
    fn frames_and_their_descriptors_stay_together() {
        let (left, right) = pair(Kind::Stream).expect("sockets are to be had");
        let (carried, _other) = pair(Kind::Stream).expect("sockets are to be had");
        let long = vec![7; 100_000];
        let sender = std::thread::spawn(move || {
            send_frame(&left, FrameHeader::message(1), b"{}", &[]).expect("it is read");
            send_frame(&left, FrameHeader::message(2), b"{}", &[carried.as_fd(), carried.as_fd()]).expect("read");
            let data = FrameHeader { kind: FrameKind::Data, channel: 1, attached: 0, stream: 3 };
            send_frame(&left, data, &long, &[carried.as_fd()]).expect("it is read");
        });
        let mut reader = FrameReader::new(4096);
        let counts: Vec<_> = (0..3)
            .map(|_| reader.receive(&right).expect("it was sent"))
            .map(|received| (received.frame.header.stream, received.frame.payload.len(), received.descriptors.len()))
            .collect();
        assert_eq!(counts, [(1, 2, 0), (2, 2, 2), (3, 100_000, 1)]);
        sender.join().expect("it sent all");
        assert!(matches!(reader.receive(&right), Err(WireError::Closed)));
    }

    #[test]
    fn announced_descriptors_must_come() {
        let (left, right) = pair(Kind::Stream).expect("sockets are to be had");
        let head = FrameHeader { attached: 3, ..FrameHeader::message(1) }.bytes(0);
        socket::send(&left, &[IoSlice::new(&head)], &[]).expect("it fits");
        let mut reader = FrameReader::new(64);
        assert!(matches!(reader.look(&right), Err(WireError::Descriptors(3))));
    }
}
