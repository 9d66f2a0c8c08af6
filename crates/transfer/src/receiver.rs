//! The reading end of a stream: records out of one buffer, file contents as slices of it.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::error::Refusal;
use crate::format::{CHECKED, CHECKSUM, LOCAL, Time};
use crate::local::LocalEnd;

/// Room for what a socket or pipe gives at once.
const BUFFER: usize = 1 << 20;

/// Why the next record could not be had.
#[derive(Debug)]
pub(crate) enum Fault {
    Stream(io::Error),
    Truncated,
    Refused(Refusal),
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Where a stream comes from.
pub(crate) enum Inlet<'a> {
    /// Anywhere: only the checked form is taken.
    Checked(&'a mut dyn Read),
    /// From another process of this host, in either form.
    Local(LocalEnd<'a>),
}

impl Inlet<'_> {
    fn reader(&mut self) -> &mut dyn Read {
        match self {
            Self::Checked(input) => input,
            Self::Local(end) => end,
        }
    }
}

pub(crate) struct Receiver<'a> {
    input: Inlet<'a>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// None in the local form.
    records: Option<blake3::Hasher>,
}

impl<'a> Receiver<'a> {
    pub(crate) fn new(input: Inlet<'a>) -> Self {
        Self { input, buffer: vec![0; BUFFER], start: 0, end: 0, records: Some(blake3::Hasher::new()) }
    }

    /// The stream's form is told: whether it is one that may come from here.
    pub(crate) fn form(&mut self, form: u8, checked: bool) -> Result<(), Refusal> {
        match (form, &self.input) {
            (CHECKED, _) => Ok(()),
            (LOCAL, Inlet::Local(_)) if !checked => {
                self.records = None;
                Ok(())
            }
            _ => Err(Refusal::Version(form)),
        }
    }

    /// Whether runs may come.
    pub(crate) fn is_local(&self) -> bool {
        self.records.is_none()
    }

    /// The next `N` bytes, which the closing checksum covers.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.uncovered()?;
        if let Some(records) = &mut self.records {
            records.update(&bytes);
        }
        Ok(bytes)
    }

    /// The next `N` bytes, which it does not cover.
    pub(crate) fn uncovered<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.require(N)?;
        let bytes = *self.buffer[self.start..].first_chunk().expect("required just before");
        self.start += N;
        Ok(bytes)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn number(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn time(&mut self) -> Result<Time, Fault> {
        let time = Time { seconds: i64::from_le_bytes(self.array()?), nanoseconds: self.number()? };
        if time.nanoseconds < 1_000_000_000 { Ok(time) } else { Err(Refusal::Time.into()) }
    }

    /// A counted string of at most `longest` bytes.
    pub(crate) fn text(&mut self, longest: usize, refusal: Refusal) -> Result<Vec<u8>, Fault> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        if length > longest {
            return Err(refusal.into());
        }
        self.require(length)?;
        let text = self.buffer[self.start..self.start + length].to_vec();
        if let Some(records) = &mut self.records {
            records.update(&text);
        }
        self.start += length;
        Ok(text)
    }

    /// Some of the next `most` bytes of content: at least one.
    pub(crate) fn content(&mut self, most: usize) -> Result<&[u8], Fault> {
        if self.start == self.end {
            self.require(1)?;
        }
        let length = most.min(self.end - self.start);
        let begin = self.start;
        self.start += length;
        Ok(&self.buffer[begin..begin + length])
    }

    /// Moves some of the next `most` bytes, past the buffer, which must be empty, into a file. Nothing where this
    /// carrier or file cannot.
    pub(crate) fn splice(&mut self, file: BorrowedFd<'_>, at: u64, most: u64) -> Result<Option<u64>, Fault> {
        let Inlet::Local(end) = &self.input else { return Ok(None) };
        match end.splice_into(file, at, most) {
            Ok(0) => Err(Fault::Truncated),
            Ok(moved) => Ok(Some(moved as u64)),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Ok(None),
            Err(error) => Err(Fault::Stream(error)),
        }
    }

    /// Whether nothing more has been read than was asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The checksum of all covered bytes so far; none in the local form.
    pub(crate) fn checksum(&self) -> Option<[u8; CHECKSUM]> {
        Some(*self.records.as_ref()?.finalize().as_bytes())
    }

    /// The hasher for the content of the file just begun: its name and place belong to it as much as its bytes.
    pub(crate) fn hasher(&self) -> Option<blake3::Hasher> {
        let mut content = blake3::Hasher::new();
        content.update(&self.checksum()?);
        Some(content)
    }

    fn require(&mut self, count: usize) -> Result<(), Fault> {
        if self.end - self.start >= count {
            return Ok(());
        }
        if BUFFER - self.start < count || self.start == self.end {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < count {
            match self.input.reader().read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(Fault::Truncated),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Stream(error)),
            }
        }
        Ok(())
    }
}
