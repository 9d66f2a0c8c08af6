//! What is kept of a tree between scans, and its form on disk.
//!
//! The file is a cache: whatever is wrong with it (cut, older, of another tree), it is as if it were not there. It
//! holds `MAGIC`, the BLAKE3 of what comes next, the length of a whole memory, that memory, and the steps that were made
//! since (see `step`). Numbers are little-endian, texts and lists have their length before them. It is read piece by
//! piece, into memory that is used again: fresh memory for all of it takes as long as reading it.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::manifest::{ContentHash, Manifest, PlacedKind, TreeHash};
use crate::rules::RuleFile;
use crate::stamp::Stamp;
use crate::step::{self, End};

/// The last digit is the format.
const MAGIC: &[u8; 8] = b"tytree05";
/// Bytes before the memory: `MAGIC`, a sum, a length.
const HEAD: usize = 8 + 32 + 8;
/// Bytes of a mark.
pub(crate) const MARK: usize = 4 * 8 + 1;
/// Bytes of an entry, beside its text: a mark, the length of its path, its kind, and a content or the length of a target.
const ENTRY: usize = MARK + 4 + 1 + 32;
/// What stands for an entry that is a link; files are told by whether they are executable.
const LINK: u8 = 2;

/// A stamp, and whether it was settled when it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    pub(crate) stamp: Stamp,
    pub(crate) settled: bool,
}

/// A folder as it was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folder {
    /// Relative to the root, whose own path is empty.
    pub(crate) path: PathBuf,
    pub(crate) mark: Mark,
    /// Whether it has an entry `.git`.
    pub(crate) repository: bool,
    pub(crate) children: Children,
}

/// What is in a folder, by the bytes of the names: one block of memory, as it is in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Children(Vec<u8>);

/// A name in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Child<'a> {
    pub(crate) name: &'a OsStr,
    pub(crate) sort: ChildSort,
    /// Whether the rules ignore it, whatever git tracks.
    pub(crate) ignored: bool,
    /// Whether it is ignored and git tracks it (or something below it) all the same.
    pub(crate) tracked: bool,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildSort {
    /// A file or a link.
    File,
    Folder,
    /// A pipe, socket or device.
    Other,
}

/// Everything known of a tree after a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) rule_files: Vec<RuleFile>,
    /// Shared by the memories of one tree in which no folder changed.
    pub(crate) folders: Arc<Vec<Folder>>,
    /// Git's index of the repository around the tree, by which it was known what is tracked; not settled where there is
    /// none.
    pub(crate) index: Mark,
    /// Shared by the memories of one tree in which nothing but stamps changed.
    pub(crate) manifest: Arc<Manifest>,
    /// The manifest's.
    pub(crate) hash: TreeHash,
    /// One for each entry of the manifest.
    pub(crate) marks: Vec<Mark>,
    /// Raw, not collapsed.
    pub(crate) unhashed: Vec<PathBuf>,
    /// Files and folders that could not be read; while there are any, nothing is taken as unchanged.
    pub(crate) unreadable: Vec<PathBuf>,
}

/// What a file held.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) memory: Memory,
    /// Stands for the tree and the options it was scanned with.
    pub(crate) key: [u8; 32],
    pub(crate) end: End,
}

impl Children {
    /// Adds one behind all others.
    pub(crate) fn push(&mut self, child: Child<'_>) {
        put_path(&mut self.0, Path::new(child.name));
        self.0.push(child.sort as u8 | u8::from(child.ignored) << 4 | u8::from(child.tracked) << 5);
    }

    /// One after the other.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Child<'_>> {
        let mut left = self.0.as_slice();
        // Nothing but children is ever in it.
        std::iter::from_fn(move || take_child(&mut left))
    }

    /// Whether a child of this name is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.iter().any(|child| child.name == name)
    }

    /// Whether the same names are there for the same sorts of things, whatever is ignored.
    pub(crate) fn are_same(&self, other: &Self) -> bool {
        // Of as many bytes, neither goes on where the other has ended.
        let is_same = |(one, other): (Child<'_>, Child<'_>)| one.name == other.name && one.sort == other.sort;
        self.0.len() == other.0.len() && self.iter().zip(other.iter()).all(is_same)
    }
}

impl Memory {
    /// Of no tree.
    pub(crate) fn empty() -> Self {
        Self {
            rule_files: Vec::new(),
            folders: Arc::default(),
            index: Mark::default(),
            manifest: Arc::default(),
            hash: TreeHash([0; 32]),
            marks: Vec::new(),
            unhashed: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// For the file, without steps. `key` stands for the tree and the options it was scanned with.
    pub(crate) fn encode(&self, key: &[u8; 32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024 + self.marks.len() * (ENTRY + 64));
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; HEAD - 8]);
        out.extend_from_slice(key);
        out.extend_from_slice(&self.hash.0);
        put_mark(&mut out, &self.index);
        put_number(&mut out, self.rule_files.len() as u64);
        for file in &self.rule_files {
            put_path(&mut out, &file.path);
            out.push(file.content.is_some().into());
            out.extend_from_slice(&file.content.map_or([0; 32], |content| content.0));
        }
        put_number(&mut out, self.folders.len() as u64);
        for folder in self.folders.iter() {
            put_path(&mut out, &folder.path);
            put_mark(&mut out, &folder.mark);
            out.push(folder.repository.into());
            put_block(&mut out, &folder.children.0);
        }
        put_block(&mut out, self.manifest.text());
        put_number(&mut out, self.marks.len() as u64);
        for ((length, kind), mark) in self.manifest.placed().zip(&self.marks) {
            put_mark(&mut out, mark);
            out.extend_from_slice(&length.to_le_bytes());
            let (flag, content) = match kind {
                PlacedKind::File { executable, content } => (executable.into(), content.0),
                PlacedKind::Link(target) => {
                    let mut room = [0; 32];
                    room[..4].copy_from_slice(&target.to_le_bytes());
                    (LINK, room)
                }
            };
            out.push(flag);
            out.extend_from_slice(&content);
        }
        for paths in [&self.unhashed, &self.unreadable] {
            put_number(&mut out, paths.len() as u64);
            paths.iter().for_each(|path| put_path(&mut out, path));
        }
        let length = (out.len() - HEAD) as u64;
        out[40..HEAD].copy_from_slice(&length.to_le_bytes());
        let sum = blake3::hash(&out[40..]);
        out[8..40].copy_from_slice(sum.as_bytes());
        out
    }

    /// What the file at this path holds, if it is of this key.
    pub(crate) fn load(path: &Path, key: &[u8; 32]) -> Option<Self> {
        Loaded::from_file(path).filter(|loaded| loaded.key == *key).map(|loaded| loaded.memory)
    }

    fn decode<R: io::Read>(input: &mut Input<R>) -> Option<Self> {
        let hash = TreeHash(input.array()?);
        let index = input.mark()?;
        let rule_files = input.list(2 + 1 + 32, |input| {
            let path = input.path()?.to_owned();
            let present = input.byte()? == 1;
            let content = ContentHash(input.array()?);
            Some(RuleFile { path, content: present.then_some(content) })
        })?;
        let folders = input.list(2 + MARK + 1 + 8, |input| {
            Some(Folder {
                path: input.path()?.to_owned(),
                mark: input.mark()?,
                repository: input.byte()? == 1,
                children: input.children()?,
            })
        })?;
        let text = input.block()?;
        let count = input.count(ENTRY)?;
        let mut marks = Vec::with_capacity(count);
        let entries = (0..count).map_while(|_| {
            let (mark, entry) = take_entry(input.bytes(ENTRY)?.first_chunk()?)?;
            marks.push(mark);
            Some(entry)
        });
        let manifest = Manifest::of_text(text, count, entries)?;
        if manifest.len() < count {
            return None;
        }
        let paths = |input: &mut Input<_>| input.path().map(Path::to_owned);
        let (unhashed, unreadable) = (input.list(2, paths)?, input.list(2, paths)?);
        let (folders, manifest) = (Arc::new(folders), Arc::new(manifest));
        Some(Self { rule_files, folders, index, manifest, hash, marks, unhashed, unreadable })
    }
}

impl Loaded {
    /// What the file at this path holds, as [`Loaded::read`] reads it.
    pub(crate) fn from_file(path: &Path) -> Option<Self> {
        let file = fs::File::open(path).ok()?;
        let length = file.metadata().ok()?.len();
        Self::read(file, length)
    }

    /// From a file of this length, with the steps in it; `None` if it is not one whose memory was written whole, in this
    /// format.
    pub(crate) fn read(mut file: impl io::Read, length: u64) -> Option<Self> {
        let mut head = [0; HEAD];
        file.read_exact(&mut head).ok()?;
        let (magic, rest) = head.split_first_chunk::<8>()?;
        let (sum, size) = rest.split_first_chunk::<32>()?;
        let body = u64::from_le_bytes(*size.first_chunk()?);
        if magic != MAGIC || body > length.saturating_sub(HEAD as u64) {
            return None;
        }
        let mut input = Input::new(&mut file, body);
        input.sum.update(size);
        let (key, memory) = (input.array()?, Memory::decode(&mut input)?);
        if !input.is_whole(sum) {
            return None;
        }
        let (memory, end) = step::taken(memory, file, *sum, HEAD as u64 + body)?;
        Some(Self { memory, key, end })
    }
}

pub(crate) fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// Paths hold at most 4,096 bytes; two are enough for the length.
pub(crate) fn put_path(out: &mut Vec<u8>, path: &Path) {
    let bytes = path.as_os_str().as_bytes();
    out.extend_from_slice(&(bytes.len().min(usize::from(u16::MAX)) as u16).to_le_bytes());
    out.extend_from_slice(&bytes[..bytes.len().min(usize::from(u16::MAX))]);
}

fn put_block(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_mark(out: &mut Vec<u8>, mark: &Mark) {
    put_number(out, mark.stamp.size);
    put_number(out, mark.stamp.modified_ns.cast_unsigned());
    put_number(out, mark.stamp.changed_ns.cast_unsigned());
    put_number(out, mark.stamp.inode);
    out.push(mark.settled.into());
}

/// What is left to decode of a file.
struct Input<R> {
    file: R,
    /// What was read of it; decoded up to `at`, and in the sum up to its end.
    held: Vec<u8>,
    at: usize,
    /// What has yet to be read.
    left: u64,
    sum: blake3::Hasher,
}

impl<R: io::Read> Input<R> {
    /// So much is read at a time.
    const PIECE: usize = 64 << 10;

    fn new(file: R, length: u64) -> Self {
        Self { file, held: Vec::with_capacity(2 * Self::PIECE), at: 0, left: length, sum: blake3::Hasher::new() }
    }

    /// Whether all was decoded, and is what was summed.
    fn is_whole(&self, sum: &[u8; 32]) -> bool {
        self.left == 0 && self.at == self.held.len() && self.sum.finalize().as_bytes() == sum
    }

    /// Bytes that are still to be decoded.
    fn remaining(&self) -> u64 {
        self.left + (self.held.len() - self.at) as u64
    }

    fn bytes(&mut self, length: usize) -> Option<&[u8]> {
        if self.held.len() - self.at < length {
            self.fill(length)?;
        }
        let start = self.at;
        self.at += length;
        self.held.get(start..self.at)
    }

    /// Reads until so many bytes are held that are yet to be decoded.
    fn fill(&mut self, wanted: usize) -> Option<()> {
        if self.remaining() < wanted as u64 {
            return None;
        }
        self.held.drain(..self.at);
        self.at = 0;
        let before = self.held.len();
        let more = (wanted - before).max(Self::PIECE).min(usize::try_from(self.left).ok()?);
        self.held.resize(before + more, 0);
        self.file.read_exact(&mut self.held[before..]).ok()?;
        self.left -= more as u64;
        self.sum.update(&self.held[before..]);
        Some(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.first_chunk().copied()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn path(&mut self) -> Option<&Path> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        self.bytes(length).map(|bytes| Path::new(OsStr::from_bytes(bytes)))
    }

    fn mark(&mut self) -> Option<Mark> {
        self.array().map(|bytes| take_mark(&bytes))
    }

    /// Bytes with their length before them.
    fn block(&mut self) -> Option<Vec<u8>> {
        let length = self.count(1)?;
        let held = length.min(self.held.len() - self.at);
        let mut block = Vec::with_capacity(length);
        block.extend_from_slice(self.bytes(held)?);
        let more = (length - held) as u64;
        self.file.by_ref().take(more).read_to_end(&mut block).ok().filter(|read| *read as u64 == more)?;
        self.left -= more;
        self.sum.update(&block[held..]);
        Some(block)
    }

    fn children(&mut self) -> Option<Children> {
        let children = Children(self.block()?);
        let mut left = children.0.as_slice();
        while !left.is_empty() {
            take_child(&mut left)?;
        }
        Some(children)
    }

    /// How many items follow, of which each takes `least` bytes: a longer list is a lie, and must not be reserved for.
    fn count(&mut self, least: usize) -> Option<usize> {
        let count = self.number()?;
        (count <= self.remaining() / least as u64).then(|| usize::try_from(count).ok()).flatten()
    }

    fn list<T>(&mut self, least: usize, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.count(least)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }
}

pub(crate) fn take_mark(bytes: &[u8; MARK]) -> Mark {
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 * at + byte]));
    let stamp = Stamp {
        size: number(0),
        modified_ns: number(1).cast_signed(),
        changed_ns: number(2).cast_signed(),
        inode: number(3),
    };
    Mark { stamp, settled: bytes[MARK - 1] == 1 }
}

/// A mark, the length of a path and what is there.
fn take_entry(bytes: &[u8; ENTRY]) -> Option<(Mark, (u32, PlacedKind))> {
    let (mark, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (flag, content) = rest.split_first()?;
    let kind = match *flag {
        LINK => PlacedKind::Link(u32::from_le_bytes(*content.first_chunk()?)),
        0 | 1 => PlacedKind::File { executable: *flag == 1, content: ContentHash(*content.first_chunk()?) },
        _ => return None,
    };
    Some((take_mark(mark), (u32::from_le_bytes(*length), kind)))
}

/// The first child of a block of them, which is shorter then.
fn take_child<'a>(left: &mut &'a [u8]) -> Option<Child<'a>> {
    let (length, rest) = left.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let (flags, rest) = rest.split_first()?;
    *left = rest;
    let sort = match flags & 0x0f {
        0 => ChildSort::File,
        1 => ChildSort::Folder,
        2 => ChildSort::Other,
        _ => return None,
    };
    Some(Child { name: OsStr::from_bytes(name), sort, ignored: flags & 0x10 != 0, tracked: flags & 0x20 != 0 })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::{Entry, EntryKind};

    pub(crate) fn sample(files: &[(String, u64)]) -> Memory {
        let mark = |n| Mark { stamp: Stamp { size: n, modified_ns: -5, changed_ns: 7, inode: n }, settled: n % 2 == 0 };
        let kind = |n: u64| match n % 3 {
            0 => EntryKind::Link { target: "../x".into() },
            rest => EntryKind::File { executable: rest == 1, content: ContentHash([n as u8; 32]) },
        };
        let entries = files.iter().map(|(path, n)| Entry { path: path.into(), kind: kind(*n) }).collect();
        let manifest = Manifest::new(entries);
        let mut children = Children::default();
        for (name, n) in files {
            children.push(Child {
                name: OsStr::new(name),
                sort: [ChildSort::File, ChildSort::Folder, ChildSort::Other][(n % 3) as usize],
                ignored: n % 2 == 0,
                tracked: n % 5 == 0,
            });
        }
        Memory {
            rule_files: vec![RuleFile { path: "/r".into(), content: None }],
            folders: Arc::new(vec![Folder { path: PathBuf::new(), mark: mark(3), repository: true, children }]),
            index: mark(6),
            hash: manifest.hash(),
            marks: (0..manifest.len() as u64).map(mark).collect(),
            manifest: Arc::new(manifest),
            unhashed: vec!["u".into()],
            unreadable: Vec::new(),
        }
    }

    fn decoded(bytes: &[u8], key: &[u8; 32]) -> Option<Memory> {
        let loaded = Loaded::read(bytes, bytes.len() as u64).filter(|loaded| loaded.key == *key);
        loaded.map(|loaded| loaded.memory)
    }

    #[test]
    fn what_is_longer_than_a_piece_is_read() {
        let files: Vec<_> = (0..4_000).map(|n| (format!("{n:04}/{}", "x".repeat(n % 300)), n as u64)).collect();
        let memory = sample(&files);
        let bytes = memory.encode(&[1; 32]);
        assert!(bytes.len() > 10 * Input::<&[u8]>::PIECE);
        assert_eq!(decoded(&bytes, &[1; 32]), Some(memory));
        for cut in [0, 7, 39, HEAD - 1, HEAD + 31, Input::<&[u8]>::PIECE, bytes.len() - 1] {
            assert_eq!(decoded(&bytes[..cut], &[1; 32]), None, "{cut}");
        }
        // It became shorter after its length was asked for.
        assert!(Loaded::read(&bytes[..bytes.len() / 2], bytes.len() as u64).is_none());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(files in prop::collection::vec(("[a-c/]{1,5}", any::<u64>()), 0..20)) {
            let memory = sample(&files);
            prop_assert_eq!(decoded(&memory.encode(&[1; 32]), &[1; 32]), Some(memory.clone()));
            prop_assert_eq!(decoded(&memory.encode(&[1; 32]), &[2; 32]), None);
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), HEAD + 32..400)) {
            // With a right length, sum and key, so that the decoder is reached.
            bytes[..8].copy_from_slice(MAGIC);
            let length = (bytes.len() - HEAD) as u64;
            bytes[40..HEAD].copy_from_slice(&length.to_le_bytes());
            bytes[HEAD..HEAD + 32].fill(1);
            let sum = blake3::hash(&bytes[40..]);
            bytes[8..40].copy_from_slice(sum.as_bytes());
            let _ = decoded(&bytes, &[1; 32]);
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in any::<prop::sample::Index>()) {
            let mut bytes = sample(&[("a".to_owned(), 1)]).encode(&[1; 32]);
            let at = at.index(bytes.len());
            bytes[at] ^= 1;
            prop_assert_eq!(decoded(&bytes, &[1; 32]), None);
        }
    }
}
