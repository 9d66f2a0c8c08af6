//! The writing end of a stream: one buffer that records and file contents are put into without a copy.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::error::TransferError;
use crate::format::{CHECKED, DIRECTORY, END, FILE, HARD_LINK, HOLE, LEAVE, LINK, LOCAL, MAGIC, MAX_CHUNK, RUN, Time};
use crate::local::LocalEnd;
use crate::oversight::Oversight;

/// Small enough to stay in the processor's second cache between reading, hashing and sending.
const BUFFER: usize = 256 * 1024;
/// File data is read only into at least this much room.
const ROOM: usize = 64 * 1024;
/// At least so much of a file is worth a run of its own.
const RUN_LEAST: u64 = 256 * 1024;
/// What fills the run of a file that became shorter.
const ZEROS: [u8; 4096] = [0; 4096];

/// Where a stream goes, which decides its form.
pub(crate) enum Outlet<'a> {
    /// Anywhere.
    Checked(&'a mut dyn Write),
    /// To another process of this host.
    Local(LocalEnd<'a>),
}

impl Outlet<'_> {
    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Checked(out) => out,
            Self::Local(end) => end,
        }
    }
}

/// The sum over a file's place and content; none in the local form.
pub(crate) type Content = Option<blake3::Hasher>;

pub(crate) struct Sender<'a> {
    out: Outlet<'a>,
    oversight: Oversight<'a>,
    buffer: Vec<u8>,
    filled: usize,
    /// Up to where the buffer's records have gone into `records`.
    hashed: usize,
    /// None in the local form.
    records: Option<blake3::Hasher>,
    pub(crate) entries: u64,
    pub(crate) moved: u64,
}

impl<'a> Sender<'a> {
    pub(crate) fn new(out: Outlet<'a>, oversight: Oversight<'a>) -> Result<Self, TransferError> {
        let checked = matches!(out, Outlet::Checked(_));
        let mut sender = Self {
            out,
            oversight,
            buffer: vec![0; BUFFER],
            filled: 0,
            hashed: 0,
            records: checked.then(blake3::Hasher::new),
            entries: 0,
            moved: 0,
        };
        sender.put(&MAGIC)?;
        sender.put(&[if checked { CHECKED } else { LOCAL }])?;
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
        self.put(target)?;
        self.sum()
    }

    pub(crate) fn hard_link(&mut self, name: &[u8], number: u32) -> Result<(), TransferError> {
        self.entry(HARD_LINK, name)?;
        self.put(&number.to_le_bytes())?;
        self.sum()
    }

    /// The sum of all records so far, behind what is made as soon as it is read.
    fn sum(&mut self) -> Result<(), TransferError> {
        self.hash_records();
        match self.records.as_ref().map(blake3::Hasher::finalize) {
            Some(sum) => self.put(sum.as_bytes()),
            None => Ok(()),
        }
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
    pub(crate) fn content(&mut self) -> Content {
        self.hash_records();
        let mut content = blake3::Hasher::new();
        content.update(self.records.as_ref()?.finalize().as_bytes());
        Some(content)
    }

    /// Sends up to `limit` bytes from the file's position; how many there were, 0 at its end.
    pub(crate) fn data(
        &mut self,
        file: BorrowedFd<'_>,
        limit: u64,
        content: &mut Content,
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
            Ok(read) => read,
            Err(errno) => return Ok(Err(errno)),
        };
        self.chunk(read, content);
        Ok(Ok(read as u64))
    }

    /// Sends some bytes that come from anywhere; how many there were, 0 at their end.
    pub(crate) fn bytes(&mut self, input: &mut dyn io::Read, content: &mut Content) -> Result<u64, TransferError> {
        self.hash_records();
        if BUFFER - self.filled < ROOM {
            self.flush()?;
        }
        let start = self.filled + 4;
        let read = loop {
            match input.read(&mut self.buffer[start..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TransferError::Bytes { operation: "read", source }),
                Ok(read) => break read,
            }
        };
        self.chunk(read, content);
        Ok(read as u64)
    }

    /// `read` bytes were put behind the room for a chunk's length.
    fn chunk(&mut self, read: usize, content: &mut Content) {
        if read == 0 {
            return;
        }
        let start = self.filled + 4;
        if let Some(content) = content {
            content.update(&self.buffer[start..start + read]);
        }
        self.buffer[self.filled..start].copy_from_slice(&(read as u32).to_le_bytes());
        self.filled = start + read;
        self.hashed = self.filled;
        self.sent(read as u64);
    }

    /// Whether so much of a file is better sent by [`Self::run`].
    pub(crate) fn takes_runs(&self, length: u64) -> bool {
        matches!(self.out, Outlet::Local(_)) && length >= RUN_LEAST
    }

    /// Sends `length` bytes from the file's position as a run; how many there were.
    pub(crate) fn run(&mut self, file: BorrowedFd<'_>, length: u64) -> Result<Result<u64, Errno>, TransferError> {
        self.put(&RUN.to_le_bytes())?;
        self.put(&length.to_le_bytes())?;
        self.flush()?;
        let mut left = length;
        while left > 0 {
            match self.hand_on(file, left)? {
                Ok(0) => break,
                Ok(moved) => {
                    left -= moved;
                    self.sent(moved);
                }
                Err(errno) => return Ok(Err(errno)),
            }
        }
        let count = length - left;
        while left > 0 {
            let zeros = &ZEROS[..ZEROS.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            self.out.writer().write_all(zeros).map_err(broken)?;
            left -= zeros.len() as u64;
        }
        self.put(&count.to_le_bytes())?;
        Ok(Ok(count))
    }

    /// Moves some of a file past the buffer, which is empty; 0 at the file's end.
    fn hand_on(&mut self, file: BorrowedFd<'_>, most: u64) -> Result<Result<u64, Errno>, TransferError> {
        let Outlet::Local(end) = &mut self.out else { return Ok(Err(Errno::INVAL)) };
        match end.splice_from(file, most) {
            Ok(moved) => return Ok(Ok(moved as u64)),
            // This file or carrier can't.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
            Err(error) => return Err(broken(error)),
        }
        let room = BUFFER.min(usize::try_from(most).unwrap_or(BUFFER));
        match rustix::io::retry_on_intr(|| rustix::io::read(file, &mut self.buffer[..room])) {
            Ok(read) => {
                end.write_all(&self.buffer[..read]).map_err(broken)?;
                Ok(Ok(read as u64))
            }
            Err(errno) => Ok(Err(errno)),
        }
    }

    fn sent(&mut self, bytes: u64) {
        self.moved += bytes;
        self.oversight.count(bytes);
    }

    pub(crate) fn hole(&mut self, length: u64, content: &mut Content) -> Result<(), TransferError> {
        if let Some(content) = content {
            content.update(&length.to_le_bytes());
        }
        self.unhashed(&HOLE.to_le_bytes())?;
        self.unhashed(&length.to_le_bytes())
    }

    pub(crate) fn end_file(&mut self, content: &Content) -> Result<(), TransferError> {
        self.unhashed(&0_u32.to_le_bytes())?;
        match content {
            Some(content) => self.put(content.finalize().as_bytes()),
            None => Ok(()),
        }
    }

    pub(crate) fn end(&mut self) -> Result<(), TransferError> {
        self.put(&[END])?;
        self.put(&self.entries.to_le_bytes())?;
        self.put(&self.moved.to_le_bytes())?;
        self.hash_records();
        if let Some(checksum) = self.records.as_ref().map(blake3::Hasher::finalize) {
            self.unhashed(checksum.as_bytes())?;
        }
        self.flush()?;
        self.out.writer().flush().map_err(broken)
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
        if let Some(records) = &mut self.records {
            records.update(&self.buffer[self.hashed..self.filled]);
        }
        self.hashed = self.filled;
    }

    fn flush(&mut self) -> Result<(), TransferError> {
        self.hash_records();
        self.out.writer().write_all(&self.buffer[..self.filled]).map_err(broken)?;
        self.filled = 0;
        self.hashed = 0;
        Ok(())
    }
}

fn broken(error: io::Error) -> TransferError {
    TransferError::stream("write", error)
}
