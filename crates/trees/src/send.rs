//! The sender's part: offers a tree, and sends the contents that the receiver has not.
//!
//! A content is verified against the manifest while it is read. One that is no longer what was listed ends the sending:
//! the caller looks at the tree again. So a receiver never gets a mix of two states.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::chunk::{Mark, Pieces, mark};
use crate::list::{Delta, Input, ListError, put_number};
use crate::manifest::{ContentHash, EntryRef, KindRef, Manifest, TreeHash};
use crate::wire::{self, Kind, MAGIC, PIECE, WireError, hear, say};

/// How hard packing tries: more costs more time than a network of today gives back.
const LEVEL: i32 = 1;
/// So many pieces of old contents are heard of: 16 GiB of them.
const MOST_PIECES: usize = 1 << 20;

/// What is offered.
#[derive(Clone, Copy)]
pub struct Offer<'a> {
    /// Opens a file of the tree by its path: never through a link, and never waiting. See [`open_below`].
    pub open: &'a dyn Fn(&Path) -> rustix::io::Result<OwnedFd>,
    /// What it holds.
    pub manifest: &'a Manifest,
    /// The manifest's hash.
    pub hash: TreeHash,
    /// Whether to compress what is sent: where bytes cost more than the time to make them fewer.
    pub packed: bool,
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
    out.write_all(&[u8::from(offer.packed)])?;
    let mut sent = if offer.packed {
        let mut packed = zstd::stream::write::Encoder::new(out, LEVEL)?;
        // The frame is never ended: everything was flushed, and the receiver may be gone by now.
        converse(&offer, input, &mut packed)?
    } else {
        let sent = converse(&offer, input, &mut out)?;
        drop(out);
        sent
    };
    sent.bytes = counted.bytes;
    Ok(sent)
}

/// The conversation, unpacked.
fn converse(offer: &Offer<'_>, input: &mut impl Read, out: &mut impl Write) -> Result<Sent, SendError> {
    make_offer(offer, offer.base, out)?;
    wire::hear_magic(input)?;
    let mut sent = Sent::default();
    let mut body = Vec::new();
    let mut told_whole = false;
    let mut old = HashMap::new();
    let mut pieces = 0;
    let reached = loop {
        match hear(input, &mut body)? {
            Kind::Whole if !told_whole && offer.base.is_some() => {
                told_whole = true;
                make_offer(offer, None, out)?;
            }
            Kind::Old => {
                let (number, marks) = old_marks(&body, offer.manifest.len()).map_err(WireError::List)?;
                pieces += marks.len();
                if pieces > MOST_PIECES {
                    return Err(WireError::OutOfTurn("too many pieces of old contents").into());
                }
                old.insert(number, marks);
            }
            Kind::Need => {
                let needed = wire::numbers_from(&body, offer.manifest.len()).map_err(WireError::List)?;
                sent.files = needed.len() as u64;
                if let Err(error) = contents(offer, &needed, &old, out) {
                    // So that the receiver keeps what it has, and does not wait for more.
                    let _ = say(out, Kind::Changed, &[]).and_then(|()| out.flush());
                    return Err(error);
                }
                say(out, Kind::End, &[])?;
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
    if reached == offer.hash { Ok(sent) } else { Err(SendError::Other(reached)) }
}

/// The pieces of an old content, by their marks: the number of each, and its length.
type Marks = HashMap<Mark, (u64, u64)>;

fn old_marks(bytes: &[u8], entries: usize) -> Result<(u32, Marks), ListError> {
    let mut input = Input(bytes);
    let number = input.number()?;
    if number >= entries as u64 {
        return Err(ListError::Form);
    }
    let mut marks = Marks::new();
    for piece in 0.. {
        if input.0.is_empty() {
            break;
        }
        let length = input.number()?;
        marks.entry(input.array()?).or_insert((piece, length));
    }
    Ok((number as u32, marks))
}

fn make_offer(offer: &Offer<'_>, base: Option<(TreeHash, &Manifest)>, out: &mut impl Write) -> Result<(), SendError> {
    match base {
        Some((hash, base)) => {
            let delta = Delta::between(base, offer.manifest).encode();
            say(out, Kind::Offer, &[&offer.hash.0, &[1], &hash.0, &delta])?;
        }
        None => say(out, Kind::Offer, &[&offer.hash.0, &[0], &Delta::encode_whole(offer.manifest)])?,
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

fn contents(
    offer: &Offer<'_>,
    needed: &[u32],
    old: &HashMap<u32, Marks>,
    out: &mut impl Write,
) -> Result<(), SendError> {
    let mut space = vec![0; PIECE];
    for number in needed {
        let Some(EntryRef { path, kind: KindRef::File { content, .. } }) = offer.manifest.get(*number as usize) else {
            return Err(WireError::OutOfTurn("it wants the content of a link").into());
        };
        let file = Outgoing { number: *number, path, content };
        match old.get(number) {
            Some(marks) => file.send_changed(offer, marks, out)?,
            None => file.send(offer, &mut space, out)?,
        }
    }
    Ok(())
}

/// Opens a file below a folder: never through a link, and without waiting for what may have become a pipe.
///
/// # Errors
/// What the kernel says.
pub fn open_below(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

fn open(offer: &Offer<'_>, path: &Path) -> Result<File, SendError> {
    match (offer.open)(path) {
        Ok(file) => Ok(File::from(file)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::XDEV | Errno::STALE) => {
            Err(SendError::Changed(path.to_owned()))
        }
        Err(errno) => Err(SendError::Read { path: path.to_owned(), source: errno.into() }),
    }
}

/// One content on its way.
struct Outgoing<'a> {
    number: u32,
    path: &'a Path,
    content: ContentHash,
}

impl Outgoing<'_> {
    fn failed(&self, source: io::Error) -> SendError {
        SendError::Read { path: self.path.to_owned(), source }
    }

    /// The file, its size, and what is said of it before its content.
    fn open(&self, offer: &Offer<'_>) -> Result<(File, u64, Vec<u8>), SendError> {
        let file = open(offer, self.path)?;
        let facts = rustix::fs::fstat(&file).map_err(|errno| self.failed(errno.into()))?;
        let size = facts.st_size as u64;
        let time = (facts.st_mtime as i64).saturating_mul(1_000_000_000).saturating_add(facts.st_mtime_nsec as i64);
        let mut head = Vec::with_capacity(24);
        put_number(&mut head, u64::from(self.number));
        head.extend_from_slice(&time.to_le_bytes());
        put_number(&mut head, size);
        Ok((file, size, head))
    }

    /// Sends the whole. A small one is verified before anything of it is sent.
    fn send(&self, offer: &Offer<'_>, space: &mut [u8], out: &mut impl Write) -> Result<(), SendError> {
        let (mut file, size, head) = self.open(offer)?;
        let mut hasher = blake3::Hasher::new();
        let mut left = size;
        let mut begun = false;
        loop {
            // One byte more than is left shows a file that has grown.
            let wanted = space.len().min(usize::try_from(left).unwrap_or(usize::MAX).saturating_add(1));
            let count = fill(&mut file, &mut space[..wanted]).map_err(|error| self.failed(error))?;
            hasher.update(&space[..count]);
            let last = count as u64 >= left;
            let verified = !last || (count as u64 == left && *hasher.finalize().as_bytes() == self.content.0);
            if !verified || (count == 0 && left > 0) {
                return Err(SendError::Changed(self.path.to_owned()));
            }
            if !std::mem::replace(&mut begun, true) {
                say(out, Kind::File, &[&head])?;
            }
            piece(&space[..count], out)?;
            left -= count as u64;
            if last {
                return Ok(());
            }
        }
    }

    /// Sends what the receiver has not got of it.
    fn send_changed(&self, offer: &Offer<'_>, old: &Marks, out: &mut impl Write) -> Result<(), SendError> {
        let (file, size, head) = self.open(offer)?;
        say(out, Kind::File, &[&head])?;
        let mut hasher = blake3::Hasher::new();
        let mut pieces = Pieces::of(file);
        let (mut total, mut first, mut count) = (0, 0, 0);
        loop {
            let bytes = pieces.next().map_err(|error| self.failed(error))?;
            hasher.update(bytes);
            total += bytes.len() as u64;
            let known = if bytes.is_empty() { None } else { old.get(&mark(bytes)) };
            let known = known.filter(|(_, length)| *length == bytes.len() as u64).map(|(number, _)| *number);
            if count > 0 && known != Some(first + count) {
                same(first, std::mem::take(&mut count), out)?;
            }
            match known {
                Some(number) => {
                    first = if count == 0 { number } else { first };
                    count += 1;
                }
                None => piece(bytes, out)?,
            }
            if bytes.is_empty() {
                break;
            }
        }
        if total == size && *hasher.finalize().as_bytes() == self.content.0 {
            return Ok(());
        }
        Err(SendError::Changed(self.path.to_owned()))
    }
}

fn same(first: u64, count: u64, out: &mut impl Write) -> io::Result<()> {
    let mut body = Vec::with_capacity(16);
    put_number(&mut body, first);
    put_number(&mut body, count);
    say(out, Kind::Same, &[&body])
}

/// Sends a piece of a content; of zeros only how many they are.
fn piece(bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
    const WORTH: usize = 4096;
    if bytes.is_empty() {
        return Ok(());
    }
    if bytes.len() >= WORTH && bytes.iter().all(|byte| *byte == 0) {
        let mut body = Vec::with_capacity(8);
        put_number(&mut body, bytes.len() as u64);
        return say(out, Kind::Zeros, &[&body]);
    }
    say(out, Kind::Piece, &[bytes])
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
