//! Noticing that a tree may have changed, without looking at it again: the kernel's word, for a test that just ended.
//!
//! A [`Watch`] only says "perhaps": ignored files and files written with the content they had raise it too. What
//! really changed is for [`Scan::changes_to`].

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::{Scan, SyncError, Tree};

/// So often a tree is looked at until no folder came meanwhile.
const ROUNDS: usize = 8;

/// The folders of a tree, watched.
#[derive(Debug)]
pub struct Watch {
    /// None where the kernel gives no more watches, and where folders come and go all the time: then everything may always
    /// have changed.
    inotify: Option<OwnedFd>,
}

impl Watch {
    /// Watches a tree that was looked at before, and looks at it once more: whatever changes after that look disturbs the
    /// watch. Costs about two microseconds a folder, and the look.
    ///
    /// # Errors
    /// The tree cannot be read.
    pub fn follow(tree: &Tree, before: &Scan) -> Result<(Self, Scan), SyncError> {
        let mut known = before.clone();
        for _ in 0..ROUNDS {
            let watch = Self { inotify: watch(tree.root(), &known).ok() };
            let now = tree.scan_again(&known)?;
            // In a folder that came before its parent was watched, what happens would not be seen.
            if now.folders().eq(known.folders()) {
                return Ok((watch, now));
            }
            known = now;
        }
        Ok((Self { inotify: None }, known))
    }

    /// Readable once something happened; none where nothing is watched.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(|inotify| inotify.as_fd())
    }

    /// Bytes of news that wait to be read: more of them is more that happened.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.inotify.as_ref().and_then(|inotify| rustix::io::ioctl_fionread(inotify).ok()).unwrap_or(0)
    }

    /// Whether something happened since the last call. True is no proof; false is.
    pub fn is_disturbed(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return true };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        let mut disturbed = false;
        loop {
            match reader.next() {
                Ok(_) => disturbed = true,
                Err(Errno::AGAIN) => return disturbed,
                Err(Errno::INTR) => {}
                Err(_) => return true,
            }
        }
    }
}

fn watch(root: &Path, scan: &Scan) -> Result<OwnedFd, Errno> {
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let flags = WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    for folder in scan.folders() {
        match inotify::add_watch(&inotify, root.join(folder), flags) {
            // It went between the scan and now: its parent's watch, made just before, has the news.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(inotify)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TreeOptions;

    #[test]
    fn a_write_disturbs_and_a_read_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("sub")).expect("a folder");
        let file = folder.path().join("sub/file");
        std::fs::write(&file, "one").expect("a file");
        let tree = Tree::open(folder.path(), TreeOptions::default()).expect("a tree");
        let scan = tree.scan().expect("a scan");
        let (mut watch, _) = Watch::follow(&tree, &scan).expect("a watch");
        assert!(!watch.is_disturbed());
        std::fs::read(&file).expect("its content");
        assert!(!watch.is_disturbed());
        std::fs::write(&file, "two").expect("a write");
        assert!(watch.is_disturbed());
        assert!(!watch.is_disturbed(), "news is told once");
    }

    #[test]
    fn what_comes_into_folders_that_were_empty_or_not_there_disturbs() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("empty")).expect("a folder");
        let tree = Tree::open(folder.path(), TreeOptions::default()).expect("a tree");
        let scan = tree.scan().expect("a scan");
        // It comes between the look and the watch.
        std::fs::create_dir_all(folder.path().join("later/deep")).expect("a folder");
        for file in ["empty/file", "later/deep/file"] {
            let (mut watch, _) = Watch::follow(&tree, &scan).expect("a watch");
            assert!(!watch.is_disturbed());
            std::fs::write(folder.path().join(file), "new").expect("a file");
            assert!(watch.is_disturbed(), "{file}");
        }
    }
}
