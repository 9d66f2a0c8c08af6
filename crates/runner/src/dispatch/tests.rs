use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::schedule::{Capacity, Demand, Room};

const CAPACITY: Capacity = Capacity { milli_cpus: 2_000, memory: 1 << 30 };
const POLICY: Policy =
    Policy { nodes: Vec::new(), awaited: Vec::new(), fail_fast: false, no_skip: false, attempts: 3, seed: 0 };

fn at(seconds: u64) -> Moment {
    Moment { since: Duration::from_secs(seconds), unix_ms: 0 }
}

fn tests(count: usize) -> Vec<Dispatched> {
    vec![Dispatched { timeout: Duration::from_secs(5), ..Dispatched::default() }; count]
}

/// Nodes with so many slots each.
fn nodes<const N: usize>(jobs: [usize; N]) -> Vec<Room> {
    jobs.map(|jobs| Room { jobs, capacity: CAPACITY }).to_vec()
}

/// Two tests at once, where the policy does not say.
fn dispatch(tests: Vec<Dispatched>, policy: Policy) -> Dispatch {
    let order = (0..tests.len()).collect();
    let nodes = if policy.nodes.is_empty() { nodes([2]) } else { policy.nodes.clone() };
    Dispatch::new(tests, order, Policy { nodes, ..policy })
}

fn ended(test: usize, attempt: u32, end: End) -> Input {
    Input::Ended { test, attempt, end }
}

fn exited(test: usize, code: u8) -> Input {
    ended(test, 1, End::Status(CommandStatus::Exited(code)))
}

fn verdicts(commands: &[Command]) -> Vec<(usize, &'static str)> {
    let verdict = |command: &Command| match command {
        Command::Result { test, verdict, .. } => Some((*test, verdict.as_str())),
        _ => None,
    };
    commands.iter().filter_map(verdict).collect()
}

fn started(dispatch: &mut Dispatch, test: usize, second: u64) {
    let event = JobEvent::Started { environment: "e1".to_owned() };
    let commands = dispatch.step(at(second), Input::Job { test, attempt: 1, event });
    assert!(commands.is_empty());
}

#[test]
fn fail_fast_lets_the_running_end_and_skips_the_rest() {
    let mut dispatch = dispatch(tests(4), Policy { fail_fast: true, ..POLICY });
    dispatch.step(at(0), Input::Tick);
    let commands = dispatch.step(at(1), exited(0, 1));
    assert_eq!(verdicts(&commands), [(0, "failed"), (2, "skipped"), (3, "skipped")]);
    assert!(!commands.iter().any(|command| matches!(command, Command::Cancel { .. })));
    assert_eq!(verdicts(&dispatch.step(at(2), exited(1, 0))), [(1, "passed")]);
    assert!(dispatch.is_done() && !dispatch.interrupted());
}

#[test]
fn only_transient_infrastructure_errors_are_repeated_and_not_for_ever() {
    let mut dispatch = dispatch(tests(2), POLICY);
    dispatch.step(at(0), Input::Tick);
    let lasting = End::Infrastructure(Problem::new(ProblemKind::Exhausted, "no ports"));
    assert_eq!(verdicts(&dispatch.step(at(1), ended(0, 1, lasting))), [(0, "infrastructure-error")]);
    let transient = End::Infrastructure(Problem::new(ProblemKind::Unavailable, "machine gone"));
    for attempt in 1..3 {
        let commands = dispatch.step(at(10 * u64::from(attempt)), ended(1, attempt, transient.clone()));
        assert!(matches!(&commands[..], [Command::Retry { test: 1, .. }]), "{commands:?}");
        assert!(dispatch.next_wake().is_some_and(|wake| wake <= at(10 * u64::from(attempt) + 1).since));
        let commands = dispatch.step(at(10 * u64::from(attempt) + 5), Input::Tick);
        assert_eq!(commands, [Command::Start { test: 1, attempt: attempt + 1, node: 0 }]);
    }
    let commands = dispatch.step(at(40), ended(1, 3, transient));
    let [Command::Result { verdict: Verdict::InfrastructureError { .. }, attempts, .. }] = &commands[..] else {
        panic!("{commands:?}");
    };
    assert_eq!(attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(dispatch.is_done());
}

#[test]
fn a_failure_is_tried_again_as_often_as_the_test_says_and_is_then_flaky_or_failed() {
    let mut two = tests(2);
    two.iter_mut().for_each(|test| test.retries = 2);
    let mut dispatch = dispatch(two, POLICY);
    dispatch.step(at(0), Input::Tick);
    let commands = dispatch.step(at(1), exited(0, 7));
    let Command::Retry { test: 0, attempt, after: Duration::ZERO } = &commands[0] else { panic!("{commands:?}") };
    assert_eq!((attempt.number, attempt.verdict.as_str()), (1, "failed"));
    assert_eq!(commands[1], Command::Start { test: 0, attempt: 2, node: 0 });
    // A passing trouble of the infrastructure uses up no retry, and is none.
    let gone = End::Infrastructure(Problem::new(ProblemKind::Unavailable, "gone"));
    assert!(matches!(&dispatch.step(at(2), ended(0, 2, gone))[..], [Command::Retry { .. }]));
    dispatch.step(at(10), Input::Tick);
    let commands = dispatch.step(at(11), ended(0, 3, End::Status(CommandStatus::Exited(0))));
    let [Command::Result { verdict, attempts, .. }] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!((verdict, attempts.len()), (&Verdict::Flaky { failed_attempts: 1 }, 3));
    for attempt in 1..3 {
        dispatch.step(at(12), ended(1, attempt, End::Status(CommandStatus::TimedOut)));
    }
    let commands = dispatch.step(at(13), ended(1, 3, End::Status(CommandStatus::Signalled(9))));
    assert_eq!(verdicts(&commands), [(1, "failed")]);
}

#[test]
fn what_no_repetition_can_change_is_not_repeated() {
    let mut two = tests(2);
    two.iter_mut().for_each(|test| test.retries = 5);
    let mut dispatch = dispatch(two, POLICY);
    dispatch.step(at(0), Input::Tick);
    let missing = End::Infrastructure(Problem::new(ProblemKind::Command, "cannot run `x`"));
    assert_eq!(verdicts(&dispatch.step(at(1), ended(0, 1, missing))), [(0, "failed")]);
    let lasting = End::Infrastructure(Problem::new(ProblemKind::System, "broken"));
    assert_eq!(verdicts(&dispatch.step(at(1), ended(1, 1, lasting))), [(1, "infrastructure-error")]);
}

#[test]
fn a_quarantined_failure_stops_nothing() {
    let mut three = tests(3);
    three[0].quarantined = true;
    let mut dispatch = dispatch(three, Policy { nodes: nodes([1]), fail_fast: true, ..POLICY });
    dispatch.step(at(0), Input::Tick);
    let commands = dispatch.step(at(1), exited(0, 1));
    assert_eq!(commands.last(), Some(&Command::Start { test: 1, attempt: 1, node: 0 }));
}

#[test]
fn a_slow_test_is_noticed_and_one_that_hangs_is_looked_at_before_its_time_is_up() {
    let mut one = tests(1);
    one[0].slow_after = Some(Duration::from_secs(2));
    let mut dispatch = dispatch(one, POLICY);
    dispatch.step(at(0), Input::Tick);
    started(&mut dispatch, 0, 10);
    assert_eq!(dispatch.next_wake(), Some(at(12).since));
    assert_eq!(dispatch.step(at(12), Input::Tick), [Command::Slow { test: 0, after: Duration::from_secs(2) }]);
    assert_eq!(dispatch.next_wake(), Some(at(13).since));
    let left = Duration::from_secs(2);
    assert_eq!(dispatch.step(at(13), Input::Tick), [Command::Inspect { test: 0, attempt: 1, left }]);
    assert_eq!(dispatch.next_wake(), Some(at(25).since));
}

#[test]
fn a_command_that_cannot_start_is_the_tests_own_failure() {
    let mut dispatch = dispatch(tests(1), POLICY);
    dispatch.step(at(0), Input::Tick);
    let end = End::Infrastructure(Problem::new(ProblemKind::Command, "cannot run `x`"));
    assert_eq!(verdicts(&dispatch.step(at(1), ended(0, 1, end))), [(0, "failed")]);
}

#[test]
fn an_executor_that_does_not_end_a_test_is_pressed_and_then_given_up() {
    let mut dispatch = dispatch(tests(1), POLICY);
    dispatch.step(at(0), Input::Tick);
    started(&mut dispatch, 0, 100);
    assert_eq!(dispatch.step(at(105), Input::Tick).len(), 1, "it is looked at");
    assert_eq!(dispatch.next_wake(), Some(at(115).since));
    assert!(dispatch.step(at(114), Input::Tick).is_empty());
    let cancel = |reason| vec![Command::Cancel { test: 0, reason }];
    assert_eq!(dispatch.step(at(115), Input::Tick), cancel(CancelReason::TimedOut));
    assert_eq!(dispatch.step(at(125), Input::Tick), cancel(CancelReason::Killed));
    let commands = dispatch.step(at(135), Input::Tick);
    assert_eq!(commands[0], Command::Abandon { test: 0 });
    assert_eq!(verdicts(&commands), [(0, "infrastructure-error")]);
    // It comes back after all: too late.
    assert!(dispatch.step(at(200), exited(0, 0)).is_empty());
}

#[test]
fn one_that_obeys_the_late_request_timed_out() {
    let mut dispatch = dispatch(tests(1), POLICY);
    dispatch.step(at(0), Input::Tick);
    started(&mut dispatch, 0, 0);
    dispatch.step(at(15), Input::Tick);
    let end = End::Status(CommandStatus::Signalled(15));
    assert_eq!(verdicts(&dispatch.step(at(16), ended(0, 1, end))), [(0, "timed-out")]);
}

#[test]
fn an_interrupt_ends_the_running_and_a_second_one_leaves() {
    let mut dispatch = dispatch(tests(4), POLICY);
    dispatch.step(at(0), Input::Tick);
    let commands = dispatch.step(at(1), Input::Interrupt);
    assert_eq!(verdicts(&commands), [(2, "skipped"), (3, "skipped")]);
    let cancelled = |test, reason| commands.contains(&Command::Cancel { test, reason });
    assert!(cancelled(0, CancelReason::Interrupted) && cancelled(1, CancelReason::Interrupted));
    // One that had just passed has passed; one that was ended has no result of its own.
    assert_eq!(verdicts(&dispatch.step(at(2), exited(0, 0))), [(0, "passed")]);
    let commands = dispatch.step(at(3), Input::Interrupt);
    assert_eq!(commands[..2], [Command::Cancel { test: 1, reason: CancelReason::Killed }, Command::Kill]);
    assert_eq!(verdicts(&commands), [(1, "skipped")]);
    assert!(dispatch.is_done() && dispatch.interrupted());
    assert!(dispatch.step(at(4), Input::Interrupt).is_empty());
}

#[test]
fn what_is_missing_is_skipped_or_with_no_skip_failed() {
    for (no_skip, expected) in [(false, "skipped"), (true, "failed")] {
        let refused = Refusal { missing: "kvm".to_owned(), reason: "no /dev/kvm".to_owned(), hint: None };
        let mut all = tests(2);
        all[0].refused = Some(refused.clone());
        let mut dispatch = dispatch(all, Policy { no_skip, ..POLICY });
        let commands = dispatch.step(at(0), Input::Tick);
        assert_eq!(verdicts(&commands), [(0, expected)]);
        assert_eq!(verdicts(&dispatch.step(at(0), ended(1, 1, End::Refused(refused)))), [(1, expected)]);
    }
}

fn gone() -> End {
    End::Lost(Problem::new(ProblemKind::Unavailable, "machine n1 went away"))
}

fn starts(commands: &[Command]) -> Vec<(usize, u32, usize)> {
    let start = |command: &Command| match command {
        Command::Start { test, attempt, node } => Some((*test, *attempt, *node)),
        _ => None,
    };
    commands.iter().filter_map(start).collect()
}

#[test]
fn what_ran_on_a_lost_node_runs_once_more_elsewhere_and_what_comes_back_late_is_nothing() {
    let mut dispatch = dispatch(tests(7), Policy { nodes: nodes([2, 2, 1]), ..POLICY });
    let commands = dispatch.step(at(0), Input::Tick);
    assert_eq!(starts(&commands), [(0, 1, 0), (1, 1, 1), (2, 1, 2), (3, 1, 0), (4, 1, 1)]);
    let commands = dispatch.step(at(1), ended(3, 1, gone()));
    assert!(matches!(commands[0], Command::Lost { node: 0, .. }), "{commands:?}");
    // The other one that ran there is not waited for, the one that told is.
    assert!(commands.contains(&Command::Abandon { test: 0 }) && !commands.contains(&Command::Abandon { test: 3 }));
    let retried = |command: &&Command| matches!(command, Command::Retry { after: Duration::ZERO, .. });
    assert_eq!((commands.iter().filter(retried).count(), starts(&commands)), (2, vec![]));
    // Both go before whatever has not begun.
    assert_eq!(starts(&dispatch.step(at(2), exited(1, 0))), [(3, 2, 1)]);
    assert_eq!(starts(&dispatch.step(at(2), exited(2, 0))), [(0, 2, 2)]);
    assert!(dispatch.step(at(3), exited(0, 0)).is_empty() && !dispatch.awaits(0, 1), "its first attempt was given up");
    let commands = dispatch.step(at(4), ended(0, 2, End::Status(CommandStatus::Exited(0))));
    let Command::Result { test: 0, verdict: Verdict::Passed, attempts } = &commands[0] else { panic!("{commands:?}") };
    let words: Vec<_> = attempts.iter().map(|attempt| (attempt.number, attempt.verdict.as_str())).collect();
    assert_eq!(words, [(1, "infrastructure-error"), (2, "passed")], "it is not called flaky");
}

#[test]
fn a_run_without_a_node_stops_and_says_what_was_not_started() {
    let mut dispatch = dispatch(tests(4), Policy { nodes: nodes([1, 1]), ..POLICY });
    dispatch.step(at(0), Input::Tick);
    assert_eq!(verdicts(&dispatch.step(at(1), ended(0, 1, gone()))), []);
    let commands = dispatch.step(at(2), ended(1, 1, gone()));
    let errors = [(1, "infrastructure-error"), (0, "infrastructure-error"), (2, "skipped"), (3, "skipped")];
    assert_eq!(verdicts(&commands), errors);
    assert!(commands.contains(&Command::Stopping(Stop::NoMachineLeft)) && dispatch.is_done());
    let unstarted = Verdict::Skipped(SkipReason::NotStarted { stop: Stop::NoMachineLeft });
    assert_eq!(unstarted.exit_code(), testyard_model::ExitCode::Infrastructure);
}

#[test]
fn a_test_that_takes_its_node_down_does_not_get_all_of_them() {
    let mut dispatch = dispatch(tests(1), Policy { nodes: nodes([1; 5]), ..POLICY });
    dispatch.step(at(0), Input::Tick);
    for attempt in 1..3 {
        let commands = dispatch.step(at(1), ended(0, attempt, gone()));
        assert_eq!(starts(&commands).len() + starts(&dispatch.step(at(1), Input::Tick)).len(), 1, "{commands:?}");
    }
    assert_eq!(verdicts(&dispatch.step(at(2), ended(0, 3, gone()))), [(0, "infrastructure-error")]);
    assert!(dispatch.is_done());
}

#[test]
fn a_run_begins_on_the_nodes_that_are_there_and_goes_on_without_one_that_does_not_come() {
    let policy = Policy { nodes: nodes([1, 1, 1]), awaited: vec![1, 2], ..POLICY };
    let mut dispatch = dispatch(tests(4), policy);
    assert_eq!(starts(&dispatch.step(at(0), Input::Tick)), [(0, 1, 0)]);
    let room = nodes([2])[0];
    assert_eq!(starts(&dispatch.step(at(1), Input::Joined { node: 2, room })), [(1, 1, 2), (2, 1, 2)]);
    // Nothing is lost of one on which nothing ran.
    let problem = Problem::new(ProblemKind::TimedOut, "job 7 had no node");
    let commands = dispatch.step(at(2), Input::Missed { node: 1, problem: problem.clone() });
    assert_eq!(commands, [Command::Missed { node: 1, problem }]);
    assert_eq!(starts(&dispatch.step(at(3), ended(0, 1, gone()))), []);
    assert_eq!(starts(&dispatch.step(at(4), exited(1, 0))), [(0, 2, 2)]);
}

#[test]
fn without_a_node_nothing_is_lost_while_one_is_awaited() {
    let mut dispatch = dispatch(tests(2), Policy { nodes: nodes([1, 1]), awaited: vec![1], ..POLICY });
    dispatch.step(at(0), Input::Tick);
    assert_eq!(verdicts(&dispatch.step(at(1), ended(0, 1, gone()))), []);
    let problem = Problem::new(ProblemKind::TimedOut, "job 7 had no node");
    let commands = dispatch.step(at(2), Input::Missed { node: 1, problem });
    assert!(commands.contains(&Command::Stopping(Stop::NoMachineLeft)) && dispatch.is_done(), "{commands:?}");
}

/// An executor without threads: what it does and when is decided by a seed.
struct Simulation {
    random: Random,
    dispatch: Dispatch,
    now: Duration,
    /// When each running attempt will say something next; one that hangs says nothing.
    due: BTreeMap<(Duration, usize, u32), Input>,
    results: Vec<usize>,
    killed: bool,
    lost: BTreeSet<usize>,
    awaited: BTreeSet<usize>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random::seeded(seed);
        let count = 1 + random.below(40) as usize;
        let mut tests = Vec::new();
        for _ in 0..count {
            let milli_cpus = random.below(4) * 700;
            let exclusive = if random.below(3) == 0 { vec![random.below(3) as u32] } else { Vec::new() };
            let refusal = Refusal { missing: "x".to_owned(), reason: "y".to_owned(), hint: None };
            tests.push(Dispatched {
                timeout: Duration::from_secs(1 + random.below(20)),
                demand: Demand { milli_cpus, memory: 0, exclusive },
                refused: (random.below(10) == 0).then_some(refusal),
                retries: random.below(3) as u32,
                quarantined: random.below(4) == 0,
                slow_after: (random.below(2) == 0).then(|| Duration::from_secs(random.below(9))),
            });
        }
        let rooms = (0..1 + random.below(4)).map(|_| Room { jobs: 1 + random.below(4) as usize, capacity: CAPACITY });
        let rooms: Vec<Room> = rooms.collect();
        let awaited: Vec<usize> = (0..rooms.len()).filter(|_| random.below(4) == 0).collect();
        let mut due = BTreeMap::new();
        for node in &awaited {
            let problem = Problem::new(ProblemKind::TimedOut, "no node");
            let (node, room) = (*node, rooms[*node]);
            let comes =
                if random.below(3) > 0 { Input::Joined { node, room } } else { Input::Missed { node, problem } };
            due.insert((Duration::from_millis(random.below(9_000)), usize::MAX - node, 0), comes);
        }
        let policy = Policy {
            nodes: rooms,
            awaited: awaited.clone(),
            fail_fast: random.below(4) == 0,
            no_skip: random.below(4) == 0,
            attempts: 1 + random.below(4) as u32,
            seed,
        };
        let dispatch = dispatch(tests, policy);
        Self {
            random,
            dispatch,
            now: Duration::ZERO,
            due,
            results: vec![0; count],
            killed: false,
            lost: BTreeSet::new(),
            awaited: awaited.into_iter().collect(),
        }
    }

    /// Plays the run to its end; everything that was decided, for comparison.
    fn play(mut self) -> Vec<String> {
        let mut log = Vec::new();
        let mut input = Input::Tick;
        for _ in 0..10_000 {
            let moment = Moment { since: self.now, unix_ms: 0 };
            let commands = self.dispatch.step(moment, input);
            for command in commands {
                log.push(format!("{:?} {command:?}", self.now));
                self.act(command);
            }
            if self.dispatch.is_done() {
                assert!(self.results.iter().all(|count| *count == 1), "{:?}", self.results);
                return log;
            }
            assert!(!self.killed, "a second interrupt ends everything");
            input = self.next();
        }
        panic!("the run does not end");
    }

    fn act(&mut self, command: Command) {
        match command {
            Command::Start { test, attempt, node } => {
                assert!(!self.lost.contains(&node), "node {node} is lost");
                assert!(!self.awaited.contains(&node), "node {node} is not there");
                self.run(test, attempt);
            }
            Command::Lost { node, .. } | Command::Missed { node, .. } => {
                assert!(self.lost.insert(node), "node {node} is lost twice");
            }
            Command::Cancel { test, reason } => self.cancel(test, reason),
            Command::Result { test, .. } => self.results[test] += 1,
            Command::Kill => self.killed = true,
            Command::Abandon { .. }
            | Command::Retry { .. }
            | Command::Slow { .. }
            | Command::Inspect { .. }
            | Command::Stopping(_) => {}
        }
    }

    fn run(&mut self, test: usize, attempt: u32) {
        let start = self.now + Duration::from_millis(self.random.below(3_000));
        let event = JobEvent::Started { environment: "e".to_owned() };
        self.due.insert((start, test, 2 * attempt), Input::Job { test, attempt, event });
        let end = match self.random.below(12) {
            10 if self.random.below(3) == 0 => End::Lost(Problem::new(ProblemKind::Unavailable, "node gone")),
            0 => End::Infrastructure(Problem::new(ProblemKind::Unavailable, "gone")),
            1 => End::Infrastructure(Problem::new(ProblemKind::System, "broken")),
            2 => End::Status(CommandStatus::Exited(1)),
            3 => End::Status(CommandStatus::TimedOut),
            4 => End::Refused(Refusal { missing: "a".to_owned(), reason: "b".to_owned(), hint: None }),
            // Hangs, until it is asked, or for ever.
            5 => return,
            _ => End::Status(CommandStatus::Exited(0)),
        };
        let end_at = start + Duration::from_millis(self.random.below(20_000));
        self.due.insert((end_at, test, 2 * attempt + 1), ended(test, attempt, end));
    }

    fn cancel(&mut self, test: usize, reason: CancelReason) {
        // Some obey, some only the second request, some never; answers may come late or twice.
        if self.random.below(3) > 0 {
            let after = Duration::from_millis(self.random.below(15_000));
            let attempt = 1 + self.random.below(3) as u32;
            let signal = if reason == CancelReason::Killed { 9 } else { 15 };
            let end = End::Status(CommandStatus::Signalled(signal));
            self.due.insert((self.now + after, test, 2 * attempt), ended(test, attempt, end));
        }
    }

    fn next(&mut self) -> Input {
        let wake = self.dispatch.next_wake();
        let due = self.due.first_key_value().map(|(key, _)| key.0);
        let next = due.into_iter().chain(wake).min().expect("a run that is not done waits for something");
        if self.random.below(60) == 0 {
            return Input::Interrupt;
        }
        self.now = self.now.max(next);
        if due.is_some_and(|due| due <= self.now) {
            let input = self.due.pop_first().expect("there is one").1;
            if let Input::Joined { node, .. } = &input {
                self.awaited.remove(node);
            }
            return input;
        }
        Input::Tick
    }
}

/// To replay one: `TESTYARD_SEED=7 cargo test -p testyard-runner seeded`.
#[test]
fn seeded_faults_give_each_test_exactly_one_result() {
    let only = std::env::var("TESTYARD_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = only.map_or(0..3_000, |seed| seed..seed + 1);
    for seed in seeds {
        let played = std::panic::catch_unwind(|| Simulation::new(seed).play());
        let log = played.unwrap_or_else(|_| panic!("failed with TESTYARD_SEED={seed}"));
        if seed % 100 == 0 {
            assert_eq!(log, Simulation::new(seed).play(), "seed {seed} does not replay");
        }
    }
}
