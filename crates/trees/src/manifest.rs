//! A working tree as a list: paths, and what is at each. Pure data; where it comes from is the `sync` crate's business.

use std::cmp::Ordering;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Begins every hashed tree, so that no other use of BLAKE3 yields the same value. The number is the format's.
const DOMAIN: &[u8] = b"testyard tree 1\n";

/// The hash of a whole tree: 32 bytes of BLAKE3, written as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeHash(pub [u8; 32]);

impl fmt::Display for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The text is not a tree hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a tree hash: 64 hexadecimal digits are")]
pub struct TreeHashError(String);

impl FromStr for TreeHash {
    type Err = TreeHashError;

    fn from_str(text: &str) -> Result<Self, TreeHashError> {
        match blake3::Hash::from_hex(text) {
            Ok(hash) => Ok(Self(*hash.as_bytes())),
            Err(_) => Err(TreeHashError(text.to_owned())),
        }
    }
}

impl Serialize for TreeHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TreeHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The hash of one file's content: BLAKE3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Whether its owner may execute it.
        executable: bool,
        /// The hash of its content.
        content: ContentHash,
    },
    /// A symbolic link.
    Link {
        /// Where it points, as written.
        target: PathBuf,
    },
}

/// One hashed path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Relative to the tree's root, without `.` or `..`.
    pub path: PathBuf,
    /// What is there.
    pub kind: EntryKind,
}

/// A whole tree: entries by the bytes of their paths, each path once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    entries: Vec<Entry>,
}

impl Manifest {
    /// From entries in any order. Of two with the same path the first is kept.
    #[must_use]
    pub fn new(mut entries: Vec<Entry>) -> Self {
        if !entries.is_sorted_by(|a, b| by_bytes(&a.path, &b.path) == Ordering::Less) {
            entries.sort_by(|a, b| by_bytes(&a.path, &b.path));
            entries.dedup_by(|later, first| later.path == first.path);
        }
        Self { entries }
    }

    /// The entries, by the bytes of their paths.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The same, to be changed.
    #[must_use]
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// What is at this path.
    #[must_use]
    pub fn find(&self, path: &Path) -> Option<&EntryKind> {
        Some(&self.entries[self.place(path)?].kind)
    }

    /// Where among the entries this path is.
    #[must_use]
    pub fn place(&self, path: &Path) -> Option<usize> {
        self.entries.binary_search_by(|entry| by_bytes(&entry.path, path)).ok()
    }

    /// Whether something is below `path`, as if it were a folder.
    #[must_use]
    pub fn any_below(&self, path: &Path) -> bool {
        let mut prefix = path.as_os_str().as_bytes().to_vec();
        prefix.push(b'/');
        let first = self.entries.partition_point(|entry| entry.path.as_os_str().as_bytes() < prefix.as_slice());
        self.entries.get(first).is_some_and(|entry| entry.path.as_os_str().as_bytes().starts_with(&prefix))
    }

    /// The hash of the whole. Every length is hashed before its bytes, so no two trees read the same.
    #[must_use]
    pub fn hash(&self) -> TreeHash {
        let mut text = Vec::with_capacity(DOMAIN.len() + self.entries.len() * 96);
        text.extend_from_slice(DOMAIN);
        let sized = |text: &mut Vec<u8>, bytes: &[u8]| {
            text.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            text.extend_from_slice(bytes);
        };
        for entry in &self.entries {
            sized(&mut text, entry.path.as_os_str().as_bytes());
            match &entry.kind {
                EntryKind::File { executable, content } => {
                    text.push(if *executable { b'x' } else { b'f' });
                    text.extend_from_slice(&content.0);
                }
                EntryKind::Link { target } => {
                    text.push(b'l');
                    sized(&mut text, target.as_os_str().as_bytes());
                }
            }
        }
        TreeHash(*blake3::hash(&text).as_bytes())
    }

    /// What has to be done to `self` to make it `later`.
    #[must_use]
    pub fn diff(&self, later: &Self) -> Changes {
        let mut changes = Changes::default();
        let (mut old, mut new) = (self.entries.iter().peekable(), later.entries.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (Some(a), Some(b)) => by_bytes(&a.path, &b.path),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return changes,
            };
            match order {
                Ordering::Less => changes.removed.extend(old.next().map(|entry| entry.path.clone())),
                Ordering::Greater => changes.added.extend(new.next().map(|entry| entry.path.clone())),
                Ordering::Equal => {
                    if let (Some(a), Some(b)) = (old.next(), new.next())
                        && a.kind != b.kind
                    {
                        changes.modified.push(b.path.clone());
                    }
                }
            }
        }
    }
}

/// How one tree differs from an earlier state of it; each list by the bytes of its paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Paths that were not there.
    pub added: Vec<PathBuf>,
    /// Paths that are no longer there.
    pub removed: Vec<PathBuf>,
    /// Paths that hold something else.
    pub modified: Vec<PathBuf>,
    /// Paths that were written or replaced and hold the same as before: what read them in between may have seen
    /// something else. Only who looked at the files can tell.
    pub rewritten: Vec<PathBuf>,
}

impl Changes {
    /// Whether nothing happened at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.modified.is_empty() && self.rewritten.is_empty()
    }
}

/// The one order of paths here: by bytes. `Path`'s own order goes by components, and is slow.
#[must_use]
pub fn by_bytes(a: &Path, b: &Path) -> Ordering {
    a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes())
}
