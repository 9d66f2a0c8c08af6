//! Cutting a file's content where the content itself says so, so that most pieces of a changed file are the same as
//! before, wherever they are.
//!
//! A hash over the last 64 bytes rolls along; a piece ends where its top bits are zero. The numbers are part of the
//! conversation's form: both ends must cut alike.

use std::fs::File;
use std::io::{self, Read as _};

/// No piece but a file's last is shorter.
const MIN: usize = 4 << 10;
/// None is longer.
pub(crate) const MAX: usize = 64 << 10;
/// On average one in so many bytes ends a piece: 16 KiB.
const MASK: u64 = !(u64::MAX >> 14);
/// A file that is smaller travels whole.
pub(crate) const WORTH: u64 = 64 << 10;

/// A value for each byte, from splitmix64 with its usual constants.
const GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut state = 0x7465_7374_7961_7264_u64;
    let mut at = 0;
    while at < table.len() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = state;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[at] = value ^ (value >> 31);
        at += 1;
    }
    table
};

/// What a piece is known by. Half a BLAKE3: the whole file is checked in the end.
pub(crate) type Mark = [u8; 16];

/// The length of the first piece of `bytes`; `last` says that nothing follows them.
pub(crate) fn cut(bytes: &[u8], last: bool) -> Option<usize> {
    if bytes.len() <= MIN {
        return last.then_some(bytes.len());
    }
    let end = bytes.len().min(MAX);
    let mut hash = 0_u64;
    for (at, byte) in bytes[..end].iter().enumerate().skip(MIN - 64) {
        hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
        if at >= MIN && hash & MASK == 0 {
            return Some(at + 1);
        }
    }
    (end == MAX || last).then_some(end)
}

/// A piece's mark.
pub(crate) fn mark(bytes: &[u8]) -> Mark {
    let hash = blake3::hash(bytes);
    let mut mark = [0; 16];
    mark.copy_from_slice(&hash.as_bytes()[..16]);
    mark
}

/// Reads a file piece by piece.
pub(crate) struct Pieces {
    file: File,
    buffer: Vec<u8>,
    start: usize,
    ended: bool,
}

impl Pieces {
    pub(crate) fn of(file: File) -> Self {
        Self { file, buffer: Vec::new(), start: 0, ended: false }
    }

    /// The next piece; empty at the end.
    pub(crate) fn next(&mut self) -> io::Result<&[u8]> {
        const READ: usize = 16 * MAX;
        loop {
            if let Some(length) = cut(&self.buffer[self.start..], self.ended) {
                let piece = self.start..self.start + length;
                self.start += length;
                return Ok(&self.buffer[piece]);
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            let count = (&mut self.file).take(READ as u64).read_to_end(&mut self.buffer)?;
            self.ended = count == 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut file = tempfile::tempfile().expect("a file");
        io::Write::write_all(&mut file, bytes).expect("room");
        io::Seek::rewind(&mut file).expect("a file");
        let mut pieces = Pieces::of(file);
        let mut found = Vec::new();
        loop {
            let piece = pieces.next().expect("it can be read").to_vec();
            if piece.is_empty() {
                return found;
            }
            found.push(piece);
        }
    }

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let step = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length).map(step).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pieces_are_the_whole_and_an_insertion_changes_few(
            seed in any::<u64>(),
            length in 0_usize..3_000_000,
            at in any::<prop::sample::Index>(),
        ) {
            let bytes = noise(seed, length);
            let before = pieces(&bytes);
            prop_assert_eq!(before.concat(), bytes.clone());
            prop_assert!(before.iter().all(|piece| piece.len() <= MAX));
            let mut edited = bytes;
            let at = at.index(edited.len() + 1);
            edited.splice(at..at, *b"inserted");
            let after = pieces(&edited);
            let new = after.iter().filter(|piece| !before.contains(piece)).count();
            prop_assert!(new <= 4, "{new} of {}", after.len());
        }
    }
}
