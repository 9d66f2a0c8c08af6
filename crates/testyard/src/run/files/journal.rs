//! What is being brought out of environments, written down before anything of it exists.
//!
//! ```text
//! (begin) ─► journal, locked ─► staging folder ─► fetched ─► [commit mark] ─► placed ─► (gone)
//!                 └──────── killed: undone ────────┘             └─ killed: finished ─┘
//! ```
//!
//! The journal's lock is the kernel's: whoever gets it knows that its holder has died. A tree's staging folder lies in
//! the tree, so that every file comes to its place by one rename; its own `.gitignore` hides it from git and from the
//! tree's hash.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use testyard_linux::step::{Step, reach};
use testyard_model::{Problem, ProblemKind};
use testyard_registry::Home;

use super::placing::{Act, Placing, failed, open, remove};

/// What a staging folder's name begins with.
const STAGING: &str = ".testyard-returning-";
const FILES: &str = "files";
const COMMIT: &str = "commit";
/// A journal of Testyard's own is never longer.
const LONGEST: u64 = 64 << 10;

/// What a journal says.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    /// The folder in which the staging folder lies.
    parent: PathBuf,
}

/// Where journals are.
#[derive(Debug, Clone)]
pub(in crate::run) struct Journal {
    folder: PathBuf,
}

/// Files on their way.
pub(in crate::run) struct Staged {
    journal: PathBuf,
    parent: PathBuf,
    name: String,
    /// Held until everything is done.
    _lock: File,
}

fn system(what: &str, path: &Path, error: &std::io::Error) -> Problem {
    match error.raw_os_error() {
        Some(number) => failed(what, path, rustix::io::Errno::from_raw_os_error(number)),
        None => Problem::new(ProblemKind::System, format!("cannot {what} {}", path.display())).because(error),
    }
}

impl Journal {
    /// Of this home.
    pub(in crate::run) fn of(home: &Home) -> Self {
        Self { folder: home.returning_folder() }
    }

    /// Begins to bring files into a folder; written down before its staging folder is made.
    pub(in crate::run) fn begin(&self, parent: &Path) -> Result<Staged, Problem> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let journal = self.folder.join(&id);
        // A recovery may meet the new file before its lock.
        let lock = (0..3).find_map(|_| self.locked(&journal, parent).ok());
        let lock = lock.map_or_else(|| self.locked(&journal, parent), Ok)?;
        reach(Step::RunnerOutputsIntent);
        let staged = Staged { journal, parent: parent.to_owned(), name: format!("{STAGING}{id}"), _lock: lock };
        match staged.make_folders() {
            Ok(()) => Ok(staged),
            Err(problem) => {
                staged.end();
                Err(problem)
            }
        }
    }

    /// A journal that says what is to come. It gets its name once it is whole and locked.
    fn locked(&self, journal: &Path, parent: &Path) -> Result<File, Problem> {
        let fresh = journal.with_extension("new");
        let write = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            file.write_all(&serde_json::to_vec(&Written { parent: parent.to_owned() })?)?;
            fs::rename(&fresh, journal)?;
            Ok(file)
        };
        write().map_err(|error| {
            // One that is left over is swept by the next recovery.
            let _ = fs::remove_file(&fresh);
            system("write down", journal, &error)
        })
    }

    /// Finishes or undoes what killed processes left; how many there were.
    fn recover(&self) -> usize {
        let mut recovered = 0;
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let journal = entry.path();
            let Ok(mut lock) = OpenOptions::new().read(true).write(true).open(&journal) else { continue };
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            // Its holder may have finished between the opening and the locking.
            if lock.metadata().is_ok_and(|facts| facts.nlink() == 0) {
                continue;
            }
            let mut text = String::new();
            let read = (&mut lock).take(LONGEST).read_to_string(&mut text);
            let name = entry.file_name().into_string().unwrap_or_default();
            match (read, serde_json::from_str::<Written>(&text)) {
                (Ok(_), Ok(written)) if is_id(&name) => {
                    let name = format!("{STAGING}{name}");
                    let staged = Staged { journal, parent: written.parent, name, _lock: lock };
                    if staged.is_committed() {
                        // What cannot be placed was refused by the check before, unless somebody changed the tree since.
                        let _ = staged.place(&mut |_| ());
                    }
                    staged.end();
                }
                // Killed before it was whole: nothing was made yet.
                _ => drop(fs::remove_file(&journal)),
            }
            recovered += 1;
        }
        recovered
    }
}

fn is_id(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a path, relative to the folder that files come back to, is of a staging folder.
pub(in crate::run) fn is_staging(path: &Path) -> bool {
    path.iter().next().is_some_and(|first| first.as_encoded_bytes().starts_with(STAGING.as_bytes()))
}

/// Finishes or undoes what killed runs were bringing out of environments; how many there were.
pub(crate) fn recover_all(home: &Home) -> usize {
    Journal::of(home).recover()
}

impl Staged {
    fn folder(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    fn make_folders(&self) -> Result<(), Problem> {
        let make = |path: &Path| {
            DirBuilder::new().mode(0o700).create(path).map_err(|error| system("make the folder", path, &error))
        };
        let folder = self.folder();
        make(&folder)?;
        let ignore = folder.join(".gitignore");
        fs::write(&ignore, "*\n").map_err(|error| system("write", &ignore, &error))?;
        make(&self.files())
    }

    /// Where fetched files go.
    pub(in crate::run) fn files(&self) -> PathBuf {
        self.folder().join(FILES)
    }

    fn is_committed(&self) -> bool {
        fs::symlink_metadata(self.folder().join(COMMIT)).is_ok()
    }

    /// Everything that was fetched goes to its place; from the first file on, a kill is followed by the rest.
    ///
    /// # Errors
    /// Something is in the way: then nothing was placed. Or the disk is full.
    pub(in crate::run) fn commit(self) -> Result<Vec<PathBuf>, Problem> {
        let mut placed = Vec::new();
        let outcome = self.check().and_then(|()| {
            let mark = self.folder().join(COMMIT);
            fs::write(&mark, "").map_err(|error| system("write", &mark, &error))?;
            self.place(&mut |path| {
                if placed.is_empty() {
                    reach(Step::RunnerOutputsMoving);
                }
                placed.push(path.to_owned());
            })
        });
        self.end();
        outcome.map(|()| placed)
    }

    /// All that was fetched becomes `target`, a folder that is not there yet, by one rename.
    ///
    /// # Errors
    /// The folders above it cannot be made.
    pub(in crate::run) fn become_folder(self, target: &Path) -> Result<(), Problem> {
        let above = target.parent().unwrap_or(&self.parent);
        let moved = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(above)
            .and_then(|()| fs::rename(self.files(), target))
            .map_err(|error| system("make the folder", target, &error));
        self.end();
        moved
    }

    fn check(&self) -> Result<(), Problem> {
        let (from, to) = (open(&self.files())?, open(&self.parent)?);
        Placing::new(Act::Check, &mut |_| ()).folder(&from, Some(&to))
    }

    fn place(&self, placed: &mut dyn FnMut(&Path)) -> Result<(), Problem> {
        let (from, to) = (open(&self.files())?, open(&self.parent)?);
        Placing::new(Act::Move, placed).folder(&from, Some(&to))
    }

    /// Removes staging folder and journal, in this order.
    pub(in crate::run) fn end(self) {
        remove(&self.parent, OsStr::new(&self.name));
        if fs::symlink_metadata(self.folder()).is_err() {
            let _ = fs::remove_file(&self.journal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ground {
        _folder: tempfile::TempDir,
        journal: Journal,
        tree: PathBuf,
    }

    fn ground() -> Ground {
        let folder = tempfile::tempdir().expect("a folder");
        let (journals, tree) = (folder.path().join("returning"), folder.path().join("tree"));
        fs::create_dir(&journals).expect("a folder");
        fs::create_dir(&tree).expect("a folder");
        fs::write(tree.join("old"), "before").expect("a file");
        Ground { _folder: folder, journal: Journal { folder: journals }, tree }
    }

    fn staged(ground: &Ground) -> Staged {
        let staged = ground.journal.begin(&ground.tree).expect("begun");
        fs::create_dir(staged.files().join("sub")).expect("a folder");
        for name in ["old", "sub/new"] {
            fs::write(staged.files().join(name), "after").expect("a file");
        }
        staged
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn committed_files_are_all_there_and_nothing_else_is() {
        let ground = ground();
        let placed = staged(&ground).commit().expect("placed");
        assert_eq!(placed, [Path::new("old"), Path::new("sub/new")]);
        assert_eq!(fs::read_to_string(ground.tree.join("old")).expect("a file"), "after");
        assert_eq!(names(&ground.tree), ["old", "sub"]);
        assert!(names(&ground.journal.folder).is_empty());
    }

    #[test]
    fn what_is_in_the_way_keeps_everything_out() {
        let ground = ground();
        fs::create_dir_all(ground.tree.join("sub/new")).expect("a folder");
        assert!(staged(&ground).commit().is_err());
        assert_eq!(fs::read_to_string(ground.tree.join("old")).expect("a file"), "before");
        assert_eq!(names(&ground.tree), ["old", "sub"]);
        assert!(names(&ground.journal.folder).is_empty());
    }

    #[test]
    fn a_kill_before_the_commit_is_undone_and_one_after_it_is_finished() {
        let ground = ground();
        let alive = staged(&ground);
        assert_eq!(ground.journal.recover(), 0, "its holder lives");
        drop(alive);
        assert_eq!(ground.journal.recover(), 1);
        assert_eq!(fs::read_to_string(ground.tree.join("old")).expect("a file"), "before");
        assert_eq!(names(&ground.tree), ["old"]);
        let killed = staged(&ground);
        fs::write(killed.folder().join(COMMIT), "").expect("a mark");
        fs::rename(killed.files().join("old"), ground.tree.join("old")).expect("the first one");
        drop(killed);
        assert_eq!(ground.journal.recover(), 1);
        assert_eq!(fs::read_to_string(ground.tree.join("sub/new")).expect("a file"), "after");
        assert_eq!(names(&ground.tree), ["old", "sub"]);
        // Killed while the journal itself was written.
        fs::write(ground.journal.folder.join("x.new"), "{").expect("a file");
        assert_eq!(ground.journal.recover(), 1);
        assert!(names(&ground.journal.folder).is_empty());
    }
}
