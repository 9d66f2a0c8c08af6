//! Which attempt ran when, on which machine, by which worker: what timelines are drawn from.

use std::collections::HashMap;

use super::record::RunRecord;

/// The name of the machine for attempts of which nobody knows where they ran.
const NOWHERE: &str = "not started";

/// An attempt on the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bar {
    /// Of which test, by its place among the results.
    pub(super) test: usize,
    /// Which, by its place among the test's attempts.
    pub(super) attempt: usize,
    /// When it began, in milliseconds from the run's beginning.
    pub(super) start_ms: u64,
    /// Where, by its place in [`Lanes::machines`].
    pub(super) machine: usize,
    /// By which worker.
    pub(super) lane: usize,
}

/// All attempts of a run.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    pub(super) machines: Vec<String>,
    pub(super) bars: Vec<Bar>,
}

impl Lanes {
    pub(super) fn of(record: &RunRecord) -> Self {
        let mut lanes = Self::default();
        let mut known: HashMap<&str, usize> = HashMap::new();
        for (test, result) in record.results.iter().enumerate() {
            let machine = result.environment.as_deref().map_or(NOWHERE, machine_of);
            for (attempt, tried) in result.attempts.iter().enumerate() {
                let machine = *known.entry(machine).or_insert_with(|| {
                    lanes.machines.push(machine.to_owned());
                    lanes.machines.len() - 1
                });
                let start_ms = u64::try_from(tried.started_ms - record.info.started_ms).unwrap_or(0);
                let lane = tried.worker.unwrap_or(0) as usize;
                lanes.bars.push(Bar { test, attempt, start_ms, machine, lane });
            }
        }
        lanes.bars.sort_by_key(|bar| (bar.start_ms, bar.lane));
        lanes
    }
}

/// The machine in an environment's label.
pub(super) fn machine_of(environment: &str) -> &str {
    let mut slashes = environment.match_indices('/').map(|(place, _)| place);
    slashes.nth(1).map_or(environment, |place| &environment[..place])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_what_stands_before_the_environment() {
        assert_eq!(machine_of("namespace/m1/e17"), "namespace/m1");
        assert_eq!(machine_of("this host"), "this host");
    }
}
