//! Removing what a failed transfer had begun.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, RawDir, StatxFlags};
use rustix::io::Errno;

use crate::format::MAX_DEPTH;
use crate::pack::OPEN_FOLDER;

/// Removes a file, or a folder with all in it: never through a link, never across a mount point.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => remove_folder(parent, name, mount_of(parent)?, 0),
        outcome => outcome,
    }
}

fn remove_folder(parent: BorrowedFd<'_>, name: &[u8], mount: u64, depth: usize) -> Result<(), Errno> {
    if depth > MAX_DEPTH + 1 {
        return Err(Errno::LOOP);
    }
    let folder = rustix::fs::openat(parent, name, OPEN_FOLDER, Mode::empty())?;
    if mount_of(folder.as_fd())? != mount {
        return Err(Errno::XDEV);
    }
    // A folder that arrived without write permission has it already.
    rustix::fs::fchmod(&folder, Mode::RWXU)?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let inner = entry.file_name().to_bytes();
        if inner == b"." || inner == b".." {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            remove_folder(folder.as_fd(), inner, mount, depth + 1)?;
        } else {
            rustix::fs::unlinkat(&folder, inner, AtFlags::empty())?;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn mount_of(folder: BorrowedFd<'_>) -> Result<u64, Errno> {
    Ok(rustix::fs::statx(folder, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}
