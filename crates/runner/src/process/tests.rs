use std::cell::RefCell;
use std::collections::BTreeMap;

use testyard_model::{EnvironmentLimits, Network};

use super::*;
use crate::capture::{CaptureOptions, Captured};
use crate::suite::SyncSettings;

fn job(script: &str) -> Job {
    Job {
        suite: "suite".to_owned(),
        test: "test".to_owned(),
        attempt: 1,
        node: 0,
        root: "/".into(),
        argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
        cwd: "/".into(),
        env: BTreeMap::from([("ANSWER".to_owned(), "42".to_owned())]),
        backend: None,
        image: None,
        needs: Vec::new(),
        isolation: Isolation::None,
        network: Network::Host,
        limits: EnvironmentLimits::default(),
        user: TestUser::Caller,
        timeout: Duration::from_secs(60),
        run: String::new(),
        outputs: Vec::new(),
        artifacts: Vec::new(),
        preparation: None,
        sync: SyncSettings::default(),
        keep_failed: None,
        services: crate::service::Services::default(),
        cluster: None,
        capture: CaptureOptions { folder: "/nonexistent".into(), stem: "t".to_owned(), limit: CaptureOptions::LIMIT },
    }
}

fn executor() -> ProcessExecutor {
    ProcessExecutor::with_environment(vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())])
}

fn run(job: &Job, cancel: &Cancel) -> Finished {
    match executor().grace(Duration::from_millis(50)).run(job, cancel, &|_| ()) {
        JobOutcome::Finished(finished) => finished,
        other => panic!("{other:?}"),
    }
}

fn text(captured: &Captured) -> String {
    let mut all = Vec::new();
    captured.read(|piece| io::Write::write_all(&mut all, piece)).expect("readable");
    String::from_utf8_lossy(&all).into_owned()
}

/// Whether this process goes within seconds; a zombie that its new parent has yet to reap has gone.
fn gone(pid: &str) -> bool {
    let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    (0..5_000).any(|_| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        let gone = stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ");
        gone || poll(&mut [], Some(&moment)).is_err()
    })
}

#[test]
fn signals_that_the_runner_blocks_reach_its_tests() {
    testyard_linux::signal::block(&[testyard_linux::signal::Signal::USR1]).expect("a mask of this thread");
    let finished = run(&job("trap 'exit 7' USR1; kill -USR1 $$; exit 8"), &Cancel::new());
    assert_eq!(finished.status, CommandStatus::Exited(7));
}

#[test]
fn streams_status_environment_and_usage_are_the_commands_own() {
    let events = RefCell::new(Vec::new());
    let job = job("echo out $ANSWER; echo err >&2; pwd; test -z \"$CARGO\" || echo leaked; exit 3");
    let outcome = executor().run(&job, &Cancel::new(), &|event| events.borrow_mut().push(event));
    let JobOutcome::Finished(finished) = outcome else { panic!("{outcome:?}") };
    assert_eq!(finished.status, CommandStatus::Exited(3));
    assert_eq!((text(&finished.stdout), text(&finished.stderr)), ("out 42\n/\n".to_owned(), "err\n".to_owned()));
    assert_eq!(finished.environment.isolation, Isolation::None);
    assert_eq!(finished.usage.unavailable, ["memory", "io"]);
    assert_eq!(events.into_inner(), [JobEvent::Started { environment: "this host".to_owned() }]);
}

#[test]
fn a_signal_is_told_from_a_code() {
    assert_eq!(run(&job("kill -SEGV $$"), &Cancel::new()).status, CommandStatus::Signalled(11));
}

#[test]
fn a_deadline_ends_the_whole_group_also_what_ignores_sigterm() {
    let mut job = job("trap '' TERM; sleep 1000 & echo $!; while :; do sleep 1000; done");
    job.timeout = Duration::from_secs(2);
    let finished = run(&job, &Cancel::new());
    assert_eq!(finished.status, CommandStatus::TimedOut);
    assert!(gone(&text(&finished.stdout)));
}

#[test]
fn a_child_left_behind_is_ended_and_holds_nothing_up() {
    let finished = run(&job("sleep 1000 & echo $!"), &Cancel::new());
    assert_eq!(finished.status, CommandStatus::Exited(0));
    assert!(gone(&text(&finished.stdout)));
}

#[test]
fn a_daemon_that_holds_the_pipes_holds_nothing_up() {
    let finished = run(&job("setsid sleep 5 & echo before"), &Cancel::new());
    assert_eq!(text(&finished.stdout), "before\n");
    assert!(finished.usage.wall_us < 4_000_000);
}

#[test]
fn closed_streams_are_no_end() {
    let finished = run(&job("exec >&- 2>&-; sleep 0.1; exit 5"), &Cancel::new());
    assert_eq!(finished.status, CommandStatus::Exited(5));
}

#[test]
fn a_request_ends_it() {
    for reason in [CancelReason::Interrupted, CancelReason::Killed] {
        let cancel = Cancel::new();
        let asked = cancel.clone();
        let outcome = executor().run(&job("exec sleep 1000"), &cancel, &move |_| asked.request(reason));
        let JobOutcome::Finished(finished) = outcome else { panic!("{outcome:?}") };
        let signal = if reason == CancelReason::Killed { 9 } else { 15 };
        assert_eq!(finished.status, CommandStatus::Signalled(signal));
    }
}

#[test]
fn much_output_goes_through_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut job = job("head -c 5000000 /dev/zero; head -c 3000000 /dev/zero >&2");
    job.capture.folder = folder.path().to_owned();
    let finished = run(&job, &Cancel::new());
    assert_eq!((finished.stdout.bytes(), finished.stdout.held(), finished.stdout.lost()), (5_000_000, 0, 0));
    assert_eq!(finished.stderr.file().and_then(|file| file.metadata().ok()).map(|data| data.len()), Some(3_000_000));
}

#[test]
fn what_cannot_be_started_says_why() {
    let check = |change: &dyn Fn(&mut Job), expected: &str, hint: &str| {
        let mut job = job("true");
        change(&mut job);
        match executor().run(&job, &Cancel::new(), &|_| ()) {
            JobOutcome::Infrastructure(problem) => {
                assert_eq!(problem.kind, ProblemKind::Command);
                assert_eq!((problem.message.as_str(), problem.hints[0].as_str()), (expected, hint));
            }
            other => panic!("{other:?}"),
        }
    };
    check(
        &|job| job.argv = vec!["no-such-program".to_owned()],
        "cannot run `no-such-program`",
        "check the name; a program beside the test is written with ./ before it",
    );
    check(
        &|job| job.argv = vec!["/etc/passwd".to_owned()],
        "cannot run `/etc/passwd`",
        "check that it is an executable file (chmod +x)",
    );
    check(&|job| job.cwd = "/no/such/folder".into(), "cannot run `/bin/sh`", "its `cwd` does not exist");
}

#[test]
fn more_isolation_than_there_is_is_refused() {
    let mut job = job("true");
    job.isolation = Isolation::Namespace;
    let outcome = executor().run(&job, &Cancel::new(), &|_| ());
    assert!(
        matches!(&outcome, JobOutcome::Skipped(refusal) if refusal.missing == "isolation namespace"),
        "{outcome:?}"
    );
}
