//! Lists of entries as bytes: what one tree has that another has not. Nothing that is decoded is trusted.
//!
//! ```text
//!  delta  = count, removed paths …, count, put entries …
//!  path   = bytes shared with the path before, length of the rest, the rest
//!  entry  = path, 0 file | 1 executable file | 2 link, then 32 bytes of its content's hash | length, target
//! ```
//!
//! Numbers are LEB128. Paths are in the order of their bytes, each once.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::manifest::{ContentHash, KindRef, Manifest, by_bytes};

/// The kernel's own limits, without the final NUL.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// What has to be done to one tree to make it another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    removed: Vec<PathBuf>,
    put: Manifest,
}

/// What came is no list of a tree's entries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// It ends too early, or goes on after its end.
    #[error("the list is cut off or too long")]
    Length,
    /// A number or a mark that cannot be.
    #[error("the list holds what no list holds")]
    Form,
    /// A path that cannot be in a tree.
    #[error("{0:?} cannot be a path in a tree")]
    Path(PathBuf),
    /// A path that stands before its turn, or twice.
    #[error("{0:?} stands in the wrong place")]
    Order(PathBuf),
    /// A path leads through something that is no folder.
    #[error("{0:?} would be a file and a folder at once")]
    Conflict(PathBuf),
    /// A path is to be removed that is not there.
    #[error("{0:?} cannot be removed: it is not in the base")]
    Missing(PathBuf),
}

impl Delta {
    /// What makes `old` into `new`.
    #[must_use]
    pub fn between(old: &Manifest, new: &Manifest) -> Self {
        let mut delta = Self::default();
        for pair in old.beside(new) {
            match pair {
                (Some((_, gone)), None) => delta.removed.push(gone.path.to_owned()),
                (before, Some((_, entry))) if before.is_none_or(|(_, before)| before.kind != entry.kind) => {
                    delta.put.push(entry.path, entry.kind);
                }
                _ => {}
            }
        }
        delta
    }

    /// Paths that are no longer there.
    #[must_use]
    pub fn removed(&self) -> &[PathBuf] {
        &self.removed
    }

    /// What is new, or another than before.
    #[must_use]
    pub fn put(&self) -> &Manifest {
        &self.put
    }

    /// How many paths it speaks of.
    #[must_use]
    pub fn len(&self) -> usize {
        self.removed.len() + self.put.len()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tree that comes of it.
    ///
    /// # Errors
    /// What comes of it could not be on a disk.
    pub fn apply(&self, base: &Manifest) -> Result<Manifest, ListError> {
        if base.is_empty() {
            return self.clone().into_whole();
        }
        if let Some(made) = self.in_place(base) {
            return Ok(made);
        }
        let mut made = Manifest::with_room(base.len() + self.put.len());
        let (mut removed, mut put) = (self.removed.iter().peekable(), self.put.entries().peekable());
        for entry in base.entries() {
            while let Some(new) = put.next_if(|new| by_bytes(new.path, entry.path) == Ordering::Less) {
                made.push(new.path, new.kind);
            }
            if let Some(gone) = removed.next_if(|gone| by_bytes(gone, entry.path) != Ordering::Greater) {
                if by_bytes(gone, entry.path) != Ordering::Equal {
                    return Err(ListError::Missing(gone.clone()));
                }
                if put.peek().is_some_and(|new| by_bytes(new.path, entry.path) == Ordering::Equal) {
                    return Err(ListError::Order(gone.clone()));
                }
                continue;
            }
            match put.next_if(|new| by_bytes(new.path, entry.path) == Ordering::Equal) {
                Some(new) => made.push(new.path, new.kind),
                None => made.push(entry.path, entry.kind),
            };
        }
        for new in put {
            made.push(new.path, new.kind);
        }
        if let Some(gone) = removed.next() {
            return Err(ListError::Missing(gone.clone()));
        }
        checked(made, &self.put)
    }

    /// The tree that comes of it where no path comes or goes, as after a file was saved: much faster than to look at all
    /// of them. No path is then a file and a folder that was not before.
    fn in_place(&self, base: &Manifest) -> Option<Manifest> {
        if !self.removed.is_empty() {
            return None;
        }
        let changed = self.put.entries().map(|entry| Some((base.place(entry.path)?, entry.kind.owned())));
        let changed: Vec<_> = changed.collect::<Option<_>>()?;
        let mut made = base.clone();
        made.change(&changed);
        Some(made)
    }

    /// The tree that comes of it where there was nothing before.
    ///
    /// # Errors
    /// As [`Delta::apply`].
    pub fn into_whole(self) -> Result<Manifest, ListError> {
        if let Some(gone) = self.removed.into_iter().next() {
            return Err(ListError::Missing(gone));
        }
        match conflict(&self.put) {
            Some(path) => Err(ListError::Conflict(path.to_owned())),
            None => Ok(self.put),
        }
    }

    /// What makes nothing into `manifest`, as bytes.
    #[must_use]
    pub fn encode_whole(manifest: &Manifest) -> Vec<u8> {
        encode(&[], manifest)
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(&self.removed, &self.put)
    }

    /// From bytes.
    ///
    /// # Errors
    /// They are no list, or name what no tree holds.
    pub fn decode(bytes: &[u8]) -> Result<Self, ListError> {
        let mut input = Input(bytes);
        let mut delta = Self::default();
        let mut path = Vec::new();
        for _ in 0..input.count()? {
            delta.removed.push(input.path(&mut path)?.to_owned());
        }
        path.clear();
        let count = input.count()?;
        // No entry with a content is shorter.
        delta.put = Manifest::with_room(count.min(input.0.len() / 36));
        for _ in 0..count {
            let path = input.path(&mut path)?;
            let kind = match input.byte()? {
                flag @ (0 | 1) => KindRef::File { executable: flag == 1, content: ContentHash(input.array()?) },
                2 => KindRef::Link { target: input.target()? },
                _ => return Err(ListError::Form),
            };
            delta.put.push(path, kind);
        }
        if input.0.is_empty() { Ok(delta) } else { Err(ListError::Length) }
    }
}

fn encode(removed: &[PathBuf], put: &Manifest) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + removed.len() * 24 + put.len() * 64);
    put_number(&mut out, removed.len() as u64);
    let mut before: &[u8] = &[];
    for path in removed {
        before = put_path(&mut out, before, path);
    }
    put_number(&mut out, put.len() as u64);
    before = &[];
    for entry in put.entries() {
        before = put_path(&mut out, before, entry.path);
        match entry.kind {
            KindRef::File { executable, content } => {
                out.push(u8::from(executable));
                out.extend_from_slice(&content.0);
            }
            KindRef::Link { target } => {
                out.push(2);
                let target = target.as_os_str().as_bytes();
                put_number(&mut out, target.len() as u64);
                out.extend_from_slice(target);
            }
        }
    }
    out
}

/// What is no folder and has something below it, in a whole tree.
fn conflict(manifest: &Manifest) -> Option<&Path> {
    // What a path begins with stands before it, and all between the two begins with that as well.
    let mut open: Vec<&[u8]> = Vec::new();
    for entry in manifest.entries() {
        let path = entry.path.as_os_str().as_bytes();
        while open.pop_if(|above| !path.starts_with(above)).is_some() {}
        if let Some(above) = open.iter().find(|above| path.get(above.len()) == Some(&b'/')) {
            return Some(Path::new(OsStr::from_bytes(above)));
        }
        open.push(path);
    }
    None
}

/// Refuses a tree in which one of these entries is a folder as well, or lies below something that is none.
fn checked(manifest: Manifest, put: &Manifest) -> Result<Manifest, ListError> {
    let mut seen = Path::new("");
    for entry in put.entries() {
        if manifest.any_below(entry.path) {
            return Err(ListError::Conflict(entry.path.to_owned()));
        }
        let Some(folder) = entry.path.parent().filter(|folder| *folder != seen) else { continue };
        for above in folder.ancestors().filter(|above| *above != Path::new("")) {
            if manifest.find(above).is_some() {
                return Err(ListError::Conflict(above.to_owned()));
            }
        }
        seen = folder;
    }
    Ok(manifest)
}

pub(crate) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_path<'p>(out: &mut Vec<u8>, before: &[u8], path: &'p Path) -> &'p [u8] {
    let bytes = path.as_os_str().as_bytes();
    let shared = before.iter().zip(bytes).take_while(|(a, b)| a == b).count();
    put_number(out, shared as u64);
    put_number(out, (bytes.len() - shared) as u64);
    out.extend_from_slice(&bytes[shared..]);
    bytes
}

/// Whether this may be a name in a tree's paths.
fn is_plain(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && name != b"." && name != b".." && !name.contains(&0)
}

/// What is left to decode.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ListError> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(ListError::Length)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, ListError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn number(&mut self) -> Result<u64, ListError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                break;
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(ListError::Form)
    }

    /// A number of things of which each takes a byte at least.
    pub(crate) fn count(&mut self) -> Result<usize, ListError> {
        let count = usize::try_from(self.number()?).map_err(|_| ListError::Form)?;
        if count <= self.0.len() { Ok(count) } else { Err(ListError::Length) }
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], ListError> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(ListError::Length)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// The next path, in place of the one before it.
    fn path<'p>(&mut self, path: &'p mut Vec<u8>) -> Result<&'p Path, ListError> {
        let shared = usize::try_from(self.number()?).map_err(|_| ListError::Form)?;
        let length = self.count()?;
        let rest = self.bytes(length)?;
        let in_order = rest > path.get(shared..).ok_or(ListError::Form)?;
        path.truncate(shared);
        path.extend_from_slice(rest);
        // The names before the one in which it begins to differ were looked at with the path before.
        let first = path[..shared].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let plain = path.len() <= MAX_PATH && path[first..].split(|byte| *byte == b'/').all(is_plain);
        let path = Path::new(OsStr::from_bytes(path));
        match (plain, in_order) {
            (true, true) => Ok(path),
            (false, _) => Err(ListError::Path(path.to_owned())),
            (true, false) => Err(ListError::Order(path.to_owned())),
        }
    }

    fn target(&mut self) -> Result<&'a Path, ListError> {
        let length = self.count()?;
        let bytes = self.bytes(length)?;
        let target = Path::new(OsStr::from_bytes(bytes));
        let fits = (1..=MAX_PATH).contains(&length) && !bytes.contains(&0);
        if fits { Ok(target) } else { Err(ListError::Path(target.to_owned())) }
    }
}
