//! The sender's part: offers a tree, and sends the contents that the receiver has not.
//!
//! A content is verified against the manifest while it is read. One that is no longer what was listed ends the sending:
//! the caller looks at the tree again. So a receiver never gets a mix of two states.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::list::{Delta, Input, put_number};
use crate::manifest::{ContentHash, EntryKind, Manifest, TreeHash};
use crate::wire::{self, Kind, MAGIC, PIECE, WireError, hear, say};

/// What is offered.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// The tree's root folder.
    pub root: BorrowedFd<'a>,
    /// What it holds.
    pub manifest: &'a Manifest,
    /// The manifest's hash.
    pub hash: TreeHash,
    /// A tree that the receiver is thought to have, with its hash.
    pub base: Option<(TreeHash, &'a Manifest)>,
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Whether the receiver had the whole tree already.
    pub known: bool,
    /// Files whose contents travelled.
    pub files: u64,
    /// Bytes that were written to the stream.
    pub bytes: u64,
}

/// Why a tree was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// A file is no longer what was listed. The tree is to be looked at again.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Relative to the root.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The conversation failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The receiver has another tree than the one that was sent.
    #[error("the receiver has the tree {0}, not the one that was sent")]
    Other(TreeHash),
}

impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        Self::Wire(WireError::Stream(error))
    }
}

/// Sends a tree; returns when the receiver has said that it has exactly this one.
///
/// # Errors
/// See [`SendError`]. After any of them the stream is of no use.
pub fn send(offer: Offer<'_>, input: &mut impl Read, output: &mut impl Write) -> Result<Sent, SendError> {
    let mut counted = Counted { output, bytes: 0 };
    let mut out = BufWriter::with_capacity(PIECE, &mut counted);
    out.write_all(MAGIC)?;
    make_offer(&offer, offer.base, &mut out)?;
    wire::hear_magic(input)?;
    let mut sent = Sent::default();
    let mut body = Vec::new();
    let mut told_whole = false;
    let reached = loop {
        match hear(input, &mut body)? {
            Kind::Whole if !told_whole && offer.base.is_some() => {
                told_whole = true;
                make_offer(&offer, None, &mut out)?;
            }
            Kind::Need => {
                let needed = wire::numbers_from(&body, offer.manifest.entries().len()).map_err(WireError::List)?;
                sent.files = needed.len() as u64;
                if let Err(error) = contents(&offer, &needed, &mut out) {
                    // So that the receiver keeps what it has, and does not wait for more.
                    let _ = say(&mut out, Kind::Changed, &[]).and_then(|()| out.flush());
                    return Err(error);
                }
                say(&mut out, Kind::End, &[])?;
                out.flush()?;
                match hear(input, &mut body)? {
                    Kind::Done => break wire::hash(&mut Input(&body)).map_err(WireError::List)?,
                    _ => return Err(WireError::OutOfTurn("something else than that the tree is there").into()),
                }
            }
            Kind::Done => {
                sent.known = true;
                break wire::hash(&mut Input(&body)).map_err(WireError::List)?;
            }
            _ => return Err(WireError::OutOfTurn("no answer to an offer").into()),
        }
    };
    drop(out);
    sent.bytes = counted.bytes;
    if reached == offer.hash { Ok(sent) } else { Err(SendError::Other(reached)) }
}

fn make_offer(offer: &Offer<'_>, base: Option<(TreeHash, &Manifest)>, out: &mut impl Write) -> Result<(), SendError> {
    let nothing = Manifest::default();
    let delta = Delta::between(base.map_or(&nothing, |(_, manifest)| manifest), offer.manifest).encode();
    match base {
        Some((hash, _)) => say(out, Kind::Offer, &[&offer.hash.0, &[1], &hash.0, &delta])?,
        None => say(out, Kind::Offer, &[&offer.hash.0, &[0], &delta])?,
    }
    Ok(out.flush()?)
}

/// Counts what is written.
struct Counted<'w, W> {
    output: &'w mut W,
    bytes: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

fn contents(offer: &Offer<'_>, needed: &[u32], out: &mut impl Write) -> Result<(), SendError> {
    let mut space = vec![0; PIECE];
    for number in needed {
        let entry = &offer.manifest.entries()[*number as usize];
        let EntryKind::File { content, .. } = &entry.kind else {
            return Err(WireError::OutOfTurn("it wants the content of a link").into());
        };
        one(offer.root, *number, &entry.path, content, &mut space, out)?;
    }
    Ok(())
}

/// Opens a file of the tree: never through a link, and without waiting for what may have become a pipe.
fn open(root: BorrowedFd<'_>, path: &Path) -> Result<File, SendError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), resolve) {
        Ok(file) => Ok(File::from(file)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::XDEV | Errno::STALE) => {
            Err(SendError::Changed(path.to_owned()))
        }
        Err(errno) => Err(SendError::Read { path: path.to_owned(), source: errno.into() }),
    }
}

/// Sends one content. A small one is verified before anything of it is sent.
fn one(
    root: BorrowedFd<'_>,
    number: u32,
    path: &Path,
    content: &ContentHash,
    space: &mut [u8],
    out: &mut impl Write,
) -> Result<(), SendError> {
    let failed = |source| SendError::Read { path: path.to_owned(), source };
    let mut file = open(root, path)?;
    let facts = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?;
    let size = facts.st_size as u64;
    let time = (facts.st_mtime as i64).saturating_mul(1_000_000_000).saturating_add(facts.st_mtime_nsec as i64);
    let mut head = Vec::with_capacity(24);
    put_number(&mut head, u64::from(number));
    head.extend_from_slice(&time.to_le_bytes());
    put_number(&mut head, size);
    let mut hasher = blake3::Hasher::new();
    let mut left = size;
    let mut begun = false;
    loop {
        // One byte more than is left shows a file that has grown.
        let wanted = space.len().min(usize::try_from(left).unwrap_or(usize::MAX).saturating_add(1));
        let count = fill(&mut file, &mut space[..wanted]).map_err(failed)?;
        hasher.update(&space[..count]);
        let last = count as u64 >= left;
        let verified = !last || (count as u64 == left && *hasher.finalize().as_bytes() == content.0);
        if !verified || (count == 0 && left > 0) {
            return Err(SendError::Changed(path.to_owned()));
        }
        if !std::mem::replace(&mut begun, true) {
            say(out, Kind::File, &[&head])?;
        }
        if count > 0 {
            say(out, Kind::Piece, &[&space[..count]])?;
        }
        left -= count as u64;
        if last {
            return Ok(());
        }
    }
}

/// Reads until the space is full or the file at its end.
fn fill(file: &mut File, space: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < space.len() {
        match file.read(&mut space[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
