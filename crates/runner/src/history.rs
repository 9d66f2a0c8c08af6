//! What earlier runs tell about tests.

use std::path::Path;
use std::time::Duration;

use testyard_model::Problem;

use crate::result::TestResult;

/// A test, across runs: repetitions of it in one run are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TestKey<'a> {
    /// Its suite's file.
    pub file: &'a Path,
    /// Its name in the suite, with its variant.
    pub name: &'a str,
}

/// What is known of a test from earlier runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    /// How long it usually takes.
    pub duration: Option<Duration>,
    /// The word for its last result, as in JSON; none where it has never run.
    pub last: Option<&'static str>,
}

impl Known {
    /// Whether it is to be run again when only failures are: it failed, or could not come to a result.
    #[must_use]
    pub fn failed(&self) -> bool {
        matches!(self.last, Some("failed" | "timed-out" | "infrastructure-error"))
    }
}

/// Remembers tests across runs.
pub trait History: Send + Sync {
    /// What is known of each of these, in their order. Those of one suite come together.
    ///
    /// # Errors
    /// Where the history cannot be read; a run that does not depend on it goes on without it and says so.
    fn known(&self, tests: &[TestKey<'_>]) -> Result<Vec<Known>, Problem>;

    /// Remembers the results of a run. Called once, at its end.
    ///
    /// # Errors
    /// Where the history cannot be written; the run's results stand and it says so.
    fn record(&self, run: &str, results: &[(TestKey<'_>, &TestResult)]) -> Result<(), Problem>;

    /// What there is to say of the history itself, once.
    fn remark(&self) -> Option<Problem>;
}

/// Remembers nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHistory;

impl History for NoHistory {
    fn known(&self, tests: &[TestKey<'_>]) -> Result<Vec<Known>, Problem> {
        Ok(vec![Known::default(); tests.len()])
    }

    fn record(&self, _run: &str, _results: &[(TestKey<'_>, &TestResult)]) -> Result<(), Problem> {
        Ok(())
    }

    fn remark(&self) -> Option<Problem> {
        None
    }
}
