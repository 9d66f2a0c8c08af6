//! One of the store's trees as a layer's archive: overlay's marks become whiteouts again.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode as FileMode, OFlags, Stat};
use rustix::io::Errno;

use super::writer::{ArchiveWriter, Header};
use crate::archive::shown;
use crate::store::Ownership;
use testyard_linux::Error as SystemError;
use testyard_linux::files::layer_marks;

/// Whose archive it is, and how far it is.
pub(super) struct TreeWriter<'t, W> {
    root: BorrowedFd<'t>,
    ownership: Ownership,
    archive: ArchiveWriter<W>,
    /// The first names of files with several.
    names: HashMap<(u64, u64), Vec<u8>>,
}

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Writes the tree below `root`, in the order of its names.
pub(super) fn write(root: &OwnedFd, ownership: Ownership, target: impl Write) -> Result<(), SystemError> {
    let archive = ArchiveWriter::new(target);
    let mut writer = TreeWriter { root: root.as_fd(), ownership, archive, names: HashMap::new() };
    // What is left to do, the next at the end.
    let mut waiting: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let failed = |error: io::Error| SystemError::new("export", shown(&path), error);
        let mut inside = writer.one(&path).map_err(failed)?;
        inside.sort_by(|one, other| other.cmp(one));
        waiting.append(&mut inside);
    }
    writer.archive.finish().map_err(|error| SystemError::new("write", "the archive", error))
}

/// As a path that the kernel takes.
fn at(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

fn header(facts: &Stat, ownership: Ownership) -> Header<'static> {
    let (uid, gid) = if ownership == Ownership::Kept { (facts.st_uid, facts.st_gid) } else { (0, 0) };
    Header { mode: facts.st_mode & 0o7777, uid, gid, mtime: facts.st_mtime, ..Header::default() }
}

impl<W: Write> TreeWriter<'_, W> {
    /// Writes one entry; the paths in it, if it is a folder.
    fn one(&mut self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let facts = rustix::fs::statat(self.root, at(path), AtFlags::SYMLINK_NOFOLLOW)?;
        let own = header(&facts, self.ownership);
        let kind = FileType::from_raw_mode(facts.st_mode);
        if kind == FileType::Directory {
            return self.folder(path, &own);
        }
        if kind == FileType::CharacterDevice && facts.st_rdev == 0 {
            return self.whiteout(path);
        }
        if facts.st_nlink > 1 {
            let first = self.names.entry((facts.st_dev, facts.st_ino)).or_insert_with(|| path.to_vec()).clone();
            if first != path {
                return self.empty(&Header { path, kind: b'1', link: &first, ..own });
            }
        }
        match kind {
            FileType::RegularFile if facts.st_size == 0 => self.empty_file(path, &own),
            FileType::RegularFile => self.file(path, &own, u64::try_from(facts.st_size).unwrap_or(0)),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(self.root, path, Vec::new())?;
                self.empty(&Header { path, kind: b'2', link: target.as_bytes(), ..own })
            }
            FileType::Fifo => self.empty(&Header { path, kind: b'6', ..own }),
            // Nothing else is ever imported.
            _ => Ok(Vec::new()),
        }
    }

    fn empty(&mut self, header: &Header<'_>) -> io::Result<Vec<Vec<u8>>> {
        self.archive.entry(header, &mut io::empty())?;
        Ok(Vec::new())
    }

    fn whiteout(&mut self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let cut = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let name = [&path[..cut], b".wh.", &path[cut..]].concat();
        self.empty(&Header { path: &name, kind: b'0', mode: 0o644, ..Header::default() })
    }

    /// A file without content, or a whiteout where devices are not to be had.
    fn empty_file(&mut self, path: &[u8], own: &Header<'_>) -> io::Result<Vec<Vec<u8>>> {
        let file = self.open(path, OFlags::empty())?;
        if layer_marks::is_whiteout_file(file.as_fd()) {
            return self.whiteout(path);
        }
        self.file(path, own, 0)
    }

    fn file(&mut self, path: &[u8], own: &Header<'_>, size: u64) -> io::Result<Vec<Vec<u8>>> {
        let mut file = File::from(self.open(path, OFlags::empty())?);
        let attributes = attributes(file.as_fd())?;
        let header = Header { path, kind: b'0', size, attributes: &attributes, ..own.clone() };
        self.archive.entry(&header, &mut file)?;
        Ok(Vec::new())
    }

    fn folder(&mut self, path: &[u8], own: &Header<'_>) -> io::Result<Vec<Vec<u8>>> {
        let folder = self.open(path, OFlags::DIRECTORY)?;
        let attributes = attributes(folder.as_fd())?;
        let opaque = layer_marks::is_opaque(folder.as_fd());
        let name = [at(path), b"/"].concat();
        self.empty(&Header { path: &name, kind: b'5', attributes: &attributes, ..own.clone() })?;
        if opaque {
            let name = if path.is_empty() { Vec::new() } else { name };
            let name = [&name[..], b".wh..wh..opq"].concat();
            self.empty(&Header { path: &name, kind: b'0', mode: 0o644, ..Header::default() })?;
        }
        let mut inside = Vec::new();
        for entry in Dir::new(folder)? {
            let entry: CString = entry?.file_name().to_owned();
            if matches!(entry.as_bytes(), b"." | b"..") {
                continue;
            }
            let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
            inside.push([path, slash, entry.as_bytes()].concat());
        }
        Ok(inside)
    }

    fn open(&self, path: &[u8], further: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | further;
        rustix::fs::openat(self.root, at(path), flags, FileMode::empty())
    }
}

/// The attributes that an import would keep, by name.
fn attributes(file: BorrowedFd<'_>) -> rustix::io::Result<Attributes> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(file, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        let kept = name == b"security.capability" || name.starts_with(b"user.");
        if !kept || name.starts_with(b"user.overlay.") {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let size = rustix::fs::fgetxattr(file, name, &mut value[..])?;
        value.truncate(size);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}
