//! Locks that the kernel releases when their holder is gone: `flock` on a local file.
//!
//! A lock belongs to the open file description: it lives as long as any duplicate of the
//! descriptor does, in whichever process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode as FileMode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::error::{Error, Result};

/// Who else may hold the lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nobody.
    Exclusive,
    /// Other sharers.
    Shared,
}

/// What to do while another holds the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Wait until it is free.
    Wait,
    /// Return at once with nothing.
    Try,
}

/// A held lock; dropped, it is released.
#[derive(Debug)]
pub struct FileLock {
    file: OwnedFd,
}

impl FileLock {
    /// Locks the file at `path`, making it (mode 0600) where it does not exist.
    ///
    /// `None` only with [`Patience::Try`], when another holds it. The lock is on the file that
    /// stands at `path` when this returns: one that was removed or replaced meanwhile is let go.
    pub fn acquire(path: &Path, mode: Mode, patience: Patience) -> Result<Option<Self>> {
        let failed = |errno: Errno| Error::new("lock", path.display(), errno);
        let operation = match (mode, patience) {
            (Mode::Exclusive, Patience::Wait) => FlockOperation::LockExclusive,
            (Mode::Exclusive, Patience::Try) => FlockOperation::NonBlockingLockExclusive,
            (Mode::Shared, Patience::Wait) => FlockOperation::LockShared,
            (Mode::Shared, Patience::Try) => FlockOperation::NonBlockingLockShared,
        };
        // Each round more means that somebody removed the file between our open and our lock.
        for _ in 0..1000 {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::open(path, flags, FileMode::from_raw_mode(0o600)).map_err(failed)?;
            match retry_on_intr(|| rustix::fs::flock(&file, operation)) {
                Ok(()) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(failed(errno)),
            }
            if stands_at(file.as_fd(), path).map_err(failed)? {
                return Ok(Some(Self { file }));
            }
        }
        Err(failed(Errno::STALE))
    }

    /// The descriptor that carries the lock, to be handed on; it is close-on-exec.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.file
    }
}

impl AsFd for FileLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn stands_at(file: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<bool> {
    let ours = rustix::fs::fstat(file)?;
    match rustix::fs::lstat(path) {
        Ok(theirs) => Ok((ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether anybody holds the lock of the file at `path`; a missing file is held by nobody.
///
/// The question takes the lock for a moment, so a [`Patience::Try`] at that same moment sees it
/// taken: publish a lock's path (a registry row) only once the lock is held.
pub fn is_held(path: &Path) -> Result<bool> {
    let failed = |errno: Errno| Error::new("ask for the lock of", path.display(), errno);
    let file = match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, FileMode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(failed(errno)),
    };
    match retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(false),
        Err(Errno::AGAIN) => Ok(true),
        Err(errno) => Err(failed(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_and_death_releases_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("lock");
        assert!(!is_held(&path).expect("no error"));
        let first = FileLock::acquire(&path, Mode::Exclusive, Patience::Try).expect("no error").expect("free");
        assert!(is_held(&path).expect("no error"));
        assert!(FileLock::acquire(&path, Mode::Shared, Patience::Try).expect("no error").is_none());
        let descriptor = first.into_fd();
        assert!(is_held(&path).expect("no error"));
        drop(descriptor);
        assert!(!is_held(&path).expect("no error"));
    }

    #[test]
    fn sharers_share() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("lock");
        let take = |mode| FileLock::acquire(&path, mode, Patience::Try).expect("no error");
        let first = take(Mode::Shared);
        let second = take(Mode::Shared);
        assert!(first.is_some() && second.is_some());
        assert!(take(Mode::Exclusive).is_none());
        drop((first, second));
        assert!(take(Mode::Exclusive).is_some());
    }

    #[test]
    fn a_removed_file_is_not_what_was_locked() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("lock");
        let old = FileLock::acquire(&path, Mode::Exclusive, Patience::Wait).expect("no error").expect("free");
        std::fs::remove_file(&path).expect("it is there");
        let new = FileLock::acquire(&path, Mode::Exclusive, Patience::Wait).expect("no error").expect("free");
        assert!(stands_at(new.as_fd(), &path).expect("no error"));
        assert!(!stands_at(old.as_fd(), &path).expect("no error"));
    }

    #[test]
    fn a_link_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("lock");
        std::os::unix::fs::symlink("/dev/null", &path).expect("a free name");
        assert!(FileLock::acquire(&path, Mode::Exclusive, Patience::Try).is_err());
    }
}
