//! Removing a tree that others filled.
//!
//! The tree is hostile: links lead elsewhere, mounts hang in it, folders are closed or thousands
//! deep. Every step goes through an open folder and one name, so nothing outside is ever reached,
//! and no mount point is crossed. Descriptors are bounded: a folder that lies too deep is first
//! moved up to the top.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Entry, entries, open_child_folder, shown};
use crate::error::{Error, Result};

/// How many folders are open at once; deeper ones are moved up.
const OPEN_FOLDERS: usize = 64;
/// How many refusals are kept by name.
const NAMED_REFUSALS: usize = 100;

/// What was removed, and what was not.
#[derive(Debug, Default)]
pub struct Removed {
    /// Files, links and folders that are gone.
    pub entries: u64,
    /// What is still there and why; folders on the way to it are still there too. Holds the first
    /// hundred.
    pub refused: Vec<Refused>,
}

impl Removed {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.refused.is_empty()
    }

    fn refuse(&mut self, path: PathBuf, reason: Errno) {
        if self.refused.len() < NAMED_REFUSALS {
            self.refused.push(Refused { path, reason: reason.into() });
        }
    }
}

/// Something that could not be removed.
#[derive(Debug)]
pub struct Refused {
    /// Where, seen from the folder that was given.
    pub path: PathBuf,
    /// The kernel's answer; `EXDEV` for a mount point.
    pub reason: std::io::Error,
}

struct Folder {
    file: OwnedFd,
    name: CString,
    pending: Vec<Entry>,
    /// Something in it stays, so the folder stays.
    stays: bool,
    /// Its mode was already widened, or cannot be.
    opened_up: bool,
}

/// Removes `name` in the folder `parent` with all below it; a missing name is nothing to do.
///
/// `name` is one component. Mount points are not crossed and no link is followed; what cannot be
/// removed is reported, and everything else goes. Closed folders of ours are opened first.
pub fn remove_tree(parent: BorrowedFd<'_>, name: impl AsRef<Path>) -> Result<Removed> {
    let name = name.as_ref();
    let failed = |errno: Errno| Error::new("remove", name.display(), errno);
    let bytes = name.as_os_str().as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(failed(Errno::INVAL));
    }
    let name = CString::new(bytes).map_err(|_| failed(Errno::INVAL))?;
    let mut removal = Removal { removed: Removed::default(), folders: Vec::new(), moved: 0 };
    match rustix::fs::unlinkat(parent, &*name, AtFlags::empty()) {
        Ok(()) => removal.removed.entries += 1,
        Err(Errno::NOENT) => {}
        Err(Errno::ISDIR | Errno::PERM) => removal.remove_folder(parent, &name).map_err(failed)?,
        Err(errno) => return Err(failed(errno)),
    }
    Ok(removal.removed)
}

struct Removal {
    removed: Removed,
    folders: Vec<Folder>,
    moved: u64,
}

impl Removal {
    /// The loop: look at the innermost open folder, remove its next entry, or leave it and remove it.
    fn remove_folder(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        let top = open_folder(parent, name)?;
        self.enter(top, name.to_owned());
        while let Some(folder) = self.folders.last_mut() {
            if let Some(entry) = folder.pending.pop() {
                self.remove_entry(entry);
                continue;
            }
            let Some(done) = self.folders.pop() else { break };
            let outer = self.folders.last().map_or(parent, |folder| folder.file.as_fd());
            if !done.stays {
                match rustix::fs::unlinkat(outer, &*done.name, AtFlags::REMOVEDIR) {
                    Ok(()) => {
                        self.removed.entries += 1;
                        continue;
                    }
                    Err(Errno::NOENT) => continue,
                    Err(errno) => {
                        let path = self.path(&done.name);
                        self.removed.refuse(path, errno);
                    }
                }
            }
            if let Some(outer) = self.folders.last_mut() {
                outer.stays = true;
            }
        }
        Ok(())
    }

    fn enter(&mut self, file: OwnedFd, name: CString) {
        let (pending, stays) = match entries(file.as_fd()) {
            Ok(pending) => (pending, false),
            Err(errno) => {
                let path = self.path(&name);
                self.removed.refuse(path, errno);
                (Vec::new(), true)
            }
        };
        self.folders.push(Folder { file, name, pending, stays, opened_up: false });
    }

    fn remove_entry(&mut self, entry: Entry) {
        let answer = if entry.kind == FileType::Directory { Err(Errno::ISDIR) } else { self.unlink(&entry.name) };
        let answer = match answer {
            // A mounted-on file is EBUSY; a folder that the listing called a file is EISDIR.
            Err(Errno::ISDIR) => self.descend(entry.name.clone()),
            answer => answer,
        };
        match answer {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                let path = self.path(&entry.name);
                self.removed.refuse(path, errno);
                if let Some(folder) = self.folders.last_mut() {
                    folder.stays = true;
                }
            }
        }
    }

    fn unlink(&mut self, name: &CStr) -> rustix::io::Result<()> {
        let Some(folder) = self.folders.last_mut() else { return Ok(()) };
        let mut answer = rustix::fs::unlinkat(&folder.file, name, AtFlags::empty());
        if answer == Err(Errno::ACCESS) && folder.open_up() {
            answer = rustix::fs::unlinkat(&folder.file, name, AtFlags::empty());
        }
        answer?;
        self.removed.entries += 1;
        Ok(())
    }

    fn descend(&mut self, name: CString) -> rustix::io::Result<()> {
        let depth = self.folders.len();
        let Some(folder) = self.folders.last_mut() else { return Ok(()) };
        if depth < OPEN_FOLDERS {
            let mut answer = open_folder(folder.file.as_fd(), &name);
            if matches!(answer, Err(Errno::ACCESS)) && folder.open_up() {
                answer = open_folder(folder.file.as_fd(), &name);
            }
            self.enter(answer?, name);
            return Ok(());
        }
        // To be moved a folder must be writable itself, because its `..` changes.
        drop(open_folder(folder.file.as_fd(), &name)?);
        let (Some(top), Some(last)) = (self.folders.first(), self.folders.last()) else { return Ok(()) };
        for _ in 0..1000 {
            self.moved += 1;
            let fresh = CString::new(format!(".testyard-removed-{}", self.moved)).map_err(|_| Errno::INVAL)?;
            let answer = rustix::fs::renameat_with(&last.file, &*name, &top.file, &*fresh, RenameFlags::NOREPLACE);
            match answer {
                Ok(()) => {
                    self.folders[0].pending.push(Entry { name: fresh, kind: FileType::Directory });
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EXIST)
    }

    fn path(&self, name: &CStr) -> PathBuf {
        let mut path: PathBuf = self.folders.iter().map(|folder| shown(&folder.name)).collect();
        path.push(shown(name));
        path
    }
}

impl Folder {
    /// Gives ourselves all rights on the folder, once; says whether a second try makes sense.
    fn open_up(&mut self) -> bool {
        let first = !self.opened_up;
        self.opened_up = true;
        first && rustix::fs::fchmod(&self.file, Mode::RWXU).is_ok()
    }
}

/// Opens a folder for reading; one of ours that is closed to us is opened up first.
fn open_folder(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    match open_child_folder(parent, name) {
        Err(Errno::ACCESS) => {}
        answer => return answer,
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let closed = super::open_resolved(
        parent,
        name,
        flags,
        0,
        rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS | rustix::fs::ResolveFlags::NO_XDEV,
    )?;
    // fchmod refuses O_PATH descriptors; the magic link leads to exactly the folder that was opened.
    rustix::fs::chmod(format!("/proc/self/fd/{}", closed.as_raw_fd()), Mode::RWXU)?;
    open_child_folder(parent, name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("a folder")
    }

    #[test]
    fn a_tree_goes_and_its_links_targets_stay() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let outside = folder.path().join("outside");
        std::fs::create_dir(&outside).expect("a folder");
        std::fs::write(outside.join("kept"), "").expect("written");
        let tree = folder.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b/c")).expect("a folder");
        std::fs::write(tree.join("a/file"), "").expect("written");
        symlink(&outside, tree.join("a/link")).expect("a link");
        symlink(&outside, folder.path().join("toplink")).expect("a link");
        std::fs::set_permissions(tree.join("a/b"), PermissionsExt::from_mode(0o000)).expect("ours");
        let parent = open(folder.path());
        let removed = remove_tree(parent.as_fd(), "tree").expect("removed");
        assert!(removed.is_complete(), "{removed:?}");
        assert_eq!(removed.entries, 6);
        assert_eq!(remove_tree(parent.as_fd(), "toplink").expect("removed").entries, 1);
        assert_eq!(remove_tree(parent.as_fd(), "tree").expect("nothing to do").entries, 0);
        assert!(outside.join("kept").exists());
        for bad in ["", ".", "..", "a/b", "/"] {
            assert!(remove_tree(parent.as_fd(), bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_tree_of_any_depth_goes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut here = open(folder.path());
        for _ in 0..300 {
            rustix::fs::mkdirat(&here, c"d", Mode::RWXU).expect("made");
            rustix::fs::mkdirat(&here, c"e", Mode::RWXU).expect("made");
            here = open_child_folder(here.as_fd(), c"d").expect("made");
        }
        let parent = open(folder.path());
        let removed = remove_tree(parent.as_fd(), "d").expect("removed");
        assert!(removed.is_complete(), "{:?}", removed.refused.first());
        assert_eq!(removed.entries, 599);
    }

    #[test]
    fn mount_points_are_not_crossed() {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
        // SAFETY: gives this test's thread a mount namespace of its own; it shares no descriptor table
        // or memory less than before.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return; // Needs root; the unprivileged run of the tests covers the rest.
        }
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("our namespace");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (tree, other) = (folder.path().join("tree"), folder.path().join("other"));
        for made in ["tree/tmpfs", "tree/bound", "tree/gone", "other"] {
            std::fs::create_dir_all(folder.path().join(made)).expect("a folder");
        }
        std::fs::write(other.join("kept"), "").expect("written");
        std::fs::write(tree.join("file"), "").expect("written");
        mount("none", tree.join("tmpfs"), "tmpfs", MountFlags::empty(), None).expect("our namespace");
        std::fs::write(tree.join("tmpfs/kept"), "").expect("written");
        mount_bind(&other, tree.join("bound")).expect("our namespace");
        mount_bind(other.join("kept"), tree.join("file")).expect("our namespace");
        let parent = open(folder.path());
        let removed = remove_tree(parent.as_fd(), "tree").expect("the rest goes");
        let mut refused: Vec<_> =
            removed.refused.iter().map(|refused| (refused.path.as_path(), refused.reason.raw_os_error())).collect();
        refused.sort_unstable();
        let at = Path::new;
        assert_eq!(
            refused,
            [
                (at("tree/bound"), Some(libc::EXDEV)),
                (at("tree/file"), Some(libc::EBUSY)),
                (at("tree/tmpfs"), Some(libc::EXDEV)),
            ]
        );
        assert!(other.join("kept").exists() && tree.join("tmpfs/kept").exists() && !tree.join("gone").exists());
        for point in ["tmpfs", "bound", "file"] {
            rustix::mount::unmount(tree.join(point), rustix::mount::UnmountFlags::DETACH).expect("mounted above");
        }
        assert!(remove_tree(parent.as_fd(), "tree").expect("no mounts any more").is_complete());
    }
}
