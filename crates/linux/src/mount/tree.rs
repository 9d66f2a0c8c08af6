//! Copies of mounted trees, their attributes, and attaching what was made detached.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::overlay::Layer;
use crate::error::{Context, Result, checked};

/// Where something is attached: a folder for a folder, a file for a file. What is there already is covered.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// A path; a link at its end is not followed.
    Path(&'a Path),
    /// What the descriptor names.
    Descriptor(BorrowedFd<'a>),
    /// A path from a folder; a link at its end is not followed, links on the way are.
    Below(BorrowedFd<'a>, &'a Path),
}

impl<'a> From<&'a Path> for Target<'a> {
    fn from(path: &'a Path) -> Self {
        Self::Path(path)
    }
}

impl<'a> From<&'a PathBuf> for Target<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self::Path(path)
    }
}

impl<'a> From<BorrowedFd<'a>> for Target<'a> {
    fn from(descriptor: BorrowedFd<'a>) -> Self {
        Self::Descriptor(descriptor)
    }
}

impl<'a> From<&'a OwnedFd> for Target<'a> {
    fn from(descriptor: &'a OwnedFd) -> Self {
        Self::Descriptor(descriptor.as_fd())
    }
}

/// Attaches a detached mount (or moves an attached one).
///
/// # Errors
/// `EPERM` without capabilities over the mount namespace, `ENOTDIR` for a folder onto a file, `EINVAL` for a tree
/// whose mounts belong to a namespace that is not ours.
pub fn attach<'a>(mount: BorrowedFd<'_>, at: impl Into<Target<'a>>) -> Result<()> {
    let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    match at.into() {
        Target::Path(path) => move_mount(mount, "", CWD, path, from).context("attach a mount at", || path.display()),
        Target::Descriptor(descriptor) => {
            move_mount(mount, "", descriptor, "", from | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
                .context("attach a mount at", || format!("descriptor {}", descriptor.as_raw_fd()))
        }
        Target::Below(folder, path) => {
            move_mount(mount, "", folder, path, from).context("attach a mount at", || path.display())
        }
    }
}

/// Attaches a detached mount below the one that is mounted at a path: seen once that is detached, so that a path shows one
/// or the other at any time. Since Linux 6.5.
///
/// # Errors
/// `EINVAL` from older kernels, and where nothing is mounted there.
pub fn attach_beneath(mount: BorrowedFd<'_>, at: &Path) -> Result<()> {
    // rustix knows no name for `MOVE_MOUNT_BENEATH` yet.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::from_bits_retain(0x200);
    move_mount(mount, "", CWD, at, flags).context("attach a mount below that at", || at.display())
}

/// Shows the file or folder at one path at another too, without the mounts below it: [`clone_tree`] and [`attach`] in
/// one call to the kernel. Links at the end of either are followed.
///
/// # Errors
/// As those two.
pub fn bind(from: &Path, at: &Path) -> Result<()> {
    rustix::mount::mount_bind(from, at).context("attach a mount at", || at.display())
}

/// A detached copy of the mount that the folder (or file) is on, showing it and what is below; with `recursive` with
/// the mounts below it too. What a bind mount is made of.
///
/// # Errors
/// `EPERM` without capabilities over the mount namespace, `EINVAL` for a copy without the mounts below in a user
/// namespace that inherited them: they hide something.
pub fn clone_tree<'a>(of: impl Into<Layer<'a>>, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    match of.into() {
        Layer::Path(path) => open_tree(CWD, path, flags).context("copy the mount of", || path.display()),
        Layer::Descriptor(descriptor) => open_tree(descriptor, "", flags | OpenTreeFlags::AT_EMPTY_PATH)
            .context("copy the mount of", || format!("descriptor {}", descriptor.as_raw_fd())),
    }
}

/// What to change about a mount. What is false, or not there, stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// Nothing can be written.
    pub read_only: bool,
    /// setuid bits and file capabilities mean nothing.
    pub no_suid: bool,
    /// Device nodes cannot be opened.
    pub no_devices: bool,
    /// Nothing can be executed.
    pub no_exec: bool,
    /// Shows the owners of files through the map of this user namespace. Only on a detached mount that has no map.
    pub idmap: Option<BorrowedFd<'a>>,
    /// Mounts below neither come from elsewhere nor go there.
    pub propagation_private: bool,
}

/// The kernel's `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Changes a mount's attributes, with `recursive` those of the mounts below it too: all or none.
///
/// # Errors
/// `EINVAL` for an idmap on a file system that cannot have one, `EPERM` for one without capabilities over the file
/// system's users.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: &Attributes<'_>, recursive: bool) -> Result<()> {
    let mut set = MountAttrFlags::empty();
    set.set(MountAttrFlags::MOUNT_ATTR_RDONLY, attributes.read_only);
    set.set(MountAttrFlags::MOUNT_ATTR_NOSUID, attributes.no_suid);
    set.set(MountAttrFlags::MOUNT_ATTR_NODEV, attributes.no_devices);
    set.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, attributes.no_exec);
    set.set(MountAttrFlags::MOUNT_ATTR_IDMAP, attributes.idmap.is_some());
    let mut change = MountAttributes { set: set.bits().into(), ..MountAttributes::default() };
    if attributes.propagation_private {
        change.propagation = libc::MS_PRIVATE;
    }
    if let Some(namespace) = attributes.idmap {
        change.user_namespace = u64::from(namespace.as_raw_fd().unsigned_abs());
    }
    change_attributes(mount, &change, recursive).context("change the attributes of", || format!("a mount to {set:?}"))
}

fn change_attributes(mount: BorrowedFd<'_>, change: &MountAttributes, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path ends in NUL, the structure is the kernel's, outlives the call, and its size is given.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(change),
            size_of::<MountAttributes>(),
        )
    };
    checked(returned).map(drop)
}
