//! A folder or an archive in which an image's parts are found by their names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use rustix::fs::{Mode as FileMode, OFlags, ResolveFlags};

use super::error::{BundleError, MemberRefusal};
use crate::archive::{ArchiveReader, Entry, EntryKind};
use crate::import::{ImportError, ImportOptions, next_of};
use crate::store::Staged;
use testyard_linux::Error as SystemError;

/// More than any image has of documents, layers and their folders.
const MEMBER_LIMIT: usize = 10_000;
/// As many links as are followed from one name.
const LINKS_MAX: usize = 8;
/// What the parts of an archive that can be read only once are written to.
const SPOOL: &str = "spool";

/// Where an image's parts are.
#[derive(Debug)]
pub(crate) enum Bundle {
    /// In a folder.
    Folder(OwnedFd),
    /// In a file, each at its place.
    Archive(Rc<File>, BTreeMap<Vec<u8>, Member>),
}

/// A part in an archive.
#[derive(Debug)]
pub(crate) enum Member {
    Bytes { offset: u64, size: u64 },
    Link(Vec<u8>),
}

/// One part, to be read from its beginning.
#[derive(Debug)]
pub(crate) struct Part {
    file: Rc<File>,
    offset: u64,
    pub(crate) size: u64,
}

impl Part {
    /// A whole file.
    pub(crate) fn whole(file: File) -> Result<Self, BundleError> {
        let read = |source| BundleError::Read { what: "what was fetched".to_owned(), source };
        let size = file.metadata().map_err(read)?.len();
        Ok(Self { file: Rc::new(file), offset: 0, size })
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.size).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..want], self.offset)?;
        self.offset += read as u64;
        self.size -= read as u64;
        Ok(read)
    }
}

/// Whether an archive that begins with this entry is one of images: their writers begin with nothing that a root file
/// system begins with.
pub(crate) fn is_member(path: &[u8]) -> bool {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    let mut parts = path.split(|byte| *byte == b'/');
    let first = parts.next().unwrap_or_default();
    let stem = first.split(|byte| *byte == b'.').next().unwrap_or_default();
    let stem = stem.strip_prefix(b"sha256:").unwrap_or(stem);
    let hexadecimal = stem.len() == 64 && stem.iter().all(u8::is_ascii_hexdigit);
    hexadecimal || matches!(first, b"blobs" | b"oci-layout" | b"index.json" | b"manifest.json" | b"repositories")
}

/// The name as it is looked up: parts without empty ones and dots.
fn normal(name: &[u8]) -> Result<Vec<u8>, MemberRefusal> {
    if name.starts_with(b"/") {
        return Err(MemberRefusal::Absolute);
    }
    resolved(&[], name)
}

/// `name` as seen from a folder.
fn resolved(folder: &[u8], name: &[u8]) -> Result<Vec<u8>, MemberRefusal> {
    let mut parts: Vec<&[u8]> = folder.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
    for part in name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if part == b".." {
            parts.pop().ok_or(MemberRefusal::Out)?;
        } else {
            parts.push(part);
        }
    }
    Ok(parts.join(&b'/'))
}

impl Bundle {
    pub(crate) fn of_folder(folder: OwnedFd) -> Self {
        Self::Folder(folder)
    }

    /// Finds the parts of an archive. `again` is the same one to be read at any place; without it they are written to
    /// a file in `staged`.
    pub(crate) fn of_archive<R: Read>(
        mut reader: ArchiveReader<R>,
        begun: Vec<Entry>,
        again: Option<File>,
        staged: &Staged,
        options: &ImportOptions,
    ) -> Result<Self, ImportError> {
        let mut spool = match again {
            Some(file) => Spool { file, written: None, bytes: 0 },
            None => Spool { file: create(staged)?, written: Some(0), bytes: 0 },
        };
        let mut members = BTreeMap::new();
        let mut last = Vec::new();
        let mut begun = begun.into_iter();
        while let Some(entry) = next_of(&mut begun, &mut reader, &last)? {
            last.clone_from(&entry.path);
            let refused = |reason| BundleError::Refused { member: entry.path.clone(), reason };
            if entry.path.split(|byte| *byte == b'/').any(|part| part == b"..") {
                return Err(refused(MemberRefusal::Out).into());
            }
            let name = normal(&entry.path).map_err(refused)?;
            let member = match &entry.kind {
                EntryKind::Directory => continue,
                EntryKind::File if entry.stored() == entry.size => {
                    let offset = spool.keep(&mut reader, &entry, options)?;
                    Member::Bytes { offset, size: entry.size }
                }
                EntryKind::SymbolicLink(target) if !target.starts_with(b"/") => {
                    let folder = name.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |slash| &name[..slash]);
                    Member::Link(resolved(folder, target).map_err(refused)?)
                }
                EntryKind::SymbolicLink(_) => return Err(refused(MemberRefusal::Out).into()),
                EntryKind::HardLink(target) => Member::Link(normal(target).map_err(refused)?),
                _ => return Err(refused(MemberRefusal::Kind).into()),
            };
            if members.insert(name, member).is_some() {
                return Err(refused(MemberRefusal::Twice).into());
            }
            if members.len() > MEMBER_LIMIT {
                return Err(BundleError::TooMany(MEMBER_LIMIT).into());
            }
        }
        Ok(Self::Archive(Rc::new(spool.file), members))
    }

    /// Whether it holds an image at all.
    pub(crate) fn is_there(&self) -> bool {
        ["index.json", "manifest.json"].iter().any(|name| self.has(name))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.open(name).is_ok()
    }

    /// The part of this name.
    pub(crate) fn open(&self, name: &str) -> Result<Part, BundleError> {
        let refused = |reason| BundleError::Refused { member: name.as_bytes().to_vec(), reason };
        if name.split('/').any(|part| part == "..") {
            return Err(refused(MemberRefusal::Out));
        }
        let mut wanted = normal(name.as_bytes()).map_err(refused)?;
        match self {
            Self::Folder(folder) => open_in(folder, &wanted, name),
            Self::Archive(file, members) => {
                for _ in 0..LINKS_MAX {
                    match members.get(&wanted) {
                        None => return Err(BundleError::NotThere(name.to_owned())),
                        Some(Member::Bytes { offset, size }) => {
                            return Ok(Part { file: Rc::clone(file), offset: *offset, size: *size });
                        }
                        Some(Member::Link(target)) => wanted.clone_from(target),
                    }
                }
                Err(refused(MemberRefusal::Loop))
            }
        }
    }
}

fn open_in(folder: &OwnedFd, wanted: &[u8], name: &str) -> Result<Part, BundleError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let refused = |reason| BundleError::Refused { member: name.as_bytes().to_vec(), reason };
    let read = |source: io::Error| BundleError::Read { what: name.to_owned(), source };
    let opened = rustix::fs::openat2(folder.as_fd(), wanted, flags, FileMode::empty(), resolve);
    let file = File::from(opened.map_err(|errno| match errno {
        rustix::io::Errno::NOENT => BundleError::NotThere(name.to_owned()),
        rustix::io::Errno::XDEV => refused(MemberRefusal::Out),
        rustix::io::Errno::LOOP => refused(MemberRefusal::Loop),
        errno => read(errno.into()),
    })?);
    let facts = file.metadata().map_err(read)?;
    if !facts.is_file() {
        return Err(refused(MemberRefusal::Kind));
    }
    Ok(Part { file: Rc::new(file), offset: 0, size: facts.len() })
}

/// The file that parts are read from, written to as far as they are not in it already.
struct Spool {
    file: File,
    /// How much was written, where it is not the archive itself.
    written: Option<u64>,
    bytes: u64,
}

impl Spool {
    /// Where the content of this entry is from now on.
    fn keep<R: Read>(
        &mut self,
        reader: &mut ArchiveReader<R>,
        entry: &Entry,
        options: &ImportOptions,
    ) -> Result<u64, ImportError> {
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.bytes > options.limit.0 {
            return Err(ImportError::TooLarge { entry: entry.path.clone(), limit: options.limit });
        }
        let Some(begin) = self.written else { return Ok(reader.offset()) };
        let file = &self.file;
        let mut buffer = vec![0; 256 << 10];
        let copied = reader
            .read_content(entry, &mut buffer, |offset, bytes| file.write_all_at(bytes, begin + offset))
            .map_err(|error| ImportError::at(error, &entry.path))?;
        copied.map_err(|source| ImportError::Write { entry: entry.path.clone(), source })?;
        self.written = Some(begin + entry.size);
        Ok(begin)
    }
}

fn create(staged: &Staged) -> Result<File, ImportError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(staged.directory(), SPOOL, flags, FileMode::RUSR | FileMode::WUSR);
    Ok(file.map(File::from).map_err(|errno| SystemError::new("write", SPOOL, errno))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_of_images_are_known_by_their_first_entry() {
        let layer = format!("{}/layer.tar", "0a".repeat(32));
        let blob = format!("./blobs/sha256/{}", "0a".repeat(32));
        for path in ["oci-layout", "./index.json", "manifest.json", "blobs/", &layer, &blob, "repositories"] {
            assert!(is_member(path.as_bytes()), "{path}");
        }
        for path in ["bin", "./usr/", "etc/manifest.json", "oci-layouts", "abc/layer.tar", "x.json"] {
            assert!(!is_member(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn names_stay_inside() {
        assert_eq!(normal(b"./a//b"), Ok(b"a/b".to_vec()));
        assert_eq!(normal(b"/etc/passwd"), Err(MemberRefusal::Absolute));
        assert_eq!(resolved(b"a/b", b"../c"), Ok(b"a/c".to_vec()));
        assert_eq!(resolved(b"a", b"../../c"), Err(MemberRefusal::Out));
    }
}
