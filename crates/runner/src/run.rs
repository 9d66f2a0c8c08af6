//! A run: the one place that owns threads and channels and acts on what [`Dispatch`] decides.
//!
//! Everything that happens arrives in one channel as an [`Event`]: the workers' news and ends, the user's
//! interrupts. Workers run jobs and never print; what people and files see goes through the reports' own thread,
//! so that a terminal that is stopped stops nothing else.

mod attempts;
mod joining;
mod look;
mod prepare;
mod quarantine;
mod worker;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use testyard_model::step::Step;
use testyard_model::{ExitCode, Problem, microseconds};

use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::dispatch::{Command, Dispatch, Input, Moment};
use crate::history::History;
use crate::inspect::Inspection;
use crate::job::{Executor, Node};
use crate::order::Order;
use crate::plan::{Plan, PlanError};
use crate::report::{Announcement, Reporting, RunInfo};
use crate::result::{Attempt, ExpiredQuarantine, QuarantineMark, RunSummary, TestResult, TreeInfo, Verdict};
use crate::schedule::{Capacity, Room};
use crate::suite::RunSettings;

use attempts::PastAttempts;
use joining::Joining;
use look::Looker;
use prepare::Prepared;
use worker::{Assignment, Payload, Workers};

/// How to run a plan.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Tests at once, where all run in one place; above 0.
    pub jobs: usize,
    /// Tests at once on each of several machines; none means one a processor.
    pub node_jobs: Option<usize>,
    /// Replaces every test's own timeout.
    pub timeout: Option<Duration>,
    /// Start nothing more after a failure.
    pub fail_fast: bool,
    /// A skip for want of something is a failure.
    pub no_skip: bool,
    /// Attempts of a test that meets transient infrastructure errors.
    pub attempts: u32,
    /// What tests may use together, where all run in one place.
    pub capacity: Capacity,
    /// Where a folder is made, named by the run's id, for output that is too much to hold; only when it is needed.
    pub output: PathBuf,
    /// How long the environments of failed tests are kept; none ends them.
    pub keep_failed: Option<Duration>,
    /// The run's id, a UUID; set when it begins.
    pub run: String,
    /// Bytes of one stream held in memory.
    pub output_limit: usize,
    /// How often a failure is tried again; replaces every test's own.
    pub retries: Option<u32>,
    /// Which tests are started first.
    pub order: Order,
    /// Those that failed last before all others.
    pub failed_first: bool,
    /// Decides the jitter of repetitions, and a random order.
    pub seed: u64,
    /// Called at the steps at which a runner can die and leave something.
    pub step: fn(Step),
}

impl RunOptions {
    /// How long a test may take that does not say.
    pub const TIMEOUT: Duration = Duration::from_secs(600);

    /// Takes over what the suites say; options that the command line sets come after it.
    pub fn apply(&mut self, settings: &RunSettings) {
        self.jobs = settings.jobs.map_or(self.jobs, |jobs| jobs as usize);
        self.fail_fast = settings.fail_fast.unwrap_or(self.fail_fast);
        self.no_skip = settings.no_skip.unwrap_or(self.no_skip);
    }

    /// As many tests at once as there are processors, and everything else as usual.
    #[must_use]
    pub fn new(output: PathBuf) -> Self {
        let Room { jobs, capacity } = room_of_host();
        Self {
            jobs,
            node_jobs: None,
            timeout: None,
            fail_fast: false,
            no_skip: false,
            attempts: 3,
            capacity,
            output,
            keep_failed: None,
            run: String::new(),
            output_limit: crate::capture::CaptureOptions::LIMIT,
            retries: None,
            order: Order::Longest,
            failed_first: false,
            seed: 0,
            step: |_| (),
        }
    }
}

/// What this host gives to tests: a slot a processor.
#[must_use]
pub fn room_of_host() -> Room {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Room { jobs, capacity: Capacity { milli_cpus: jobs as u64 * 1_000, memory: memory_of_host() } }
}

/// What tests may set aside of the host's memory: nine tenths of what was available.
fn memory_of_host() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kilobytes.map_or(u64::MAX, |kilobytes| kilobytes * 1024 / 10 * 9)
}

/// What a run gave.
#[derive(Debug)]
pub struct RunReport {
    /// The run's id, a UUID.
    pub run: String,
    /// Numbers and the exit code.
    pub summary: RunSummary,
    /// One result for each test, in the order of the plan.
    pub results: Vec<Arc<TestResult>>,
    /// What went wrong beside the tests: reports or a history that could not be written.
    pub problems: Vec<Problem>,
}

/// Why a run did not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A suite asks for something that nobody knows.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The working tree cannot be read.
    #[error("cannot tell what source suite `{suite}` runs")]
    Source {
        /// The suite.
        suite: String,
        /// Why.
        problem: Problem,
    },
}

impl RunError {
    /// As every other error is shown.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Plan(error) => error.problem(),
            Self::Source { problem, .. } => {
                let mut whole = Problem::new(problem.kind, self.to_string()).because(&problem.message);
                whole.causes.extend(problem.causes.iter().cloned());
                whole.hints.clone_from(&problem.hints);
                whole
            }
        }
    }
}

/// Everything that can happen to a run.
#[derive(Debug)]
pub(crate) enum Event {
    /// The user asked to stop.
    Interrupt,
    /// The user asked what runs.
    Ask,
    /// A node that was awaited is there, or does not come.
    Joined { node: usize, room: Result<Room, Problem> },
    /// News of a running job.
    Job { test: usize, attempt: u32, event: crate::job::JobEvent },
    /// What a running job's processes were doing.
    Inspected { test: usize, attempt: u32, inspection: Box<Inspection> },
    /// A job ended, and its worker is free again.
    Ended { worker: usize, test: usize, attempt: u32, payload: Box<Payload> },
}

/// Where a run's events arrive. Made before the run, so that a signal handler's thread can be given its end.
#[derive(Debug)]
pub struct Control {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
}

/// Asks a run to stop, once gently, twice at once, or what it does. Clones may be given to any thread.
#[derive(Debug, Clone)]
pub struct Interrupter(Sender<Event>);

impl Interrupter {
    /// As Ctrl-C does.
    pub fn interrupt(&self) {
        // A run that is over needs no stopping.
        let _ = self.0.send(Event::Interrupt);
    }

    /// Asks what runs at the moment; the terminal answers.
    pub fn ask(&self) {
        // Of a run that is over nothing runs.
        let _ = self.0.send(Event::Ask);
    }
}

impl Control {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new() -> (Self, Interrupter) {
        let (sender, receiver) = channel();
        let interrupter = Interrupter(sender.clone());
        (Self { sender, receiver }, interrupter)
    }
}

/// What a run needs beside its plan.
pub struct Surroundings {
    /// Runs the jobs.
    pub executor: Arc<dyn Executor>,
    /// Remembers tests across runs.
    pub history: Arc<dyn History>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Called when the user interrupts a second time: the running jobs were told to end at once and nobody waits
    /// for them. It may end the process; the reaper removes what is left.
    pub kill: Box<dyn Fn() + Send>,
}

/// Runs a plan to its end.
///
/// # Errors
/// Only before the first test starts; afterwards everything is in the results and in [`RunReport::problems`].
pub fn run(
    plan: &Arc<Plan>,
    options: &RunOptions,
    around: &Surroundings,
    control: Control,
    mut reporting: Reporting,
) -> Result<RunReport, RunError> {
    let run_id = uuid::Uuid::now_v7().to_string();
    let Prepared { tests, order, trees, problems, quarantined, expired } = prepare::prepare(plan, options, around)?;
    for problem in problems {
        reporting.announce(Announcement::Warning(problem));
    }
    let mut nodes = around.executor.nodes();
    if let Some(jobs) = options.node_jobs {
        nodes.iter_mut().for_each(|node| node.room.jobs = jobs.max(1));
    }
    let policy = prepare::policy(options, &nodes);
    let started = around.clock.now();
    reporting.announce(Announcement::RunStarted(RunInfo {
        run: run_id.clone(),
        started_ms: around.clock.unix_ms(),
        tests: plan.tests.len(),
        jobs: policy.nodes.iter().map(|room| room.jobs).sum(),
        trees: trees.clone(),
        seed: (options.order == Order::Random).then_some(options.seed),
        shard: plan.shard.clone(),
    }));
    let options = &RunOptions { output: options.output.join(&run_id), run: run_id.clone(), ..options.clone() };
    let mut driver = Driver {
        plan,
        options,
        around,
        trees: &trees,
        reporting,
        looker: Looker::new(control.sender.clone()),
        joining: Joining::begin(&around.executor, &nodes, &control.sender),
        workers: Workers::new(around.executor.clone(), control.sender, options.step),
        cancels: vec![Cancel::new(); plan.tests.len()],
        payloads: (0..plan.tests.len()).map(|_| None).collect(),
        ran_by: vec![Vec::new(); plan.tests.len()],
        nodes,
        past: PastAttempts::default(),
        slow: BTreeSet::new(),
        quarantined,
        expired,
        results: (0..plan.tests.len()).map(|_| None).collect(),
        killed: false,
    };
    let dispatch = Dispatch::new(tests, order, policy);
    let interrupted = driver.drive(dispatch, &control.receiver);
    let duration = around.clock.now().saturating_sub(started);
    Ok(driver.close(run_id, interrupted, duration))
}

struct Driver<'a> {
    plan: &'a Arc<Plan>,
    options: &'a RunOptions,
    around: &'a Surroundings,
    trees: &'a [TreeInfo],
    reporting: Reporting,
    workers: Workers,
    cancels: Vec<Cancel>,
    payloads: Vec<Option<Box<Payload>>>,
    /// The worker and the node of each attempt of each test.
    ran_by: Vec<Vec<RanBy>>,
    nodes: Vec<Node>,
    past: PastAttempts,
    looker: Looker,
    joining: Joining,
    slow: BTreeSet<usize>,
    quarantined: Vec<Option<QuarantineMark>>,
    expired: Vec<ExpiredQuarantine>,
    results: Vec<Option<Arc<TestResult>>>,
    killed: bool,
}

/// Who ran an attempt.
#[derive(Debug, Clone, Copy)]
struct RanBy {
    worker: Option<u32>,
    node: usize,
}

impl Driver<'_> {
    /// Until every test has its result; whether the user interrupted.
    fn drive(&mut self, mut dispatch: Dispatch, events: &Receiver<Event>) -> bool {
        let commands = dispatch.step(self.now(), Input::Tick);
        self.act(commands);
        while !dispatch.is_done() && !self.killed {
            let input = match self.next(&dispatch, events) {
                None => Input::Tick,
                Some(Event::Ask) => {
                    self.reporting.announce(Announcement::Asked);
                    Input::Tick
                }
                Some(Event::Interrupt) => Input::Interrupt,
                Some(Event::Joined { node, room }) => joining::input(node, room, self.options),
                Some(Event::Job { test, attempt, event }) => {
                    self.reporting.announce(Announcement::TestProgress { test, event: event.clone() });
                    Input::Job { test, attempt, event }
                }
                Some(Event::Inspected { test, attempt, inspection }) => {
                    self.past.inspected(test, attempt, *inspection);
                    Input::Tick
                }
                Some(Event::Ended { worker, test, attempt, payload }) => {
                    self.workers.free(worker);
                    let end = payload.end.clone();
                    // What comes back after it was given up is of no use to anybody.
                    if dispatch.awaits(test, attempt) {
                        self.payloads[test] = Some(payload);
                    }
                    Input::Ended { test, attempt, end }
                }
            };
            let commands = dispatch.step(self.now(), input);
            self.act(commands);
        }
        dispatch.interrupted()
    }

    fn next(&self, dispatch: &Dispatch, events: &Receiver<Event>) -> Option<Event> {
        let Some(wake) = dispatch.next_wake() else { return events.recv().ok() };
        events.recv_timeout(wake.saturating_sub(self.around.clock.now())).ok()
    }

    fn now(&self) -> Moment {
        Moment { since: self.around.clock.now(), unix_ms: self.around.clock.unix_ms() }
    }

    fn act(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Start { test, attempt, node } => self.start(test, attempt, node),
                Command::Lost { node, problem } => {
                    self.without(node, "is lost: what ran there is tried elsewhere", problem);
                }
                Command::Missed { node, problem } => self.without(node, "does not come", problem),
                Command::Cancel { test, reason } => self.cancels[test].request(reason),
                Command::Abandon { test } => self.workers.abandon(test),
                Command::Retry { test, mut attempt, after } => {
                    let ran_by = self.ran_by[test].last().copied();
                    self.mark(&mut attempt, ran_by);
                    let attempt = self.past.ended(test, *attempt, self.payloads[test].take());
                    self.reporting.announce(Announcement::AttemptFailed { test, attempt, after });
                }
                Command::Slow { test, after } => {
                    self.slow.insert(test);
                    self.reporting.announce(Announcement::TestSlow { test, after });
                }
                Command::Inspect { test, attempt, left } => self.inspect(test, attempt, left),
                Command::Result { test, verdict, attempts } => self.finish(test, verdict, attempts),
                Command::Stopping(stop) => self.reporting.announce(Announcement::Stopping(stop)),
                Command::Kill => {
                    self.killed = true;
                    (self.around.kill)();
                }
            }
        }
    }

    fn start(&mut self, test: usize, attempt: u32, node: usize) {
        let cancel = Cancel::new();
        self.cancels[test] = cancel.clone();
        // Whoever watches knows of the start before it happens.
        self.reporting.announce(Announcement::TestStarted { test, attempt });
        let job = prepare::job(self.plan, test, attempt, node, self.options);
        let worker = self.workers.start(Assignment { test, attempt, job, cancel });
        self.ran_by[test].push(RanBy { worker, node });
    }

    fn without(&mut self, node: usize, what: &str, problem: Problem) {
        let name = self.nodes.get(node).map(|node| node.name.as_str()).unwrap_or_default();
        let causes = std::iter::once(problem.message).chain(problem.causes).collect();
        let message = format!("machine {name} {what}");
        self.reporting.announce(Announcement::Warning(Problem { message, causes, ..problem }));
    }

    /// Who ran it.
    fn mark(&self, attempt: &mut Attempt, ran_by: Option<RanBy>) {
        attempt.worker = ran_by.and_then(|ran_by| ran_by.worker);
        attempt.machine = ran_by.and_then(|ran_by| Some(self.nodes.get(ran_by.node)?.name.clone()));
    }

    fn inspect(&self, test: usize, attempt: u32, left: Duration) {
        let node = self.ran_by[test].last().map_or(0, |ran_by| ran_by.node);
        let job = prepare::job(self.plan, test, attempt, node, self.options);
        self.looker.look(test, attempt, &job, left);
    }

    fn finish(&mut self, test: usize, verdict: Verdict, mut attempts: Vec<Attempt>) {
        for (attempt, ran_by) in attempts.iter_mut().zip(&self.ran_by[test]) {
            self.mark(attempt, Some(*ran_by));
        }
        let payload = self.payloads[test].take();
        let tree = &self.trees[self.plan.tests[test].suite];
        let mut result = prepare::result(self.plan, test, verdict, attempts, payload, tree);
        self.past.complete(&mut result);
        result.slow = self.slow.contains(&test);
        result.quarantine = self.quarantined[test].take();
        let result = Arc::new(result);
        self.results[test] = Some(result.clone());
        (self.options.step)(Step::RunnerResult);
        self.reporting.announce(Announcement::TestFinished(result));
    }

    fn close(self, run: String, interrupted: bool, duration: Duration) -> RunReport {
        let results: Vec<Arc<TestResult>> = self.results.into_iter().flatten().collect();
        let mut summary = RunSummary::of(results.iter().map(AsRef::as_ref), interrupted);
        summary.duration_us = microseconds(duration);
        summary.trees = self.trees.to_vec();
        summary.add_expired(self.expired);
        let mut problems = Vec::new();
        // What passed tests had put there is gone; a folder that holds something stays.
        let _ = std::fs::remove_dir(&self.options.output);
        (self.options.step)(Step::RunnerReporting);
        self.joining.end();
        if !self.killed {
            self.workers.join();
            problems.extend(self.around.executor.finish());
            let known: Vec<_> =
                results.iter().map(|result| (self.plan.history_key(result.index), result.as_ref())).collect();
            problems.extend(self.around.history.record(&run, &known).err());
            problems.extend(self.around.history.remark());
        }
        let mut reporting = self.reporting;
        reporting.announce(Announcement::RunFinished(Arc::new(summary.clone())));
        let unwritten = reporting.close();
        if !unwritten.failed.is_empty() {
            summary.raise(ExitCode::Infrastructure);
        }
        problems.extend(unwritten.failed);
        problems.extend(unwritten.missed);
        RunReport { run, summary, results, problems }
    }
}

#[cfg(test)]
mod tests;
