//! Writing masks as an overlay layer: a small folder tree that lies above the host's own.
//!
//! Hidden things are whiteouts, emptied folders are opaque, and every folder on the way carries the host's own mode,
//! owner and time, because a merged folder shows those of the topmost layer.

use std::collections::HashSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode as FileMode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use testyard_linux::Error as SystemError;
use testyard_linux::files::layer_marks;

use super::{MaskEffect, MaskEntry, covers};

/// A written mask layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskLayer {
    /// The folder: the layer to put above the host's.
    pub path: PathBuf,
    /// How many masks it holds.
    pub entries: usize,
    /// The masked file system's own root is hidden or emptied, or something above it: no layer can say that (the
    /// kernel looks for no mark on the root of a layer), so it must not be mounted at all.
    pub whole: bool,
}

/// Writes masks into an existing empty folder. `layer` is where the masked file system is on the host: paths
/// in the folder are relative to it.
///
/// # Errors
/// The folder cannot be written to, or its file system holds neither whiteouts nor attributes.
pub fn write_mask_layer(masks: &[MaskEntry], layer: &Path, target: &Path) -> Result<MaskLayer, SystemError> {
    let mut writer = Writer { layer, root: open(target)?, made: HashSet::new(), target };
    writer.like_host(writer.root.as_fd(), layer)?;
    let (mut entries, mut whole) = (0, false);
    for mask in masks {
        if covers(&mask.path, layer) {
            whole |= mask.effect != MaskEffect::MountPoint;
        } else if let Ok(path) = mask.path.strip_prefix(layer) {
            writer.write(path, &mask.effect)?;
            entries += 1;
        }
    }
    Ok(MaskLayer { path: target.to_owned(), entries, whole })
}

struct Writer<'a> {
    layer: &'a Path,
    target: &'a Path,
    root: OwnedFd,
    made: HashSet<PathBuf>,
}

impl Writer<'_> {
    fn write(&mut self, path: &Path, effect: &MaskEffect) -> Result<(), SystemError> {
        let parent_path = path.parent().unwrap_or(Path::new(""));
        let parent = self.folder(parent_path)?;
        let name = path.file_name().unwrap_or_default();
        let failed = |errno: Errno| SystemError::new("mask", self.layer.join(path).display(), errno);
        match effect {
            MaskEffect::Hidden => {
                layer_marks::make_whiteout(parent.as_fd(), name.as_bytes()).map_err(failed)?;
            }
            MaskEffect::MountPoint => {
                self.folder(path)?;
            }
            MaskEffect::Empty { mode } => {
                let folder = self.folder(path)?;
                rustix::fs::fchmod(&folder, FileMode::from_raw_mode(*mode)).map_err(failed)?;
                layer_marks::make_opaque(folder.as_fd()).map_err(failed)?;
            }
            MaskEffect::Replaced { content, mode } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, name, flags, FileMode::RUSR | FileMode::WUSR).map_err(failed)?;
                let mut content = content.as_slice();
                while !content.is_empty() {
                    content = &content[rustix::io::write(&file, content).map_err(failed)?..];
                }
                self.like_host(file.as_fd(), &self.layer.join(path))?;
                rustix::fs::fchmod(&file, FileMode::from_raw_mode(*mode)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// A folder of the layer, made with all above it where it is not there yet.
    fn folder(&mut self, path: &Path) -> Result<OwnedFd, SystemError> {
        let mut here = PathBuf::new();
        for part in path.components() {
            here.push(part);
            if !self.made.insert(here.clone()) {
                continue;
            }
            let failed = |errno: Errno| SystemError::new("make", self.target.join(&here).display(), errno);
            match rustix::fs::mkdirat(&self.root, &here, FileMode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
            let folder = self.open_below(&here).map_err(failed)?;
            self.like_host(folder.as_fd(), &self.layer.join(&here))?;
        }
        self.open_below(path).map_err(|errno| SystemError::new("open", self.target.join(path).display(), errno))
    }

    fn open_below(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.root, path, flags, FileMode::empty())
    }

    /// Gives a file or folder the owner, mode and time of the host's own; one that the host lacks stays as made.
    fn like_host(&self, file: BorrowedFd<'_>, host: &Path) -> Result<(), SystemError> {
        let Ok(facts) = fs::symlink_metadata(host) else {
            return rustix::fs::fchmod(file, FileMode::from_raw_mode(0o755))
                .map_err(|errno| SystemError::new("mask", host.display(), errno));
        };
        let apply = || {
            // An ordinary user owns all of it; its machine shows that as root.
            if rustix::process::geteuid().is_root() {
                rustix::fs::fchown(file, Some(Uid::from_raw(facts.uid())), Some(Gid::from_raw(facts.gid())))?;
            }
            rustix::fs::fchmod(file, FileMode::from_raw_mode(facts.mode() & 0o7777))?;
            let time = Timespec { tv_sec: facts.mtime(), tv_nsec: facts.mtime_nsec() };
            rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })
        };
        apply().map_err(|errno| SystemError::new("mask", host.display(), errno))
    }
}

fn open(path: &Path) -> Result<OwnedFd, SystemError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, FileMode::empty()).map_err(|errno| SystemError::new("open", path.display(), errno))
}
