//! Room kept for ending things: on a full disk a machine could otherwise not be deleted, because deleting is recorded.
//!
//! A file of [`SIZE`] bytes lies beside the registry. Where the disk has less than that left it is given up before
//! what ends something is recorded, and made again by a later opener once there is room.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, Mode, OFlags};

/// What the records of a deletion may take, the write-ahead log included, in bytes.
pub(crate) const SIZE: u64 = 512 * 1024;

/// Below this much free space the reserve is not made, so that it never takes what was just freed. In bytes.
const ENOUGH: u64 = 16 * SIZE;

/// Where it lies, for this registry's file.
pub(crate) fn path(registry: &Path) -> PathBuf {
    registry.with_file_name("registry.reserve")
}

/// Makes it where it is missing and there is room. Without it everything works but a deletion on a full disk.
pub(crate) fn keep(registry: &Path) {
    let path = path(registry);
    if path.exists() || free(registry).is_none_or(|free| free < ENOUGH) {
        return;
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(file) = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map(File::from) else { return };
    if rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SIZE).is_err() {
        // A file system that cannot reserve: an empty file would only pretend.
        let _ = std::fs::remove_file(&path);
    }
}

/// Gives it up where the disk is all but full.
pub(crate) fn release_if_full(registry: &Path) {
    if free(registry).is_some_and(|free| free < SIZE) {
        let _ = std::fs::remove_file(path(registry));
    }
}

/// What this user may still write beside the registry, in bytes.
fn free(registry: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(registry.parent()?).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_where_there_is_room_and_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let registry = folder.path().join("registry.sqlite");
        if free(&registry).is_none_or(|free| free < ENOUGH) {
            return;
        }
        keep(&registry);
        if let Ok(made) = std::fs::metadata(path(&registry)) {
            assert_eq!(made.len(), SIZE);
            release_if_full(&registry);
            assert!(path(&registry).exists(), "there is room");
        }
    }
}
