//! Temporary folders that say by a lock whether somebody still works in them.
//!
//! `<id>.lock` is made and locked before `<id>` is, and removed after it: whoever gets the lock of a folder
//! has the kernel's word that its maker is gone.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;

use super::{Pruned, exists, names_in, open_directory};
use testyard_linux::Error as SystemError;
use testyard_linux::files::{remove_file, remove_tree};
use testyard_linux::lock::{FileLock, Mode, Patience};

/// A folder of temporary folders.
#[derive(Debug, Clone)]
pub(crate) struct Staging {
    path: PathBuf,
}

/// One temporary folder, ours while this lives. Dropped without a word it stays for [`Staging::prune`].
#[derive(Debug)]
pub(crate) struct Staged {
    parent: PathBuf,
    name: String,
    directory: OwnedFd,
    _lock: FileLock,
}

const LOCK_SUFFIX: &str = ".lock";

impl Staging {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// A new empty folder, locked.
    pub(crate) fn create(&self) -> Result<Staged, SystemError> {
        let name = random_name();
        let lock = self.lock(&name, Patience::Wait)?.expect("a patient lock is always given");
        let path = self.path.join(&name);
        rustix::fs::mkdir(&path, FileMode::RWXU).map_err(|errno| SystemError::new("make", path.display(), errno))?;
        Ok(Staged { parent: self.path.clone(), name, directory: open_directory(&path)?, _lock: lock })
    }

    /// Makes a tree disappear at once by a rename, then removes it.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), SystemError> {
        let name = random_name();
        let lock = self.lock(&name, Patience::Wait)?.expect("a patient lock is always given");
        match rustix::fs::rename(path, self.path.join(&name)) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(SystemError::new("remove", path.display(), errno)),
        }
        self.clear(&name)?;
        drop(lock);
        Ok(())
    }

    /// Removes the folders whose maker is gone.
    pub(crate) fn prune(&self, pruned: &mut Pruned) -> Result<(), SystemError> {
        let directory = open_directory(&self.path)?;
        for name in names_in(directory.as_fd(), &self.path)? {
            if let Some(owner) = name.strip_suffix(LOCK_SUFFIX) {
                let Some(lock) = self.lock(owner, Patience::Try)? else { continue };
                if exists(directory.as_fd(), owner) {
                    pruned.bytes += disk_usage(&self.path.join(owner))?;
                    pruned.temporary += 1;
                }
                self.clear(owner)?;
                drop(lock);
            } else if !exists(directory.as_fd(), &format!("{name}{LOCK_SUFFIX}")) && exists(directory.as_fd(), &name) {
                pruned.unknown.push(self.path.join(name));
            }
        }
        Ok(())
    }

    fn lock(&self, name: &str, patience: Patience) -> Result<Option<FileLock>, SystemError> {
        FileLock::acquire(&self.path.join(format!("{name}{LOCK_SUFFIX}")), Mode::Exclusive, patience)
    }

    /// First the folder, then the lock file that proves it ours.
    fn clear(&self, name: &str) -> Result<(), SystemError> {
        let parent = open_directory(&self.path)?;
        let removed = remove_tree(parent.as_fd(), name)?;
        if let Some(refused) = removed.refused.into_iter().next() {
            // The lock file stays, so that the next prune tries again.
            return Err(SystemError::new("remove", self.path.join(refused.path).display(), refused.reason));
        }
        remove_file(&self.path.join(format!("{name}{LOCK_SUFFIX}")))
    }
}

impl Staged {
    pub(crate) fn path(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// After its folder was renamed into place.
    pub(crate) fn moved_away(self) -> Result<(), SystemError> {
        remove_file(&self.parent.join(format!("{}{LOCK_SUFFIX}", self.name)))
    }

    /// Removes it with all that is in it.
    pub(crate) fn discard(self) -> Result<(), SystemError> {
        Staging::new(self.parent.clone()).clear(&self.name)
    }
}

/// 16 characters that nobody else picks.
pub(crate) fn random_name() -> String {
    super::record::hexadecimal(&testyard_linux::random::<8>())
}

/// Writes a new file, mode 0600.
pub(crate) fn write_file(directory: BorrowedFd<'_>, name: &str, text: &[u8]) -> Result<(), SystemError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let failed = |source: std::io::Error| SystemError::new("write", name, source);
    let file = rustix::fs::openat(directory, name, flags, FileMode::RUSR | FileMode::WUSR)
        .map_err(|errno| failed(errno.into()))?;
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, text).and_then(|()| file.sync_data()).map_err(failed)
}

/// Bytes of all blocks below a folder; a file with several names counts once. Not across mount points.
pub(crate) fn disk_usage(path: &Path) -> Result<u64, SystemError> {
    use std::os::unix::fs::MetadataExt as _;
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source: std::io::Error| SystemError::new("measure", path, source)
    };
    let first = std::fs::symlink_metadata(path).map_err(failed(path))?;
    let mut total = first.blocks() * 512;
    let mut several = HashSet::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            // An ordinary user's image may hold folders that not even their owner may list.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => continue,
            Err(error) => return Err(failed(&folder)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed(&folder))?;
            let facts = entry.metadata().map_err(failed(&folder))?;
            if facts.dev() != first.dev() {
                continue;
            }
            if facts.is_dir() {
                folders.push(entry.path());
            } else if facts.nlink() > 1 && !several.insert(facts.ino()) {
                continue;
            }
            total += facts.blocks() * 512;
        }
    }
    Ok(total)
}
