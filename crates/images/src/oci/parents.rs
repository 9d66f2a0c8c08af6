//! The attributes of folders that layers only imply.
//!
//! A layer need not name the folders above its files, and many do not. Unpacked by itself such a folder has a mode and an
//! owner of nobody's choice, and on top of the others it would show them: `/tmp` would be closed. So an image keeps, as
//! its own topmost layer, those folders alone, as the nearest layer that names them has them.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode as FileMode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use testyard_linux::Error as SystemError;
use testyard_linux::files::layer_marks;

use crate::store::{Ownership, Staged};

/// One layer as it is looked at here.
#[derive(Debug)]
pub(super) struct Tree {
    /// Its folder.
    pub(super) root: PathBuf,
    /// The folders that it implies, relative, in byte order.
    pub(super) implied: Vec<Vec<u8>>,
}

/// What a layer has of a name.
enum Standing {
    Absent,
    Whiteout,
    Other,
    Folder { opaque: bool },
}

fn standing(root: &Path, path: &[u8]) -> Standing {
    let path = root.join(OsStr::from_bytes(path));
    let Ok(facts) = std::fs::symlink_metadata(&path) else { return Standing::Absent };
    if facts.file_type().is_char_device() && facts.rdev() == 0 {
        return Standing::Whiteout;
    }
    let marked = |test: fn(BorrowedFd<'_>) -> bool| File::open(&path).is_ok_and(|file| test(file.as_fd()));
    if !facts.is_dir() {
        let empty = facts.is_file() && facts.len() == 0;
        let whiteout = empty && marked(layer_marks::is_whiteout_file);
        return if whiteout { Standing::Whiteout } else { Standing::Other };
    }
    Standing::Folder { opaque: marked(layer_marks::is_opaque) }
}

/// The layer whose attributes a folder should have: the topmost that names it, if it shows at all. Layers are topmost
/// first.
fn source_of<'t>(trees: &'t [Tree], path: &[u8]) -> Option<&'t Tree> {
    let mut seen: Vec<&Tree> = trees.iter().collect();
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for end in ends.chain((!path.is_empty()).then_some(path.len())) {
        let mut kept = Vec::new();
        for tree in seen {
            match standing(&tree.root, &path[..end]) {
                Standing::Absent => {}
                Standing::Whiteout => break,
                // Over folders it hides them; below some it is hidden, and so is all below it.
                Standing::Other if kept.is_empty() => return None,
                Standing::Other => break,
                Standing::Folder { opaque } => {
                    kept.push(tree);
                    if opaque {
                        break;
                    }
                }
            }
        }
        seen = kept;
    }
    let implies = |tree: &Tree| tree.implied.binary_search_by(|other| other.as_slice().cmp(path)).is_ok();
    seen.into_iter().find(|tree| !implies(tree))
}

/// Makes `root/` of a temporary folder out of the folders that layers imply; how many it holds. None where no attribute
/// is another than it would be anyway.
pub(super) fn restore(trees: &[Tree], staged: &Staged, ownership: Ownership) -> Result<u64, SystemError> {
    let mut wanted: Vec<(&[u8], &Tree)> = Vec::new();
    for (above, tree) in trees.iter().enumerate() {
        // The lowest layer's own have nothing below them to be like.
        if above + 1 == trees.len() {
            break;
        }
        wanted.extend(tree.implied.iter().filter_map(|path| Some((path.as_slice(), source_of(trees, path)?))));
    }
    wanted.sort_by_key(|(path, _)| *path);
    wanted.dedup_by_key(|(path, _)| *path);
    if wanted.is_empty() {
        return Ok(0);
    }
    let made = staged.path().join("root");
    let failed = |path: &Path, errno| SystemError::new("make folder", path.display(), errno);
    rustix::fs::mkdirat(CWD, &made, FileMode::RWXU).map_err(|errno| failed(&made, errno))?;
    // The folders above those are seen through it, too.
    let mut all: Vec<(&[u8], Option<&Tree>)> = vec![(&[], source_of(trees, &[]))];
    for (path, tree) in wanted {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        all.extend(ends.map(|end| (&path[..end], source_of(trees, &path[..end]))));
        all.push((path, Some(tree)));
    }
    all.sort_by_key(|(path, _)| *path);
    all.dedup_by_key(|(path, _)| *path);
    for (path, _) in all.iter().filter(|(path, _)| !path.is_empty()) {
        let folder = made.join(OsStr::from_bytes(path));
        rustix::fs::mkdirat(CWD, &folder, FileMode::RWXU).map_err(|errno| failed(&folder, errno))?;
    }
    // Children first: a closed folder would be in the way.
    for (path, tree) in all.iter().rev() {
        let folder = made.join(OsStr::from_bytes(path));
        let like = tree.map(|tree| tree.root.join(OsStr::from_bytes(path)));
        settle(&folder, like.as_deref(), ownership)
            .map_err(|errno| SystemError::new("set the attributes of", folder.display(), errno))?;
    }
    Ok(all.len() as u64)
}

/// Gives a folder the attributes of another, or those of one that nobody named.
fn settle(folder: &Path, like: Option<&Path>, ownership: Ownership) -> rustix::io::Result<()> {
    let Some(like) = like else {
        return rustix::fs::chmodat(CWD, folder, FileMode::from_raw_mode(0o755), AtFlags::empty());
    };
    let facts = rustix::fs::lstat(like)?;
    let opened = open(folder)?;
    for name in ["user.", "security.capability"] {
        copy_attributes(like, &opened, name)?;
    }
    if ownership == Ownership::Kept {
        rustix::fs::fchown(&opened, Some(Uid::from_raw(facts.st_uid)), Some(Gid::from_raw(facts.st_gid)))?;
    }
    rustix::fs::fchmod(&opened, FileMode::from_raw_mode(facts.st_mode & 0o7777))?;
    let time = Timespec { tv_sec: facts.st_mtime, tv_nsec: facts.st_mtime_nsec as _ };
    rustix::fs::futimens(opened.as_fd(), &Timestamps { last_access: time, last_modification: time })
}

fn open(folder: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, FileMode::empty())
}

/// Attributes whose names begin so, but for overlay's own.
fn copy_attributes(from: &Path, to: &OwnedFd, prefix: &str) -> rustix::io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(from, &mut names[..])?;
    let wanted = |name: &&[u8]| name.starts_with(prefix.as_bytes()) && !name.starts_with(b"user.overlay.");
    for name in names[..length].split(|byte| *byte == 0).filter(wanted) {
        let mut value = vec![0; 64 << 10];
        let size = rustix::fs::lgetxattr(from, name, &mut value[..])?;
        rustix::fs::fsetxattr(to, name, &value[..size], XattrFlags::empty())?;
    }
    Ok(())
}
