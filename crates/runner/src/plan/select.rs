//! Which of the tests at some paths are meant, and how often each runs.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::changed::Changes;
use super::error::PlanError;
use super::shard::{Shard, ShardBy};
use super::{Plan, PlannedSuite, PlannedTest};
use crate::filter::Filter;
use crate::history::History;

/// More runs of tests than this in one run are a mistake.
const MOST: usize = 100_000;

/// What is meant, of the tests at the paths.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Those that this means.
    pub filter: Filter,
    /// Only those that depend on a file that has changed since this commit, or that do not say what they depend on.
    pub changed_since: Option<String>,
    /// Only those whose last result was a failure or an infrastructure error.
    pub last_failed: bool,
    /// Only one part of them.
    pub shard: Option<Shard>,
    /// By what the parts are balanced.
    pub shard_by: ShardBy,
    /// How often each runs; none means once, and says so nowhere.
    pub repeat: Option<u32>,
}

impl Selection {
    /// Those that a filter means.
    #[must_use]
    pub fn of(filter: Filter) -> Self {
        let shard_by = ShardBy::Durations;
        Self { filter, changed_since: None, last_failed: false, shard: None, shard_by, repeat: None }
    }

    /// Whether it depends on earlier runs.
    #[must_use]
    pub fn needs_history(&self) -> bool {
        self.last_failed || self.filter.asks_for_results() || (self.shard.is_some() && self.shard_by.needs_history())
    }
}

/// Leaves of a plan what is meant. Suites of which nothing is left go too.
pub(super) fn apply(plan: &mut Plan, selection: &Selection, history: &dyn History) -> Result<(), PlanError> {
    let candidates = plan.tests.len();
    if selection.needs_history() {
        plan.recall(history).map_err(PlanError::History)?;
    }
    let suites = std::mem::take(&mut plan.suites);
    let all = std::mem::take(&mut plan.tests);
    let kept = |test: &PlannedTest| {
        selection.filter.matches(&test.facts(&suites[test.suite].name))
            && (!selection.last_failed || test.known.is_some_and(|known| known.failed()))
    };
    // Looked for only where it will be told.
    let nearest = match all.iter().any(kept) {
        true => None,
        false => selection.filter.nearest(all.iter().map(|test| test.name.as_str())),
    };
    plan.tests = all.into_iter().filter(kept).collect();
    if let Some(reference) = &selection.changed_since {
        let mut concerned = Concerned::since(reference);
        let mut kept = Vec::new();
        for test in std::mem::take(&mut plan.tests) {
            if concerned.is(&suites[test.suite], &test)? {
                kept.push(test);
            }
        }
        plan.tests = kept;
    }
    if let Some(shard) = selection.shard {
        plan.shard = Some(shard.take(&mut plan.tests, &suites, selection.shard_by));
    }
    if plan.tests.is_empty() {
        return Err(PlanError::NothingSelected { candidates, why: why(selection), nearest });
    }
    if let Some(times) = selection.repeat {
        repeat(plan, times)?;
    }
    plan.keep_suites(suites);
    Ok(())
}

/// What made nothing be left.
fn why(selection: &Selection) -> String {
    let mut reasons = Vec::new();
    if !matches!(selection.filter, Filter::All) {
        reasons.push("matches the filter".to_owned());
    }
    if selection.last_failed {
        reasons.push("failed in its last run".to_owned());
    }
    if let Some(reference) = &selection.changed_since {
        reasons.push(format!("depends on what changed since {reference}"));
    }
    if let Some(shard) = selection.shard {
        reasons.push(format!("is in shard {shard}"));
    }
    if reasons.is_empty() { "is there".to_owned() } else { reasons.join(" and ") }
}

/// Each test so often, all of them once before any of them twice.
fn repeat(plan: &mut Plan, times: u32) -> Result<(), PlanError> {
    let once = std::mem::take(&mut plan.tests);
    let all = once.len().saturating_mul(times as usize);
    if all > MOST {
        return Err(PlanError::TooManyRuns { tests: once.len(), times, most: MOST });
    }
    plan.tests.reserve(all);
    for number in 1..=times {
        plan.tests.extend(once.iter().map(|test| {
            let mut test = test.clone();
            test.name = format!("{} #{number}", test.name);
            test.repetition = Some(number);
            test
        }));
    }
    Ok(())
}

/// Which tests a change concerns.
struct Concerned<'a> {
    changes: Changes<'a>,
    inputs: ChangedInputs,
}

/// Whether files that changed are among the inputs that tests declare. For one set of changed files: what was found out for
/// one test is remembered for those that declare the same.
#[derive(Debug, Default)]
pub struct ChangedInputs {
    /// For each suite's folder and patterns, whether a changed file is among them.
    known: HashMap<(PathBuf, Vec<String>), bool>,
}

impl ChangedInputs {
    /// Of a test that declares inputs: whether one of the files is among them, or is the test's own file or its suite's.
    pub fn has(&mut self, suite: &PlannedSuite, test: &PlannedTest, changed: &BTreeSet<PathBuf>) -> bool {
        let own = test.file.as_ref().is_some_and(|file| changed.contains(file));
        if own || changed.contains(suite.file.source.path()) {
            return true;
        }
        match self.known.entry((suite.root.clone(), test.inputs.clone())) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                let inputs = patterns(&suite.root, &test.inputs);
                *place.insert(changed.iter().any(|file| inputs.is_match(file)))
            }
        }
    }
}

impl<'a> Concerned<'a> {
    fn since(reference: &'a str) -> Self {
        Self { changes: Changes::since(reference), inputs: ChangedInputs::default() }
    }

    fn is(&mut self, suite: &PlannedSuite, test: &PlannedTest) -> Result<bool, PlanError> {
        let changed = self.changes.around(&suite.root)?;
        // A test that does not say what it depends on may depend on anything.
        Ok(test.inputs.is_empty() || self.inputs.has(suite, test, changed))
    }
}

/// The patterns as absolute ones; they may begin with `../`.
fn patterns(root: &Path, inputs: &[String]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for input in inputs {
        let mut folder = root.to_owned();
        let mut rest = input.as_str();
        loop {
            if let Some(inner) = rest.strip_prefix("./") {
                rest = inner;
            } else if let Some(outer) = rest.strip_prefix("../") {
                folder.pop();
                rest = outer;
            } else {
                break;
            }
        }
        debug_assert!(!Path::new(rest).components().any(|part| part == Component::ParentDir), "the parser refuses it");
        let folder = globset::escape(&folder.to_string_lossy());
        // The parser has refused the others.
        if let Ok(glob) = GlobBuilder::new(&format!("{folder}/{rest}")).literal_separator(true).build() {
            set.add(glob);
        }
    }
    set.build().unwrap_or_else(|_| GlobSet::empty())
}
