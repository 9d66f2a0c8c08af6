//! Runs that are kept: found again by id, and forgotten once they are too many or too big.
//!
//! Each has a folder of its own, named by the run's id, which says when it began. What goes on holds a lock on its
//! record and is never touched.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use testyard_linux::files::remove_tree;
use testyard_linux::lock::is_held;
use testyard_model::{Problem, ProblemKind};
use testyard_registry::Home;
use testyard_runner::report::{RECORD, RunRecord};

/// How deep a run's folder is looked into when its size is asked for.
const DEEPEST: usize = 16;
/// How many runs an error names.
const NAMED: usize = 5;
/// The length of an id.
const ID: usize = 36;

/// How much is kept. The newest run stays whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many runs.
    pub runs: usize,
    /// How many bytes, all runs together.
    pub bytes: u64,
}

impl Limits {
    /// A hundred runs, 2 GiB.
    pub const USUAL: Self = Self { runs: 100, bytes: 2 << 30 };
}

/// The runs of a home.
#[derive(Debug, Clone)]
pub struct KeptRuns {
    folder: PathBuf,
}

/// One run that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRun {
    /// Its id, a UUID.
    pub id: String,
    /// Its folder: the record, large outputs, whatever else belongs to it.
    pub folder: PathBuf,
}

impl KeptRuns {
    /// Those of this home.
    #[must_use]
    pub fn of(home: &Home) -> Self {
        Self { folder: home.runs_folder() }
    }

    /// The folder with a folder for each.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All of them, newest first.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<KeptRun>, Problem> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(&self.folder, &error)),
        };
        let mut runs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(&self.folder, &error))?;
            let Ok(id) = entry.file_name().into_string() else { continue };
            if id.len() == ID && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                runs.push(KeptRun { id, folder: entry.path() });
            }
        }
        // An id begins with its time.
        runs.sort_unstable_by(|a, b| b.id.cmp(&a.id));
        Ok(runs)
    }

    /// The one that is meant: `last`, `last~1` for the one before it, or the beginning or the end of an id.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(&self, meant: &str) -> Result<KeptRun, Problem> {
        let runs: Vec<KeptRun> = self.list()?.into_iter().filter(|run| run.folder.join(RECORD).exists()).collect();
        let none =
            |what: String| Problem::new(ProblemKind::NotFound, what).hint("see what is kept: testyard report --list");
        let before = match meant.strip_prefix("last") {
            Some("") => Some(Some(0)),
            Some(rest) => rest.strip_prefix('~').map(|number| number.parse::<usize>().ok()),
            None => None,
        };
        if let Some(before) = before {
            let found = before.and_then(|before| runs.get(before).cloned());
            return found.ok_or_else(|| match runs.len() {
                0 => Problem::new(ProblemKind::NotFound, "no run is kept in this home").hint("testyard run"),
                kept => none(format!("there is no run `{meant}`: {kept} are kept")),
            });
        }
        let fits = |run: &&KeptRun| !meant.is_empty() && (run.id.starts_with(meant) || run.id.ends_with(meant));
        let found: Vec<&KeptRun> = runs.iter().filter(fits).collect();
        match found[..] {
            [] => Err(none(format!("no kept run has the id `{meant}`"))),
            [run] => Ok(run.clone()),
            _ => {
                let named: Vec<&str> = found.iter().take(NAMED).map(|run| run.id.as_str()).collect();
                let what = format!("`{meant}` is the id of {} runs", found.len());
                Err(Problem::new(ProblemKind::Usage, what)
                    .because(named.join(", "))
                    .hint("write more of it; the end differs most"))
            }
        }
    }

    /// Forgets the oldest runs beyond these limits; gives how many went. What cannot be removed is tried again when
    /// the next run is over.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn prune(&self, limits: Limits) -> Result<usize, Problem> {
        let runs = self.list()?;
        let Ok(folder) = File::open(&self.folder) else { return Ok(0) };
        let (mut count, mut bytes, mut gone) = (0, 0_u64, 0);
        for run in runs {
            count += 1;
            let size = size_of(&run.folder, DEEPEST);
            let fits = count <= limits.runs && bytes.saturating_add(size) <= limits.bytes;
            if count == 1 || fits || is_held(&run.folder.join(RECORD)).unwrap_or(true) {
                bytes = bytes.saturating_add(size);
                continue;
            }
            let removed = remove_tree(folder.as_fd(), &run.id);
            gone += usize::from(removed.is_ok_and(|removed| removed.is_complete()));
        }
        Ok(gone)
    }
}

impl KeptRun {
    /// What is kept of it.
    ///
    /// # Errors
    /// It cannot be read, or a version wrote it that this one does not know.
    pub fn read(&self) -> Result<RunRecord, Problem> {
        let path = self.folder.join(RECORD);
        let file = File::open(&path).map_err(|error| unreadable(&path, &error))?;
        RunRecord::read(BufReader::new(file)).map_err(|error| {
            let why = Problem::from_error(ProblemKind::System, &error);
            let mut told = Problem::new(why.kind, format!("cannot read run {} from {}", self.id, path.display()));
            told.causes.push(why.message);
            told.causes.extend(why.causes);
            told.hint("another version may have written it; see the others: testyard report --list")
        })
    }
}

/// A moment as people here read it: the host's time zone, to the second.
#[must_use]
pub fn local_time(unix_ms: i64) -> String {
    let moment = jiff::Timestamp::from_millisecond(unix_ms).unwrap_or_default();
    moment.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The bytes of the files in a folder; links are not followed.
fn size_of(folder: &Path, deepest: usize) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() && deepest > 0 => size_of(&entry.path(), deepest - 1),
        Ok(data) if data.is_file() => data.len(),
        _ => 0,
    });
    sizes.fold(0, u64::saturating_add)
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem::new(ProblemKind::System, format!("cannot read {}", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(ids: &[(&str, usize)]) -> (tempfile::TempDir, KeptRuns) {
        let folder = tempfile::tempdir().expect("a folder");
        for (id, bytes) in ids {
            let run = folder.path().join(id);
            fs::create_dir(&run).expect("ours");
            fs::write(run.join(RECORD), vec![b'\n'; *bytes]).expect("ours");
        }
        let kept = KeptRuns { folder: folder.path().to_owned() };
        (folder, kept)
    }

    const A: &str = "01998a6e-7b00-7000-8000-00000000aaaa";
    const B: &str = "01998a6e-7b01-7000-8000-00000000bbbb";
    const C: &str = "01998a6e-7b02-7000-8000-00000000cccc";

    fn ids(kept: &KeptRuns) -> Vec<String> {
        kept.list().expect("readable").into_iter().map(|run| run.id).collect()
    }

    #[test]
    fn runs_are_found_by_either_end_of_their_ids() {
        let (_folder, kept) = made(&[(A, 1), (B, 1), (C, 1)]);
        let found = |meant: &str| kept.find(meant).map(|run| run.id).map_err(|problem| problem.message);
        for (meant, id) in [("last", C), ("last~2", A), ("01998a6e-7b01", B), ("cccc", C), (A, A)] {
            assert_eq!(found(meant), Ok(id.to_owned()), "{meant}");
        }
        for (meant, words) in [
            ("01998a6e", "is the id of 3 runs"),
            ("dddd", "no kept run has the id `dddd`"),
            ("", "no kept run"),
            ("last~3", "there is no run `last~3`: 3 are kept"),
            ("last~x", "there is no run"),
            ("lasting", "no kept run has the id"),
        ] {
            let message = found(meant).expect_err(meant);
            assert!(message.contains(words), "{meant}: {message}");
        }
    }

    #[test]
    fn the_oldest_go_first_and_the_newest_never() {
        let (_folder, kept) = made(&[(A, 10), (B, 10), (C, 10)]);
        assert_eq!(kept.prune(Limits { runs: 3, bytes: 30 }).expect("ours"), 0);
        assert_eq!(kept.prune(Limits { runs: 2, bytes: 30 }).expect("ours"), 1);
        assert_eq!(ids(&kept), [C, B]);
        assert_eq!(kept.prune(Limits { runs: 9, bytes: 5 }).expect("ours"), 1);
        assert_eq!(ids(&kept), [C]);
    }

    #[test]
    fn a_run_that_goes_on_stays() {
        let (_folder, kept) = made(&[(A, 10), (B, 10)]);
        let running = File::open(kept.folder.join(A).join(RECORD)).expect("ours");
        rustix::fs::flock(&running, rustix::fs::FlockOperation::LockExclusive).expect("nobody else's");
        assert_eq!(kept.prune(Limits { runs: 1, bytes: 0 }).expect("ours"), 0);
        drop(running);
        assert_eq!(kept.prune(Limits { runs: 1, bytes: 0 }).expect("ours"), 1);
        assert_eq!(ids(&kept), [B]);
    }
}
