//! What became of each test lately: in a file of its own, so that it can be lost without losing a machine.
//!
//! The registry is never replaced, because a reaper could not know what it described. A history is only worth
//! something while it is whole: a damaged one is set aside under another name, and a new one begun. No run fails
//! for it.

mod file;
mod flakes;
mod record;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use testyard_model::{Problem, ProblemKind};

pub use file::HistoryFile;
pub use flakes::Flakes;

/// How many outcomes are kept for a test.
pub const KEPT_OUTCOMES: u32 = 100;

/// How a test ended in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TestOutcome {
    /// It passed.
    Passed,
    /// It failed, and passed when tried again.
    Flaky,
    /// It failed.
    Failed,
    /// Its deadline passed.
    TimedOut,
    /// It was not run.
    Skipped,
    /// The infrastructure failed, not the test.
    #[serde(rename = "infrastructure-error")]
    Infrastructure,
}

impl TestOutcome {
    const ALL: [Self; 6] =
        [Self::Passed, Self::Flaky, Self::Failed, Self::TimedOut, Self::Skipped, Self::Infrastructure];

    /// The word for it, as in JSON and in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Flaky => "flaky",
            Self::Failed => "failed",
            Self::TimedOut => "timed-out",
            Self::Skipped => "skipped",
            Self::Infrastructure => "infrastructure-error",
        }
    }

    /// Whether the test itself was found wanting.
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut)
    }

    /// Whether it says something about the test.
    #[must_use]
    pub fn is_verdict(self) -> bool {
        !matches!(self, Self::Skipped | Self::Infrastructure)
    }

    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

/// What became of one test in the run that is just over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOutcome<'a> {
    /// Its suite's file.
    pub suite_file: &'a std::path::Path,
    /// Its suite's name.
    pub suite: &'a str,
    /// Its name in the suite.
    pub test: &'a str,
    /// How it ended.
    pub outcome: TestOutcome,
    /// How long its command ran.
    pub duration: Duration,
    /// Attempts that failed before the last.
    pub failed_attempts: u32,
    /// The working tree's hash.
    pub tree: Option<&'a str>,
}

/// What a run wants to know of a test before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastOutcome {
    /// How it ended last.
    pub outcome: TestOutcome,
    /// How long it usually takes: the middle one of its last durations, so that one hiccup does not reorder a run.
    pub expected: Option<Duration>,
}

/// A test's part in one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PastOutcome {
    /// The run's id.
    pub run: String,
    /// When the run ended, in milliseconds since 1970-01-01 UTC.
    pub at_ms: i64,
    /// How it ended.
    pub outcome: TestOutcome,
    /// How long its command ran, in microseconds.
    pub duration_us: u64,
    /// Attempts that failed before the last.
    pub failed_attempts: u32,
    /// The working tree's hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
}

/// The first tree on which a test failed that fails now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FirstBad {
    /// The tree's hash; unknown where it could not be taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
    /// When, in milliseconds since 1970-01-01 UTC.
    pub at_ms: i64,
}

/// Everything that is remembered of a test.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TestRecord {
    /// Its suite's file.
    pub suite_file: PathBuf,
    /// Its suite's name when it last ran.
    pub suite: String,
    /// Its name.
    pub test: String,
    /// How it ended last.
    pub last: TestOutcome,
    /// How long it usually takes, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_ms: Option<u64>,
    /// The last tree on which it passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_good_tree: Option<String>,
    /// Where it began to fail; only while it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_bad: Option<FirstBad>,
    /// How often it is flaky.
    pub flakes: Flakes,
    /// Its last outcomes, newest first; at most [`KEPT_OUTCOMES`].
    pub outcomes: Vec<PastOutcome>,
}

/// What can go wrong with the history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// A newer Testyard wrote it.
    #[error("the history of tests {} has format {found}; this version reads up to {known}", file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: i64,
        /// The newest that is known here.
        known: i64,
    },
    /// Something else went wrong.
    #[error("cannot {action} the history of tests {}", file.display())]
    Failed {
        /// What was being done.
        action: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The file could not be looked at, made or set aside.
    #[error("cannot {action} the history of tests {}", file.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl HistoryError {
    /// The error as people see it, with what to do next.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Newer { file, .. } => Problem::from_error(ProblemKind::Unsupported, self)
                .hint(format!("use the newer testyard, or begin anew: mv {0} {0}.newer", file.display())),
            Self::Failed { source, file, .. } => {
                let kind = match source.sqlite_error_code() {
                    Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                        ProblemKind::Unavailable
                    }
                    Some(rusqlite::ErrorCode::DiskFull) => ProblemKind::Exhausted,
                    _ => ProblemKind::System,
                };
                Problem::from_error(kind, self)
                    .hint(format!("free some space there, or begin anew: mv {0} {0}.old", file.display()))
            }
            Self::File { .. } => Problem::from_error(ProblemKind::System, self),
        }
    }
}
