//! A synced tree on the machine itself: an overlay of its layers and of a file system in memory for what is written to it.
//!
//! Whoever is root on the machine must find neither the layers nor the overlay's own folders. Since Linux 6.15 they need
//! not be mounted anywhere for the overlay to stand on them; before, they are, in a mount namespace that nobody else is
//! in. That way costs a namespace and two more waits for all processors.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use testyard_linux::mount::{self, Layer, OverlaySpec, TmpfsOptions};
use testyard_linux::namespace;
use testyard_linux::process::CloneFlags;
use testyard_linux::{Error, Result};

use super::root::make_folders;
use super::source::{copy_owner, unseen};

/// Where changes go.
const UPPER: &str = "upper";
/// The overlay's own.
const WORK: &str = "work";

/// A synced tree that is to be shown.
pub(crate) struct LayeredView<'a> {
    /// Detached mounts of its layers, topmost first.
    pub(crate) layers: &'a [OwnedFd],
    /// Where it is to be seen.
    pub(crate) target: &'a Path,
    /// Bytes that may be written to it.
    pub(crate) size: u64,
}

impl LayeredView<'_> {
    /// Shows it in the mount namespace `here`, in place of what was mounted there before where `again` says so: at any
    /// time one of them is seen. This process stays in that namespace.
    pub(crate) fn show(&self, here: BorrowedFd<'_>, again: bool) -> Result<()> {
        namespace::enter(here, CloneFlags::NEWNS)?;
        make_folders(self.target)?;
        let overlay = match self.overlay() {
            Ok(overlay) => overlay,
            Err(_) => unseen(here, || self.overlay_attached())?,
        };
        if again && mount::attach_beneath(overlay.as_fd(), self.target).is_ok() {
            return mount::detach(self.target);
        }
        // Older kernels: what was there stays hidden below, which costs a mount.
        mount::attach(overlay.as_fd(), self.target)
    }

    /// Over mounts that are attached nowhere.
    fn overlay(&self) -> Result<OwnedFd> {
        let base = self.base()?;
        let (upper, work) = self.folders_in(&base)?;
        over(self.layers.iter().map(Layer::from).collect(), Layer::from(&upper), Layer::from(&work))
    }

    /// Over mounts that are attached where nobody else is.
    fn overlay_attached(&self) -> Result<OwnedFd> {
        let base = self.base()?;
        self.folders_in(&base)?;
        mount::attach(base.as_fd(), self.target)?;
        let lower: Vec<PathBuf> = (0..self.layers.len()).map(|number| self.target.join(number.to_string())).collect();
        for (layer, at) in self.layers.iter().zip(&lower) {
            make_folders(at)?;
            mount::attach(layer.as_fd(), at.as_path())?;
        }
        let (upper, work) = (self.target.join(UPPER), self.target.join(WORK));
        over(lower.iter().map(Layer::from).collect(), Layer::from(&upper), Layer::from(&work))
    }

    /// Where what is written goes.
    fn base(&self) -> Result<OwnedFd> {
        mount::tmpfs(&TmpfsOptions { size: Some(self.size), inodes: None, mode: 0o755 })
    }

    /// The overlay's own folders there.
    fn folders_in(&self, base: &OwnedFd) -> Result<(OwnedFd, OwnedFd)> {
        let (upper, work) = (folder_in(base, UPPER)?, folder_in(base, WORK)?);
        if let Some(top) = self.layers.first() {
            copy_owner((top.as_fd(), Path::new("")), (base.as_fd(), Path::new(UPPER)))?;
        }
        Ok((upper, work))
    }
}

fn over(lower: Vec<Layer<'_>>, upper: Layer<'_>, work: Layer<'_>) -> Result<OwnedFd> {
    mount::overlay(&OverlaySpec {
        lower,
        upper: Some((upper, work)),
        user_xattr: true,
        volatile: true,
        ..OverlaySpec::default()
    })
}

/// Makes a folder, and opens it.
fn folder_in(base: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let failed = |error| Error::new("make folder", name, error);
    rustix::fs::mkdirat(base, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(base, name, flags, Mode::empty()).map_err(failed)
}
