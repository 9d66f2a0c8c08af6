//! What earlier runs tell of tests, kept in the home's history file.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use testyard_model::{Problem, ProblemKind};
use testyard_registry::{HistoryError, HistoryFile, Home, NewOutcome, TestOutcome, TestRecord};
use testyard_runner::history::{History, Known, TestKey};
use testyard_runner::result::{SkipReason, TestResult, Verdict};

/// The home's memory of tests.
#[derive(Debug)]
pub struct RegistryHistory(Mutex<HistoryFile>);

impl RegistryHistory {
    /// In this home; nothing is opened yet.
    #[must_use]
    pub fn new(home: &Home) -> Self {
        Self(Mutex::new(HistoryFile::new(home)))
    }

    /// What is remembered of the tests whose name contains this, at most `limit`; with a folder, only of suites in
    /// it, above it and below it.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn find(&self, part: &str, near: Option<&Path>, limit: u32) -> Result<Vec<TestRecord>, Problem> {
        self.file().find(part, near, limit).map_err(told)
    }

    fn file(&self) -> MutexGuard<'_, HistoryFile> {
        // Each piece of work there is one transaction: a panic leaves none half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn told(error: HistoryError) -> Problem {
    error.problem()
}

impl History for RegistryHistory {
    fn known(&self, tests: &[TestKey<'_>]) -> Result<Vec<Known>, Problem> {
        let mut file = self.file();
        let mut known = Vec::with_capacity(tests.len());
        for suite in tests.chunk_by(|a, b| a.file == b.file) {
            let names: Vec<&str> = suite.iter().map(|key| key.name).collect();
            let last = file.last(suite[0].file, &names).map_err(told)?;
            known.extend(last.into_iter().map(|last| Known {
                duration: last.and_then(|last| last.expected),
                last: last.map(|last| last.outcome.as_str()),
            }));
        }
        Ok(known)
    }

    fn record(&self, run: &str, results: &[(TestKey<'_>, &TestResult)]) -> Result<(), Problem> {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let mut outcomes = Vec::with_capacity(results.len());
        for (key, result) in results {
            let Some(outcome) = outcome_of(&result.verdict) else { continue };
            let failed = result.attempts.iter().filter(|attempt| attempt.verdict.is_failure()).count();
            let before_the_last = failed.saturating_sub(usize::from(result.verdict.is_failure()));
            outcomes.push(NewOutcome {
                suite_file: key.file,
                suite: &result.suite,
                test: key.name,
                outcome,
                duration: Duration::from_micros(result.duration_us),
                failed_attempts: u32::try_from(before_the_last).unwrap_or(u32::MAX),
                tree: result.tree.as_deref(),
            });
        }
        self.file().record(run, now_ms, &outcomes).map_err(told)
    }

    fn remark(&self) -> Option<Problem> {
        let aside = self.file().take_set_aside()?;
        let problem = Problem::new(ProblemKind::System, "the history of tests was damaged and is begun anew");
        Some(problem.hint(format!("what was left of it is in {}", aside.display())))
    }
}

/// None where the run never came to it.
fn outcome_of(verdict: &Verdict) -> Option<TestOutcome> {
    Some(match verdict {
        Verdict::Passed => TestOutcome::Passed,
        Verdict::Flaky { .. } => TestOutcome::Flaky,
        Verdict::Failed(_) => TestOutcome::Failed,
        Verdict::TimedOut { .. } => TestOutcome::TimedOut,
        Verdict::Skipped(SkipReason::Missing { .. }) => TestOutcome::Skipped,
        Verdict::Skipped(_) => return None,
        Verdict::InfrastructureError { .. } => TestOutcome::Infrastructure,
    })
}
