//! Reading a file as it grows.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use rustix::io::Errno;
use testyard_model::{Problem, ProblemKind};

/// A file that grows until it is removed.
pub(crate) struct Followed {
    path: PathBuf,
    file: File,
    changes: OwnedFd,
}

impl Followed {
    pub(crate) fn open(path: &Path) -> Result<Self, Problem> {
        let failed = |error: std::io::Error| {
            let kind =
                if error.kind() == std::io::ErrorKind::NotFound { ProblemKind::NotFound } else { ProblemKind::System };
            Problem::new(kind, format!("cannot read {}", path.display())).because(error)
        };
        let file = File::open(path).map_err(failed)?;
        let changes = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|errno| failed(errno.into()))?;
        let flags = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        add_watch(&changes, path, flags).map_err(|errno| failed(errno.into()))?;
        Ok(Self { path: path.to_owned(), file, changes })
    }

    /// Everything up to its end now.
    pub(crate) fn rest(&mut self) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        match self.file.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => {
                Err(Problem::new(ProblemKind::System, format!("cannot read {}", self.path.display())).because(error))
            }
        }
    }

    /// Waits for more; false once the file is gone and nothing more can come.
    pub(crate) fn wait(&self) -> bool {
        if self.file.metadata().map_or(true, |data| data.nlink() == 0) {
            return false;
        }
        let mut polled = [PollFd::from_borrowed_fd(self.changes.as_fd(), PollFlags::IN)];
        while let Err(Errno::INTR) = poll(&mut polled, None) {}
        // What exactly changed does not matter: the file is looked at again.
        let mut events = [0; 4096];
        while rustix::io::read(&self.changes, &mut events).is_ok_and(|count| count > 0) {}
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_is_followed_until_it_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let mut file = File::create(&path).expect("made");
        file.write_all(b"one\n").expect("written");
        let mut followed = Followed::open(&path).expect("there");
        assert_eq!(followed.rest().expect("read"), b"one\n");
        file.write_all(b"two\n").expect("written");
        assert!(followed.wait());
        assert_eq!(followed.rest().expect("read"), b"two\n");
        std::fs::remove_file(&path).expect("ours");
        drop(file);
        while followed.wait() {}
        assert!(followed.rest().expect("read").is_empty());
        assert!(Followed::open(&path).is_err());
    }
}
