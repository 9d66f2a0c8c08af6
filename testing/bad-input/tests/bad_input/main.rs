//! What a user may get wrong, and what a host may run out of, done to the real binary.
//!
//! For each: one clear error that names the thing and the next step, the documented exit code, and nothing left
//! behind, which each home checks when it is dropped.

mod commands;
mod full_disk;
mod images;
mod limits;
mod machines;
mod names;
mod outputs;
mod runs;
mod selection;
mod services;
mod suites;
mod vanishing;

use std::process::Child;
use std::time::Duration;

use testkit::{Output, TestHome};

/// Longer than anything here takes on a busy host.
const DEADLINE: Duration = Duration::from_secs(60);

/// Exit codes as `docs/cli.md` has them.
const USAGE: i32 = 2;
const INFRASTRUCTURE: i32 = 69;
const NOT_STARTED: i32 = 127;

/// Checks that there is one error, with this code and these words, and nothing that could be taken for data.
#[track_caller]
fn check_refusal(what: &str, output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, code, "{what}: {output}");
    assert_eq!(output.stdout, "", "{what}: {output}");
    let errors = output.stderr.lines().filter(|line| line.starts_with("error:")).count();
    assert_eq!(errors, 1, "{what}: {output}");
    assert!(!output.stderr.contains("panicked"), "{what}: {output}");
    for word in words {
        assert!(output.stderr.contains(word), "{what}: `{word}` is missing: {output}");
    }
}

/// Runs the real binary, which must refuse.
#[track_caller]
fn refused(home: &TestHome, arguments: &[&str], code: i32, words: &[&str]) {
    check_refusal(&arguments.join(" "), &home.run_cli(arguments), code, words);
}

/// Makes a machine of the strongest kind that this host can give.
fn make(home: &TestHome, name: &str) {
    home.must_run(&["create", name]);
}

/// Starts the real binary with its output kept.
fn start(home: &TestHome, arguments: &[&str]) -> Child {
    let mut command = home.cli(arguments);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command.spawn().expect("the binary was built")
}

/// How what was started ends.
#[track_caller]
fn end(child: &mut Child, what: &str) -> Output {
    Output::of_child(child, what, DEADLINE)
}

/// The names of this home's machines.
fn listed(home: &TestHome) -> Vec<String> {
    home.must_run(&["list", "--names"]).lines().map(str::to_owned).collect()
}

/// The host's process id of a machine's supervisor.
fn supervisor(home: &TestHome, name: &str) -> i32 {
    let info = home.run_cli(&["info", name, "--json"]).expect_success().json();
    let pid = info["machine"]["supervisor_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    pid.unwrap_or_else(|| panic!("{name} has no supervisor: {info}"))
}

/// Sends a signal to a process that this test knows to be its own.
fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, signal).unwrap_or_else(|error| panic!("{pid:?}: {error}"));
}

/// Waits until a command in a machine has made a file: then it runs.
#[track_caller]
fn until_it_runs(home: &TestHome, machine: &str, file: &str) {
    wait("the command's file", || home.run_cli(&["exec", machine, "--", "test", "-e", file]).code == 0);
}

/// Waits on a condition.
#[track_caller]
fn wait(what: &str, condition: impl FnMut() -> bool) {
    assert!(testkit::wait_until(DEADLINE, condition), "waited in vain for {what}");
}
