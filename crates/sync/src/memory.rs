//! What is kept of a tree between scans, and its form on disk.
//!
//! The file is a cache: whatever is wrong with it (cut, older, of another tree), it is as if it were not there. It
//! holds `MAGIC`, the BLAKE3 of the rest, and the rest: numbers little-endian, texts and lists with their length
//! before them. It is read piece by piece, into memory that is used again: fresh memory for all of it takes as long as
//! reading it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::manifest::{ContentHash, KindRef, Manifest, TreeHash};
use crate::rules::RuleFile;
use crate::stamp::Stamp;

/// The last digit is the format.
const MAGIC: &[u8; 8] = b"tytree04";
/// Bytes of a mark.
const MARK: usize = 4 * 8 + 1;

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

    /// For the file. `key` stands for the tree and the options it was scanned with.
    pub(crate) fn encode(&self, key: &[u8; 32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024 + self.marks.len() * 160);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 32]);
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
            put_number(&mut out, folder.children.0.len() as u64);
            out.extend_from_slice(&folder.children.0);
        }
        put_number(&mut out, self.marks.len() as u64);
        for (entry, mark) in self.manifest.entries().zip(&self.marks) {
            put_mark(&mut out, mark);
            match entry.kind {
                KindRef::File { executable, content } => {
                    out.push(executable.into());
                    out.extend_from_slice(&content.0);
                }
                KindRef::Link { target } => {
                    out.push(2);
                    put_path(&mut out, target);
                }
            }
            put_path(&mut out, entry.path);
        }
        for paths in [&self.unhashed, &self.unreadable] {
            put_number(&mut out, paths.len() as u64);
            paths.iter().for_each(|path| put_path(&mut out, path));
        }
        let sum = blake3::hash(&out[40..]);
        out[8..40].copy_from_slice(sum.as_bytes());
        out
    }

    /// What the file at this path holds, as [`Memory::read`] reads it.
    pub(crate) fn load(path: &Path, key: &[u8; 32]) -> Option<Self> {
        let file = fs::File::open(path).ok()?;
        let length = file.metadata().ok()?.len();
        Self::read(file, length, key)
    }

    /// From a file of this length; `None` if it is not one that was written whole, in this format, for this key.
    fn read(file: impl io::Read, length: u64, key: &[u8; 32]) -> Option<Self> {
        let mut input = Input::new(file, length);
        if &input.array::<8>()? != MAGIC {
            return None;
        }
        let sum: [u8; 32] = input.array()?;
        input.sum_from_here();
        if input.array::<32>()? != *key {
            return None;
        }
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
        let count = input.count(MARK + 1 + 2 + 2)?;
        let (mut manifest, mut marks) = (Manifest::with_room(count), Vec::with_capacity(count));
        for _ in 0..count {
            marks.push(input.mark()?);
            match input.byte()? {
                2 => {
                    let target = input.path()?.to_owned();
                    manifest.push(input.path()?, KindRef::Link { target: &target });
                }
                flag @ (0 | 1) => {
                    let content = ContentHash(input.array()?);
                    manifest.push(input.path()?, KindRef::File { executable: flag == 1, content });
                }
                _ => return None,
            }
        }
        let paths = |input: &mut Input<_>| input.path().map(Path::to_owned);
        let (unhashed, unreadable) = (input.list(2, paths)?, input.list(2, paths)?);
        // Paths out of their order would be missing.
        let whole = input.is_whole(&sum) && manifest.len() == marks.len();
        let (folders, manifest) = (Arc::new(folders), Arc::new(manifest));
        whole.then_some(Self { rule_files, folders, index, manifest, hash, marks, unhashed, unreadable })
    }
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// Paths hold at most 4,096 bytes; two are enough for the length.
fn put_path(out: &mut Vec<u8>, path: &Path) {
    let bytes = path.as_os_str().as_bytes();
    out.extend_from_slice(&(bytes.len().min(usize::from(u16::MAX)) as u16).to_le_bytes());
    out.extend_from_slice(&bytes[..bytes.len().min(usize::from(u16::MAX))]);
}

fn put_mark(out: &mut Vec<u8>, mark: &Mark) {
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

    /// What was decoded so far is not in the sum.
    fn sum_from_here(&mut self) {
        self.sum = blake3::Hasher::new();
        self.sum.update(&self.held[self.at..]);
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
        let (size, modified, changed, inode) = (self.number()?, self.number()?, self.number()?, self.number()?);
        let stamp = Stamp { size, modified_ns: modified.cast_signed(), changed_ns: changed.cast_signed(), inode };
        Some(Mark { stamp, settled: self.byte()? == 1 })
    }

    fn children(&mut self) -> Option<Children> {
        let length = usize::try_from(self.number()?).ok()?;
        let children = Children(self.bytes(length)?.to_vec());
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::{Entry, EntryKind};

    fn sample(files: &[(String, u64)]) -> Memory {
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
        Memory::read(bytes, bytes.len() as u64, key)
    }

    #[test]
    fn what_is_longer_than_a_piece_is_read() {
        let files: Vec<_> = (0..4_000).map(|n| (format!("{n:04}/{}", "x".repeat(n % 300)), n as u64)).collect();
        let memory = sample(&files);
        let bytes = memory.encode(&[1; 32]);
        assert!(bytes.len() > 10 * Input::<&[u8]>::PIECE);
        assert_eq!(decoded(&bytes, &[1; 32]), Some(memory));
        for cut in [0, 7, 39, 71, Input::<&[u8]>::PIECE, bytes.len() - 1] {
            assert_eq!(decoded(&bytes[..cut], &[1; 32]), None, "{cut}");
        }
        // It became shorter after its length was asked for.
        assert_eq!(Memory::read(&bytes[..bytes.len() / 2], bytes.len() as u64, &[1; 32]), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(files in prop::collection::vec(("[a-c/]{1,5}", any::<u64>()), 0..20)) {
            let memory = sample(&files);
            prop_assert_eq!(decoded(&memory.encode(&[1; 32]), &[1; 32]), Some(memory.clone()));
            prop_assert_eq!(decoded(&memory.encode(&[1; 32]), &[2; 32]), None);
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 72..400)) {
            // With a right sum and key, so that the decoder is reached.
            bytes[..8].copy_from_slice(MAGIC);
            bytes[40..72].fill(1);
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
