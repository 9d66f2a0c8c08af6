//! How often a test is flaky, and how sure that is.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::{PastOutcome, TestOutcome};

/// The standard score of a 95 % interval.
const SCORE: f64 = 1.959_963_984_540_054;

/// A test's flake rate over its remembered runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flakes {
    /// Runs in which it both failed and passed, or failed on a tree on which it passed in another.
    pub flaky: u32,
    /// Runs in which it passed or failed.
    pub runs: u32,
    /// The first as a part of the second, 0 to 1; 0 where there are no runs.
    pub rate: f64,
    /// The lower end of the rate's 95 % interval (Wilson's).
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Flakes {
    /// Counts over remembered outcomes.
    #[must_use]
    pub fn of(outcomes: &[PastOutcome]) -> Self {
        let mut passed_on: HashSet<&str> = HashSet::new();
        for past in outcomes.iter().filter(|past| matches!(past.outcome, TestOutcome::Passed | TestOutcome::Flaky)) {
            passed_on.extend(past.tree.as_deref());
        }
        let mut runs: HashMap<&str, bool> = HashMap::new();
        for past in outcomes.iter().filter(|past| past.outcome.is_verdict()) {
            let same_tree = past.tree.as_deref().is_some_and(|tree| passed_on.contains(tree));
            let flaky = past.outcome == TestOutcome::Flaky || (past.outcome.is_failure() && same_tree);
            *runs.entry(&past.run).or_default() |= flaky;
        }
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self::rate(count(runs.values().filter(|flaky| **flaky).count()), count(runs.len()))
    }

    /// `flaky` of `runs`, with Wilson's interval: honest for few runs and for rates near 0, where the usual one is not.
    fn rate(flaky: u32, runs: u32) -> Self {
        if runs == 0 {
            return Self { flaky, runs, rate: 0.0, low: 0.0, high: 1.0 };
        }
        let (hits, all) = (f64::from(flaky), f64::from(runs));
        let rate = hits / all;
        let square = SCORE * SCORE;
        let middle = (rate + square / (2.0 * all)) / (1.0 + square / all);
        let half = SCORE / (1.0 + square / all) * (rate * (1.0 - rate) / all + square / (4.0 * all * all)).sqrt();
        let low = if flaky == 0 { 0.0 } else { (middle - half).max(0.0) };
        let high = if flaky == runs { 1.0 } else { (middle + half).min(1.0) };
        Self { flaky, runs, rate, low, high }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(run: &str, outcome: TestOutcome, tree: &str) -> PastOutcome {
        PastOutcome {
            run: run.to_owned(),
            at_ms: 0,
            outcome,
            duration_us: 1,
            failed_attempts: 0,
            tree: Some(tree.to_owned()),
        }
    }

    #[test]
    fn wilsons_interval_is_the_published_one() {
        let close = |a: f64, b: f64| (a - b).abs() < 5e-5;
        let of = Flakes::rate(1, 10);
        assert!(close(of.low, 0.01788) && close(of.high, 0.40415), "{of:?}");
        let none = Flakes::rate(0, 20);
        assert!(close(none.low, 0.0) && close(none.high, 0.16113), "{none:?}");
        assert_eq!((Flakes::rate(5, 5).high, Flakes::rate(0, 0).high), (1.0, 1.0));
    }

    #[test]
    fn a_failure_on_a_tree_that_also_passed_is_a_flake() {
        use TestOutcome::{Failed, Flaky, Infrastructure, Passed, Skipped};
        let all = [
            past("1", Passed, "a"),
            past("2", Failed, "a"),
            past("3", Failed, "b"),
            past("4", Flaky, "c"),
            past("5", Skipped, "a"),
            past("6", Infrastructure, "a"),
            // Repetitions of one run count once.
            past("7", Passed, "d"),
            past("7", Failed, "d"),
        ];
        let flakes = Flakes::of(&all);
        assert_eq!((flakes.flaky, flakes.runs), (3, 5));
    }
}
