//! The working tree inside an environment: at its own absolute path, copy-on-write, mounted when the command comes.
//!
//! Whoever is root inside may unmount it again, and must then find nothing below: neither the tree itself, which is
//! the host's, nor the overlay's own folders. So both are mounted only until the overlay holds them, and where
//! somebody could look meanwhile, in a mount namespace that nobody else is in.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use serde::{Deserialize, Serialize};
use testyard_linux::mount::{self, Layer, OverlaySpec, TmpfsOptions};
use testyard_linux::namespace::{self, Kind};
use testyard_linux::process::CloneFlags;
use testyard_linux::{Error, Result};
use testyard_protocol::RawText;

use super::root::{begin_with, make_folders, open_folder};

/// What the changes of a view are called in their file system.
pub(crate) const CHANGES: &str = "upper";

/// A working tree on its way into an environment.
pub(crate) struct SourceMount {
    /// A detached mount of it, or of a folder that holds its layers.
    pub(crate) tree: OwnedFd,
    pub(crate) place: SourcePlace,
}

/// Where a working tree is from, and where it belongs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SourcePlace {
    /// Where it is on the host.
    pub(crate) origin: RawText,
    /// Where it is to be seen.
    pub(crate) target: RawText,
    /// How many layers the mount of it has, in folders of their numbers; 0 where it is the tree itself.
    pub(crate) layers: u8,
}

/// A copy-on-write view of a working tree, not there yet.
pub(crate) struct SourceView<'a> {
    pub(crate) place: &'a SourcePlace,
    /// Bytes that may be written to it.
    pub(crate) size: u64,
    /// Absolute paths of the host that are hidden where they lie in it, parents first.
    pub(crate) hidden: &'a [PathBuf],
    /// A layer that was sealed before, a detached mount, seen above the tree.
    pub(crate) sealed: Option<&'a OwnedFd>,
    /// The file system of another environment's changes, with which this one begins.
    pub(crate) forked: Option<&'a OwnedFd>,
}

impl SourceView<'_> {
    fn target(&self) -> &Path {
        self.place.target.as_path()
    }

    /// Mounts the view of `tree` (a detached mount). Nothing may run here yet. The file system of its changes, which
    /// nothing leads to any more.
    pub(crate) fn mount(&self, tree: BorrowedFd<'_>) -> Result<OwnedFd> {
        make_folders(self.target())?;
        let (overlay, changes) = self.overlay(tree)?;
        mount::attach(overlay.as_fd(), self.target())?;
        Ok(changes)
    }

    /// As [`SourceView::mount`], beside processes that may already be root here.
    pub(crate) fn mount_unseen(&self, tree: BorrowedFd<'_>) -> Result<OwnedFd> {
        make_folders(self.target())?;
        let here = namespace::open(None, Kind::Mount)?;
        let (overlay, changes) = unseen(here.as_fd(), || self.overlay(tree))?;
        mount::attach(overlay.as_fd(), self.target())?;
        Ok(changes)
    }

    /// Makes the overlay. What it stands on is mounted at the target meanwhile, and not any more afterwards.
    fn overlay(&self, tree: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
        let base = mount::tmpfs(&TmpfsOptions { size: Some(self.size), inodes: None, mode: 0o755 })?;
        mount::attach(base.as_fd(), self.target())?;
        let overlay = self.put_together(tree);
        // With the tree, which is mounted below it.
        mount::detach(self.target())?;
        overlay
    }

    fn put_together(&self, tree: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
        let folder = |name: &str| {
            let path = self.target().join(name);
            make_folder(&path).map(|()| path)
        };
        let (lower, upper, work) = (folder("lower")?, folder(CHANGES)?, folder("work")?);
        mount::attach(tree, &lower)?;
        let sealed = match self.sealed {
            Some(layer) => {
                let at = folder("sealed")?;
                mount::attach(layer.as_fd(), &at)?;
                Some(at)
            }
            None => None,
        };
        // Opened while there is a way to it.
        let changes = open_folder(self.target())?;
        let lower = match self.place.layers {
            0 => vec![lower],
            layers => (0..layers).map(|layer| lower.join(layer.to_string())).collect(),
        };
        copy_owner((CWD, &lower[0]), (CWD, &upper))?;
        begin_with(self.forked.map(|forked| forked.as_fd()), CHANGES, &upper)?;
        for path in self.hidden {
            if let Ok(path) = path.strip_prefix(self.place.origin.as_path())
                && path != Path::new("")
            {
                hide(&lower[0], &upper, path)?;
            }
        }
        let overlay = mount::overlay(&OverlaySpec {
            lower: sealed.iter().chain(&lower).map(Layer::from).collect(),
            upper: Some((Layer::Path(&upper), Layer::Path(&work))),
            user_xattr: true,
            volatile: true,
            ..OverlaySpec::default()
        })?;
        Ok((overlay, changes))
    }
}

/// Marks `path` as removed. A path that the tree does not lead to cannot be seen in it anyway.
fn hide(lower: &Path, upper: &Path, path: &Path) -> Result<()> {
    let mut way = PathBuf::new();
    for part in path.parent().into_iter().flat_map(Path::components) {
        way.push(part);
        let plain = std::fs::symlink_metadata(lower.join(&way)).is_ok_and(|facts| facts.is_dir());
        if !plain {
            return Ok(());
        }
        let copy = upper.join(&way);
        match std::fs::symlink_metadata(&copy) {
            Ok(facts) if facts.is_dir() => {}
            // Something above is hidden already.
            Ok(_) => return Ok(()),
            Err(_) => {
                make_folder(&copy)?;
                copy_owner((CWD, &lower.join(&way)), (CWD, &copy))?;
            }
        }
    }
    let mark = upper.join(path);
    match rustix::fs::mknodat(CWD, &mark, FileType::CharacterDevice, Mode::empty(), 0) {
        // Named twice.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(Error::new("hide", path.display(), error)),
    }
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .mode(0o755)
        .create(path)
        .map_err(|error| Error::new("make folder", path.display(), error))
}

/// Does something in a mount namespace that nobody else is in, and comes back `here`.
pub(super) fn unseen<T>(here: BorrowedFd<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    namespace::unshare(CloneFlags::NEWNS)?;
    let done = mount::make_all_private().and_then(|()| work());
    namespace::enter(here, CloneFlags::NEWNS)?;
    done
}

/// A folder of the overlay has its upper's owner and mode: the tree's owner must be able to write there. Both are below
/// an open folder; `from` may be that folder, with an empty path.
pub(super) fn copy_owner(from: (BorrowedFd<'_>, &Path), to: (BorrowedFd<'_>, &Path)) -> Result<()> {
    let failed = |error| Error::new("set the owner of", to.1.display(), error);
    let facts = rustix::fs::statat(from.0, from.1, AtFlags::EMPTY_PATH).map_err(failed)?;
    let (uid, gid) = (Uid::from_raw(facts.st_uid), Gid::from_raw(facts.st_gid));
    // A tree of somebody else's stays readable; only writing there needs the owner.
    let _ = rustix::fs::chownat(to.0, to.1, Some(uid), Some(gid), AtFlags::empty());
    let mode = Mode::from_raw_mode(facts.st_mode & 0o7777);
    rustix::fs::chmodat(to.0, to.1, mode, AtFlags::empty()).map_err(failed)
}
