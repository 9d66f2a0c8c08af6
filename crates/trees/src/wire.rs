//! What the two ends say to each other, in a stream of bytes.
//!
//! ```text
//!  message = kind, length (4 bytes, little-endian), so many bytes
//! ```

use std::io::{self, Read, Write};

use crate::list::{Input, ListError, put_number};
use crate::manifest::TreeHash;

/// Begins what either end says. The number is the form's.
pub(crate) const MAGIC: &[u8; 8] = b"tysync01";
/// No list is longer: a tree of some millions of files.
const MOST_LISTED: usize = 512 << 20;
/// No list of pieces is longer: a file of about 50 GiB.
pub(crate) const MOST_MARKED: usize = 64 << 20;
/// So much of a file's content travels at a time.
pub(crate) const PIECE: usize = 256 << 10;
/// A message that is not a list is never longer.
const MOST: usize = 2 * PIECE;

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The sender has this tree: its hash, 0 or 1 and the hash of a base, then a delta.
    Offer,
    /// The receiver wants these contents: numbers of the tree's entries, each as the distance from the one before.
    Need,
    /// The base is not there: the sender is to offer the whole.
    Whole,
    /// A content begins: the entry's number, its time of change (8 bytes, nanoseconds), its size.
    File,
    /// A piece of the content that began last.
    Piece,
    /// So many zeros of the content that began last.
    Zeros,
    /// Pieces of the receiver's old content, as it named them: the first one's number, and how many.
    Same,
    /// What the receiver has in place of an entry's content: its number, then for each piece its length and its mark.
    /// Before `Need`.
    Old,
    /// Everything was sent.
    End,
    /// The sender gives up: something changed.
    Changed,
    /// The tree is there: its hash, as the receiver computed it.
    Done,
}

const KINDS: [Kind; 11] = [
    Kind::Offer,
    Kind::Need,
    Kind::Whole,
    Kind::File,
    Kind::Piece,
    Kind::Zeros,
    Kind::Same,
    Kind::Old,
    Kind::End,
    Kind::Changed,
    Kind::Done,
];

impl Kind {
    fn byte(self) -> u8 {
        KINDS.iter().position(|kind| *kind == self).map_or(0, |place| place as u8 + 1)
    }

    fn most(self) -> usize {
        match self {
            Self::Offer | Self::Need => MOST_LISTED,
            Self::Old => MOST_MARKED,
            _ => MOST,
        }
    }
}

/// What came cannot be understood, or did not come.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream broke, or ended early.
    #[error("the stream of the tree broke")]
    Stream(#[from] io::Error),
    /// A list that is none.
    #[error("what came is not a list of files")]
    List(#[from] ListError),
    /// Something out of turn.
    #[error("the other side said what it may not say: {0}")]
    OutOfTurn(&'static str),
}

impl WireError {
    /// Whether the other side has gone, rather than gone mad.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Stream(_))
    }
}

/// Writes a message.
pub(crate) fn say(output: &mut impl Write, kind: Kind, parts: &[&[u8]]) -> io::Result<()> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    debug_assert!(length <= kind.most());
    let mut head = [kind.byte(), 0, 0, 0, 0];
    head[1..].copy_from_slice(&(length as u32).to_le_bytes());
    output.write_all(&head)?;
    parts.iter().try_for_each(|part| output.write_all(part))
}

/// Reads a message into `body`.
pub(crate) fn hear(input: &mut impl Read, body: &mut Vec<u8>) -> Result<Kind, WireError> {
    let mut head = [0; 5];
    input.read_exact(&mut head)?;
    let kind = KINDS.get(usize::from(head[0]).wrapping_sub(1)).copied();
    let kind = kind.ok_or(WireError::OutOfTurn("a message of an unknown kind"))?;
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > kind.most() {
        return Err(WireError::OutOfTurn("a message that is too long"));
    }
    body.clear();
    // Room is made as bytes come, not as they are announced.
    input.take(length as u64).read_to_end(body)?;
    if body.len() < length {
        return Err(WireError::Stream(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(kind)
}

/// Reads what each end says first.
pub(crate) fn hear_magic(input: &mut impl Read) -> Result<(), WireError> {
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic)?;
    if &magic == MAGIC { Ok(()) } else { Err(WireError::OutOfTurn("another form of this conversation")) }
}

/// The numbers of entries, rising, as bytes.
pub(crate) fn numbers(numbers: &[u32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + numbers.len());
    put_number(&mut out, numbers.len() as u64);
    let mut before = 0;
    for number in numbers {
        put_number(&mut out, u64::from(*number - before));
        before = *number;
    }
    out
}

/// The numbers of entries, rising, each below `end`.
pub(crate) fn numbers_from(bytes: &[u8], end: usize) -> Result<Vec<u32>, ListError> {
    let mut input = Input(bytes);
    let count = input.count()?;
    let mut found: Vec<u32> = Vec::with_capacity(count);
    for index in 0..count {
        let step = input.number()?;
        let before = found.last().copied().unwrap_or(0);
        let number = u64::from(before).saturating_add(step);
        if number >= end as u64 || (index > 0 && step == 0) {
            return Err(ListError::Form);
        }
        found.push(number as u32);
    }
    if input.0.is_empty() { Ok(found) } else { Err(ListError::Length) }
}

/// A tree's hash at the start of a message.
pub(crate) fn hash(input: &mut Input<'_>) -> Result<TreeHash, ListError> {
    Ok(TreeHash(input.array()?))
}
