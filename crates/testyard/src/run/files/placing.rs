//! Moving files from a staging folder into a tree, name by name through open folders: never through a link, never out of
//! the tree, each file whole.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use testyard_model::{Problem, ProblemKind};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a folder by a path that is trusted.
pub(super) fn open(path: &Path) -> Result<OwnedFd, Problem> {
    rustix::fs::open(path, FOLDER, Mode::empty()).map_err(|errno| failed("open", path, errno))
}

/// As people see it.
pub(super) fn failed(operation: &str, path: &Path, errno: Errno) -> Problem {
    let kind = match errno {
        Errno::NOSPC | Errno::DQUOT => ProblemKind::Exhausted,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => ProblemKind::Denied,
        _ => ProblemKind::System,
    };
    let reason = match errno {
        Errno::LOOP | Errno::NOTDIR => "a link or file is in its way".to_owned(),
        Errno::ISDIR => "a folder of that name is there".to_owned(),
        errno => std::io::Error::from(errno).to_string(),
    };
    let problem = Problem::new(kind, format!("cannot {operation} {}", path.display())).because(reason);
    if kind == ProblemKind::Exhausted {
        problem.hint("free some space on that disk, then run the test again")
    } else {
        problem
    }
}

/// What is done with each file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Only look whether it can be placed.
    Check,
    /// Place it.
    Move,
}

/// Walks a staging folder beside the tree that its files are for.
pub(super) struct Placing<'a> {
    act: Act,
    path: PathBuf,
    /// Called after each file that was placed.
    placed: &'a mut dyn FnMut(&Path),
}

impl<'a> Placing<'a> {
    pub(super) fn new(act: Act, placed: &'a mut dyn FnMut(&Path)) -> Self {
        Self { act, path: PathBuf::new(), placed }
    }

    /// Everything in `from`, into `to`; none is a folder that is not there yet.
    pub(super) fn folder(&mut self, from: &OwnedFd, to: Option<&OwnedFd>) -> Result<(), Problem> {
        for (name, kind) in self.entries(from)? {
            self.path.push(OsStr::from_bytes(&name));
            match kind {
                FileType::Directory => {
                    let inner = rustix::fs::openat(from, &*name, FOLDER, Mode::empty())
                        .map_err(|errno| failed("open", &self.path, errno))?;
                    let target = self.enter(to, &name)?;
                    self.folder(&inner, target.as_ref())?;
                }
                _ => self.file(from, to, &name)?,
            }
            self.path.pop();
        }
        Ok(())
    }

    fn entries(&self, folder: &OwnedFd) -> Result<Vec<(Vec<u8>, FileType)>, Problem> {
        let failed = |errno| failed("list", &self.path, errno);
        let mut found = Vec::new();
        for entry in Dir::read_from(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let facts = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            found.push((name.to_bytes().to_vec(), FileType::from_raw_mode(facts.st_mode)));
        }
        found.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        Ok(found)
    }

    fn enter(&self, to: Option<&OwnedFd>, name: &[u8]) -> Result<Option<OwnedFd>, Problem> {
        let Some(to) = to else { return Ok(None) };
        let failed = |operation, errno| failed(operation, &self.path, errno);
        if self.act == Act::Move {
            match rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed("make the folder", errno)),
            }
        }
        match rustix::fs::openat(to, name, FOLDER, Mode::empty()) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::NOENT) if self.act == Act::Check => Ok(None),
            Err(errno) => Err(failed("place files in", errno)),
        }
    }

    fn file(&mut self, from: &OwnedFd, to: Option<&OwnedFd>, name: &[u8]) -> Result<(), Problem> {
        let Some(to) = to else { return Ok(()) };
        match self.act {
            Act::Check => match rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(there) if FileType::from_raw_mode(there.st_mode) == FileType::Directory => {
                    Err(failed("place", &self.path, Errno::ISDIR))
                }
                _ => Ok(()),
            },
            Act::Move => {
                rustix::fs::renameat(from, name, to, name).map_err(|errno| failed("place", &self.path, errno))?;
                (self.placed)(&self.path);
                Ok(())
            }
        }
    }
}

/// Removes a folder with all that is in it, by its name in a folder that is trusted.
pub(super) fn remove(parent: &Path, name: &OsStr) {
    if let Ok(parent) = open(parent) {
        // What cannot be removed now is tried again by whoever finds the journal.
        let _ = testyard_linux::files::remove_tree(parent.as_fd(), Path::new(name));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_placed_whole_and_never_through_links() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |path: &str| folder.path().join(path);
        for path in ["from/new/deep", "from/old", "to/old", "outside"] {
            std::fs::create_dir_all(at(path)).expect("a folder");
        }
        for path in ["from/new/deep/a", "from/old/b", "to/old/b", "outside/secret"] {
            std::fs::write(at(path), path).expect("a file");
        }
        let (from, to) = (open(&at("from")).expect("a folder"), open(&at("to")).expect("a folder"));
        let mut placed = Vec::new();
        let place = |act, placed: &mut Vec<PathBuf>| {
            let mut note = |path: &Path| placed.push(path.to_owned());
            Placing::new(act, &mut note).folder(&from, Some(&to))
        };
        place(Act::Check, &mut placed).expect("nothing in the way");
        assert!(placed.is_empty() && !at("to/new").exists());
        place(Act::Move, &mut placed).expect("placed");
        assert_eq!(placed, [Path::new("new/deep/a"), Path::new("old/b")]);
        assert_eq!(std::fs::read_to_string(at("to/old/b")).expect("there"), "from/old/b");

        std::fs::create_dir_all(at("from/link")).expect("a folder");
        std::fs::write(at("from/link/secret"), "mine").expect("a file");
        symlink(at("outside"), at("to/link")).expect("a link");
        for act in [Act::Check, Act::Move] {
            let refused = place(act, &mut placed).expect_err("through a link");
            assert_eq!(refused.causes, ["a link or file is in its way"]);
        }
        assert_eq!(std::fs::read_to_string(at("outside/secret")).expect("there"), "outside/secret");
        std::fs::remove_file(at("to/link")).expect("removed");
        std::fs::create_dir_all(at("to/link/secret")).expect("a folder");
        assert!(place(Act::Check, &mut placed).is_err(), "a folder is in the way");
    }
}
