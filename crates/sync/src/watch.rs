//! Noticing that a tree may have changed, without looking at it again: the kernel's word, for a test that just ended.
//!
//! A [`Watch`] only says "perhaps": ignored files and files written with the content they had raise it too. What
//! really changed is for [`Scan::changes_to`].

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::{Scan, SyncError, Tree};

/// So often a tree is looked at until no folder came meanwhile.
const ROUNDS: usize = 8;
/// News after which a folder may not be watched any more.
const LOST: ReadFlags = ReadFlags::IGNORED.union(ReadFlags::QUEUE_OVERFLOW);

/// The folders of a tree, watched.
#[derive(Debug)]
pub struct Watch {
    /// None before the first look, where the kernel gives no more watches, and where folders come and go all the time:
    /// then everything may always have changed.
    inotify: Option<OwnedFd>,
    /// Whether a folder of the tree may not be watched: then they are watched anew before the next look.
    has_gaps: bool,
    /// What the tree was at the last look; its folders are those that are watched.
    last: Scan,
}

impl Watch {
    /// Of a tree that was looked at before; it is watched from the next look on.
    #[must_use]
    pub fn new(before: Scan) -> Self {
        Self { inotify: None, has_gaps: true, last: before }
    }

    /// Looks at the tree once more: whatever changes after that disturbs the watch. Costs about two microseconds a folder
    /// beside the look where a folder came, went or was replaced, and the first time.
    ///
    /// # Errors
    /// The tree cannot be read.
    pub fn look(&mut self, tree: &Tree) -> Result<&Scan, SyncError> {
        for _ in 0..ROUNDS {
            if self.has_gaps {
                (self.inotify, self.has_gaps) = match watch(tree.root(), &self.last) {
                    Ok((inotify, has_gaps)) => (Some(inotify), has_gaps),
                    Err(_) => (None, true),
                };
            }
            let now = tree.scan_again(&self.last)?;
            // In a folder that came before its parent was watched, what happens would not be seen; nor in one that took the
            // place of one that somebody has open, of whose end the kernel says nothing.
            let is_same = now.folders().eq(self.last.folders());
            self.last = now;
            if is_same {
                return Ok(&self.last);
            }
            self.has_gaps = true;
        }
        self.inotify = None;
        Ok(&self.last)
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
                Ok(event) => {
                    disturbed = true;
                    self.has_gaps |= event.events().intersects(LOST);
                }
                Err(Errno::AGAIN) => return disturbed,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.has_gaps = true;
                    return true;
                }
            }
        }
    }
}

/// Watches the folders of a tree, parents before children; and whether one of them was not there.
fn watch(root: &Path, scan: &Scan) -> Result<(OwnedFd, bool), Errno> {
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
    let mut has_gaps = false;
    for (folder, _) in scan.folders() {
        match inotify::add_watch(&inotify, root.join(folder), flags) {
            Ok(_) => {}
            // It went between the scan and now: its parent's watch, made just before, has the news if it comes back.
            Err(Errno::NOENT | Errno::NOTDIR) => has_gaps = true,
            Err(errno) => return Err(errno),
        }
    }
    Ok((inotify, has_gaps))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;
    use crate::TreeOptions;

    fn watched(tree: &Tree, before: &Scan) -> Watch {
        let mut watch = Watch::new(before.clone());
        watch.look(tree).expect("a look");
        watch
    }

    #[test]
    fn a_write_disturbs_and_a_read_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("sub")).expect("a folder");
        let file = folder.path().join("sub/file");
        std::fs::write(&file, "one").expect("a file");
        let tree = Tree::open(folder.path(), TreeOptions::default()).expect("a tree");
        let scan = tree.scan().expect("a scan");
        let mut watch = watched(&tree, &scan);
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
            let mut watch = watched(&tree, &scan);
            assert!(!watch.is_disturbed());
            std::fs::write(folder.path().join(file), "new").expect("a file");
            assert!(watch.is_disturbed(), "{file}");
        }
    }

    #[test]
    fn the_watches_stay_while_the_folders_do() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("sub")).expect("a folder");
        let tree = Tree::open(folder.path(), TreeOptions::default()).expect("a tree");
        let first = tree.scan().expect("a scan");
        let mut watch = watched(&tree, &first);
        let number = |watch: &Watch| watch.descriptor().map(|descriptor| descriptor.as_raw_fd());
        let before = number(&watch);
        std::fs::write(folder.path().join("sub/file"), "new").expect("a file");
        assert!(watch.is_disturbed());
        let now = watch.look(&tree).expect("a look");
        assert_eq!(first.changes_to(now).added, [Path::new("sub/file")]);
        assert!(before.is_some() && number(&watch) == before);
        assert!(!watch.is_disturbed());
        std::fs::create_dir(folder.path().join("other")).expect("a folder");
        assert!(watch.is_disturbed());
        watch.look(&tree).expect("a look");
        std::fs::write(folder.path().join("other/file"), "new").expect("a file");
        assert!(watch.is_disturbed());
    }

    #[test]
    fn what_comes_into_a_folder_that_took_the_place_of_another_disturbs() {
        let (folder, elsewhere) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let sub = folder.path().join("sub");
        std::fs::create_dir(&sub).expect("a folder");
        let tree = Tree::open(folder.path(), TreeOptions::default()).expect("a tree");
        let mut watch = watched(&tree, &tree.scan().expect("a scan"));
        for way in ["removed", "removed while open", "moved"] {
            // The kernel says nothing of the end of a folder that somebody has open: it is still there.
            let held = way.contains("open").then(|| std::fs::File::open(&sub).expect("a folder"));
            match way {
                "moved" => std::fs::rename(&sub, elsewhere.path().join("sub")).expect("the same file system"),
                _ => std::fs::remove_dir(&sub).expect("an empty folder"),
            }
            std::fs::create_dir(&sub).expect("a folder");
            assert!(watch.is_disturbed(), "{way}");
            watch.look(&tree).expect("a look");
            assert!(!watch.is_disturbed(), "{way}");
            std::fs::write(sub.join("file"), "new").expect("a file");
            assert!(watch.is_disturbed(), "{way}");
            std::fs::remove_file(sub.join("file")).expect("a file");
            drop(held);
        }
    }
}
