//! The writing end of a stream: one buffer that records and file contents are put into without a copy.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::error::TransferError;
use crate::format::{DIRECTORY, END, FILE, HARD_LINK, HOLE, LEAVE, LINK, MAGIC, MAX_CHUNK, Time, VERSION};

/// Small enough to stay in the processor's second cache between reading, hashing and sending.
const BUFFER: usize = 256 * 1024;
/// File data is read only into at least this much room.
const ROOM: usize = 64 * 1024;

pub(crate) struct Sender<'a, W> {
    out: &'a mut W,
    buffer: Vec<u8>,
    filled: usize,
    /// Up to where the buffer's records have gone into `records`.
    hashed: usize,
    records: blake3::Hasher,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

impl<'a, W: Write> Sender<'a, W> {
    pub(crate) fn new(out: &'a mut W) -> Result<Self, TransferError> {
        let mut sender = Self {
            out,
            buffer: vec![0; BUFFER],
            filled: 0,
            hashed: 0,
            records: blake3::Hasher::new(),
            entries: 0,
            bytes: 0,
        };
        sender.put(&MAGIC)?;
        sender.put(&[VERSION])?;
        Ok(sender)
    }

    pub(crate) fn directory(&mut self, name: &[u8], mode: u32, time: Time) -> Result<(), TransferError> {
        self.entry(DIRECTORY, name)?;
        self.put(&mode.to_le_bytes())?;
        self.time(time)
    }

    pub(crate) fn leave(&mut self) -> Result<(), TransferError> {
        self.put(&[LEAVE])
    }

    pub(crate) fn link(&mut self, name: &[u8], time: Time, target: &[u8]) -> Result<(), TransferError> {
        self.entry(LINK, name)?;
        self.time(time)?;
        self.put(&(target.len() as u16).to_le_bytes())?;
        self.put(target)
    }

    pub(crate) fn hard_link(&mut self, name: &[u8], number: u32) -> Result<(), TransferError> {
        self.entry(HARD_LINK, name)?;
        self.put(&number.to_le_bytes())
    }

    /// Begins a file; its content follows through the returned hasher and [`Self::end_file`].
    pub(crate) fn file(&mut self, name: &[u8], mode: u32, time: Time, number: u32) -> Result<(), TransferError> {
        self.entry(FILE, name)?;
        self.put(&mode.to_le_bytes())?;
        self.time(time)?;
        self.put(&number.to_le_bytes())
    }

    /// The hasher for the content of the file just begun. It covers all records so far: a file whose name was changed on
    /// the way is refused with the file, not only at the stream's end.
    pub(crate) fn content(&mut self) -> blake3::Hasher {
        self.hash_records();
        let mut content = blake3::Hasher::new();
        content.update(self.records.finalize().as_bytes());
        content
    }

    /// Sends up to `limit` bytes from the file's position; how many there were, 0 at its end.
    pub(crate) fn data(
        &mut self,
        file: BorrowedFd<'_>,
        limit: u64,
        content: &mut blake3::Hasher,
    ) -> Result<Result<u64, Errno>, TransferError> {
        self.hash_records();
        if BUFFER - self.filled < ROOM.min(usize::try_from(limit).unwrap_or(ROOM)) + 4 {
            self.flush()?;
        }
        let start = self.filled + 4;
        let room = (BUFFER - start).min(MAX_CHUNK as usize).min(usize::try_from(limit).unwrap_or(usize::MAX));
        let read = loop {
            match rustix::io::read(file, &mut self.buffer[start..start + room]) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        let read = match read {
            Ok(0) => return Ok(Ok(0)),
            Ok(read) => read,
            Err(errno) => return Ok(Err(errno)),
        };
        content.update(&self.buffer[start..start + read]);
        self.buffer[self.filled..start].copy_from_slice(&(read as u32).to_le_bytes());
        self.filled = start + read;
        self.hashed = self.filled;
        self.bytes += read as u64;
        Ok(Ok(read as u64))
    }

    pub(crate) fn hole(&mut self, length: u64, content: &mut blake3::Hasher) -> Result<(), TransferError> {
        content.update(&length.to_le_bytes());
        self.unhashed(&HOLE.to_le_bytes())?;
        self.unhashed(&length.to_le_bytes())
    }

    pub(crate) fn end_file(&mut self, content: &blake3::Hasher) -> Result<(), TransferError> {
        self.unhashed(&0_u32.to_le_bytes())?;
        self.put(content.finalize().as_bytes())
    }

    pub(crate) fn end(&mut self) -> Result<(), TransferError> {
        self.put(&[END])?;
        self.put(&self.entries.to_le_bytes())?;
        self.put(&self.bytes.to_le_bytes())?;
        self.hash_records();
        let checksum = self.records.finalize();
        self.unhashed(checksum.as_bytes())?;
        self.flush()?;
        self.out.flush().map_err(|source| TransferError::Stream { operation: "write", source })
    }

    fn entry(&mut self, kind: u8, name: &[u8]) -> Result<(), TransferError> {
        self.entries += 1;
        self.put(&[kind])?;
        self.put(&(name.len() as u16).to_le_bytes())?;
        self.put(name)
    }

    fn time(&mut self, time: Time) -> Result<(), TransferError> {
        self.put(&time.seconds.to_le_bytes())?;
        self.put(&time.nanoseconds.to_le_bytes())
    }

    /// Appends bytes that the closing checksum covers.
    fn put(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        if BUFFER - self.filled < bytes.len() {
            self.flush()?;
        }
        self.buffer[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
        Ok(())
    }

    /// Appends bytes that it does not cover.
    fn unhashed(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        self.hash_records();
        self.put(bytes)?;
        self.hashed = self.filled;
        Ok(())
    }

    fn hash_records(&mut self) {
        self.records.update(&self.buffer[self.hashed..self.filled]);
        self.hashed = self.filled;
    }

    fn flush(&mut self) -> Result<(), TransferError> {
        self.hash_records();
        let sent = self.out.write_all(&self.buffer[..self.filled]);
        sent.map_err(|source: io::Error| TransferError::Stream { operation: "write", source })?;
        self.filled = 0;
        self.hashed = 0;
        Ok(())
    }
}
