//! What an overlay's upper layer changes, read from the layer itself.

use std::ffi::{CStr, CString, OsStr};
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{entries, layer_marks, open_child_folder, open_resolved};
use crate::error::{Error, Result};

/// Folders deeper than this are passed over; a test's own are not.
const MAX_DEPTH: usize = 200;

/// A path that the upper layer changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Relative to the layer.
    pub path: PathBuf,
    /// What happened.
    pub kind: ChangeKind,
    /// What is there; of what was deleted, what was there.
    pub file: FileType,
    /// Bytes of a file.
    pub size: u64,
    /// Where a link points.
    pub target: Option<CString>,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is not in the layers below.
    Added,
    /// It is, and is another above.
    Changed,
    /// It is, and is hidden by the upper layer.
    Deleted,
}

/// Calls `visit` for each path that `upper` changes over `lower` (the merged layers below it; none where there are none),
/// folders before what is in them, until it breaks. A new folder is named, and what is in it; a deleted one is named alone.
///
/// # Errors
/// The upper layer cannot be read.
pub fn changes(
    upper: BorrowedFd<'_>,
    lower: Option<BorrowedFd<'_>>,
    visit: &mut dyn FnMut(Change) -> ControlFlow<()>,
) -> Result<()> {
    let mut walk = Walk { lower, path: PathBuf::new(), visit, depth: 0 };
    // `.` so that reading it does not move the caller's own place in it.
    let top = open_child_folder_of(upper).map_err(|errno| Error::new("open", "an upper layer", errno))?;
    match walk.folder(&top, lower.is_some()) {
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::new("list", walk.path.display(), errno)),
    }
}

fn open_child_folder_of(folder: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    open_resolved(folder, c".", OFlags::RDONLY | OFlags::DIRECTORY, 0, ResolveFlags::BENEATH)
}

struct Walk<'a> {
    lower: Option<BorrowedFd<'a>>,
    path: PathBuf,
    visit: &'a mut dyn FnMut(Change) -> ControlFlow<()>,
    depth: usize,
}

impl Walk<'_> {
    /// `over`: whether a folder of the lower layers is seen through this one.
    fn folder(&mut self, folder: &OwnedFd, over: bool) -> rustix::io::Result<ControlFlow<()>> {
        if self.depth >= MAX_DEPTH {
            return Ok(ControlFlow::Continue(()));
        }
        let mut found = entries(folder.as_fd())?;
        found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        self.depth += 1;
        for entry in &found {
            self.path.push(OsStr::from_bytes(entry.name.to_bytes()));
            let step = self.entry(folder, &entry.name, over)?;
            self.path.pop();
            if step.is_break() {
                return Ok(step);
            }
        }
        self.depth -= 1;
        Ok(ControlFlow::Continue(()))
    }

    fn entry(&mut self, folder: &OwnedFd, name: &CStr, over: bool) -> rustix::io::Result<ControlFlow<()>> {
        let facts = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(facts) => facts,
            Err(Errno::NOENT) => return Ok(ControlFlow::Continue(())),
            Err(errno) => return Err(errno),
        };
        let below = if over { self.below() } else { None };
        let file = FileType::from_raw_mode(facts.st_mode);
        if file == FileType::CharacterDevice && facts.st_rdev == 0 {
            // A whiteout over nothing hides nothing.
            return Ok(below.map_or(ControlFlow::Continue(()), |below| self.tell(ChangeKind::Deleted, &below, None)));
        }
        let target =
            if file == FileType::Symlink { rustix::fs::readlinkat(folder, name, Vec::new()).ok() } else { None };
        let kind = if below.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
        if file != FileType::Directory {
            return Ok(self.tell(kind, &facts, target));
        }
        let was_folder = below.is_some_and(|below| FileType::from_raw_mode(below.st_mode) == FileType::Directory);
        let inner = match open_child_folder(folder.as_fd(), name) {
            Ok(inner) => inner,
            // Something is mounted there, or it has just become something else.
            Err(Errno::XDEV | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(ControlFlow::Continue(())),
            Err(errno) => return Err(errno),
        };
        let opaque = layer_marks::is_opaque(inner.as_fd());
        if !was_folder && self.tell(kind, &facts, None).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if was_folder && opaque && self.replaced(&inner)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.folder(&inner, was_folder && !opaque)
    }

    /// What the layers below have at this path.
    fn below(&self) -> Option<Stat> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let file = open_resolved(self.lower?, self.path.as_path(), flags, 0, resolve).ok()?;
        rustix::fs::fstat(file).ok()
    }

    /// A folder that was deleted and made again: what it held and does not hold any more is gone.
    fn replaced(&mut self, now: &OwnedFd) -> rustix::io::Result<ControlFlow<()>> {
        let Some(lower) = self.lower else { return Ok(ControlFlow::Continue(())) };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Ok(before) = open_resolved(lower, self.path.as_path(), flags, 0, resolve) else {
            return Ok(ControlFlow::Continue(()));
        };
        for entry in entries(before.as_fd())? {
            if rustix::fs::statat(now, &*entry.name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                continue;
            }
            let Ok(facts) = rustix::fs::statat(&before, &*entry.name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            self.path.push(OsStr::from_bytes(entry.name.to_bytes()));
            let told = self.tell(ChangeKind::Deleted, &facts, None);
            self.path.pop();
            if told.is_break() {
                return Ok(told);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn tell(&mut self, kind: ChangeKind, facts: &Stat, target: Option<CString>) -> ControlFlow<()> {
        let file = FileType::from_raw_mode(facts.st_mode);
        let size = if file == FileType::RegularFile { u64::try_from(facts.st_size).unwrap_or(0) } else { 0 };
        (self.visit)(Change { path: self.path.clone(), kind, file, size, target })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rustix::fs::{CWD, Mode};

    use super::*;

    fn all_changes(upper: BorrowedFd<'_>, lower: Option<BorrowedFd<'_>>) -> Result<Vec<Change>> {
        let mut all = Vec::new();
        changes(upper, lower, &mut |change| {
            all.push(change);
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("a folder")
    }

    #[test]
    fn added_changed_and_deleted_are_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |path: &str| folder.path().join(path);
        for path in ["lower/etc/keep", "lower/old/inner", "lower/renewed", "upper/etc", "upper/new", "upper/renewed"] {
            std::fs::create_dir_all(at(path)).expect("a folder");
        }
        for (path, text) in [
            ("lower/etc/hosts", "a"),
            ("lower/etc/gone", "b"),
            ("lower/renewed/was", "c"),
            ("upper/etc/hosts", "abc"),
            ("upper/new/file", "1234"),
            ("upper/renewed/is", "d"),
        ] {
            std::fs::write(at(path), text).expect("a file");
        }
        symlink("/etc/passwd", at("upper/new/link")).expect("a link");
        for whiteout in ["upper/etc/gone", "upper/old", "upper/never"] {
            match rustix::fs::mknodat(CWD, at(whiteout), FileType::CharacterDevice, Mode::empty(), 0) {
                Ok(()) => {}
                // Whiteouts need Linux 5.8, or root.
                Err(Errno::PERM) => return,
                Err(errno) => panic!("{errno}"),
            }
        }
        let marked = layer_marks::make_opaque(open(&at("upper/renewed")).as_fd());
        let (upper, lower) = (open(&at("upper")), open(&at("lower")));
        let found = all_changes(upper.as_fd(), Some(lower.as_fd())).expect("readable");
        let told = |path: &str| {
            let found = found.iter().find(|change| change.path == Path::new(path));
            found.map(|change| (change.kind, change.size))
        };
        assert_eq!(told("etc/hosts"), Some((ChangeKind::Changed, 3)));
        assert_eq!(told("etc/gone"), Some((ChangeKind::Deleted, 1)));
        assert_eq!(told("old"), Some((ChangeKind::Deleted, 0)));
        assert_eq!(told("new"), Some((ChangeKind::Added, 0)));
        assert_eq!(told("new/file"), Some((ChangeKind::Added, 4)));
        assert_eq!(told("renewed/is"), Some((ChangeKind::Added, 1)));
        assert_eq!((told("etc"), told("never"), told("renewed")), (None, None, None));
        if marked.is_ok() {
            assert_eq!(told("renewed/was"), Some((ChangeKind::Deleted, 1)));
        }
        let link = found.iter().find(|change| change.path == Path::new("new/link")).expect("told");
        assert_eq!(link.target.as_deref(), Some(c"/etc/passwd"));
        // Nothing below: everything is new.
        let alone = all_changes(upper.as_fd(), None).expect("readable");
        assert!(alone.iter().all(|change| change.kind == ChangeKind::Added));
    }
}
