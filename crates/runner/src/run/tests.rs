use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use testyard_model::{CommandStatus, Isolation, ProblemKind, Usage};

use super::*;
use crate::backoff::Random;
use crate::cancel::CancelReason;
use crate::capture::{Captured, Stream};
use crate::clock::SystemClock;
use crate::filter::Filter;
use crate::history::{Known, NoHistory, TestKey};
use crate::job::{Ability, EnvironmentUsed, Finished, Job, JobEvent, JobOutcome, SourceTree};
use crate::plan::Selection;
use crate::process::ProcessExecutor;
use crate::report::{Audience, ReportKind, ReportSpec};
use crate::result::{Failure, SkipReason, Stop};

/// Does what a closure says.
struct Fake<F>(F);

impl<F: Fn(&Job, &Cancel, &dyn Fn(JobEvent)) -> JobOutcome + Send + Sync> Executor for Fake<F> {
    fn abilities(&self, needs: &[String]) -> Vec<Ability> {
        let missing = |need: &String| {
            if need == "moon" {
                Ability::Missing { reason: "it is far".to_owned(), hint: None }
            } else {
                Ability::Available
            }
        };
        needs.iter().map(missing).collect()
    }

    fn source_tree(&self, _root: &Path) -> Result<SourceTree, Problem> {
        Ok(SourceTree { hash: Some("abc".to_owned()), unhashed: Vec::new(), frozen: false })
    }

    fn source_changed(&self, _root: &Path) -> bool {
        true
    }

    fn run(&self, job: &Job, cancel: &Cancel, events: &dyn Fn(JobEvent)) -> JobOutcome {
        self.0(job, cancel, events)
    }
}

fn finished(status: CommandStatus) -> JobOutcome {
    JobOutcome::Finished(Finished {
        status,
        usage: Usage { wall_us: 5, ..Usage::default() },
        stdout: Captured::of(b"out"),
        stderr: Captured::default(),
        environment: EnvironmentUsed { label: "fake".to_owned(), isolation: Isolation::Namespace },
        aftermath: Box::default(),
        services: Vec::new(),
    })
}

struct Bench {
    folder: tempfile::TempDir,
    plan: Arc<Plan>,
    options: RunOptions,
    history: Arc<dyn History>,
    clock: Arc<dyn Clock>,
}

impl Bench {
    fn new(tests: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("testyard.toml"), format!("format = 1\n[suite]\nname = \"s\"\n{tests}"))
            .expect("written");
        let plan = Plan::load(&[], folder.path(), &Selection::of(Filter::All), &NoHistory).expect("a plan");
        let mut options = RunOptions::new(folder.path().join("output"));
        options.jobs = 2;
        Self {
            folder,
            plan: Arc::new(plan),
            options,
            history: Arc::new(NoHistory),
            clock: Arc::new(SystemClock::start()),
        }
    }

    fn run(&self, executor: impl Executor + 'static, control: Control, reports: &[ReportSpec]) -> RunReport {
        let executor = Arc::new(executor);
        let kill = Box::new(|| ());
        let around = Surroundings { executor, history: self.history.clone(), clock: self.clock.clone(), kill };
        let reporting = Reporting::start(
            &self.plan,
            self.clock.clone(),
            Audience { reports: reports.to_vec(), ..Audience::default() },
        )
        .expect("reports can be written");
        run(&self.plan, &self.options, &around, control, reporting).expect("it begins")
    }

    fn fake<F>(&self, act: F) -> RunReport
    where
        F: Fn(&Job, &Cancel, &dyn Fn(JobEvent)) -> JobOutcome + Send + Sync + 'static,
    {
        self.run(Fake(act), Control::new().0, &[])
    }
}

fn tests(count: usize) -> String {
    (0..count).map(|index| format!("[[test]]\nname = \"t{index}\"\ncommand = \"true\"\n")).collect()
}

fn words(report: &RunReport) -> Vec<&'static str> {
    report.results.iter().map(|result| result.verdict.as_str()).collect()
}

#[test]
fn results_carry_what_ran_and_in_which_source() {
    let bench = Bench::new(&format!("{}needs = [\"moon\"]\n", tests(3)));
    let report = bench.fake(|job, _, _| {
        assert_eq!(job.env["TESTYARD_TEST"], job.test);
        finished(CommandStatus::Exited(if job.test == "t1" { 9 } else { 0 }))
    });
    assert_eq!(words(&report), ["passed", "failed", "skipped"]);
    let failed = &report.results[1];
    assert_eq!(failed.verdict, Verdict::Failed(Failure::Exit { code: 9 }));
    assert_eq!((failed.tree.as_deref(), failed.source_changed), (Some("abc"), true));
    assert_eq!((failed.isolation, failed.duration_us), (Some(Isolation::Namespace), 5));
    assert_eq!(failed.outputs.stdout.bytes(), 3);
    assert_eq!(report.results[0].outputs.stdout.held(), 0, "nobody looks at what a passed test wrote");
    assert_eq!(report.summary.exit_code, ExitCode::TestsFailed.code());
    assert_eq!(report.summary.line(), "1 passed, 1 failed, 1 skipped");
}

#[test]
fn exit_codes_tell_the_most_important() {
    let code =
        |act: fn(&Job) -> JobOutcome, suite: &str| Bench::new(suite).fake(move |job, _, _| act(job)).summary.exit_code;
    let broken = |_: &Job| JobOutcome::Infrastructure(Problem::new(ProblemKind::System, "broken"));
    assert_eq!(code(|_| finished(CommandStatus::Exited(0)), &tests(2)), 0);
    assert_eq!(code(broken, &tests(1)), 69);
    assert_eq!(code(|_| panic!("a bug"), &tests(1)), 70);
    assert_eq!(code(broken, &format!("{}needs = \"moon\"\n", tests(1))), 77);
}

#[test]
fn transient_errors_are_repeated() {
    let bench = Bench::new(&tests(1));
    let report = bench.fake(|job, _, _| match job.attempt {
        1 => JobOutcome::Infrastructure(Problem::new(ProblemKind::Unavailable, "gone")),
        _ => finished(CommandStatus::Exited(0)),
    });
    assert_eq!(words(&report), ["passed"]);
    assert_eq!((report.summary.retried, report.results[0].attempts.len()), (1, 2));
    assert_eq!(report.results[0].attempts[0].verdict.as_str(), "infrastructure-error");
}

#[test]
fn a_test_that_fails_and_then_passes_is_flaky_and_keeps_what_it_wrote() {
    let mut bench = Bench::new(&format!("[suite.defaults]\nretries = 1\n{}", tests(2)));
    let act = |job: &Job| finished(CommandStatus::Exited(u8::from(job.attempt == 1 || job.test == "t1")));
    let report = bench.fake(move |job, _, _| act(job));
    assert_eq!(words(&report), ["flaky", "failed"]);
    let flaky = &report.results[0];
    assert_eq!(flaky.attempts.iter().map(|one| one.verdict.as_str()).collect::<Vec<_>>(), ["failed", "flaky"]);
    assert_eq!(flaky.attempts[0].stdout.as_ref().map(|stdout| stdout.bytes), Some(3));
    assert_eq!(flaky.outputs_of(1).map(|outputs| outputs.stdout.bytes()), Some(3));
    assert_eq!(flaky.to_json().expect("plain data")["attempts"][0]["stdout"]["text"], "out");
    assert_eq!(report.summary.line(), "0 passed, 1 failed, 0 skipped, 1 flaky");
    bench.options.retries = Some(0);
    assert_eq!(words(&bench.fake(move |job, _, _| act(job))), ["failed", "failed"]);
}

#[test]
fn quarantined_failures_are_apart_until_their_day() {
    let entry = "[[quarantine]]\ntest = \"t[01]\"\nowner = \"ana\"\nreason = \"mirror\"\nuntil = 1970-01-02\n";
    let mut bench = Bench::new(&format!("{}{entry}", tests(3)));
    let act = |job: &Job| finished(CommandStatus::Exited(u8::from(job.test == "t0")));
    let day = |number: i64| number * 24 * 3_600 * 1_000;
    bench.clock = Arc::new(On(day(1) + 5));
    let report = bench.fake(move |job, _, _| act(job));
    assert_eq!(words(&report), ["failed", "passed", "passed"]);
    assert_eq!(
        (report.summary.line().as_str(), report.summary.exit_code),
        ("2 passed, 0 failed, 0 skipped, 1 quarantined", 0)
    );
    assert_eq!(report.results[1].quarantine.as_ref().map(|mark| mark.until.as_str()), Some("1970-01-02"));
    // The day after it counts again, and the entry fails the run also where its tests pass.
    bench.clock = Arc::new(On(day(2)));
    let report = bench.fake(move |job, _, _| act(job));
    assert_eq!((report.summary.failed, report.summary.quarantined, report.summary.exit_code), (1, 0, 1));
    let report = bench.fake(|_, _, _| finished(CommandStatus::Exited(0)));
    assert_eq!((report.summary.failed, report.summary.exit_code), (0, 1));
    let told = report.summary.expired_quarantines[0].to_string();
    let expected = "testyard.toml:14: the quarantine of `t[01]` (owner ana: mirror) ended on 1970-01-02";
    assert!(told.ends_with(expected), "{told}");
}

/// A day, for as long as a run takes.
struct On(i64);

impl Clock for On {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn unix_ms(&self) -> i64 {
        self.0
    }
}

#[test]
fn an_interrupt_ends_what_runs_and_starts_no_more() {
    let bench = Bench::new(&tests(5));
    let (control, interrupter) = Control::new();
    let fake = Fake(move |_: &Job, cancel: &Cancel, _: &dyn Fn(JobEvent)| {
        interrupter.interrupt();
        while cancel.wait(Duration::from_secs(3_600)).is_none() {}
        finished(CommandStatus::Signalled(15))
    });
    // With one worker, so that a second interrupt cannot come.
    let bench = Bench { options: RunOptions { jobs: 1, ..bench.options.clone() }, ..bench };
    let report = bench.run(fake, control, &[]);
    assert_eq!(report.results[0].verdict, Verdict::Skipped(SkipReason::Cancelled { stop: Stop::Interrupted }));
    assert_eq!(report.results[4].verdict, Verdict::Skipped(SkipReason::NotStarted { stop: Stop::Interrupted }));
    assert_eq!((report.summary.skipped, report.summary.exit_code), (5, 130));
}

#[test]
fn a_second_interrupt_leaves_at_once() {
    let bench = Bench::new(&tests(2));
    let (control, interrupter) = Control::new();
    let (release, hold) = channel::<()>();
    let hold = Mutex::new(hold);
    let fake = Fake(move |_: &Job, _: &Cancel, _: &dyn Fn(JobEvent)| {
        interrupter.interrupt();
        interrupter.interrupt();
        // Ends only when the test is over.
        let _ = hold.lock().map(|hold| hold.recv());
        finished(CommandStatus::Exited(0))
    });
    let bench = Bench { options: RunOptions { jobs: 1, ..bench.options.clone() }, ..bench };
    let report = bench.run(fake, control, &[]);
    assert_eq!((report.results.len(), report.summary.exit_code), (2, 130));
    drop(release);
}

/// A clock that stands still until it is moved.
struct Moved(AtomicU64);

impl Clock for Moved {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst))
    }

    fn unix_ms(&self) -> i64 {
        0
    }
}

#[test]
fn an_executor_that_hangs_is_given_up_and_the_run_goes_on() {
    let mut bench = Bench::new(&tests(3));
    bench.options.jobs = 1;
    let clock = Arc::new(Moved(AtomicU64::new(0)));
    bench.clock = clock.clone();
    let (release, hold) = channel::<()>();
    let hold = Mutex::new(hold);
    let report = bench.fake(move |job, cancel, events| {
        if job.test != "t0" {
            return finished(CommandStatus::Exited(0));
        }
        // News wakes the dispatcher, which then sees how late it is.
        let late = |seconds, reason| {
            clock.0.fetch_add(seconds, Ordering::SeqCst);
            events(JobEvent::Ending);
            while cancel.reason() != Some(reason) {
                std::thread::yield_now();
            }
        };
        late(3_600, CancelReason::TimedOut);
        late(60, CancelReason::Killed);
        clock.0.fetch_add(60, Ordering::SeqCst);
        events(JobEvent::Ending);
        let _ = hold.lock().map(|hold| hold.recv());
        finished(CommandStatus::Exited(0))
    });
    assert_eq!(words(&report), ["infrastructure-error", "passed", "passed"]);
    drop(release);
}

#[test]
fn the_longest_known_start_first_and_results_are_remembered() {
    struct Remembers(Mutex<Vec<String>>);
    impl History for Remembers {
        fn known(&self, tests: &[TestKey<'_>]) -> Result<Vec<Known>, Problem> {
            let seconds = |key: &TestKey<'_>| key.name[1..].parse().ok().map(Duration::from_secs);
            Ok(tests.iter().map(|key| Known { duration: seconds(key), last: None }).collect())
        }

        fn record(&self, _run: &str, results: &[(TestKey<'_>, &TestResult)]) -> Result<(), Problem> {
            self.0.lock().expect("no panic").extend(results.iter().map(|(_, result)| result.name.clone()));
            Err(Problem::new(ProblemKind::System, "disk full"))
        }

        fn remark(&self) -> Option<Problem> {
            None
        }
    }
    let mut bench = Bench::new(&tests(4));
    bench.options.jobs = 1;
    let history = Arc::new(Remembers(Mutex::default()));
    bench.history = history.clone();
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = order.clone();
    let report = bench.fake(move |job, _, _| {
        seen.lock().expect("no panic").push(job.test.clone());
        finished(CommandStatus::Exited(0))
    });
    assert_eq!(*order.lock().expect("no panic"), ["t3", "t2", "t1", "t0"]);
    assert_eq!(*history.0.lock().expect("no panic"), ["t0", "t1", "t2", "t3"]);
    assert_eq!((report.summary.exit_code, report.problems.len()), (0, 1), "a history is no result");
}

#[test]
fn real_processes_and_whole_reports() {
    let bench = Bench::new(
        "[suite.defaults]\nisolation = \"none\"\n\
         [[test]]\nname = \"good\"\ncommand = \"echo fine; head -c 2000000 /dev/zero\"\n\
         [[test]]\nname = \"bad\"\ncommand = \"printf 'a\\\\033[31mb\\\\001<&>\\\\377'; kill -9 $$\"\n\
         [[test]]\nname = \"slow\"\ncommand = \"sleep 1000\"\ntimeout = \"100ms\"\n\
         [[test]]\nname = \"strict\"\ncommand = \"true\"\nisolation = \"namespace\"\n",
    );
    let junit = bench.folder.path().join("junit.xml");
    let lines = bench.folder.path().join("run.jsonl");
    let reports = [ReportSpec::file(ReportKind::Junit, &junit), ReportSpec::file(ReportKind::JsonLines, &lines)];
    let report = bench.run(ProcessExecutor::new(), Control::new().0, &reports);
    assert_eq!(words(&report), ["passed", "failed", "timed-out", "skipped"]);
    assert!(report.problems.is_empty());
    let left = std::fs::read_dir(&bench.options.output).expect("it was needed").count();
    assert_eq!(left, 0, "nobody looks at what a passed test wrote");

    let xml = std::fs::read_to_string(junit).expect("written");
    assert!(xml.contains(r#"tests="4" failures="2" errors="0""#), "{xml}");
    assert!(xml.contains("<system-out>ab\\x01&lt;&amp;&gt;\u{fffd}</system-out>"), "{xml}");
    assert!(!xml.chars().any(|character| character.is_control() && character != '\n'));

    let text = std::fs::read_to_string(lines).expect("written");
    let events: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(events.iter().all(|event| event["version"] == 1 && event["time_ms"].is_i64()));
    assert_eq!((&events[0]["event"], &events[0]["tests"]), (&"run-started".into(), &4.into()));
    let last = events.last().expect("there are some");
    assert_eq!((&last["event"], &last["failed"], &last["exit_code"]), (&"run-finished".into(), &2.into(), &1.into()));
    let bad = events.iter().find(|event| event["event"] == "test-finished" && event["name"] == "bad");
    let bad = bad.expect("it has a result");
    assert_eq!((&bad["result"], &bad["cause"], &bad["signal"]), (&"failed".into(), &"signal".into(), &9.into()));
    assert_eq!(bad["stdout"]["text"], "ab\\x01<&>\u{fffd}");
    // What is written can be read again.
    let again: TestResult = serde_json::from_value(bad.clone()).expect("the same shape");
    assert_eq!(again.verdict, report.results[1].verdict);
}

#[test]
fn a_report_that_cannot_be_written_is_found_before_the_first_test() {
    let bench = Bench::new(&tests(1));
    for kind in ReportKind::ALL {
        let reports = vec![ReportSpec::file(kind, "/no/such/folder/x")];
        let audience = Audience { reports, ..Audience::default() };
        assert!(Reporting::start(&bench.plan, bench.clock.clone(), audience).is_err(), "{kind:?}");
    }
}

/// The whole runner, threads and all, over an executor whose every answer a seed decides.
#[test]
fn seeded_threads_give_each_test_exactly_one_result() {
    for seed in 0..9 {
        let mut bench = Bench::new(&tests(60));
        bench.options.jobs = 8;
        bench.options.seed = seed;
        bench.options.attempts = 2;
        bench.options.output_limit = 16;
        let (control, interrupter) = Control::new();
        let started = Arc::new(AtomicUsize::new(0));
        let count = started.clone();
        let fake = Fake(move |job: &Job, cancel: &Cancel, events: &dyn Fn(JobEvent)| {
            let number: u64 = job.test[1..].parse().expect("a number");
            let mut random = Random::seeded(seed << 32 | number << 8 | u64::from(job.attempt));
            events(JobEvent::Started { environment: "e".to_owned() });
            if count.fetch_add(1, Ordering::SeqCst) == 40 && seed % 3 == 0 {
                interrupter.interrupt();
            }
            match random.below(12) {
                0 => JobOutcome::Infrastructure(Problem::new(ProblemKind::TimedOut, "late")),
                1 => JobOutcome::Infrastructure(Problem::new(ProblemKind::System, "broken")),
                2 => panic!("seeded"),
                3 if seed % 3 == 0 && number > 50 => {
                    while cancel.wait(Duration::from_secs(3_600)).is_none() {}
                    finished(CommandStatus::Signalled(15))
                }
                4 => {
                    let mut stdout = job.capture(Stream::Stdout);
                    stdout.write(&[b'x'; 100]);
                    let JobOutcome::Finished(mut one) = finished(CommandStatus::Exited(1)) else { unreachable!() };
                    one.stdout = stdout.finish();
                    JobOutcome::Finished(one)
                }
                _ => finished(CommandStatus::Exited(0)),
            }
        });
        let report = bench.run(fake, control, &[]);
        assert_eq!(report.results.len(), 60, "seed {seed}");
        assert!(report.results.iter().enumerate().all(|(index, result)| result.index == index), "seed {seed}");
        let summary = &report.summary;
        let all = summary.passed + summary.failed + summary.skipped + summary.infrastructure_errors;
        assert_eq!(all, 60, "seed {seed}");
    }
}

#[test]
fn the_documented_lines_are_the_real_shape() {
    let page = include_str!("../../../../docs/json.md");
    let block = page.split("```").find_map(|block| block.strip_prefix("jsonl\n")).expect("the page has lines");
    let mut lines = block.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
    let mut next = |dropped: &[&str]| {
        let mut line = lines.next().expect("a line");
        dropped.iter().for_each(|key| drop(line.as_object_mut().expect("an object").remove(*key)));
        line
    };
    let envelope = ["version", "time_ms", "event"];
    let result = next(&envelope);
    let read: TestResult = serde_json::from_value(result.clone()).expect("a result");
    assert_eq!(serde_json::to_value(&read).expect("plain data"), result);
    let summary = next(&envelope);
    let read: RunSummary = serde_json::from_value(summary.clone()).expect("a summary");
    assert_eq!(serde_json::to_value(&read).expect("plain data"), summary);
}
