//! Durations of earlier runs, kept in the registry.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use testyard_model::Problem;
use testyard_registry::{Home, Registry, TestDuration, TestOutcome};
use testyard_runner::history::{History, Known, TestKey};
use testyard_runner::result::{TestResult, Verdict};

/// The registry's memory of tests. Opened for each question: there are two in a run.
#[derive(Debug)]
pub struct RegistryHistory {
    home: Home,
    /// Each suite's file, by the suite's name.
    suites: HashMap<String, PathBuf>,
}

impl RegistryHistory {
    /// For suites whose names and files are these.
    #[must_use]
    pub fn new(home: Home, suites: HashMap<String, PathBuf>) -> Self {
        Self { home, suites }
    }

    fn open(&self) -> Result<Registry, Problem> {
        Registry::open(&self.home).map_err(|error| error.problem())
    }
}

impl History for RegistryHistory {
    fn known(&self, tests: &[TestKey<'_>]) -> Result<Vec<Known>, Problem> {
        let registry = self.open()?;
        let mut durations: HashMap<&str, HashMap<String, Duration>> = HashMap::new();
        for (name, file) in &self.suites {
            let known = registry.load_durations(file).map_err(|error| error.problem())?;
            let expected = known.into_iter().map(|(test, history)| (test, history.expected()));
            durations.insert(name, expected.collect());
        }
        let duration = |test: &TestKey<'_>| durations.get(test.suite).and_then(|suite| suite.get(test.name)).copied();
        Ok(tests.iter().map(|test| Known { duration: duration(test) }).collect())
    }

    fn record(&self, _run: &str, results: &[&TestResult]) -> Result<(), Problem> {
        let registry = self.open()?;
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let mut suites: HashMap<&str, Vec<TestDuration>> = HashMap::new();
        for result in results {
            if let Some(duration) = duration_of(result) {
                suites.entry(&result.suite).or_default().push(duration);
            }
        }
        for (suite, durations) in suites {
            if let Some(file) = self.suites.get(suite) {
                registry.save_durations(file, &durations, now_ms).map_err(|error| error.problem())?;
            }
        }
        Ok(())
    }
}

fn duration_of(result: &TestResult) -> Option<TestDuration> {
    let outcome = match &result.verdict {
        Verdict::Passed => TestOutcome::Passed,
        Verdict::Failed { .. } => TestOutcome::Failed,
        Verdict::TimedOut { .. } => TestOutcome::TimedOut,
        // How long it would have taken is not known.
        _ => return None,
    };
    Some(TestDuration { test: result.name.clone(), duration: Duration::from_micros(result.duration_us), outcome })
}
