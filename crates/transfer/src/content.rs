//! The content of one file, from the stream to where it goes.

use std::os::fd::{AsFd as _, OwnedFd};

use crate::error::Refusal;
use crate::failure::Failure;
use crate::format::{CHECKSUM, HOLE, MAX_CHUNK, MAX_FILE, RUN};
use crate::making::write_at;
use crate::unpack::Unpacker;

/// A file of one chunk of at most so many bytes is small.
const SMALL: u32 = 64 * 1024;

/// The sum over a file's place and content; none in the local form.
type Sum = Option<blake3::Hasher>;

impl Unpacker<'_> {
    /// Collects a small file's content for the crew. If there is more to it, the length of its next chunk.
    pub(crate) fn small_content(&mut self, sum: &mut Sum) -> Result<Option<u32>, Failure> {
        let mut length = self.length()?;
        if length != 0 && length <= SMALL {
            self.counted(length.into())?;
            let mut left = length as usize;
            while left > 0 {
                let part = self.stream.content(left)?;
                if let Some(sum) = sum {
                    sum.update(part);
                }
                self.crew.contents().extend_from_slice(part);
                left -= part.len();
            }
            length = self.length()?;
        }
        if length != 0 {
            return Ok(Some(length));
        }
        self.ended(sum)?;
        Ok(None)
    }

    /// Writes what was collected of a file that turned out not to be small; how much.
    pub(crate) fn write_collected(&mut self, file: &OwnedFd, start: usize) -> Result<u64, Failure> {
        let contents = self.crew.contents();
        let length = (contents.len() - start) as u64;
        let written = write_at(file, &contents[start..], 0);
        contents.truncate(start);
        written.map_err(|errno| Failure::System("write", errno))?;
        Ok(length)
    }

    /// Receives the content from `at` on; `next` is the length of the next chunk where it is known already.
    pub(crate) fn content(
        &mut self,
        file: &OwnedFd,
        mut at: u64,
        mut next: Option<u32>,
        sum: &mut Sum,
    ) -> Result<(), Failure> {
        let mut size = at;
        loop {
            let length = match next.take() {
                Some(length) => length,
                None => self.length()?,
            };
            match length {
                0 => break,
                HOLE | RUN => {
                    let advance = u64::from_le_bytes(self.stream.uncovered()?);
                    check_size(at, advance)?;
                    if length == HOLE {
                        if let Some(sum) = sum {
                            sum.update(&advance.to_le_bytes());
                        }
                        at += advance;
                    } else {
                        at = self.long_run(file, at, advance)?;
                        size = at;
                    }
                }
                length => {
                    check_size(at, length.into())?;
                    self.counted(length.into())?;
                    at = self.chunk(file, at, length, sum)?;
                    size = at;
                }
            }
        }
        if at != size {
            rustix::fs::ftruncate(file, at).map_err(|errno| Failure::System("write", errno))?;
        }
        self.ended(sum)
    }

    fn chunk(&mut self, file: &OwnedFd, mut at: u64, length: u32, sum: &mut Sum) -> Result<u64, Failure> {
        let end = at + u64::from(length);
        while at < end {
            let part = self.stream.content((end - at) as usize)?;
            if let Some(sum) = sum {
                sum.update(part);
            }
            write_at(file, part, at).map_err(|errno| Failure::System("write", errno))?;
            at += part.len() as u64;
        }
        Ok(at)
    }

    /// Receives a run; where the file's content ends after it.
    fn long_run(&mut self, file: &OwnedFd, start: u64, length: u64) -> Result<u64, Failure> {
        self.within_limit(length)?;
        let (end, mut at, mut splices) = (start + length, start, true);
        while at < end {
            if splices && self.stream.is_empty() {
                match self.stream.splice(file.as_fd(), at, end - at)? {
                    Some(moved) => {
                        at += moved;
                        self.oversight.count(moved);
                    }
                    None => splices = false,
                }
                continue;
            }
            let most = usize::try_from(end - at).unwrap_or(usize::MAX);
            let part = self.stream.content(most)?;
            write_at(file, part, at).map_err(|errno| Failure::System("write", errno))?;
            at += part.len() as u64;
            self.oversight.count(part.len() as u64);
        }
        let count = u64::from_le_bytes(self.stream.uncovered()?);
        if count > length {
            return Err(Refusal::TooLarge.into());
        }
        self.summary.bytes += count;
        if count < length {
            rustix::fs::ftruncate(file, start + count).map_err(|errno| Failure::System("write", errno))?;
        }
        Ok(start + count)
    }

    /// The length of the next chunk.
    fn length(&mut self) -> Result<u32, Failure> {
        let length = u32::from_le_bytes(self.stream.uncovered()?);
        let known = length <= MAX_CHUNK || length == HOLE || (length == RUN && self.stream.is_local());
        if known { Ok(length) } else { Err(Refusal::TooLarge.into()) }
    }

    fn counted(&mut self, bytes: u64) -> Result<(), Failure> {
        self.within_limit(bytes)?;
        self.summary.bytes += bytes;
        self.oversight.count(bytes);
        Ok(())
    }

    fn within_limit(&self, more: u64) -> Result<(), Failure> {
        match self.options.limit {
            Some(limit) if self.summary.bytes.saturating_add(more) > limit => Err(Refusal::OverLimit(limit).into()),
            _ => Ok(()),
        }
    }

    fn ended(&mut self, sum: &mut Sum) -> Result<(), Failure> {
        self.require_sum(sum.take().map(|sum| *sum.finalize().as_bytes()))
    }

    /// Refuses the entry at hand where the sum that comes next is another.
    pub(crate) fn require_sum(&mut self, expected: Option<[u8; CHECKSUM]>) -> Result<(), Failure> {
        if self.sum_is(expected)? { Ok(()) } else { Err(Refusal::Checksum.into()) }
    }

    /// Whether the sum that comes next is this one. The local form has none.
    pub(crate) fn sum_is(&mut self, expected: Option<[u8; CHECKSUM]>) -> Result<bool, Failure> {
        let Some(expected) = expected else { return Ok(true) };
        Ok(self.stream.array::<CHECKSUM>()? == expected)
    }
}

fn check_size(at: u64, advance: u64) -> Result<(), Failure> {
    if advance > MAX_FILE || at + advance > MAX_FILE { Err(Refusal::TooLarge.into()) } else { Ok(()) }
}
