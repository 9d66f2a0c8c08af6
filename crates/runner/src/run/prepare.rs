//! From plan to dispatch and back: what each test asks for, and what its result is made of.

use std::collections::{BTreeMap, HashMap};

use testyard_model::Problem;

use super::quarantine;
use super::worker::Payload;
use super::{RunError, RunOptions, Surroundings};
use crate::capture::{CaptureOptions, Captured};
use crate::dispatch::{Dispatched, Policy};
use crate::history::Known;
use crate::job::{Ability, Job, Node, Refusal};
use crate::plan::{Plan, PlannedTest};
use crate::result::{
    Aftermath, Attempt, ExpiredQuarantine, OutputInfo, Outputs, QuarantineMark, TestResult, TreeInfo, Verdict,
};
use crate::schedule::{Demand, Room};
use crate::service::{ServiceScope, Services};

pub(super) struct Prepared {
    pub(super) tests: Vec<Dispatched>,
    /// In which order they are started.
    pub(super) order: Vec<usize>,
    pub(super) trees: Vec<TreeInfo>,
    pub(super) problems: Vec<Problem>,
    /// Each test's quarantine, where it has one that is not past its day.
    pub(super) quarantined: Vec<Option<QuarantineMark>>,
    pub(super) expired: Vec<ExpiredQuarantine>,
}

/// Asks executor and history everything that must be known before the first start.
pub(super) fn prepare(plan: &Plan, options: &RunOptions, around: &Surroundings) -> Result<Prepared, RunError> {
    let needs = plan.needs();
    let answers = if needs.is_empty() { Vec::new() } else { around.executor.abilities(&needs) };
    let abilities: BTreeMap<String, Ability> = needs.into_iter().zip(answers).collect();
    plan.check_needs(&abilities)?;
    let mut trees = Vec::new();
    for suite in &plan.suites {
        let source = |problem| RunError::Source { suite: suite.name.clone(), problem };
        let tree = around.executor.source_tree(&suite.root).map_err(source)?;
        trees.push(TreeInfo {
            suite: suite.name.clone(),
            tree: tree.hash,
            unhashed: tree.unhashed,
            frozen: tree.frozen,
        });
    }
    let (known, problems) = match recalled(plan, around) {
        Ok(known) => (known, Vec::new()),
        Err(problem) => (vec![Known::default(); plan.tests.len()], vec![problem]),
    };
    let order = crate::order::order(&known, options.order, options.failed_first, options.seed);
    let (quarantined, expired) = quarantine::judge(plan, around.clock.unix_ms());
    let mut names = HashMap::new();
    let mut tests = Vec::with_capacity(plan.tests.len());
    for (index, test) in plan.tests.iter().enumerate() {
        tests.push(Dispatched {
            timeout: timeout(test, options),
            demand: demand(test, &mut names),
            refused: test.needs.iter().find_map(|need| refusal(need, abilities.get(need))),
            retries: options.retries.unwrap_or(test.retries),
            quarantined: quarantined[index].is_some(),
            slow_after: Some(test.slow_after),
        });
    }
    Ok(Prepared { tests, order, trees, problems, quarantined, expired })
}

/// What is known of each test; the history is asked where the plan has not.
fn recalled(plan: &Plan, around: &Surroundings) -> Result<Vec<Known>, Problem> {
    let known: Vec<Known> = plan.tests.iter().filter_map(|test| test.known).collect();
    if known.len() == plan.tests.len() {
        return Ok(known);
    }
    let keys: Vec<_> = (0..plan.tests.len()).map(|index| plan.history_key(index)).collect();
    around.history.known(&keys)
}

pub(super) fn policy(options: &RunOptions, nodes: &[Node]) -> Policy {
    let here = Room { jobs: options.jobs.max(1), capacity: options.capacity };
    Policy {
        nodes: if nodes.is_empty() { vec![here] } else { nodes.iter().map(|node| node.room).collect() },
        awaited: (0..nodes.len()).filter(|node| nodes[*node].awaited).collect(),
        fail_fast: options.fail_fast,
        no_skip: options.no_skip,
        attempts: options.attempts.max(1),
        seed: options.seed,
    }
}

fn timeout(test: &PlannedTest, options: &RunOptions) -> std::time::Duration {
    options.timeout.or(test.timeout).unwrap_or(RunOptions::TIMEOUT)
}

fn demand<'a>(test: &'a PlannedTest, names: &mut HashMap<&'a str, u32>) -> Demand {
    let mut number = |name: &'a String| {
        let next = u32::try_from(names.len()).unwrap_or(u32::MAX);
        *names.entry(name).or_insert(next)
    };
    Demand {
        milli_cpus: test.limits.cpus.map_or(0, |cpus| (cpus * 1_000.0).ceil() as u64),
        memory: test.limits.memory.map_or(0, |memory| memory.0),
        exclusive: test.exclusive.iter().map(&mut number).collect(),
    }
}

fn refusal(need: &str, ability: Option<&Ability>) -> Option<Refusal> {
    match ability {
        Some(Ability::Missing { reason, hint }) => {
            Some(Refusal { missing: need.to_owned(), reason: reason.clone(), hint: hint.clone() })
        }
        _ => None,
    }
}

/// What a worker is given for one attempt.
pub(super) fn job(plan: &Plan, index: usize, attempt: u32, node: usize, options: &RunOptions) -> Job {
    let test = &plan.tests[index];
    let suite = plan.suite_of(test);
    let mut env = test.env.clone();
    env.insert("TESTYARD_SUITE".to_owned(), suite.name.clone());
    env.insert("TESTYARD_TEST".to_owned(), test.name.clone());
    env.insert("TESTYARD_ATTEMPT".to_owned(), attempt.to_string());
    env.insert("TESTYARD_RUN".to_owned(), options.run.clone());
    if let Some(variant) = &test.variant {
        env.insert("TESTYARD_VARIANT".to_owned(), variant.clone());
    }
    if let Some(repetition) = test.repetition {
        env.insert("TESTYARD_REPETITION".to_owned(), repetition.to_string());
    }
    if let Some(file) = &test.file {
        env.insert("TESTYARD_FILE".to_owned(), file.to_string_lossy().into_owned());
    }
    Job {
        suite: suite.name.clone(),
        test: test.name.clone(),
        attempt,
        node,
        root: suite.root.clone(),
        argv: test.argv.clone(),
        cwd: test.cwd.clone(),
        env,
        backend: test.backend.clone(),
        image: test.image.clone(),
        needs: test.needs.clone(),
        isolation: test.isolation,
        network: test.network,
        limits: test.limits,
        user: test.user,
        timeout: timeout(test, options),
        run: options.run.clone(),
        outputs: test.outputs.clone(),
        artifacts: test.artifacts.clone(),
        preparation: suite.preparation.clone(),
        sync: suite.file.sync,
        keep_failed: options.keep_failed,
        services: services(plan, test),
        cluster: test.cluster.clone(),
        capture: CaptureOptions {
            folder: options.output.clone(),
            stem: stem(index, &test.name, attempt),
            limit: options.output_limit,
        },
    }
}

/// Whoever uses one of the suite's services gets the network of all of them.
fn services(plan: &Plan, test: &PlannedTest) -> Services {
    let (shared, own): (Vec<_>, Vec<_>) =
        test.services.iter().cloned().partition(|service| service.scope == ServiceScope::Suite);
    if shared.is_empty() {
        return Services { own, shared };
    }
    let tests: Vec<&PlannedTest> = plan.tests.iter().filter(|other| other.suite == test.suite).collect();
    Services { own, shared: plan.suite_of(test).shared(&tests) }
}

/// A file's name from a test's: readable, unique by the number before it.
fn stem(index: usize, name: &str, attempt: u32) -> String {
    let plain =
        |character: char| if character.is_ascii_alphanumeric() || ".-_".contains(character) { character } else { '_' };
    let name: String = name.chars().take(80).map(plain).collect();
    format!("{index}-{name}.{attempt}")
}

/// The result of a test from everything that is known of it.
pub(super) fn result(
    plan: &Plan,
    index: usize,
    verdict: Verdict,
    attempts: Vec<Attempt>,
    payload: Option<Box<Payload>>,
    tree: &TreeInfo,
) -> TestResult {
    let test = &plan.tests[index];
    let source_changed = payload.as_ref().is_some_and(|payload| payload.source_changed);
    let (finished, unserved) = payload.map_or((None, Vec::new()), |payload| (payload.finished, payload.unserved));
    let kept = !verdict.is_success();
    let mut result = TestResult {
        index,
        suite: plan.suite_of(test).name.clone(),
        name: test.name.clone(),
        verdict,
        duration_us: 0,
        tree: if attempts.is_empty() { None } else { tree.tree.clone() },
        attempts,
        usage: None,
        isolation: None,
        environment: None,
        source_changed,
        file: test.file.as_ref().map(|file| file.display().to_string()),
        tags: test.tags.clone(),
        owner: test.owner.clone(),
        stdout: None,
        stderr: None,
        aftermath: Aftermath::default(),
        variant: test.variant.clone(),
        repetition: test.repetition,
        slow: false,
        quarantine: None,
        services: unserved,
        outputs: Outputs::default(),
        earlier: Vec::new(),
    };
    if let Some(finished) = finished {
        result.duration_us = finished.usage.wall_us;
        result.usage = Some(finished.usage);
        result.isolation = Some(finished.environment.isolation);
        result.environment = Some(finished.environment.label);
        result.stdout = Some(info(&finished.stdout, kept));
        result.stderr = Some(info(&finished.stderr, kept));
        result.aftermath = *finished.aftermath;
        if kept {
            result.outputs = Outputs { stdout: finished.stdout, stderr: finished.stderr };
        }
        result.services = finished.services;
    }
    result
}

pub(super) fn info(captured: &Captured, kept: bool) -> OutputInfo {
    OutputInfo {
        bytes: captured.bytes(),
        lost: if kept { captured.lost() } else { 0 },
        file: captured.file().map(|file| file.display().to_string()),
        text: None,
    }
}
