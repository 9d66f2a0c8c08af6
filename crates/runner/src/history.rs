//! What earlier runs tell about tests.

use std::time::Duration;

use testyard_model::Problem;

use crate::result::TestResult;

/// A test, across runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TestKey<'a> {
    /// The suite's name.
    pub suite: &'a str,
    /// The test's name.
    pub name: &'a str,
}

/// What is known of a test from earlier runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    /// How long it usually takes.
    pub duration: Option<Duration>,
}

/// Remembers tests across runs.
pub trait History: Send + Sync {
    /// What is known of each of these, in their order. Asked once for a run: one query, not one a test.
    ///
    /// # Errors
    /// Where the history cannot be read; the run goes on without it and says so.
    fn known(&self, tests: &[TestKey<'_>]) -> Result<Vec<Known>, Problem>;

    /// Remembers the results of a run. Called once, at its end.
    ///
    /// # Errors
    /// Where the history cannot be written; the run's results stand and it says so.
    fn record(&self, run: &str, results: &[&TestResult]) -> Result<(), Problem>;
}

/// Remembers nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHistory;

impl History for NoHistory {
    fn known(&self, tests: &[TestKey<'_>]) -> Result<Vec<Known>, Problem> {
        Ok(vec![Known::default(); tests.len()])
    }

    fn record(&self, _run: &str, _results: &[&TestResult]) -> Result<(), Problem> {
        Ok(())
    }
}
