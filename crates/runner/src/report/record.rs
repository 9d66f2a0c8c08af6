//! A whole run as a value: what every report but the live ones is made of.
//!
//! Collected while a run goes on, or read back from the JSON lines in which runs are kept.

use std::collections::HashSet;
use std::io::{self, BufRead, Read as _};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use testyard_model::Problem;

use super::Announcement;
use crate::capture::Captured;
use crate::plan::ShardInfo;
use crate::result::{JSON_VERSION, OutputInfo, Outputs, RunSummary, TestResult, TreeInfo};

/// A line of a kept run is never longer: a result has two texts of 64 KiB, in JSON up to six times as long.
const LONGEST_LINE: u64 = 16 << 20;

/// What a run begins with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct RunInfo {
    /// The run's id, a UUID.
    pub run: String,
    /// When, in milliseconds since 1970-01-01 UTC.
    #[serde(default)]
    pub started_ms: i64,
    /// How many tests there are.
    pub tests: usize,
    /// How many at once.
    pub jobs: usize,
    /// What each suite runs.
    pub trees: Vec<TreeInfo>,
    /// What the order follows from, where it is random.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Which part of the tests these are, where they are a part.
    #[serde(default)]
    pub shard: Option<ShardInfo>,
}

/// A run, as far as it came.
#[derive(Debug, Default)]
pub struct RunRecord {
    /// How it began.
    pub info: RunInfo,
    /// The results, in the order of the plan once the run is over.
    pub results: Vec<Arc<TestResult>>,
    /// What went wrong beside the tests.
    pub warnings: Vec<Problem>,
    /// Its numbers; none where it was killed before its end.
    pub ended: Option<RunSummary>,
    /// Tests that had been started and have no result, as `suite::name`.
    pub unfinished: Vec<String>,
}

/// A kept run that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[from] io::Error),
    /// Not what this version writes.
    #[error("line {line} is not a line of version {JSON_VERSION}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// Why, where it is JSON's doing.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// It ended before it began.
    #[error("it does not say how the run began")]
    Empty,
}

#[derive(Deserialize)]
struct Line {
    version: u32,
    time_ms: i64,
    event: String,
    #[serde(flatten)]
    rest: Value,
}

#[derive(Deserialize)]
struct Started {
    suite: String,
    name: String,
}

#[derive(Deserialize)]
struct Warned {
    problem: Problem,
}

impl RunRecord {
    /// Remembers what a report will need.
    pub(super) fn take(&mut self, announcement: &Announcement) {
        match announcement {
            Announcement::RunStarted(info) => self.info = info.clone(),
            Announcement::TestFinished(result) => self.results.push(result.clone()),
            Announcement::Warning(problem) => self.warnings.push(problem.clone()),
            Announcement::RunFinished(summary) => {
                self.results.sort_by_key(|result| result.index);
                self.ended = Some(RunSummary::clone(summary));
            }
            _ => {}
        }
    }

    /// Reads a run from the JSON lines in which it was kept. A last line that was cut short is left out.
    ///
    /// # Errors
    /// Where it cannot be read, or was written by a version that this one does not know.
    pub fn read(mut from: impl BufRead) -> Result<Self, RecordError> {
        let mut record = Self::default();
        let mut begun = false;
        let mut open: Vec<(String, String)> = Vec::new();
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            (&mut from as &mut dyn BufRead).take(LONGEST_LINE).read_until(b'\n', &mut bytes)?;
            if !bytes.ends_with(b"\n") {
                // The end, or a runner that died while it wrote.
                break;
            }
            let told = parse::<Line>(&bytes, line)?;
            if told.version != JSON_VERSION {
                return Err(RecordError::Line { line, source: None });
            }
            match told.event.as_str() {
                "run-started" => {
                    record.info = of_value(told.rest, line)?;
                    record.info.started_ms = told.time_ms;
                    begun = true;
                }
                "test-started" => {
                    let Started { suite, name } = of_value(told.rest, line)?;
                    open.push((suite, name));
                }
                "test-finished" => {
                    let mut result: TestResult = of_value(told.rest, line)?;
                    recover_outputs(&mut result);
                    open.retain(|(suite, name)| (suite, name) != (&result.suite, &result.name));
                    record.results.push(Arc::new(result));
                }
                "warning" => record.warnings.push(of_value::<Warned>(told.rest, line)?.problem),
                "run-finished" => record.ended = Some(of_value(told.rest, line)?),
                _ => {}
            }
        }
        if !begun {
            return Err(RecordError::Empty);
        }
        record.results.sort_by_key(|result| result.index);
        record.unfinished = open.into_iter().map(|(suite, name)| format!("{suite}::{name}")).collect();
        Ok(record)
    }

    /// Its numbers; of a run that was killed, those of the results that there are.
    #[must_use]
    pub fn summary(&self) -> RunSummary {
        self.ended.clone().unwrap_or_else(|| {
            let mut summary = RunSummary::of(self.results.iter().map(AsRef::as_ref), true);
            summary.trees.clone_from(&self.info.trees);
            summary.duration_us = self.last_end_us();
            summary
        })
    }

    /// Leaves only the tests that did not pass.
    pub fn keep_failed(&mut self) {
        self.results.retain(|result| result.verdict.is_failure() || result.verdict.is_error());
    }

    /// The names of its suites, in the order of the plan.
    #[must_use]
    pub fn suites(&self) -> Vec<&str> {
        let trees = self.info.trees.iter().map(|tree| tree.suite.as_str());
        let mut seen = HashSet::new();
        trees.chain(self.results.iter().map(|result| result.suite.as_str())).filter(|name| seen.insert(*name)).collect()
    }

    /// When the last attempt ended, in microseconds from the run's beginning.
    fn last_end_us(&self) -> u64 {
        let attempts = self.results.iter().flat_map(|result| &result.attempts);
        let ends = attempts.map(|attempt| {
            let after = u64::try_from(attempt.started_ms - self.info.started_ms).unwrap_or(0);
            after * 1_000 + attempt.duration_us
        });
        ends.max().unwrap_or(0)
    }
}

/// The output that a result speaks of: the file with all of it where it is still there, else its text.
fn recover_outputs(result: &mut TestResult) {
    let recover = |info: &mut Option<OutputInfo>| {
        let Some(info) = info else { return Captured::default() };
        let text = info.text.take();
        let kept = info.bytes.saturating_sub(info.lost);
        let file = info.file.as_ref().and_then(|file| Captured::at(file.into(), info.bytes, kept));
        file.unwrap_or_else(|| text.map_or_else(Captured::default, |text| Captured::of(text.as_bytes())))
    };
    result.outputs = Outputs { stdout: recover(&mut result.stdout), stderr: recover(&mut result.stderr) };
    let earlier = result.attempts.iter_mut().filter(|attempt| attempt.stdout.is_some() || attempt.stderr.is_some());
    result.earlier = earlier
        .map(|attempt| {
            let outputs = Outputs { stdout: recover(&mut attempt.stdout), stderr: recover(&mut attempt.stderr) };
            (attempt.number, outputs)
        })
        .collect();
    for service in &mut result.services {
        service.log = service.text.take().map_or_else(Captured::default, |text| Captured::of(text.as_bytes()));
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8], line: usize) -> Result<T, RecordError> {
    serde_json::from_slice(bytes).map_err(|error| RecordError::Line { line, source: Some(error) })
}

fn of_value<T: DeserializeOwned>(value: Value, line: usize) -> Result<T, RecordError> {
    serde_json::from_value(value).map_err(|error| RecordError::Line { line, source: Some(error) })
}
