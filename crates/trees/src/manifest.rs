//! A working tree as a list: paths, and what is at each. Pure data; where it comes from is the `sync` crate's business.

use std::cmp::Ordering;
use std::ffi::OsStr;
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

/// What is at a path. Links are the same whose targets are written the same: a slash more is another.
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the tree's root, without `.` or `..`.
    pub path: PathBuf,
    /// What is there.
    pub kind: EntryKind,
}

/// An [`EntryKind`] in a list.
#[derive(Debug, Clone, Copy)]
pub enum KindRef<'a> {
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
        target: &'a Path,
    },
}

/// An [`Entry`] in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// Relative to the tree's root, without `.` or `..`.
    pub path: &'a Path,
    /// What is there.
    pub kind: KindRef<'a>,
}

/// A whole tree: entries by the bytes of their paths, each path once.
///
/// It is two blocks of memory, however many entries there are: trees of ten thousand files are read, compared and made
/// of others in a few milliseconds, and a block for each path would take most of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Path after path, in their order; behind a link's its target.
    text: Vec<u8>,
    places: Vec<Place>,
}

/// One entry of a manifest.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Where its path begins in the text.
    start: usize,
    length: u32,
    kind: PlacedKind,
}

/// An [`EntryKind`] beside a text that holds the targets of links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacedKind {
    /// A regular file.
    File {
        /// Whether its owner may execute it.
        executable: bool,
        /// The hash of its content.
        content: ContentHash,
    },
    /// A symbolic link, whose target is so many bytes long.
    Link(u32),
}

/// What two trees have at one path, each with its number among the entries of its tree.
pub(crate) type Pair<'a> = (Option<(usize, EntryRef<'a>)>, Option<(usize, EntryRef<'a>)>);

impl EntryKind {
    /// The same, borrowed.
    #[must_use]
    pub fn borrowed(&self) -> KindRef<'_> {
        match self {
            Self::File { executable, content } => KindRef::File { executable: *executable, content: *content },
            Self::Link { target } => KindRef::Link { target },
        }
    }
}

// By hand: paths are otherwise compared by their components, and `a/` and `a` are one.
impl PartialEq for KindRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Link { target }, Self::Link { target: other }) => target.as_os_str() == other.as_os_str(),
            (Self::File { executable, content }, Self::File { executable: other, content: held }) => {
                executable == other && content == held
            }
            _ => false,
        }
    }
}

impl Eq for KindRef<'_> {}

impl PartialEq for EntryKind {
    fn eq(&self, other: &Self) -> bool {
        self.borrowed() == other.borrowed()
    }
}

impl Eq for EntryKind {}

impl KindRef<'_> {
    /// The same, owned.
    #[must_use]
    pub fn owned(&self) -> EntryKind {
        match self {
            Self::File { executable, content } => EntryKind::File { executable: *executable, content: *content },
            Self::Link { target } => EntryKind::Link { target: target.to_path_buf() },
        }
    }
}

impl EntryRef<'_> {
    /// The same, owned.
    #[must_use]
    pub fn owned(&self) -> Entry {
        Entry { path: self.path.to_owned(), kind: self.kind.owned() }
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

impl Manifest {
    /// From entries in any order. Of two with the same path the first is kept.
    #[must_use]
    pub fn new(mut entries: Vec<Entry>) -> Self {
        if !entries.is_sorted_by(|a, b| by_bytes(&a.path, &b.path) == Ordering::Less) {
            entries.sort_by(|a, b| by_bytes(&a.path, &b.path));
            entries.dedup_by(|later, first| later.path == first.path);
        }
        let mut manifest = Self::with_room(entries.len());
        for Entry { path, kind } in &entries {
            manifest.push(path, kind.borrowed());
        }
        manifest
    }

    /// None yet, with room for so many.
    #[must_use]
    pub fn with_room(entries: usize) -> Self {
        Self { text: Vec::with_capacity(entries * 32), places: Vec::with_capacity(entries) }
    }

    /// Adds an entry behind all others; false where its place is not there, and then it is left out.
    pub fn push(&mut self, path: &Path, kind: KindRef<'_>) -> bool {
        if !self.is_before(path) {
            return false;
        }
        let (start, bytes) = (self.text.len(), path.as_os_str().as_bytes());
        self.text.extend_from_slice(bytes);
        let kind = match kind {
            KindRef::File { executable, content } => PlacedKind::File { executable, content },
            KindRef::Link { target } => {
                let target = target.as_os_str().as_bytes();
                self.text.extend_from_slice(target);
                PlacedKind::Link(target.len() as u32)
            }
        };
        self.places.push(Place { start, length: bytes.len() as u32, kind });
        true
    }

    /// Whether all of it stands before this path.
    fn is_before(&self, path: &Path) -> bool {
        self.places.last().is_none_or(|last| by_bytes(self.path(last), path) == Ordering::Less)
    }

    fn path(&self, place: &Place) -> &Path {
        let path = &self.text[place.start..place.start + place.length as usize];
        Path::new(OsStr::from_bytes(path))
    }

    fn entry(&self, place: &Place) -> EntryRef<'_> {
        let kind = match place.kind {
            PlacedKind::File { executable, content } => KindRef::File { executable, content },
            PlacedKind::Link(length) => {
                let start = place.start + place.length as usize;
                KindRef::Link { target: Path::new(OsStr::from_bytes(&self.text[start..start + length as usize])) }
            }
        };
        EntryRef { path: self.path(place), kind }
    }

    /// The entries, by the bytes of their paths.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = EntryRef<'_>> + DoubleEndedIterator + Clone {
        self.places.iter().map(|place| self.entry(place))
    }

    /// The entries from one number up to before another, or to the end.
    pub fn part(&self, start: usize, end: usize) -> impl ExactSizeIterator<Item = EntryRef<'_>> {
        let end = end.min(self.places.len());
        self.places[start.min(end)..end].iter().map(|place| self.entry(place))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The entry of this number.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<EntryRef<'_>> {
        self.places.get(number).map(|place| self.entry(place))
    }

    /// What is at this path.
    #[must_use]
    pub fn find(&self, path: &Path) -> Option<KindRef<'_>> {
        Some(self.get(self.place(path)?)?.kind)
    }

    /// Where among the entries this path is.
    #[must_use]
    pub fn place(&self, path: &Path) -> Option<usize> {
        self.places.binary_search_by(|place| by_bytes(self.path(place), path)).ok()
    }

    /// Whether something is below `path`, as if it were a folder.
    #[must_use]
    pub fn any_below(&self, path: &Path) -> bool {
        let mut prefix = path.as_os_str().as_bytes().to_vec();
        prefix.push(b'/');
        let bytes = |place: &Place| self.path(place).as_os_str().as_bytes();
        let first = self.places.partition_point(|place| bytes(place) < prefix.as_slice());
        self.places.get(first).is_some_and(|place| bytes(place).starts_with(&prefix))
    }

    /// Makes the entries of these numbers (rising) of another kind.
    pub fn change(&mut self, changed: &[(usize, EntryKind)]) {
        let is_file = |place: &Place| matches!(place.kind, PlacedKind::File { .. });
        let in_place = |(number, kind): &(usize, EntryKind)| {
            matches!(kind, EntryKind::File { .. }) && self.places.get(*number).is_some_and(is_file)
        };
        if changed.iter().all(in_place) {
            for (number, kind) in changed {
                if let EntryKind::File { executable, content } = *kind {
                    self.places[*number].kind = PlacedKind::File { executable, content };
                }
            }
            return;
        }
        // The targets of links are among the paths.
        let mut manifest = Self::with_room(self.len());
        let mut changed = changed.iter().peekable();
        for (number, entry) in self.entries().enumerate() {
            match changed.next_if(|(changed, _)| *changed == number) {
                Some((_, kind)) => manifest.push(entry.path, kind.borrowed()),
                None => manifest.push(entry.path, entry.kind),
            };
        }
        *self = manifest;
    }

    /// The paths one behind the other, behind a link's its target: with the lengths and kinds of the entries, all there is.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Of each entry the length of its path, and what is there.
    pub fn placed(&self) -> impl ExactSizeIterator<Item = (u32, PlacedKind)> {
        self.places.iter().map(|place| (place.length, place.kind))
    }

    /// Of such a text, and of each entry (there are about `room`) the length of its path and what is there; none where they
    /// do not fit, or the paths are not in their order.
    #[must_use]
    pub fn of_text(text: Vec<u8>, room: usize, entries: impl Iterator<Item = (u32, PlacedKind)>) -> Option<Self> {
        let mut manifest = Self { text, places: Vec::with_capacity(room) };
        let mut start = 0;
        for (length, kind) in entries {
            let place = Place { start, length, kind };
            start = Self::end(&place).filter(|end| *end <= manifest.text.len())?;
            if !manifest.is_before(manifest.path(&place)) {
                return None;
            }
            manifest.places.push(place);
        }
        (start == manifest.text.len()).then_some(manifest)
    }

    /// Where the text of an entry ends.
    fn end(place: &Place) -> Option<usize> {
        let path = place.start.checked_add(place.length as usize)?;
        match place.kind {
            PlacedKind::File { .. } => Some(path),
            PlacedKind::Link(length) => path.checked_add(length as usize),
        }
    }

    /// The hash of the whole. Every length is hashed before its bytes, so no two trees read the same.
    #[must_use]
    pub fn hash(&self) -> TreeHash {
        // Enough for the hasher to do much at once, and not so much that memory is what it waits for.
        const BLOCK: usize = 64 << 10;
        let mut hasher = blake3::Hasher::new();
        let mut text = Vec::with_capacity(BLOCK + (16 << 10));
        text.extend_from_slice(DOMAIN);
        let sized = |text: &mut Vec<u8>, bytes: &[u8]| {
            text.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            text.extend_from_slice(bytes);
        };
        for entry in self.entries() {
            sized(&mut text, entry.path.as_os_str().as_bytes());
            match entry.kind {
                KindRef::File { executable, content } => {
                    text.push(if executable { b'x' } else { b'f' });
                    text.extend_from_slice(&content.0);
                }
                KindRef::Link { target } => {
                    text.push(b'l');
                    sized(&mut text, target.as_os_str().as_bytes());
                }
            }
            if text.len() >= BLOCK {
                hasher.update(&text);
                text.clear();
            }
        }
        TreeHash(*hasher.update(&text).finalize().as_bytes())
    }

    /// Both trees side by side, by the bytes of the paths: what `self` has at each, what `later` has, or both.
    pub(crate) fn beside<'a>(&'a self, later: &'a Self) -> impl Iterator<Item = Pair<'a>> {
        let (mut old, mut new) = (0, 0);
        std::iter::from_fn(move || {
            let (one, other) = (self.places.get(old), later.places.get(new));
            let order = match (one, other) {
                (Some(one), Some(other)) => by_bytes(self.path(one), later.path(other)),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return None,
            };
            let one = one.filter(|_| order.is_le()).map(|one| (old, self.entry(one)));
            let other = other.filter(|_| order.is_ge()).map(|other| (new, later.entry(other)));
            old += usize::from(one.is_some());
            new += usize::from(other.is_some());
            Some((one, other))
        })
    }

    /// What has to be done to `self` to make it `later`. Of an entry that is the same in both, `is_rewritten` says by its
    /// numbers in the one and the other whether it was written meanwhile.
    #[must_use]
    pub fn diff(&self, later: &Self, is_rewritten: impl Fn(usize, usize) -> bool) -> Changes {
        let mut changes = Changes::default();
        for pair in self.beside(later) {
            match pair {
                (Some((_, old)), None) => changes.removed.push(old.path.to_owned()),
                (None, Some((_, new))) => changes.added.push(new.path.to_owned()),
                (Some((_, old)), Some((_, new))) if old.kind != new.kind => changes.modified.push(new.path.to_owned()),
                (Some((old, entry)), Some((new, _))) if is_rewritten(old, new) => {
                    changes.rewritten.push(entry.path.to_owned());
                }
                _ => {}
            }
        }
        changes
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
