//! A stream's bytes as [`std::io::Read`] and [`std::io::Write`].

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use testyard_protocol::FrameKind;
use testyard_protocol::credit::Consumed;
use testyard_protocol::frame::MAX_PAYLOAD;

use super::gate::CreditGate;
use super::session::Shared;
use crate::wire::WireError;

/// What a command writes, or a tree that is sent to us. At its end, or when the machine is lost, 0 bytes;
/// the stream's last event tells which.
#[derive(Debug)]
pub struct StreamReader {
    shared: Arc<Shared>,
    stream: u32,
    channel: u8,
    pieces: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    start: usize,
    consumed: Consumed,
}

impl StreamReader {
    pub(super) fn new(shared: Arc<Shared>, stream: u32, channel: u8, pieces: Receiver<Vec<u8>>) -> Self {
        Self { shared, stream, channel, pieces, piece: Vec::new(), start: 0, consumed: Consumed::default() }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.start == self.piece.len() {
            match self.pieces.recv() {
                Ok(piece) => (self.piece, self.start) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.start);
        buffer[..count].copy_from_slice(&self.piece[self.start..self.start + count]);
        self.start += count;
        if let Some(credit) = self.consumed.add(count as u64) {
            let bytes = u32::try_from(credit).unwrap_or(u32::MAX).to_le_bytes();
            // When the machine is lost, what has arrived may still be read.
            let _ = self.shared.send_raw(FrameKind::Credit, self.stream, self.channel, &bytes);
        }
        Ok(count)
    }
}

/// What a command reads, or a tree that we send. Dropped, the other side sees the end.
#[derive(Debug)]
pub struct StreamWriter {
    shared: Arc<Shared>,
    stream: u32,
    gate: Arc<CreditGate>,
}

impl StreamWriter {
    pub(super) fn new(shared: Arc<Shared>, stream: u32, gate: Arc<CreditGate>) -> Self {
        Self { shared, stream, gate }
    }
}

impl Write for StreamWriter {
    /// Waits while the other side does not read. Once the stream has ended the error is `BrokenPipe`.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let wanted = bytes.len().min(MAX_PAYLOAD);
        let Some(count) = self.gate.take(wanted) else { return Err(io::ErrorKind::BrokenPipe.into()) };
        match self.shared.send_raw(FrameKind::Data, self.stream, 0, &bytes[..count]) {
            Ok(()) => Ok(count),
            Err(WireError::System(error)) => Err(error.source),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        // A stream that has ended needs no end.
        let _ = self.shared.send_raw(FrameKind::End, self.stream, 0, &[]);
    }
}
