//! JSON lines: one versioned event a line, written as it happens (see `docs/json.md`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use testyard_model::Problem;

use super::{Announcement, ReportError};
use crate::job::JobEvent;
use crate::plan::Plan;
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

/// A file of JSON lines.
pub(super) struct JsonLines {
    path: PathBuf,
    file: File,
    line: Vec<u8>,
    failed: Option<io::Error>,
}

impl JsonLines {
    pub(super) fn create(path: &Path) -> Result<Self, ReportError> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let file = file.map_err(|source| ReportError::Write { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, line: Vec::new(), failed: None })
    }

    pub(super) fn take(&mut self, plan: &Plan, time_ms: i64, announcement: &Announcement) {
        let name = |test: usize| {
            let key = plan.key(test);
            (key.suite, key.name)
        };
        let event = match announcement {
            Announcement::RunStarted(info) => {
                Event::RunStarted { run: &info.run, tests: info.tests, jobs: info.jobs, trees: &info.trees }
            }
            Announcement::TestStarted { test, attempt } => {
                let (suite, name) = name(*test);
                Event::TestStarted { suite, name, attempt: *attempt }
            }
            Announcement::TestProgress { test, event: JobEvent::Started { environment } } => {
                let (suite, name) = name(*test);
                Event::TestEnvironment { suite, name, environment }
            }
            Announcement::TestProgress { .. } => return,
            Announcement::AttemptFailed { test, attempt, after } => {
                let (suite, name) = name(*test);
                let retry_after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                Event::AttemptFailed { suite, name, attempt, retry_after_ms }
            }
            // Only those that did not pass have text to add.
            Announcement::TestFinished(result) if result.verdict == Verdict::Passed => Event::TestFinished(result),
            Announcement::TestFinished(result) => {
                result.to_json().map_or(Event::TestFinished(result), Event::TestFinishedWithText)
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
            self.file.write_all(&self.line)
        });
        self.failed = written.err();
    }

    pub(super) fn close(self) -> Result<(), ReportError> {
        let synced = match self.failed {
            Some(error) => Err(error),
            // Pipes and devices cannot be synced and need not be.
            None => self
                .file
                .sync_all()
                .or_else(|error| if error.kind() == io::ErrorKind::InvalidInput { Ok(()) } else { Err(error) }),
        };
        synced.map_err(|source| ReportError::Write { path: self.path, source })
    }
}
