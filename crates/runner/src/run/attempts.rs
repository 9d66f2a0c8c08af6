//! What attempts before the last left: their output, and what was seen of their processes.

use std::collections::HashMap;

use super::prepare::info;
use super::worker::Payload;
use crate::inspect::Inspection;
use crate::result::{Attempt, OutputInfo, Outputs, TestResult};

/// Attempts that were repeated, until their test has its result.
#[derive(Debug, Default)]
pub(super) struct PastAttempts {
    ended: HashMap<usize, Vec<Past>>,
    inspected: HashMap<(usize, u32), Inspection>,
}

#[derive(Debug)]
struct Past {
    number: u32,
    stdout: OutputInfo,
    stderr: OutputInfo,
    outputs: Outputs,
}

impl PastAttempts {
    /// An attempt ended and will be repeated; the attempt with what is known of its output.
    pub(super) fn ended(&mut self, test: usize, mut attempt: Attempt, payload: Option<Box<Payload>>) -> Attempt {
        attempt.inspection = self.inspected.get(&(test, attempt.number)).cloned();
        let Some(finished) = payload.and_then(|payload| payload.finished) else { return attempt };
        let (stdout, stderr) = (info(&finished.stdout, true), info(&finished.stderr, true));
        attempt.stdout = Some(stdout.clone());
        attempt.stderr = Some(stderr.clone());
        let outputs = Outputs { stdout: finished.stdout, stderr: finished.stderr };
        self.ended.entry(test).or_default().push(Past { number: attempt.number, stdout, stderr, outputs });
        attempt
    }

    /// A running attempt was looked at; a later look replaces an earlier one.
    pub(super) fn inspected(&mut self, test: usize, attempt: u32, inspection: Inspection) {
        self.inspected.insert((test, attempt), inspection);
    }

    /// Gives a result what its attempts left. What was seen of one that then ended by itself is of no use to anybody.
    pub(super) fn complete(&mut self, result: &mut TestResult) {
        for attempt in &mut result.attempts {
            let seen = self.inspected.remove(&(result.index, attempt.number));
            attempt.inspection = seen.filter(|_| attempt.verdict.as_str() == "timed-out");
        }
        for past in self.ended.remove(&result.index).unwrap_or_default() {
            if let Some(attempt) = result.attempts.iter_mut().find(|attempt| attempt.number == past.number) {
                attempt.stdout = Some(past.stdout);
                attempt.stderr = Some(past.stderr);
            }
            result.earlier.push((past.number, past.outputs));
        }
    }
}
