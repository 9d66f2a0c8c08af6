//! The two paths that the user gives: resolved within a root, with links followed but never out of it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Refusal, TransferError};
use crate::format::is_name;

/// Attempts at a path that others are renaming meanwhile.
const ATTEMPTS: usize = 64;

/// Opens a path as if `root` were `/`.
pub(crate) fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    resolve(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens a path below a folder through real folders only.
pub(crate) fn open_beneath(folder: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    resolve(folder, path, flags, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS)
}

fn resolve(root: BorrowedFd<'_>, path: &Path, flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let mut outcome = Err(Errno::AGAIN);
    for _ in 0..ATTEMPTS {
        outcome = rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how);
        if !matches!(outcome, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    outcome
}

/// The name that a source brings along; empty when only its contents are meant.
pub(crate) fn own_name(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    if bytes.ends_with(b"/.") || bytes == b"." {
        return b"";
    }
    path.file_name().map_or(b"", |name| name.as_bytes())
}

/// Where the root entry of a stream is made.
pub(crate) enum Target {
    /// Under this name in this folder.
    Named(OwnedFd, Vec<u8>),
    /// Its contents go into this folder.
    Contents(OwnedFd),
}

/// Finds it, by the rules of `cp -r`.
pub(crate) fn find(
    root: BorrowedFd<'_>,
    path: &Path,
    is_folder: bool,
    source_name: &[u8],
) -> Result<Target, TransferError> {
    let failed = |operation, errno: Errno| TransferError::file(operation, path, errno);
    match open(root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(folder) if is_folder && source_name.is_empty() => return Ok(Target::Contents(folder)),
        Ok(_) if source_name.is_empty() => return Err(TransferError::Folder { path: path.to_owned() }),
        Ok(folder) if is_name(source_name) => return Ok(Target::Named(folder, source_name.to_vec())),
        Ok(_) => return Err(TransferError::Refused { entry: path.to_owned(), reason: Refusal::Name }),
        Err(Errno::NOENT) => {}
        Err(Errno::NOTDIR) if !is_folder => {}
        Err(Errno::NOTDIR) => return Err(TransferError::NotAFolder { path: path.to_owned() }),
        Err(errno) => return Err(failed("open", errno)),
    }
    let bytes = path.as_os_str().as_bytes();
    if !is_folder && bytes.ends_with(b"/") {
        return Err(failed("find the folder", Errno::NOENT));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed("find", Errno::NOENT));
    };
    if !is_name(name.as_bytes()) {
        return Err(failed("make", Errno::NAMETOOLONG));
    }
    let parent = open(root, parent, OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(|errno| TransferError::file("open the folder", parent, errno))?;
    // A dangling link would be replaced silently; as for `cp`, that is no place to write to.
    let existing = rustix::fs::statat(parent.as_fd(), name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    match existing.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(_) if is_folder => Err(TransferError::NotAFolder { path: path.to_owned() }),
        // Replacing /dev/null by a file is never what was meant.
        Ok(kind) if !matches!(kind, FileType::RegularFile | FileType::Symlink | FileType::Directory) => {
            Err(TransferError::NotAFile { path: path.to_owned() })
        }
        _ => Ok(Target::Named(parent, name.as_bytes().to_vec())),
    }
}
