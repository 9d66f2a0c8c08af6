//! JSON lines: one versioned event a line, written as it happens (see `docs/json.md`). A report that somebody asked
//! for, and the form in which every run is kept.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use testyard_model::{Problem, milliseconds};

use super::{Announcement, ReportError};
use crate::job::JobEvent;
use crate::plan::{Plan, ShardInfo};
use crate::result::{Attempt, JSON_VERSION, RunSummary, Stop, TestResult, TreeInfo, Verdict};

#[derive(Serialize)]
struct Line<'a> {
    version: u32,
    time_ms: i64,
    #[serde(flatten)]
    event: Event<'a>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event<'a> {
    RunStarted {
        run: &'a str,
        tests: usize,
        jobs: usize,
        trees: &'a [TreeInfo],
        #[serde(skip_serializing_if = "Option::is_none")]
        seed: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        shard: Option<&'a ShardInfo>,
    },
    TestStarted {
        suite: &'a str,
        name: &'a str,
        attempt: u32,
    },
    TestEnvironment {
        suite: &'a str,
        name: &'a str,
        environment: &'a str,
    },
    AttemptFailed {
        suite: &'a str,
        name: &'a str,
        attempt: &'a Attempt,
        retry_after_ms: u64,
    },
    TestSlow {
        suite: &'a str,
        name: &'a str,
        after_ms: u64,
    },
    TestFinished(&'a TestResult),
    #[serde(rename = "test-finished")]
    TestFinishedWithText(serde_json::Value),
    Stopping {
        stop: Stop,
    },
    Warning {
        problem: &'a Problem,
    },
    RunFinished(&'a RunSummary),
}

/// The file's name in the folder of a kept run.
pub const RECORD: &str = "run.jsonl";

/// Output of tests that did not pass, in bytes of text, which a kept run shows with up to 64 KiB a stream; of what comes
/// after it less, so that no run fills the disk by its text alone. What is more lies in files beside it anyway.
const GENEROUS: usize = 32 << 20;
/// The text of a stream after that.
const SPARING: usize = 1 << 10;

/// A file of JSON lines.
pub(super) struct JsonLines {
    path: PathBuf,
    file: Option<File>,
    line: Vec<u8>,
    failed: Option<io::Error>,
    /// For a kept run: the bytes written up to now.
    kept: Option<usize>,
}

impl JsonLines {
    pub(super) fn create(path: &Path) -> Result<Self, ReportError> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let file = file.map_err(|source| ReportError::Write { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: Some(file), line: Vec::new(), failed: None, kept: None })
    }

    /// In a folder of the run's own below this one, made when the run's id is known.
    pub(super) fn of_kept(runs: PathBuf) -> Self {
        Self { path: runs, file: None, line: Vec::new(), failed: None, kept: Some(0) }
    }

    /// The lock tells whoever makes room that the run goes on; the kernel lets go of it when we end.
    fn begin(&mut self, run: &str) -> io::Result<()> {
        self.path.extend([run, RECORD]);
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        self.file = Some(file);
        Ok(())
    }

    pub(super) fn take(&mut self, plan: &Plan, time_ms: i64, announcement: &Announcement) {
        if let (Announcement::RunStarted(info), Some(_)) = (announcement, self.kept) {
            self.failed = self.begin(&info.run).err();
        }
        let most = if self.kept.is_some_and(|bytes| bytes > GENEROUS) { SPARING } else { usize::MAX };
        let name = |test: usize| {
            let key = plan.key(test);
            (key.suite, key.name)
        };
        let event = match announcement {
            Announcement::RunStarted(info) => Event::RunStarted {
                run: &info.run,
                tests: info.tests,
                jobs: info.jobs,
                trees: &info.trees,
                seed: info.seed,
                shard: info.shard.as_ref(),
            },
            Announcement::TestStarted { test, attempt } => {
                let (suite, name) = name(*test);
                Event::TestStarted { suite, name, attempt: *attempt }
            }
            Announcement::TestProgress { test, event: JobEvent::Started { environment } } if self.kept.is_none() => {
                let (suite, name) = name(*test);
                Event::TestEnvironment { suite, name, environment }
            }
            Announcement::TestProgress { .. } | Announcement::Asked => return,
            Announcement::AttemptFailed { test, attempt, after } => {
                let (suite, name) = name(*test);
                let retry_after_ms = milliseconds(*after);
                Event::AttemptFailed { suite, name, attempt, retry_after_ms }
            }
            Announcement::TestSlow { test, after } => {
                let (suite, name) = name(*test);
                Event::TestSlow { suite, name, after_ms: milliseconds(*after) }
            }
            // Only those that did not pass have text to add.
            Announcement::TestFinished(result) if result.verdict == Verdict::Passed => Event::TestFinished(result),
            Announcement::TestFinished(result) => {
                result.to_json_within(most).map_or(Event::TestFinished(result), Event::TestFinishedWithText)
            }
            Announcement::Stopping(stop) => Event::Stopping { stop: *stop },
            Announcement::Warning(problem) => Event::Warning { problem },
            Announcement::RunFinished(summary) => Event::RunFinished(summary),
        };
        self.write(&Line { version: JSON_VERSION, time_ms, event });
    }

    fn write(&mut self, line: &Line<'_>) {
        if self.failed.is_some() {
            return;
        }
        self.line.clear();
        let written = serde_json::to_writer(&mut self.line, line).map_err(io::Error::from).and_then(|()| {
            self.line.push(b'\n');
            // One write a line: a reader that follows the file sees whole ones.
            self.file.as_mut().map_or(Ok(()), |file| file.write_all(&self.line))
        });
        self.failed = written.err();
        self.kept = self.kept.map(|bytes| bytes + self.line.len());
    }

    pub(super) fn close(self) -> Result<(), ReportError> {
        let kept = self.kept.is_some();
        let ended = match (self.failed, self.file) {
            (Some(error), _) => Err(error),
            // What is kept by itself is not worth waiting for the disk.
            (None, Some(file)) if !kept => match file.sync_all() {
                // Pipes and devices cannot be synced and need not be.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
                synced => synced,
            },
            (None, _) => Ok(()),
        };
        ended.map_err(|source| match kept {
            true => ReportError::Keep { path: self.path, source },
            false => ReportError::Write { path: self.path, source },
        })
    }
}
