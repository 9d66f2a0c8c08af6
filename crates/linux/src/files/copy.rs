//! Copying a tree as it is: modes, owners, times, links, holes, attributes, overlay whiteouts.
//!
//! Data is shared with the source where the file system can (a reflink), else copied inside of the
//! kernel. The source is read through open folders and never left; mount points in it are not crossed.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::{Errno, retry_on_intr};

use super::{attributes, entries, open_child_folder, open_resolved, shown};
use crate::error::{Error, Result};

/// What of the source is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOptions {
    /// Owner and group; needs privilege over the ids.
    pub owners: bool,
    /// Extended attributes. `user.*`, `trusted.*` and access lists must succeed; others (labels of
    /// security modules) are kept where the target takes them.
    pub attributes: bool,
    /// Access and modification times.
    pub times: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self { owners: true, attributes: true, times: true }
    }
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Regular files, hard links not counted again.
    pub files: u64,
    /// Folders, the top one not counted.
    pub folders: u64,
    /// Symbolic links, hard links, devices, pipes and sockets.
    pub others: u64,
    /// Bytes of files whose data was copied.
    pub copied_bytes: u64,
    /// Bytes of files whose data is shared with the source.
    pub shared_bytes: u64,
}

/// Copies everything in the folder `source` into the existing, empty folder `target`.
///
/// The folder's own mode, owner, times and attributes are kept too. On an error the target holds
/// a part of the tree; who made it removes it.
pub fn copy_tree(source: BorrowedFd<'_>, target: BorrowedFd<'_>, options: CopyOptions) -> Result<Copied> {
    let mut copy = Copy {
        source,
        target,
        options,
        copied: Copied::default(),
        reflinks: true,
        links: HashMap::new(),
        folders: vec![Vec::new()],
    };
    let mut next = 0;
    while next < copy.folders.len() {
        let path = copy.folders[next].clone();
        copy.copy_folder(&path, next).map_err(|failure| failure.named(&path))?;
        next += 1;
    }
    // Last, and the deepest first: filling a folder changes its times, and a closed one takes no files.
    for path in copy.folders.iter().rev() {
        copy.finish_folder(path).map_err(|errno| Failure { name: None, errno }.named(path))?;
    }
    Ok(copy.copied)
}

/// A folder's place in the tree: one component each, so that no depth meets the kernel's path limit.
type Place = Vec<CString>;

struct Copy<'a> {
    source: BorrowedFd<'a>,
    target: BorrowedFd<'a>,
    options: CopyOptions,
    copied: Copied,
    reflinks: bool,
    /// Where the first name of a file with several names went: the folder's index, and the name.
    links: HashMap<(u64, u64), (usize, CString)>,
    folders: Vec<Place>,
}

struct Failure {
    name: Option<CString>,
    errno: Errno,
}

impl Failure {
    fn named(self, place: &[CString]) -> Error {
        let path: std::path::PathBuf = place.iter().chain(self.name.as_ref()).map(|name| shown(name)).collect();
        Error::new("copy", path.display(), self.errno)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self { name: None, errno }
    }
}

impl Copy<'_> {
    fn copy_folder(&mut self, place: &[CString], index: usize) -> std::result::Result<(), Failure> {
        let source = open_place(self.source, place)?;
        let target = open_place(self.target, place)?;
        for entry in entries(source.as_fd())? {
            self.copy_entry(source.as_fd(), target.as_fd(), &entry.name, (place, index))
                .map_err(|errno| Failure { name: Some(entry.name), errno })?;
        }
        Ok(())
    }

    fn copy_entry(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        (place, index): (&[CString], usize),
    ) -> rustix::io::Result<()> {
        let status = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(status.st_mode);
        if kind == FileType::Directory {
            rustix::fs::mkdirat(target, name, Mode::RWXU)?;
            self.copied.folders += 1;
            let mut below = place.to_vec();
            below.push(name.to_owned());
            self.folders.push(below);
            return Ok(());
        }
        if status.st_nlink > 1 {
            let identity = (status.st_dev, status.st_ino);
            if let Some((first, first_name)) = self.links.get(&identity) {
                let folder = open_place(self.target, &self.folders[*first])?;
                rustix::fs::linkat(folder, &**first_name, target, name, AtFlags::empty())?;
                self.copied.others += 1;
                return Ok(());
            }
            self.links.insert(identity, (index, name.to_owned()));
        }
        match kind {
            FileType::RegularFile => self.copy_file(source, target, name, &status),
            FileType::Symlink => {
                let to = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(&*to, target, name)?;
                self.copied.others += 1;
                self.finish_name(target, name, &status)
            }
            _ => {
                let mode = Mode::from_raw_mode(status.st_mode);
                rustix::fs::mknodat(target, name, kind, mode, status.st_rdev)?;
                self.copied.others += 1;
                self.finish_name(target, name, &status)?;
                // After the umask and the change of owner, which both take bits away.
                rustix::fs::chmodat(target, name, mode, AtFlags::empty())
            }
        }
    }

    fn copy_file(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        status: &Stat,
    ) -> rustix::io::Result<()> {
        // NONBLOCK: what was a file a moment ago may be a pipe now.
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let from = rustix::fs::openat(source, name, read, Mode::empty())?;
        let write = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(target, name, write, Mode::RUSR | Mode::WUSR)?;
        let size = u64::try_from(status.st_size).unwrap_or(0);
        if size > 0 {
            self.copy_data(from.as_fd(), to.as_fd(), size)?;
        }
        self.copied.files += 1;
        self.finish_open(from.as_fd(), to.as_fd(), status)
    }

    fn copy_data(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> rustix::io::Result<()> {
        if self.reflinks {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => {
                    self.copied.shared_bytes += size;
                    return Ok(());
                }
                // What the file system does not know once, it does not know for the next file either.
                Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::INVAL | Errno::NOSYS) => {
                    self.reflinks = false;
                }
                Err(errno) => return Err(errno),
            }
        }
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => at,
                Err(errno) => return Err(errno),
            };
            let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
            if end <= start {
                break;
            }
            copy_range(from, to, start, end)?;
            self.copied.copied_bytes += end - start;
            at = end;
        }
        rustix::fs::ftruncate(to, size)
    }

    /// Owner before attributes and mode: a change of owner takes capabilities and setuid bits away.
    fn finish_open(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, status: &Stat) -> rustix::io::Result<()> {
        if self.options.owners {
            let (uid, gid) = owner(status);
            rustix::fs::fchown(to, uid, gid)?;
        }
        rustix::fs::fchmod(to, Mode::from_raw_mode(status.st_mode))?;
        if self.options.attributes {
            copy_attributes(from, to)?;
        }
        if self.options.times {
            rustix::fs::futimens(to, &times(status))?;
        }
        Ok(())
    }

    fn finish_name(&self, target: BorrowedFd<'_>, name: &CStr, status: &Stat) -> rustix::io::Result<()> {
        if self.options.owners {
            let (uid, gid) = owner(status);
            rustix::fs::chownat(target, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if self.options.times {
            rustix::fs::utimensat(target, name, &times(status), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    fn finish_folder(&self, place: &[CString]) -> rustix::io::Result<()> {
        let source = open_place(self.source, place)?;
        let target = open_place(self.target, place)?;
        let status = rustix::fs::fstat(&source)?;
        self.finish_open(source.as_fd(), target.as_fd(), &status)
    }
}

/// Opens a folder of the tree, some components at a time, without following a link or leaving a mount.
fn open_place(root: BorrowedFd<'_>, place: &[CString]) -> rustix::io::Result<OwnedFd> {
    let mut here = open_resolved(root, c".", OFlags::RDONLY | OFlags::DIRECTORY, 0, ResolveFlags::empty())?;
    // Eight names of at most 255 bytes stay below the kernel's limit of 4096.
    for names in place.chunks(8) {
        let joined = names.iter().map(|name| name.as_bytes()).collect::<Vec<_>>().join(&b'/');
        let joined = CString::new(joined).map_err(|_| Errno::INVAL)?;
        here = open_child_folder(here.as_fd(), &joined)?;
    }
    Ok(here)
}

fn copy_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> rustix::io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let length = usize::try_from((end - read_at).min(1 << 30)).unwrap_or(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), length) {
            // The file became shorter while it was read.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                return copy_through_memory(from, to, read_at, end);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn copy_through_memory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> rustix::io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    rustix::fs::seek(to, SeekFrom::Start(start))?;
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let length = retry_on_intr(|| rustix::io::pread(from, &mut buffer[..want], at))?;
        if length == 0 {
            return Ok(());
        }
        super::write_all(to, &buffer[..length])?;
        at += length as u64;
    }
    Ok(())
}

fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let errno = |error: Error| error.errno();
    for name in attributes::list(from).map_err(errno)? {
        let bytes = name.to_bytes();
        let must = [&b"user."[..], b"trusted.", b"system.posix_acl"].iter().any(|start| bytes.starts_with(start));
        let Some(value) = attributes::get(from, &name).map_err(errno)? else { continue };
        match attributes::set(to, &name, &value) {
            Err(error) if must => return Err(errno(error)),
            _ => {}
        }
    }
    Ok(())
}

fn owner(status: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid)))
}

fn times(status: &Stat) -> Timestamps {
    // Nanoseconds are below a thousand million, whatever type the platform gives them.
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps {
        last_access: time(status.st_atime as _, status.st_atime_nsec as _),
        last_modification: time(status.st_mtime as _, status.st_mtime_nsec as _),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("a folder")
    }

    fn options() -> CopyOptions {
        CopyOptions { owners: rustix::process::geteuid().is_root(), ..CopyOptions::default() }
    }

    #[test]
    fn a_copy_is_the_same() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::create_dir_all(from.join("sub/closed")).expect("a folder");
        std::fs::create_dir(&to).expect("a folder");
        std::fs::write(from.join("sub/file"), b"content").expect("written");
        std::fs::set_permissions(from.join("sub/file"), PermissionsExt::from_mode(0o4711)).expect("ours");
        std::fs::hard_link(from.join("sub/file"), from.join("again")).expect("a link");
        symlink("/nowhere", from.join("link")).expect("a link");
        let sparse = std::fs::File::create(from.join("sparse")).expect("a file");
        sparse.write_all_at(b"end", 8 << 20).expect("written");
        let whiteout = rustix::fs::mknodat(open(&from), c"gone", FileType::CharacterDevice, Mode::empty(), 0).is_ok();
        let attribute = attributes::set(&sparse, c"user.overlay.opaque", b"y").is_ok();
        std::fs::write(from.join("sub/closed/inner"), b"x").expect("written");
        std::fs::set_permissions(from.join("sub/closed"), PermissionsExt::from_mode(0o555)).expect("ours");

        let copied = copy_tree(open(&from).as_fd(), open(&to).as_fd(), options()).expect("copied");
        assert_eq!((copied.files, copied.folders), (3, 2));
        assert!(copied.copied_bytes + copied.shared_bytes < 16 << 20);
        let facts = |path: &str| {
            let of = |root: &Path| {
                let facts = std::fs::symlink_metadata(root.join(path)).expect(path);
                (facts.mode(), facts.uid(), facts.gid(), facts.size(), facts.mtime_nsec(), facts.nlink(), facts.rdev())
            };
            (of(&from), of(&to))
        };
        for path in ["sub", "sub/file", "sub/closed", "sub/closed/inner", "again", "link", "sparse"] {
            let (source, target) = facts(path);
            assert_eq!(source, target, "{path}");
        }
        if whiteout {
            let (source, target) = facts("gone");
            assert_eq!((source.0, source.6), (target.0, target.6));
        }
        if attribute {
            let copy = std::fs::File::open(to.join("sparse")).expect("copied");
            assert_eq!(attributes::get(&copy, c"user.overlay.opaque").expect("no error").as_deref(), Some(&b"y"[..]));
        }
        assert!(std::fs::metadata(to.join("sparse")).expect("copied").blocks() * 512 < 1 << 20, "holes stay holes");
        assert_eq!(std::fs::read(to.join("again")).expect("copied"), b"content");
        std::fs::set_permissions(from.join("sub/closed"), PermissionsExt::from_mode(0o755)).expect("ours");
        std::fs::set_permissions(to.join("sub/closed"), PermissionsExt::from_mode(0o755)).expect("ours");
    }

    #[test]
    fn an_existing_name_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for side in ["from", "to"] {
            std::fs::create_dir_all(folder.path().join(side)).expect("a folder");
            std::fs::write(folder.path().join(side).join("file"), side).expect("written");
        }
        let (from, to) = (open(&folder.path().join("from")), open(&folder.path().join("to")));
        let error = copy_tree(from.as_fd(), to.as_fd(), options()).expect_err("taken");
        assert_eq!((error.to_string().as_str(), error.errno()), ("cannot copy file", Errno::EXIST));
    }
}
