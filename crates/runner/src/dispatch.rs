//! The dispatcher's decisions: what starts, what is cancelled, what is tried again, what each end means.
//!
//! ```text
//!             ┌────────── transient infrastructure error ─────────┐
//!             ▼                                                   │
//! waiting ─▶ running ─▶ (asked to end ─▶ killed ─▶ given up) ─▶ done      delayed ─▶ waiting
//!    └──────────────────────── run stopped ─────────────────────▶ done
//! ```
//!
//! A node that is lost is taken out, and what ran there waits again, as after an infrastructure error but before all
//! others; where no node is left, the run stops. One that is awaited is given tests once it has joined.
//!
//! It knows no thread, no channel and no clock: [`Dispatch::step`] is given what happened and when, and says what
//! to do. Each test gives exactly one [`Command::Result`], whatever an executor does.

mod messages;

use std::time::Duration;

use testyard_model::{CommandStatus, Problem, ProblemKind, microseconds, milliseconds};

use crate::backoff::{self, Random};
use crate::cancel::CancelReason;
use crate::job::{JobEvent, Refusal};
use crate::result::{Attempt, Failure, SkipReason, Stop, Verdict};
use crate::schedule::Schedule;

pub use messages::{Command, Dispatched, End, Input, Moment, Policy};

/// How long an executor may be over a test's deadline, and how long it has to follow each request.
pub const GRACE: Duration = Duration::from_secs(10);

/// How long a machine may take to get ready: an image is perhaps built first.
pub const PREPARATION: Duration = Duration::from_secs(30 * 60);

/// How long before a test's deadline it is looked at: a tenth of its time, but at most so long.
const LAST_LOOK: Duration = Duration::from_secs(3);
/// And at least so long, which a debugger needs on a busy host; not where that is more than half of its time, since a
/// debugger stops for a moment what may still be well.
const LEAST_LOOK: Duration = Duration::from_secs(2);

/// The state of a run.
#[derive(Debug)]
pub struct Dispatch {
    tests: Vec<Slot>,
    schedule: Schedule,
    policy: Policy,
    random: Random,
    running: Vec<usize>,
    delayed: Vec<usize>,
    stop: Option<Stop>,
    killed: bool,
    done: usize,
}

#[derive(Debug)]
struct Slot {
    test: Dispatched,
    attempts: Vec<Attempt>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Waiting,
    Running(Running),
    Delayed { until: Duration },
    Done,
}

#[derive(Debug)]
struct Running {
    attempt: u32,
    node: usize,
    since: Moment,
    deadline: Duration,
    pressure: Pressure,
    /// The user, not a deadline, asked for the end.
    by_user: bool,
    /// What is still to be noticed while it runs: when, soonest first.
    notices: Vec<(Duration, Notice)>,
}

/// What a running test gives reason for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    Slow { after: Duration },
    Inspect { left: Duration },
}

/// How strongly an executor has been asked to end a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Pressure {
    No,
    Asked,
    Killed,
}

impl Dispatch {
    /// Tests are started in this order. Nothing is started before the first [`Dispatch::step`].
    #[must_use]
    pub fn new(tests: Vec<Dispatched>, order: Vec<usize>, policy: Policy) -> Self {
        let demands = tests.iter().map(|test| test.demand.clone()).collect();
        let slot = |test| Slot { test, attempts: Vec::new(), place: Place::Waiting };
        let mut schedule = Schedule::new(demands, order, policy.nodes.clone());
        policy.awaited.iter().for_each(|node| schedule.await_node(*node));
        Self {
            schedule,
            random: Random::seeded(policy.seed),
            tests: tests.into_iter().map(slot).collect(),
            policy,
            running: Vec::new(),
            delayed: Vec::new(),
            stop: None,
            killed: false,
            done: 0,
        }
    }

    /// Whether every test has its result.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done == self.tests.len()
    }

    /// Whether the user stopped the run.
    #[must_use]
    pub fn interrupted(&self) -> bool {
        self.stop == Some(Stop::Interrupted)
    }

    /// When to come back with [`Input::Tick`], if nothing happens before.
    #[must_use]
    pub fn next_wake(&self) -> Option<Duration> {
        let moment = |test: &usize| match &self.tests[*test].place {
            Place::Running(running) => {
                let notice = running.notices.first().map(|(at, _)| *at);
                Some(notice.map_or(running.deadline, |at| at.min(running.deadline)))
            }
            Place::Delayed { until } => Some(*until),
            Place::Waiting | Place::Done => None,
        };
        self.running.iter().chain(&self.delayed).filter_map(moment).min()
    }

    /// What to do now that this has happened.
    pub fn step(&mut self, now: Moment, input: Input) -> Vec<Command> {
        let mut commands = Vec::new();
        match input {
            Input::Tick => {}
            Input::Interrupt => self.interrupt(now, &mut commands),
            Input::Joined { node, room } => self.schedule.join(node, room),
            Input::Missed { node, problem } => {
                self.schedule.lose(node);
                commands.push(Command::Missed { node, problem });
                self.stop_without_node(now, &mut commands);
            }
            Input::Job { test, attempt, event } => {
                let Dispatched { timeout, slow_after, .. } = self.tests[test].test;
                if let Some(running) = self.running_attempt(test, attempt)
                    && matches!(event, JobEvent::Started { .. })
                    && running.pressure == Pressure::No
                {
                    running.deadline = now.since + timeout + GRACE;
                    running.notices = notices(now.since, timeout, slow_after);
                }
            }
            Input::Ended { test, attempt, end } => self.ended(now, test, attempt, end, &mut commands),
        }
        self.expire(now, &mut commands);
        self.start(now, &mut commands);
        commands
    }

    /// The running attempt, unless this is news of one that was given up.
    fn running_attempt(&mut self, test: usize, attempt: u32) -> Option<&mut Running> {
        match &mut self.tests.get_mut(test)?.place {
            Place::Running(running) if running.attempt == attempt => Some(running),
            _ => None,
        }
    }

    fn start(&mut self, now: Moment, commands: &mut Vec<Command>) {
        while self.stop.is_none() {
            let Some((test, node)) = self.schedule.take() else { return };
            if let Some(refusal) = self.tests[test].test.refused.take() {
                self.schedule.release(test);
                let verdict = self.refused(refusal);
                self.finish(now, test, verdict, commands);
                continue;
            }
            let slot = &mut self.tests[test];
            let attempt = u32::try_from(slot.attempts.len()).unwrap_or(u32::MAX).saturating_add(1);
            let deadline = now.since + PREPARATION + slot.test.timeout + GRACE;
            let pressure = Pressure::No;
            slot.place = Place::Running(Running {
                attempt,
                node,
                since: now,
                deadline,
                pressure,
                by_user: false,
                notices: Vec::new(),
            });
            self.running.push(test);
            commands.push(Command::Start { test, attempt, node });
        }
    }

    /// Whether an end of this attempt would mean anything: it runs, and was not given up.
    #[must_use]
    pub fn awaits(&self, test: usize, attempt: u32) -> bool {
        matches!(&self.tests[test].place, Place::Running(running) if running.attempt == attempt)
    }

    fn ended(&mut self, now: Moment, test: usize, attempt: u32, end: End, commands: &mut Vec<Command>) {
        let limit_ms = milliseconds(self.tests[test].test.timeout);
        // An attempt that was given up has its result already.
        let Some(running) = self.running_attempt(test, attempt) else { return };
        let (by_user, overrun, node) = (running.by_user, running.pressure > Pressure::No, running.node);
        let failed_attempts = self.failed_attempts(test);
        let verdict = match end {
            End::Status(CommandStatus::Exited(0)) if failed_attempts > 0 => Verdict::Flaky { failed_attempts },
            End::Status(CommandStatus::Exited(0)) => Verdict::Passed,
            End::Lost(problem) => return self.lost(now, node, test, &problem, commands),
            _ if by_user => Verdict::Skipped(SkipReason::Cancelled { stop: Stop::Interrupted }),
            End::ServiceDied { service, died, status } => {
                Verdict::Failed(Failure::ServiceDied { service, died, status })
            }
            End::Status(CommandStatus::TimedOut) => Verdict::TimedOut { limit_ms },
            End::Status(_) if overrun => Verdict::TimedOut { limit_ms },
            End::Status(CommandStatus::Exited(code)) => Verdict::Failed(Failure::Exit { code }),
            End::Status(CommandStatus::Signalled(signal)) => Verdict::Failed(Failure::Signal { signal }),
            End::Infrastructure(problem) if problem.kind == ProblemKind::Command => {
                Verdict::Failed(Failure::NotStarted { problem })
            }
            End::Infrastructure(problem) => Verdict::InfrastructureError { problem },
            End::Refused(refusal) => self.refused(refusal),
        };
        let again = self.repeats(test, &verdict, overrun);
        self.conclude(now, test, verdict, again, commands);
    }

    /// An attempt is over, and perhaps the test with it.
    fn conclude(
        &mut self,
        now: Moment,
        test: usize,
        verdict: Verdict,
        again: Option<Duration>,
        commands: &mut Vec<Command>,
    ) {
        let attempt = self.leave(now, test, &verdict);
        if let Some(after) = again {
            self.tests[test].attempts.push(attempt.clone());
            self.tests[test].place = Place::Delayed { until: now.since + after };
            self.delayed.push(test);
            commands.push(Command::Retry { test, attempt: Box::new(attempt), after });
            return;
        }
        self.tests[test].attempts.push(attempt);
        self.finish(now, test, verdict, commands);
    }

    /// A node is gone, as the end of `by`'s attempt tells: nobody waits for what else ran there.
    fn lost(&mut self, now: Moment, node: usize, by: usize, problem: &Problem, commands: &mut Vec<Command>) {
        self.schedule.lose(node);
        commands.push(Command::Lost { node, problem: problem.clone() });
        let is_there = |test: &usize| matches!(&self.tests[*test].place, Place::Running(one) if one.node == node);
        let there: Vec<usize> = self.running.iter().copied().filter(is_there).collect();
        for test in there {
            if test != by {
                commands.push(Command::Cancel { test, reason: CancelReason::Killed });
                commands.push(Command::Abandon { test });
            }
            let verdict = self.verdict_without_end(test, || problem.clone());
            // A test that takes its node down with it does not get all of them.
            let again = self.errors(test).saturating_add(1) < self.policy.attempts;
            let again = (again && self.stop.is_none() && self.schedule.has_node()).then_some(Duration::ZERO);
            self.conclude(now, test, verdict, again, commands);
        }
        self.stop_without_node(now, commands);
    }

    fn stop_without_node(&mut self, now: Moment, commands: &mut Vec<Command>) {
        if !self.schedule.has_node() && self.stop.is_none() {
            self.stop(now, Stop::NoMachineLeft, commands);
        }
    }

    /// Attempts that something other than the test ended.
    fn errors(&self, test: usize) -> u32 {
        let met = |attempt: &&Attempt| matches!(attempt.verdict, Verdict::InfrastructureError { .. });
        let met = self.tests[test].attempts.iter().filter(met).count();
        u32::try_from(met).unwrap_or(u32::MAX)
    }

    fn failed_attempts(&self, test: usize) -> u32 {
        let failed = self.tests[test].attempts.iter().filter(|attempt| attempt.verdict.is_failure()).count();
        u32::try_from(failed).unwrap_or(u32::MAX)
    }

    /// After how long an attempt that ended so is repeated, if it is. Infrastructure errors are repeated by
    /// themselves, failures where the test says so; neither uses up the other's attempts.
    fn repeats(&mut self, test: usize, verdict: &Verdict, overrun: bool) -> Option<Duration> {
        if self.stop.is_some() {
            return None;
        }
        match verdict {
            Verdict::InfrastructureError { problem } if problem.kind.is_transient() && !overrun => {
                let met = self.errors(test).saturating_add(1);
                (met < self.policy.attempts).then(|| backoff::delay(met, &mut self.random))
            }
            Verdict::Failed(Failure::Exit { .. } | Failure::Signal { .. }) | Verdict::TimedOut { .. } => {
                (self.failed_attempts(test) < self.tests[test].test.retries).then_some(Duration::ZERO)
            }
            _ => None,
        }
    }

    /// Takes a test from among the running; the attempt as it is remembered.
    fn leave(&mut self, now: Moment, test: usize, verdict: &Verdict) -> Attempt {
        self.running.retain(|other| *other != test);
        self.schedule.release(test);
        let place = std::mem::replace(&mut self.tests[test].place, Place::Waiting);
        let Place::Running(running) = place else { unreachable!("only running tests leave") };
        let duration_us = microseconds(now.since.saturating_sub(running.since.since));
        Attempt {
            number: running.attempt,
            started_ms: running.since.unix_ms,
            duration_us,
            worker: None,
            machine: None,
            verdict: verdict.clone(),
            stdout: None,
            stderr: None,
            inspection: None,
        }
    }

    fn refused(&self, refusal: Refusal) -> Verdict {
        let Refusal { missing, reason: detail, hint } = refusal;
        if self.policy.no_skip {
            Verdict::Failed(Failure::Skipped { missing, detail, hint })
        } else {
            Verdict::Skipped(SkipReason::Missing { missing, detail, hint })
        }
    }

    fn finish(&mut self, now: Moment, test: usize, verdict: Verdict, commands: &mut Vec<Command>) {
        let slot = &mut self.tests[test];
        slot.place = Place::Done;
        self.done += 1;
        let counts = !slot.test.quarantined;
        let stops = (verdict.is_failure() && counts) || matches!(verdict, Verdict::InfrastructureError { .. });
        commands.push(Command::Result { test, verdict, attempts: std::mem::take(&mut slot.attempts) });
        if stops && self.policy.fail_fast && self.stop.is_none() {
            self.stop(now, Stop::FailFast, commands);
        }
    }

    /// Starts nothing more: what waits is skipped, what was to be repeated keeps its error.
    fn stop(&mut self, now: Moment, stop: Stop, commands: &mut Vec<Command>) {
        self.stop = Some(stop);
        commands.push(Command::Stopping(stop));
        for test in std::mem::take(&mut self.delayed) {
            let last = self.tests[test].attempts.last();
            let verdict = last.map_or(Verdict::Skipped(SkipReason::NotStarted { stop }), |last| last.verdict.clone());
            self.finish(now, test, verdict, commands);
        }
        for test in self.schedule.drain() {
            // One that comes here again from a repetition keeps its error too.
            let last = self.tests[test].attempts.last();
            let verdict = last.map_or(Verdict::Skipped(SkipReason::NotStarted { stop }), |last| last.verdict.clone());
            self.finish(now, test, verdict, commands);
        }
    }

    fn interrupt(&mut self, now: Moment, commands: &mut Vec<Command>) {
        if self.killed {
            return;
        }
        if self.interrupted() {
            self.killed = true;
            for test in self.running.clone() {
                commands.push(Command::Cancel { test, reason: CancelReason::Killed });
            }
            commands.push(Command::Kill);
            for test in self.running.clone() {
                self.give_up(now, test, commands);
            }
            return;
        }
        self.stop(now, Stop::Interrupted, commands);
        for test in self.running.clone() {
            if let Place::Running(running) = &mut self.tests[test].place {
                running.by_user = true;
                if running.pressure == Pressure::No {
                    running.pressure = Pressure::Asked;
                    running.deadline = now.since + GRACE;
                    commands.push(Command::Cancel { test, reason: CancelReason::Interrupted });
                }
            }
        }
    }

    /// Repeats what has waited long enough, and presses executors that are late.
    fn expire(&mut self, now: Moment, commands: &mut Vec<Command>) {
        let due = |slot: &Slot| matches!(slot.place, Place::Delayed { until } if until <= now.since);
        let (ready, later) = self.delayed.iter().copied().partition(|test| due(&self.tests[*test]));
        self.delayed = later;
        let ready: Vec<usize> = ready;
        for test in ready {
            self.tests[test].place = Place::Waiting;
            self.schedule.again(test);
        }
        for test in self.running.clone() {
            let Place::Running(running) = &mut self.tests[test].place else { continue };
            while let Some((_, notice)) = running.notices.first().copied().filter(|(at, _)| *at <= now.since) {
                running.notices.remove(0);
                commands.push(match notice {
                    Notice::Slow { after } => Command::Slow { test, after },
                    Notice::Inspect { left } => Command::Inspect { test, attempt: running.attempt, left },
                });
            }
            if running.deadline > now.since {
                continue;
            }
            running.deadline = now.since + GRACE;
            match running.pressure {
                Pressure::No => {
                    running.pressure = Pressure::Asked;
                    commands.push(Command::Cancel { test, reason: CancelReason::TimedOut });
                }
                Pressure::Asked => {
                    running.pressure = Pressure::Killed;
                    commands.push(Command::Cancel { test, reason: CancelReason::Killed });
                }
                Pressure::Killed => self.give_up(now, test, commands),
            }
        }
    }

    /// What becomes of a running test whose end nobody saw: where a user wanted it to end, that is all.
    fn verdict_without_end(&self, test: usize, problem: impl FnOnce() -> Problem) -> Verdict {
        match self.tests[test].place {
            Place::Running(Running { by_user: true, .. }) => {
                Verdict::Skipped(SkipReason::Cancelled { stop: Stop::Interrupted })
            }
            _ => Verdict::InfrastructureError { problem: problem() },
        }
    }

    /// Ends a test whose executor does not.
    fn give_up(&mut self, now: Moment, test: usize, commands: &mut Vec<Command>) {
        let verdict = self.verdict_without_end(test, || {
            Problem::new(ProblemKind::Unavailable, "the test could not be ended and was given up")
                .hint("testyard reap removes what it left")
        });
        let attempt = self.leave(now, test, &verdict);
        self.tests[test].attempts.push(attempt);
        commands.push(Command::Abandon { test });
        self.finish(now, test, verdict, commands);
    }
}

/// What is to be noticed of a command that starts now. A hung test is looked at a little before its time is up: its
/// executor may be far from here, and ends it to the millisecond.
fn notices(now: Duration, timeout: Duration, slow_after: Option<Duration>) -> Vec<(Duration, Notice)> {
    let least = if timeout >= 2 * LEAST_LOOK { LEAST_LOOK } else { Duration::ZERO };
    let left = (timeout / 10).clamp(least, LAST_LOOK);
    let mut notices = vec![(now + timeout - left, Notice::Inspect { left })];
    if let Some(after) = slow_after.filter(|after| *after < timeout) {
        notices.push((now + after, Notice::Slow { after }));
    }
    notices.sort_by_key(|(at, _)| *at);
    notices
}

#[cfg(test)]
mod tests;
