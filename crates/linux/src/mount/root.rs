//! The root of a mount namespace: cutting it off from others', and exchanging it.

use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::error::{Context, Result};

/// What a new root is before the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RootMount {
    /// A mount point already.
    Mounted,
    /// To be bound onto itself first, with the mounts below it: for a plain folder, and in a user namespace for a
    /// mount that was inherited, whose place is locked.
    BindOntoItself,
}

/// Makes a folder the root of this mount namespace and of this process, and lets go of the old root and everything
/// mounted in it. The working folder is the new root then.
///
/// # Errors
/// `EINVAL` when the folder is no mount point, or is on a mount that is shared with other namespaces (see
/// [`make_all_private`]).
pub fn pivot_into(new_root: &Path, mount: RootMount) -> Result<()> {
    let operation = "make the root folder of";
    let subject = || new_root.display();
    if mount == RootMount::BindOntoItself {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, new_root, flags).context(operation, subject)?;
        move_mount(&tree, "", CWD, new_root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context(operation, subject)?;
        // By descriptor: the path may lead through folders that these users may not pass.
        fchdir(&tree).context(operation, subject)?;
    } else {
        chdir(new_root).context(operation, subject)?;
    }
    // The old root ends up on top of the new one, at the same place: no folder is needed for it, and the mount that
    // "." names from then on is the old root.
    pivot_root(".", ".").context(operation, subject)?;
    unmount(".", UnmountFlags::DETACH).context("let go of", || "the old root")?;
    chdir("/").context("enter", || "the new root")
}

/// Takes the mount at a path, and those below it, out of this mount namespace. A link at its end is not followed.
///
/// # Errors
/// `EINVAL` when the path is no mount point, or a locked one.
pub fn detach(path: &Path) -> Result<()> {
    unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).context("detach the mount at", || path.display())
}

/// Cuts every mount of this namespace off from those it was copied from.
///
/// # Errors
/// `EPERM` without capabilities over the mount namespace, `EINVAL` when the process's root is no mount point.
pub fn make_all_private() -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("make private", || "the mounts of this namespace")
}
