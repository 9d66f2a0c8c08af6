//! Readers that know how much went through them, and what it was.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};
use testyard_model::ByteSize;

use crate::store::Digest;

/// Sums and counts what is read through it.
pub(crate) struct Measured<R> {
    source: R,
    hash: Sha256,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Measured<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, hash: Sha256::new(), count: Rc::default() }
    }

    /// Bytes so far; follows.
    pub(crate) fn count(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.count)
    }

    /// Reads what is left, and tells the digest and the length of all.
    pub(crate) fn finish(mut self) -> io::Result<(Digest, u64)> {
        let mut sink = [0; 64 << 10];
        while read_some(&mut self, &mut sink)? > 0 {}
        Ok((Digest::of(&self.hash.finalize().into()), self.count.get()))
    }
}

fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.count.set(self.count.get() + read as u64);
        Ok(read)
    }
}

/// Sums so many zeros, as if they had been read.
pub(super) fn hash_zeros(hash: &mut Sha256, count: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut left = count;
    while left > 0 {
        let now = left.min(ZEROS.len() as u64);
        hash.update(&ZEROS[..now as usize]);
        left -= now;
    }
}

/// The bounds of what an archive may become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The most bytes, headers and skipped contents included.
    pub(crate) limit: u64,
    /// The most times its compressed size.
    pub(crate) ratio: u64,
    /// As long as it is no larger than this, the ratio does not matter.
    pub(crate) harmless: u64,
}

/// An archive unpacks to more than it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Overblown {
    #[error("it unpacks to more than {0}")]
    Size(ByteSize),
    #[error("it unpacks to more than {0} times its size")]
    Ratio(u64),
}

impl Overblown {
    /// What a reader's error was made of, if it is one of these.
    pub(crate) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// Stops where the uncompressed side of a stream grows out of bounds.
pub(crate) struct Bounded<R> {
    source: R,
    bounds: Bounds,
    compressed: Rc<Cell<u64>>,
    count: u64,
}

impl<R: Read> Bounded<R> {
    pub(crate) fn new(source: R, bounds: Bounds, compressed: Rc<Cell<u64>>) -> Self {
        Self { source, bounds, compressed, count: 0 }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.count += read as u64;
        let Bounds { limit, ratio, harmless } = self.bounds;
        let overblown = if self.count > limit {
            Overblown::Size(ByteSize(limit))
        } else if self.count > harmless && self.count / ratio.max(1) > self.compressed.get() {
            Overblown::Ratio(ratio)
        } else {
            return Ok(read);
        };
        Err(io::Error::other(overblown))
    }
}
