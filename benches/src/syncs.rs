//! Rows over synced trees: what a sync costs, beside rsync and tar through a pipe of this host, and beside `git status`.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use testyard_model::Problem;

use crate::Options;
use crate::programs::Compared::{Faster, Slower};
use crate::programs::{Testyard, compared, failed, or_skip, timed};
use crate::report::{Goal, Row};

/// Files of the tree.
const FILES: usize = 10_000;

/// A tree, and where its copies go.
struct Ground {
    folder: PathBuf,
    tree: PathBuf,
    edits: std::cell::Cell<u32>,
}

impl Ground {
    /// Packages of a hundred modules, some of them nested, with ignored caches beside them; all of it committed.
    fn make(folder: &Path) -> Result<Self, Problem> {
        let tree = folder.join("tree");
        fs::create_dir_all(&tree).map_err(failed)?;
        fs::write(tree.join(".gitignore"), "__pycache__/\n*.pyc\n/build/\n.venv/\n").map_err(failed)?;
        for number in 0..FILES {
            let package = tree.join(format!("package_{}", number / 100));
            let package = if number % 3 == 0 { package.join("inner") } else { package };
            if number % 100 < 2 {
                fs::create_dir_all(package.join("__pycache__")).map_err(failed)?;
                fs::write(package.join("__pycache__/x.pyc"), "x").map_err(failed)?;
            }
            fs::create_dir_all(&package).map_err(failed)?;
            let text = format!("value = {number}\n").repeat(number % 200);
            fs::write(package.join(format!("module_{}.py", number % 100)), text).map_err(failed)?;
        }
        for words in [
            &["init", "--quiet"][..],
            &["add", "."],
            &["-c", "user.name=x", "-c", "user.email=x@example", "commit", "--quiet", "-m", "x"],
        ] {
            timed(Command::new("git").arg("-C").arg(&tree).args(words))?;
        }
        Ok(Self { folder: folder.to_owned(), tree, edits: std::cell::Cell::new(0) })
    }

    fn sync(&self, testyard: &Testyard, machine: &str) -> Result<Duration, Problem> {
        timed(testyard.command(&format!("sync {machine}")).arg(&self.tree))
    }

    /// Through its own pipe, both ends on this host; without what a sync leaves out.
    fn rsync(&self) -> Result<Duration, Problem> {
        let mut command = Command::new("rsync");
        command.args(["--archive", "--delete", "--exclude=.git", "--exclude=__pycache__"]);
        timed(command.arg(self.tree.join("")).arg(self.folder.join("rsync")))
    }

    fn git_status(&self) -> Result<Duration, Problem> {
        timed(Command::new("git").arg("-C").arg(&self.tree).args(["status", "--porcelain"]))
    }

    /// Saves a file as editors do: a new one takes its name.
    fn edit(&self) -> Result<(), Problem> {
        let number = self.edits.get() + 1;
        self.edits.set(number);
        let file = self.tree.join("package_4/module_17.py");
        let fresh = file.with_extension("tmp");
        fs::write(&fresh, format!("edit = {number}\n")).map_err(failed)?;
        fs::rename(&fresh, &file).map_err(failed)
    }

    /// Into a folder of this name, which is made and removed; only the copying counts.
    fn tar(&self) -> Result<Duration, Problem> {
        let target = self.folder.join("tar");
        fs::create_dir(&target).map_err(failed)?;
        let script = "tar --exclude-vcs --exclude=__pycache__ -C \"$1\" -cf - . | tar -C \"$2\" -xf -";
        let took = timed(Command::new("sh").args(["-c", script, "sh"]).arg(&self.tree).arg(&target));
        remove(&self.folder, "tar");
        took
    }
}

fn remove(folder: &Path, name: &str) {
    if let Ok(folder) = fs::File::open(folder) {
        // What stays is in the run's own folder, and goes with it.
        let _ = testyard_linux::files::remove_tree(folder.as_fd(), Path::new(name));
    }
}

/// Measures them all.
pub(crate) fn rows(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    let names = [
        ("sync, 10,000 files, none changed: how many times faster than rsync", Goal::AtLeast(8.0)),
        ("sync, one of 10,000 files saved: how many times faster than rsync", Goal::AtLeast(5.0)),
        ("first sync of 10,000 files, against tar into tar", Goal::AtMost(1.0)),
        ("sync, none of 10,000 files changed, against git status", Goal::AtMost(1.3)),
    ];
    let folder = options.folder.join("trees");
    let ground = testyard.run("create trees --backend namespace").and_then(|_| Ground::make(&folder));
    let measured: [Result<(f64, String), Problem>; 4] = match &ground {
        Ok(ground) => [
            unchanged(options, testyard, ground),
            saved(options, testyard, ground),
            first(options, testyard, ground),
            beside_git(options, testyard, ground),
        ],
        Err(problem) => std::array::from_fn(|_| Err(problem.clone())),
    };
    for ((name, goal), one) in names.into_iter().zip(measured) {
        or_skip(name, goal, "×", row, one);
    }
    remove(&options.folder, "trees");
}

/// Until nothing of the tree is so young that it has to be read again.
fn settle(testyard: &Testyard, ground: &Ground) -> Result<(), Problem> {
    for _ in 0..3 {
        ground.sync(testyard, "trees")?;
        ground.rsync()?;
    }
    Ok(())
}

fn unchanged(options: &Options, testyard: &Testyard, ground: &Ground) -> Result<(f64, String), Problem> {
    settle(testyard, ground)?;
    compared(options.rounds(40), "rsync", || ground.rsync(), || ground.sync(testyard, "trees"), Faster)
}

fn saved(options: &Options, testyard: &Testyard, ground: &Ground) -> Result<(f64, String), Problem> {
    settle(testyard, ground)?;
    let rsync = || ground.edit().and_then(|()| ground.rsync());
    let sync = || ground.edit().and_then(|()| ground.sync(testyard, "trees"));
    compared(options.rounds(40), "rsync", rsync, sync, Faster)
}

fn beside_git(options: &Options, testyard: &Testyard, ground: &Ground) -> Result<(f64, String), Problem> {
    settle(testyard, ground)?;
    compared(options.rounds(40), "git", || ground.git_status(), || ground.sync(testyard, "trees"), Slower)
}

/// Nothing of the tree is known on either side.
fn first(options: &Options, testyard: &Testyard, ground: &Ground) -> Result<(f64, String), Problem> {
    let sync = || {
        testyard.forget_trees();
        testyard.run("create first --backend namespace")?;
        let took = ground.sync(testyard, "first");
        testyard.run("delete first --force")?;
        took
    };
    compared(options.rounds(20), "tar", || ground.tar(), sync, Slower)
}
