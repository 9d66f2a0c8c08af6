//! The host's state as a cache key: what packages and administrators change, read in about a millisecond.
//!
//! Whole trees are not walked: that would cost as much as building. What changes without notice here (a file
//! edited in place deep in `/usr/share`, logs, spools) shows in machines with its old size and its new content.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use testyard_linux::Error as SystemError;

use crate::host::{HostView, MaskEffect};
use crate::store::hexadecimal;

/// Raised when trees are built in another way.
const VERSION: u32 = 1;
/// Folders whose subfolders' times count, and how deep.
const DEEP: [(&str, usize); 5] = [("/usr", 1), ("/usr/local", 3), ("/usr/lib/python3", 1), ("/etc", 1), ("/opt", 2)];
/// Files that package managers rewrite.
const DATABASES: [&str; 4] = [
    "/var/lib/dpkg/status",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/lib/apk/db/installed",
];

/// The half of a key that changes with the host, for everything this user builds.
pub(super) fn of_host() -> Result<String, SystemError> {
    let mut hash = Sha256::new();
    hash.update(format!("{VERSION} {}", testyard_linux::identity::boot_id()?));
    hash.update(format!(" {} {}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    for group in rustix::process::getgroups().unwrap_or_default() {
        hash.update(format!(" {}", group.as_raw()));
    }
    add(&mut hash, Path::new("/"), None);
    for (path, depth) in DEEP {
        add(&mut hash, Path::new(path), Some(depth));
    }
    for path in DATABASES {
        add(&mut hash, Path::new(path), None);
    }
    Ok(short(hash))
}

/// The half that changes with what is seen of it. Mount points are not in the tree, so that all projects of a user
/// share one.
pub(super) fn of_view(view: &HostView, layers: &[PathBuf]) -> String {
    let mut hash = Sha256::new();
    hash.update(&view.identity);
    for layer in layers {
        add(&mut hash, layer, None);
    }
    for mask in view.masks().filter(|mask| mask.effect != MaskEffect::MountPoint) {
        hash.update(format!("{mask:?}\n"));
    }
    short(hash)
}

fn short(hash: Sha256) -> String {
    hexadecimal(&hash.finalize()[..10])
}

/// A path's identity, time and size; with a depth also those of its folders so far down, and of files directly in `/etc`.
fn add(hash: &mut Sha256, path: &Path, depth: Option<usize>) {
    let Ok(facts) = fs::symlink_metadata(path) else { return };
    let size = if facts.is_dir() { 0 } else { facts.len() };
    hash.update(path.as_os_str().as_encoded_bytes());
    hash.update(format!("\0{}:{} {}.{} {size}\n", facts.dev(), facts.ino(), facts.mtime(), facts.mtime_nsec()));
    let Some(depth) = depth.filter(|depth| *depth > 0 && facts.is_dir()) else { return };
    let Ok(entries) = fs::read_dir(path) else { return };
    let files_count = path == Path::new("/etc");
    let mut children: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir() || (files_count && kind.is_file())))
        .map(|entry| entry.path())
        .collect();
    children.sort();
    for child in children {
        add(hash, &child, Some(depth - 1));
    }
}
