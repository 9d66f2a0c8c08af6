//! Reading tar archives that anybody may have written.
//!
//! An own reader rather than the `tar` crate, for three reasons: every header is bounded (an archive of
//! a few kilobytes may claim a file name of gigabytes), the three sparse formats that GNU tar writes into
//! PAX headers are understood, and a truncated archive is told apart from one that ended.
//! It decides nothing about file systems: names come out as bytes, as they were written.

mod compression;
mod header;
mod pax;
mod reader;
mod sparse;

pub use compression::Compression;
pub(crate) use compression::open;
pub use reader::{ArchiveReader, Entry, EntryKind};

/// A reader of an archive's bytes as they were before they were compressed.
///
/// # Errors
/// [`ArchiveError::Read`], [`ArchiveError::Compression`].
pub fn uncompressed<'a>(source: impl std::io::Read + 'a) -> Result<Box<dyn std::io::Read + 'a>, ArchiveError> {
    open(source).map(|(_, reader)| reader)
}

/// The most bytes of a long name or of a PAX header: far more than any path, far less than memory.
pub(crate) const HEADER_LIMIT: u64 = 1 << 20;
/// The unit of the format.
pub(crate) const BLOCK: usize = 512;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file or stream itself failed, or its compression is damaged.
    #[error("cannot read the archive after {} bytes", offset)]
    Read {
        /// Bytes of the uncompressed archive read before.
        offset: u64,
        /// The cause.
        source: std::io::Error,
    },
    /// The first block is no tar header.
    #[error("this is not a tar archive, plain or compressed with gzip or zstd")]
    NotAnArchive,
    /// Compressed by a program that is not built in.
    #[error("the archive is compressed with {0}")]
    Compression(&'static str),
    /// It ends where it may not.
    #[error("the archive is truncated: it ends after {offset} bytes, in or after {}", shown(.entry))]
    Truncated {
        /// Bytes of the uncompressed archive.
        offset: u64,
        /// The last entry that was begun; empty if none was.
        entry: Vec<u8>,
    },
    /// A header's checksum is wrong.
    #[error("the archive is damaged: the header at byte {offset}, after {}, has a wrong checksum", shown(.entry))]
    Checksum {
        /// Where the header begins.
        offset: u64,
        /// The entry before it.
        entry: Vec<u8>,
    },
    /// A field holds what it may not.
    #[error("the archive's entry {} has an invalid {field}", shown(.entry))]
    Field {
        /// The entry, or the one before where the name itself is unreadable.
        entry: Vec<u8>,
        /// Which field.
        field: &'static str,
    },
    /// A name or a PAX header is longer than [`HEADER_LIMIT`].
    #[error("the archive's entry after {} has a header of {length} bytes; at most {HEADER_LIMIT} are read", shown(.entry))]
    HeaderTooLong {
        /// The entry before it.
        entry: Vec<u8>,
        /// What it claims.
        length: u64,
    },
    /// A kind of entry that a root file system cannot hold (a volume continued elsewhere, say).
    #[error("the archive's entry {} is of the unknown kind {:?}", shown(.entry), char::from(*.kind))]
    Kind {
        /// The entry.
        entry: Vec<u8>,
        /// The type flag.
        kind: u8,
    },
    /// Something goes on and on behind the end mark.
    #[error("the archive goes on after its end mark")]
    Trailing,
}

/// A name from an archive as people can read it: quoted, escaped and cut.
pub(crate) fn shown(name: &[u8]) -> String {
    const MOST: usize = 200;
    if name.is_empty() {
        return "its beginning".to_owned();
    }
    let cut = &name[..name.len().min(MOST)];
    let more = if name.len() > MOST { "…" } else { "" };
    format!("`{}{more}`", String::from_utf8_lossy(cut).escape_debug())
}
