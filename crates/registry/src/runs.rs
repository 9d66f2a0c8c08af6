//! Runs, and how long each test took lately: what lets the longest-known tests start first.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::error::RegistryError;
use crate::registry::Registry;
use crate::stable_hash::stable_hash;

/// How many durations are kept for a test.
const KEPT_DURATIONS: usize = 5;

/// One run of a suite.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// Its id.
    pub id: Uuid,
    /// When it began, in milliseconds since 1970-01-01 UTC.
    pub started_ms: i64,
    /// The folder that was run.
    pub root: PathBuf,
    /// What came out; `None` while it runs, or if it was killed.
    pub summary: Option<Value>,
}

/// How a test last ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TestOutcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// Its deadline passed.
    TimedOut,
    /// It was not run.
    Skipped,
    /// The infrastructure failed, not the test.
    Infrastructure,
}

impl TestOutcome {
    const ALL: [Self; 5] = [Self::Passed, Self::Failed, Self::TimedOut, Self::Skipped, Self::Infrastructure];

    /// The word for it, as in JSON and in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::TimedOut => "timed-out",
            Self::Skipped => "skipped",
            Self::Infrastructure => "infrastructure",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

/// What one test just took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestDuration {
    /// The test's full name in its suite.
    pub test: String,
    /// How long it ran; rounded to milliseconds.
    pub duration: Duration,
    /// How it ended.
    pub outcome: TestOutcome,
}

/// What one test took lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestHistory {
    /// How it last ended.
    pub outcome: TestOutcome,
    /// Its last durations, newest first; at least one.
    pub durations: Vec<Duration>,
}

impl TestHistory {
    /// What to plan with: the middle one of the last durations, so that one hiccup does not reorder a run.
    #[must_use]
    pub fn expected(&self) -> Duration {
        let mut sorted = self.durations.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

impl Registry {
    /// Writes down that a run begins.
    ///
    /// # Errors
    /// The registry failed.
    pub fn record_run(&self, id: Uuid, started_ms: i64, root: &Path) -> Result<(), RegistryError> {
        self.read("record a run", |connection| {
            connection.prepare_cached("INSERT INTO run (id, started_ms, root) VALUES (?1, ?2, ?3)")?.execute(params![
                id.to_string(),
                started_ms,
                root.to_string_lossy()
            ])
        })?;
        Ok(())
    }

    /// Writes down what came out of a run; without a row (it was pruned) nothing happens.
    ///
    /// # Errors
    /// The registry failed.
    pub fn finish_run(&self, id: Uuid, summary: &Value) -> Result<(), RegistryError> {
        self.read("record a run's result", |connection| {
            connection
                .prepare_cached("UPDATE run SET summary = ?2 WHERE id = ?1")?
                .execute(params![id.to_string(), summary.to_string()])
        })?;
        Ok(())
    }

    /// The last runs, newest first.
    ///
    /// # Errors
    /// The registry failed, or a row cannot be read.
    pub fn list_runs(&self, limit: u32) -> Result<Vec<RunRow>, RegistryError> {
        let raw = self.read("list the runs", |connection| {
            connection
                .prepare_cached(
                    "SELECT id, started_ms, root, summary FROM run ORDER BY started_ms DESC, id DESC LIMIT ?1",
                )?
                .query_map([limit], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
                .collect::<rusqlite::Result<Vec<(String, i64, String, Option<String>)>>>()
        })?;
        let decode = |(id, started_ms, root, summary): (String, i64, String, Option<String>)| {
            let row = || format!("run {id}");
            Ok(RunRow {
                id: id.parse().map_err(|_| self.unreadable(row(), "id", id.as_str()))?,
                started_ms,
                root: PathBuf::from(root),
                summary: summary
                    .map(|text| serde_json::from_str(&text).map_err(|_| self.unreadable(row(), "summary", text)))
                    .transpose()?,
            })
        };
        raw.into_iter().map(decode).collect()
    }

    /// Forgets runs that began, and tests last seen, before this time; gives how many rows went.
    ///
    /// # Errors
    /// The registry failed.
    pub fn forget_history_before(&self, time_ms: i64) -> Result<usize, RegistryError> {
        self.write("forget old runs", |transaction| {
            let runs = transaction.execute("DELETE FROM run WHERE started_ms < ?1", [time_ms])?;
            Ok(runs + transaction.execute("DELETE FROM test_duration WHERE updated_ms < ?1", [time_ms])?)
        })
    }

    /// Adds what tests of the suite in this file took, in one commit.
    ///
    /// # Errors
    /// The registry failed.
    pub fn save_durations(&self, suite: &Path, tests: &[TestDuration], now_ms: i64) -> Result<(), RegistryError> {
        let suite = suite_key(suite);
        self.write("record tests' durations", |transaction| {
            let mut known =
                transaction.prepare_cached("SELECT millis FROM test_duration WHERE suite = ?1 AND test = ?2")?;
            let mut save = transaction.prepare_cached(
                "INSERT INTO test_duration (suite, test, outcome, millis, updated_ms) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET outcome = excluded.outcome, millis = excluded.millis,
                                           updated_ms = excluded.updated_ms",
            )?;
            for test in tests {
                let mut millis = test.duration.as_millis().to_string();
                let earlier: Option<String> =
                    known.query_row(params![suite, test.test], |row| row.get(0)).optional()?;
                for number in earlier.iter().flat_map(|text| text.split(' ')).take(KEPT_DURATIONS - 1) {
                    millis.push(' ');
                    millis.push_str(number);
                }
                save.execute(params![suite, test.test, test.outcome.as_str(), millis, now_ms])?;
            }
            Ok(())
        })
    }

    /// What the tests of the suite in this file took lately, by full name.
    ///
    /// # Errors
    /// The registry failed, or a row cannot be read.
    pub fn load_durations(&self, suite: &Path) -> Result<HashMap<String, TestHistory>, RegistryError> {
        let raw = self.read("read tests' durations", |connection| {
            connection
                .prepare_cached("SELECT test, outcome, millis FROM test_duration WHERE suite = ?1")?
                .query_map([suite_key(suite)], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect::<rusqlite::Result<Vec<(String, String, String)>>>()
        })?;
        let decode = |(test, outcome, millis): (String, String, String)| {
            let row = || format!("the duration of test {test}");
            let durations = millis
                .split(' ')
                .map(|number| number.parse().map(Duration::from_millis))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| self.unreadable(row(), "millis", millis.as_str()))?;
            let outcome =
                TestOutcome::from_word(&outcome).ok_or_else(|| self.unreadable(row(), "outcome", outcome.as_str()))?;
            Ok((test, TestHistory { outcome, durations }))
        };
        raw.into_iter().map(decode).collect()
    }
}

/// A suite is known by its file's path; two that collide would share a history, which only misorders a run.
fn suite_key(suite: &Path) -> i64 {
    stable_hash(suite.as_os_str().as_bytes()).cast_signed()
}
