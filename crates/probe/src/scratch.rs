//! Places to try things in: a tmpfs that only we see, or a private folder on disk.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use testyard_linux::files::remove_tree;
use testyard_linux::mount::{self, TmpfsOptions};

use crate::finding::{Lacking, Step};

/// Mounts a fresh tmpfs over a folder that every system has; for a mount namespace of our own.
pub(crate) fn tmpfs() -> Result<PathBuf, Lacking> {
    mount::make_all_private()?;
    let point = ["/tmp", "/mnt", "/var/tmp", "/var"].into_iter().map(Path::new).find(|path| path.is_dir());
    let point = point.ok_or_else(|| Lacking::new("there is no /tmp to mount on"))?;
    over(point)?;
    Ok(point.to_owned())
}

/// Mounts a fresh tmpfs over this folder.
pub(crate) fn over(point: &Path) -> Result<(), Lacking> {
    let options = TmpfsOptions { size: Some(16 << 20), ..TmpfsOptions::default() };
    let mounted = mount::tmpfs(&options).step("mounting a tmpfs")?;
    mount::attach(mounted.as_fd(), point).step("attaching a tmpfs")
}

/// The private folder of the probe process with this pid.
pub(crate) fn folder_of(pid: u32) -> PathBuf {
    std::env::temp_dir().join(format!("testyard-probe-{pid}"))
}

/// Makes this process's private folder; [`sweep`] removes it.
pub(crate) fn folder() -> Result<PathBuf, Lacking> {
    let path = folder_of(std::process::id());
    testyard_linux::files::verified_private_directory(&path)?;
    Ok(path)
}

/// Removes the private folder of an ended probe process.
pub(crate) fn sweep(pid: u32) {
    let path = folder_of(pid);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
    if let Ok(parent) = std::fs::File::open(parent)
        && path.is_dir()
    {
        // What is left in a temporary folder is a nuisance, not a wrong answer.
        let _ = remove_tree(parent.as_fd(), name);
    }
}
