//! After a test's command: what it changed, what comes out of its environment, and whether that is kept.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};
use testyard_engine::WarmMachine;
use testyard_linux::step::{Step, reach};
use testyard_machine::client::ChangeList;
use testyard_model::{ByteSize, CommandStatus, EnvironmentId, Problem, ProblemKind};
use testyard_protocol::Linger;
use testyard_protocol::changes::{ChangeKind, Fetch, FileChange, FileKind, Part, When};
use testyard_runner::job::Job;
use testyard_runner::result::{Aftermath, Artifact, ChangedFile, FileChanges};
use testyard_transfer::{UnpackOptions, unpack};

use super::files::{Chosen, Journal, Patterns, Staged, copy_chosen, written_since};
use super::keeper::Keeper;
use super::trees::Trees;

/// So many changes are looked at to find outputs and artifacts.
const LOOKED_AT: u32 = 1_000_000;
/// So many are counted for a result.
const COUNTED: u32 = 10_000;
/// So many are named in a result.
const NAMED: usize = 100;
/// The most that a test's artifacts may take together.
const MOST_ARTIFACTS: u64 = 1 << 30;
/// The most that a test's outputs may take together.
const MOST_OUTPUTS: u64 = 16 << 30;
/// What stays free on the disk of the state folder.
const SPARE: u64 = 64 << 20;

/// What is done after commands, for all tests of a run.
#[derive(Debug)]
pub(super) struct Care {
    pub(super) journal: Journal,
    /// The folder with a folder for each run.
    pub(super) runs: PathBuf,
    pub(super) keeper: Keeper,
}

/// A command that ended, and whose environment is still there.
pub(super) struct Ended<'a> {
    pub(super) machine: &'a WarmMachine,
    pub(super) environment: EnvironmentId,
    pub(super) job: &'a Job,
    pub(super) top: &'a Path,
    /// When the test was about to start.
    pub(super) began: SystemTime,
    pub(super) status: CommandStatus,
    /// The run was told to stop.
    pub(super) cancelled: bool,
}

/// Whether a job's environment is needed after its command.
pub(super) fn linger_of(job: &Job) -> Linger {
    if job.outputs.is_empty() && job.artifacts.is_empty() { Linger::Failed } else { Linger::Always }
}

impl Care {
    /// Looks, brings out, and keeps or ends the environment. What went wrong is told in [`Aftermath::problems`].
    ///
    /// # Errors
    /// The outputs of a test that passed are lost: it has not done what it is for.
    pub(super) fn after(&self, ended: &Ended<'_>, trees: &Trees) -> Result<Aftermath, Problem> {
        let (aftermath, lost) = self.look_after(ended, trees);
        match lost {
            Some(problem) if ended.status.success() => Err(problem),
            _ => Ok(aftermath),
        }
    }

    /// What became of the files, and why the outputs are lost, if they are.
    fn look_after(&self, ended: &Ended<'_>, trees: &Trees) -> (Aftermath, Option<Problem>) {
        let mut aftermath = Aftermath::default();
        let mut lost = None;
        let failed = !ended.status.success();
        if !ended.cancelled {
            lost = self.bring_out(ended, trees, failed, &mut aftermath).err();
            aftermath.problems.extend(lost.clone());
            if let Some(duration) = ended.job.keep_failed.filter(|_| failed) {
                match self.keep(ended, duration, &mut aftermath) {
                    Ok(()) => return (aftermath, lost),
                    Err(problem) => aftermath.problems.push(problem),
                }
            }
        }
        // One that is gone already, or whose machine is, needs no end.
        let _ = ended.machine.release(ended.environment);
        (aftermath, lost)
    }

    fn keep(&self, ended: &Ended<'_>, duration: Duration, aftermath: &mut Aftermath) -> Result<(), Problem> {
        let kept = self.keeper.keep(ended.machine, ended.environment, ended.job, duration)?;
        aftermath.kept = Some(kept);
        Ok(())
    }

    /// Fails where outputs are lost.
    fn bring_out(
        &self,
        ended: &Ended<'_>,
        trees: &Trees,
        failed: bool,
        aftermath: &mut Aftermath,
    ) -> Result<(), Problem> {
        let job = ended.job;
        // What was cut off in the middle of writing comes back nowhere.
        let whole = ended.status != CommandStatus::TimedOut;
        let wanted = !job.artifacts.is_empty() || (whole && !job.outputs.is_empty());
        if !wanted && !failed {
            return Ok(());
        }
        let limit = if wanted { LOOKED_AT } else { COUNTED };
        let list = match ended.machine.changes(ended.environment, limit) {
            Ok(list) => list,
            // Where nothing is recorded, what the test wrote is where it wrote it: outputs are in the tree already.
            Err(problem) if problem.kind == ProblemKind::Unsupported => {
                self.after_direct(job, ended.top, ended.began, aftermath);
                return Ok(());
            }
            Err(problem) => return Err(problem.because("while it was looked what the test had changed")),
        };
        if failed {
            aftermath.files = Some(summary(&list, ended.top));
        }
        if !job.artifacts.is_empty() {
            let kept = self.keep_artifacts(job, ended.top, &list.entries, list.cut, |chosen| {
                self.fetched(ended, chosen, &self.runs)
            });
            take_artifacts(aftermath, kept);
        }
        if whole && !job.outputs.is_empty() {
            aftermath.returned = self.return_outputs(ended, &list, trees)?;
        }
        Ok(())
    }

    /// Keeps the artifacts of a test that wrote into the working tree itself, beside whoever else did.
    pub(super) fn after_direct(&self, job: &Job, top: &Path, began: SystemTime, aftermath: &mut Aftermath) {
        if job.artifacts.is_empty() {
            return;
        }
        let (changes, cut) = written_since(&job.root, top, began, LOOKED_AT as usize);
        if cut {
            let message = format!("there are more than {LOOKED_AT} files below {}", job.root.display());
            let problem = Problem::new(ProblemKind::Exhausted, message).because("its artifacts are not looked for");
            aftermath.problems.push(problem.hint("write isolation = \"namespace\", where only changes are looked at"));
            return;
        }
        let kept = self.keep_artifacts(job, top, &changes, false, |chosen| {
            self.staged(&self.runs, |staged| copy_chosen(chosen, top, &staged.files(), most_of(chosen)))
        });
        take_artifacts(aftermath, kept);
    }

    fn return_outputs(&self, ended: &Ended<'_>, list: &ChangeList, trees: &Trees) -> Result<Vec<String>, Problem> {
        let patterns = Patterns::new("output", &ended.job.outputs, &ended.job.root, ended.top);
        patterns.check_tree()?;
        let chosen = patterns.choose(&list.entries)?;
        if list.cut {
            return Err(too_many("outputs"));
        }
        if chosen.paths.is_empty() {
            return Ok(Vec::new());
        }
        refuse_over("outputs", chosen.bytes, MOST_OUTPUTS)?;
        refuse_beyond_disk("outputs", chosen.bytes, ended.top)?;
        let staged = self.fetched(ended, &chosen, ended.top)?;
        reach(Step::RunnerOutputsFetched);
        // Before they are there, so that the tree is not found changed by somebody else.
        trees.note_written(ended.top, &chosen.paths);
        let placed = staged.commit().map_err(|problem| problem.because("while the test's outputs came back"))?;
        Ok(placed.iter().map(|path| path.display().to_string()).collect())
    }

    /// `bring` copies what was chosen to a staging folder of the runs' own.
    fn keep_artifacts(
        &self,
        job: &Job,
        top: &Path,
        changes: &[FileChange],
        cut: bool,
        bring: impl FnOnce(&Chosen) -> Result<Staged, Problem>,
    ) -> Result<Vec<Artifact>, Problem> {
        let patterns = Patterns::new("artifact", &job.artifacts, &job.root, top);
        patterns.check_tree()?;
        let chosen = patterns.choose(changes)?;
        if cut {
            return Err(too_many("artifacts"));
        }
        if chosen.paths.is_empty() {
            return Ok(Vec::new());
        }
        refuse_over("artifacts", chosen.bytes, MOST_ARTIFACTS)?;
        refuse_beyond_disk("artifacts", chosen.bytes, &self.runs)?;
        let staged = bring(&chosen)?;
        reach(Step::RunnerArtifacts);
        let test = format!("{}.{}", plain(&job.test), job.attempt);
        let folder = self.runs.join(&job.run).join("artifacts").join(plain(&job.suite)).join(test);
        staged.become_folder(&folder)?;
        let base = job.root.strip_prefix(top).unwrap_or(Path::new(""));
        let artifacts = chosen.paths.iter().filter_map(|path| {
            let file = folder.join(path);
            // What vanished before it was fetched is not there.
            let size = std::fs::symlink_metadata(&file).ok()?.len();
            let own = path.strip_prefix(base).unwrap_or(path);
            Some(Artifact { path: own.display().to_string(), file: file.display().to_string(), size })
        });
        Ok(artifacts.collect())
    }

    /// Fetches what was chosen to a staging folder below `parent`.
    fn fetched(&self, ended: &Ended<'_>, chosen: &Chosen, parent: &Path) -> Result<Staged, Problem> {
        self.staged(parent, |staged| fetch(ended, chosen, staged))
    }

    /// A staging folder below `parent`, filled; gone again where it cannot be.
    fn staged(&self, parent: &Path, fill: impl FnOnce(&Staged) -> Result<(), Problem>) -> Result<Staged, Problem> {
        let staged = self.journal.begin(parent)?;
        match fill(&staged) {
            Ok(()) => Ok(staged),
            Err(problem) => {
                staged.end();
                Err(problem)
            }
        }
    }
}

fn take_artifacts(aftermath: &mut Aftermath, kept: Result<Vec<Artifact>, Problem>) {
    match kept {
        Ok(artifacts) => aftermath.artifacts = artifacts,
        Err(problem) => aftermath.problems.push(problem),
    }
}

/// The most bytes that come of what was chosen: a file may grow between the look at it and its way out.
fn most_of(chosen: &Chosen) -> u64 {
    chosen.bytes.saturating_mul(2).saturating_add(SPARE)
}

fn fetch(ended: &Ended<'_>, chosen: &Chosen, staged: &Staged) -> Result<(), Problem> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(staged.files(), flags, Mode::empty())
        .map_err(|errno| Problem::new(ProblemKind::System, "cannot open the staging folder").because(errno))?;
    let options = UnpackOptions { hostile: true, limit: Some(most_of(chosen)), ..UnpackOptions::default() };
    let fetch = Fetch { environment: ended.environment, part: Part::Source, when: When::Now };
    ended.machine.fetch(
        fetch,
        &chosen.paths,
        |mut stream| unpack(&mut stream, folder.as_fd(), Path::new("."), &options).map(drop),
        |error| error.problem(),
    )
}

fn too_many(what: &str) -> Problem {
    Problem::new(
        ProblemKind::Exhausted,
        format!("the test changed more than {LOOKED_AT} files: its {what} stay behind"),
    )
    .hint("let it work below TMPDIR, outside of the working tree")
}

fn refuse_over(what: &str, bytes: u64, most: u64) -> Result<(), Problem> {
    if bytes <= most {
        return Ok(());
    }
    let message = format!("the test's {what} are {} together; at most {} are kept", ByteSize(bytes), ByteSize(most));
    Err(Problem::new(ProblemKind::Exhausted, message).hint(format!("name fewer files in `{what}`")))
}

fn refuse_beyond_disk(what: &str, bytes: u64, folder: &Path) -> Result<(), Problem> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Where the room is not known, writing tells.
    let Ok(opened) = rustix::fs::open(folder, flags, Mode::empty()) else { return Ok(()) };
    let Ok(space) = testyard_linux::files::free_space(&opened) else { return Ok(()) };
    if bytes.saturating_add(SPARE) <= space.free_bytes {
        return Ok(());
    }
    let message = format!(
        "the test's {what} are {} together, and {} are free on the disk of {}",
        ByteSize(bytes),
        ByteSize(space.free_bytes),
        folder.display()
    );
    Err(Problem::new(ProblemKind::Exhausted, message).hint("free some space: testyard reap, testyard image prune"))
}

/// A folder's name from a suite's or test's: readable, and no other's.
fn plain(name: &str) -> String {
    let safe = |one: char| if one.is_ascii_alphanumeric() || "._-".contains(one) { one } else { '_' };
    let shown: String = name.chars().map(safe).take(80).collect();
    if shown == name && !shown.starts_with('.') {
        return shown;
    }
    use std::hash::{Hash as _, Hasher as _};
    let mut hasher = std::hash::DefaultHasher::new();
    name.hash(&mut hasher);
    format!("{}-{:08x}", shown.trim_start_matches('.'), hasher.finish() & 0xffff_ffff)
}

/// What a result says of the changes.
fn summary(list: &ChangeList, top: &Path) -> FileChanges {
    let mut summary = FileChanges { more: list.cut, ..FileChanges::default() };
    let mut named = BTreeSet::new();
    for entry in &list.entries {
        if entry.file == FileKind::Folder && entry.change == ChangeKind::Added {
            continue;
        }
        match entry.change {
            ChangeKind::Added => summary.added += 1,
            ChangeKind::Changed => summary.changed += 1,
            ChangeKind::Deleted => summary.deleted += 1,
        }
        let top = if entry.part == Part::Source { top } else { Path::new("/") };
        if named.len() < NAMED {
            let path = top.join(entry.path.as_path()).to_string_lossy().into_owned();
            named.insert(path.clone());
            let size = (entry.file == FileKind::File && entry.change != ChangeKind::Deleted).then_some(entry.size);
            summary.entries.push(ChangedFile { path, change: entry.change.as_str().to_owned(), size });
        }
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_folders_are_plain_and_apart() {
        assert_eq!(plain("net-1.sh"), "net-1.sh");
        assert_ne!(plain("a/b"), plain("a_b"));
        for bad in ["..", ".", "a/../b", "ü"] {
            let name = plain(bad);
            assert!(!name.starts_with('.') && !name.contains('/'), "{name}");
        }
    }

    #[test]
    fn what_is_too_much_is_told_with_numbers() {
        let refused = refuse_over("artifacts", 3 << 30, 1 << 30).expect_err("too much");
        assert_eq!(refused.message, "the test's artifacts are 3G together; at most 1G are kept");
        let refused = refuse_beyond_disk("artifacts", u64::MAX / 2, Path::new("/tmp")).expect_err("no such disk");
        assert_eq!(refused.kind, ProblemKind::Exhausted);
    }
}
