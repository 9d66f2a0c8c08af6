//! What is kept of a tree between scans, and its form on disk.
//!
//! The file is a cache: whatever is wrong with it (cut, older, of another tree), it is as if it were not there. It
//! holds `MAGIC`, the BLAKE3 of the rest, and the rest: numbers little-endian, texts and lists with their length
//! before them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::manifest::{ContentHash, Entry, EntryKind, Manifest, TreeHash};
use crate::rules::RuleFile;
use crate::stamp::Stamp;

/// The last digit is the format.
const MAGIC: &[u8; 8] = b"tytree02";

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
    /// By the bytes of their names.
    pub(crate) children: Vec<Child>,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) name: OsString,
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
    pub(crate) manifest: Manifest,
    /// The manifest's.
    pub(crate) hash: TreeHash,
    /// One for each entry of the manifest.
    pub(crate) marks: Vec<Mark>,
    /// Raw, not collapsed.
    pub(crate) unhashed: Vec<PathBuf>,
    /// Files and folders that could not be read; while there are any, nothing is taken as unchanged.
    pub(crate) unreadable: Vec<PathBuf>,
}

impl Memory {
    /// Of no tree.
    pub(crate) fn empty() -> Self {
        Self {
            rule_files: Vec::new(),
            folders: Arc::default(),
            index: Mark::default(),
            manifest: Manifest::default(),
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
            put_number(&mut out, folder.children.len() as u64);
            for child in &folder.children {
                put_path(&mut out, Path::new(&child.name));
                out.push(child.sort as u8 | u8::from(child.ignored) << 4 | u8::from(child.tracked) << 5);
            }
        }
        put_number(&mut out, self.marks.len() as u64);
        for (entry, mark) in self.manifest.entries().iter().zip(&self.marks) {
            put_path(&mut out, &entry.path);
            put_mark(&mut out, mark);
            match &entry.kind {
                EntryKind::File { executable, content } => {
                    out.push((*executable).into());
                    out.extend_from_slice(&content.0);
                }
                EntryKind::Link { target } => {
                    out.push(2);
                    put_path(&mut out, target);
                }
            }
        }
        for paths in [&self.unhashed, &self.unreadable] {
            put_number(&mut out, paths.len() as u64);
            paths.iter().for_each(|path| put_path(&mut out, path));
        }
        let sum = blake3::hash(&out[40..]);
        out[8..40].copy_from_slice(sum.as_bytes());
        out
    }

    /// From the file; `None` if it is not one that was written whole, in this format, for this key.
    pub(crate) fn decode(bytes: &[u8], key: &[u8; 32]) -> Option<Self> {
        let body = bytes.get(40..)?;
        if &bytes[..8] != MAGIC || blake3::hash(body).as_bytes() != bytes[8..40].first_chunk::<32>()? {
            return None;
        }
        let mut input = Input(body);
        if input.array::<32>()? != *key {
            return None;
        }
        let hash = TreeHash(input.array()?);
        let index = input.mark()?;
        let rule_files = input.list(|input| {
            let path = input.path()?;
            let present = input.byte()? == 1;
            let content = ContentHash(input.array()?);
            Some(RuleFile { path, content: present.then_some(content) })
        })?;
        let folders = input.list(|input| {
            Some(Folder {
                path: input.path()?,
                mark: input.mark()?,
                repository: input.byte()? == 1,
                children: input.list(Input::child)?,
            })
        })?;
        let marked = input.list(|input| {
            let path = input.path()?;
            let mark = input.mark()?;
            let kind = match input.byte()? {
                2 => EntryKind::Link { target: input.path()? },
                flag @ (0 | 1) => EntryKind::File { executable: flag == 1, content: ContentHash(input.array()?) },
                _ => return None,
            };
            Some((Entry { path, kind }, mark))
        })?;
        let unhashed = input.list(Input::path)?;
        let unreadable = input.list(Input::path)?;
        let (entries, marks): (Vec<_>, Vec<_>) = marked.into_iter().unzip();
        let manifest = Manifest::new(entries);
        let whole = input.0.is_empty() && manifest.entries().len() == marks.len();
        let folders = Arc::new(folders);
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

/// What is left to decode.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<OsString> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(OsString::from_vec(text.to_vec()))
    }

    fn path(&mut self) -> Option<PathBuf> {
        self.text().map(PathBuf::from)
    }

    fn mark(&mut self) -> Option<Mark> {
        let (size, modified, changed, inode) = (self.number()?, self.number()?, self.number()?, self.number()?);
        let stamp = Stamp { size, modified_ns: modified.cast_signed(), changed_ns: changed.cast_signed(), inode };
        Some(Mark { stamp, settled: self.byte()? == 1 })
    }

    fn child(&mut self) -> Option<Child> {
        let name = self.text()?;
        let flags = self.byte()?;
        let sort = match flags & 0x0f {
            0 => ChildSort::File,
            1 => ChildSort::Folder,
            2 => ChildSort::Other,
            _ => return None,
        };
        Some(Child { name, sort, ignored: flags & 0x10 != 0, tracked: flags & 0x20 != 0 })
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = usize::try_from(self.number()?).ok()?;
        // Every item takes at least two bytes: a longer list is a lie, and must not be reserved for.
        if count > self.0.len() / 2 {
            return None;
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(files: &[(String, u64)]) -> Memory {
        let mark = |n| Mark { stamp: Stamp { size: n, modified_ns: -5, changed_ns: 7, inode: n }, settled: n % 2 == 0 };
        let kind = |n: u64| match n % 3 {
            0 => EntryKind::Link { target: "../x".into() },
            rest => EntryKind::File { executable: rest == 1, content: ContentHash([n as u8; 32]) },
        };
        let entries = files.iter().map(|(path, n)| Entry { path: path.into(), kind: kind(*n) }).collect();
        let manifest = Manifest::new(entries);
        let child = |(name, n): &(String, u64)| Child {
            name: name.into(),
            sort: [ChildSort::File, ChildSort::Folder, ChildSort::Other][(n % 3) as usize],
            ignored: n % 2 == 0,
            tracked: n % 5 == 0,
        };
        let children = files.iter().map(child).collect();
        Memory {
            rule_files: vec![RuleFile { path: "/r".into(), content: None }],
            folders: Arc::new(vec![Folder { path: PathBuf::new(), mark: mark(3), repository: true, children }]),
            index: mark(6),
            hash: manifest.hash(),
            marks: (0..manifest.entries().len() as u64).map(mark).collect(),
            manifest,
            unhashed: vec!["u".into()],
            unreadable: Vec::new(),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(files in prop::collection::vec(("[a-c/]{1,5}", any::<u64>()), 0..20)) {
            let memory = sample(&files);
            prop_assert_eq!(Memory::decode(&memory.encode(&[1; 32]), &[1; 32]), Some(memory.clone()));
            prop_assert_eq!(Memory::decode(&memory.encode(&[1; 32]), &[2; 32]), None);
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 72..400)) {
            // With a right sum and key, so that the decoder is reached.
            bytes[..8].copy_from_slice(MAGIC);
            bytes[40..72].fill(1);
            let sum = blake3::hash(&bytes[40..]);
            bytes[8..40].copy_from_slice(sum.as_bytes());
            let _ = Memory::decode(&bytes, &[1; 32]);
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in any::<prop::sample::Index>()) {
            let mut bytes = sample(&[("a".to_owned(), 1)]).encode(&[1; 32]);
            let at = at.index(bytes.len());
            bytes[at] ^= 1;
            prop_assert_eq!(Memory::decode(&bytes, &[1; 32]), None);
        }
    }
}
