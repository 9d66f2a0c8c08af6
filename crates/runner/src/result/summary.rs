//! A run in numbers.

use std::fmt;

use serde::{Deserialize, Serialize};
use testyard_model::ExitCode;

use super::{TestResult, Verdict};

/// A quarantine that is past its day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiredQuarantine {
    /// The suite file it stands in.
    pub file: String,
    /// Its line there, from 1.
    pub line: usize,
    /// The pattern of its tests.
    pub test: String,
    /// Who cares about it.
    pub owner: String,
    /// Why failures were borne.
    pub reason: String,
    /// The last day on which they were: `2026-03-31`.
    pub until: String,
}

impl fmt::Display for ExpiredQuarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, test, owner, reason, until } = self;
        write!(f, "{file}:{line}: the quarantine of `{test}` (owner {owner}: {reason}) ended on {until}")
    }
}

/// What tree a suite ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeInfo {
    /// The suite.
    pub suite: String,
    /// The hash of its working tree, where one could be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
    /// Ignored files that its tests could see, for which nothing is claimed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unhashed: Vec<String>,
    /// Its tests saw an immutable copy of the tree.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
}

/// A run in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Tests that passed at once.
    pub passed: usize,
    /// Tests that failed and passed when they were tried again; not among the passed.
    #[serde(default)]
    pub flaky: usize,
    /// Tests that failed or timed out; not those in quarantine.
    pub failed: usize,
    /// Those of the failed that timed out.
    pub timed_out: usize,
    /// Tests in quarantine that failed or timed out.
    #[serde(default)]
    pub quarantined: usize,
    /// Tests that were skipped or not run to their end.
    pub skipped: usize,
    /// Tests without a result because something other than the test failed.
    pub infrastructure_errors: usize,
    /// Attempts that were repeated.
    pub retried: usize,
    /// Tests that took longer than their `slow-after`.
    #[serde(default)]
    pub slow: usize,
    /// Results whose working tree had changed meanwhile.
    pub source_changed: usize,
    /// From the first start to the last end, in microseconds.
    pub duration_us: u64,
    /// The user stopped it.
    pub interrupted: bool,
    /// What each suite ran.
    pub trees: Vec<TreeInfo>,
    /// Quarantines that are past their day and still mean a test of this run; each fails the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expired_quarantines: Vec<ExpiredQuarantine>,
    /// Testyard's exit code.
    pub exit_code: u8,
}

impl RunSummary {
    /// Counts results.
    #[must_use]
    pub fn of<'a>(results: impl IntoIterator<Item = &'a TestResult>, interrupted: bool) -> Self {
        let mut summary = Self {
            passed: 0,
            flaky: 0,
            failed: 0,
            timed_out: 0,
            quarantined: 0,
            skipped: 0,
            infrastructure_errors: 0,
            retried: 0,
            slow: 0,
            source_changed: 0,
            duration_us: 0,
            interrupted,
            trees: Vec::new(),
            expired_quarantines: Vec::new(),
            exit_code: 0,
        };
        let mut code = if interrupted { ExitCode::Interrupted } else { ExitCode::Passed };
        for result in results {
            match &result.verdict {
                Verdict::Passed => summary.passed += 1,
                Verdict::Flaky { .. } => summary.flaky += 1,
                _ if result.is_excused() => summary.quarantined += 1,
                Verdict::Failed(_) => summary.failed += 1,
                Verdict::TimedOut { .. } => {
                    summary.failed += 1;
                    summary.timed_out += 1;
                }
                Verdict::Skipped(_) => summary.skipped += 1,
                Verdict::InfrastructureError { .. } => summary.infrastructure_errors += 1,
            }
            summary.retried += result.retried();
            summary.slow += usize::from(result.slow);
            summary.source_changed += usize::from(result.source_changed);
            // One skipped test among others says nothing about the run; only all of them do.
            let skipped = result.verdict.exit_code() == ExitCode::Skipped;
            if !skipped && !result.is_excused() {
                code = code.worse(result.verdict.exit_code());
            }
        }
        if summary.skipped > 0 && summary.ran() == 0 {
            code = code.worse(ExitCode::Skipped);
        }
        summary.exit_code = code.code();
        summary
    }

    /// Raises the exit code where this one is more telling.
    pub fn raise(&mut self, code: ExitCode) {
        let own = ExitCode::PRECEDENCE.into_iter().find(|known| known.code() == self.exit_code);
        self.exit_code = own.map_or(code, |own| own.worse(code)).code();
    }

    /// Tests that came to a result.
    fn ran(&self) -> usize {
        self.passed + self.flaky + self.failed + self.quarantined + self.infrastructure_errors
    }

    /// Takes note of quarantines that are past their day.
    pub fn add_expired(&mut self, expired: Vec<ExpiredQuarantine>) {
        if !expired.is_empty() {
            self.raise(ExitCode::TestsFailed);
        }
        self.expired_quarantines = expired;
    }

    /// The line that ends every run: `N passed, N failed, N skipped`, and behind it what else there was.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        for (count, word) in [(self.flaky, "flaky"), (self.quarantined, "quarantined")] {
            if count > 0 {
                line.push_str(&format!(", {count} {word}"));
            }
        }
        line
    }
}
