//! Runs over several machines, some of which die. The real binary, in a home of the test's own.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use testkit::{Output, TestHome, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// A home with machines, and a suite in `work/suite`.
struct Ground {
    home: TestHome,
    suite: PathBuf,
}

impl Ground {
    fn new(machines: &[&str], suite: &str) -> Self {
        let home = TestHome::new();
        for machine in machines {
            home.must_run(&["create", machine]);
        }
        let folder = home.work().join("suite");
        std::fs::create_dir(&folder).expect("the home is empty");
        std::fs::write(folder.join("testyard.toml"), format!("format = 1\n[suite]\nname = \"s\"\n{suite}"))
            .expect("a suite");
        Self { home, suite: folder }
    }

    /// Starts a run, waits until the command of `test` runs somewhere, kills what keeps that machine, and waits for the
    /// end of the run.
    fn run_and_kill(&self, on: &str, kills: &[&str]) -> Output {
        let events = self.home.work().join("events.jsonl");
        let report = format!("jsonl={}", events.display());
        let mut command = self.home.cli(&["run", "suite", "--json", "--on", on, "--jobs", "2", "--report", &report]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        for test in kills {
            let mut machine = None;
            wait_until(DEADLINE, || {
                machine = where_runs(&std::fs::read_to_string(&events).unwrap_or_default(), test);
                machine.is_some()
            });
            kill(&self.home, &machine.unwrap_or_else(|| panic!("{test} runs nowhere")));
        }
        let ended = child.wait_with_output().expect("it ends");
        Output {
            code: ended.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&ended.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&ended.stderr).into_owned(),
        }
    }
}

/// The machine on which a test's command was said to run.
fn where_runs(events: &str, test: &str) -> Option<String> {
    let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut runs = events.filter(|event| event["event"] == "test-environment" && event["name"] == test);
    let label = runs.next()?["environment"].as_str()?.to_owned();
    label.split('/').nth(1).map(str::to_owned)
}

/// Ends a machine's supervisor and agent as a power cut would.
fn kill(home: &TestHome, machine: &str) {
    let info = home.must_run(&["info", machine, "--json"]);
    let info: Value = serde_json::from_str(&info).expect("JSON");
    let supervisor = info["machine"]["supervisor_pid"].as_i64().expect("it runs");
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).expect("it lives");
    let agents = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
    let all: Vec<i32> = std::iter::once(supervisor as i32).chain(agents).collect();
    testkit::processes::signal(&all, Signal::KILL);
}

fn results(output: &Output) -> Vec<Value> {
    output.json()["results"].as_array().cloned().unwrap_or_default()
}

/// How many attempts of a test each machine had.
fn machines_of(result: &Value) -> Vec<String> {
    let attempts = result["attempts"].as_array().expect("a list");
    attempts.iter().map(|attempt| attempt["machine"].as_str().expect("a machine").to_owned()).collect()
}

#[test]
fn what_ran_on_a_lost_machine_runs_elsewhere_and_every_result_is_there_once() {
    testkit::require_programs!();
    let mut tests = String::from(
        "prepare = \"echo made > made\"\n\
         [[test]]\nname = \"held\"\ncommand = \"test -s made; if test $TESTYARD_ATTEMPT = 1; then sleep 1000; fi\"\n",
    );
    for index in 0..60 {
        let code = if index % 10 == 0 { 3 } else { 0 };
        tests.push_str(&format!("[[test]]\nname = \"t{index}\"\ncommand = \"test -s made && exit {code}\"\n"));
    }
    let ground = Ground::new(&["m1", "m2", "m3"], &tests);
    let output = ground.run_and_kill("m1,m2,m3", &["held"]);
    assert_eq!(output.code, 1, "{output}");
    let results = results(&output);
    let mut names: Vec<&str> = results.iter().filter_map(|result| result["name"].as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!((results.len(), names.len()), (61, 61), "none is lost and none is there twice");
    for result in &results {
        let name = result["name"].as_str().expect("a name");
        let fails = name.strip_prefix('t').is_some_and(|number| number.ends_with('0'));
        assert_eq!(result["result"], if fails { "failed" } else { "passed" }, "{result}");
    }
    let held = results.iter().find(|result| result["name"] == "held").expect("it has a result");
    let attempts = machines_of(held);
    assert!(attempts.len() == 2 && attempts[0] != attempts[1], "{held}");
    assert_eq!(held["attempts"][0]["result"], "infrastructure-error");
    assert!(output.stderr.contains(&format!("machine {} is lost", attempts[0])), "{output}");
    let used: std::collections::BTreeSet<String> = results.iter().flat_map(machines_of).collect();
    assert_eq!(used.len(), 3, "it was spread over all of them");
}

#[test]
fn a_run_that_loses_all_machines_ends_as_infrastructure_and_says_what_did_not_run() {
    testkit::require_programs!();
    let mut tests = String::new();
    for index in 0..9 {
        tests.push_str(&format!("[[test]]\nname = \"t{index}\"\ncommand = \"sleep 1000\"\n"));
    }
    let ground = Ground::new(&["m1", "m2"], &tests);
    std::fs::write(ground.suite.join("x"), "").expect("a file");
    // The first two go to different machines.
    let output = ground.run_and_kill("m1,m2", &["t0", "t1"]);
    assert_eq!(output.code, 69, "{output}");
    let results = results(&output);
    assert_eq!(results.len(), 9);
    let unstarted: Vec<&str> = results
        .iter()
        .filter(|result| result["stop"] == "no-machine-left")
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert!(!unstarted.is_empty() && results.iter().all(|result| result["result"] != "passed"), "{output}");
    for name in unstarted {
        assert!(output.stderr.contains(&format!("s::{name} (not started: no machine is left)")), "{output}");
    }
    let refused = ground.home.run_cli(&["run", "suite", "--on", "m1"]);
    assert_eq!(refused.code, 2, "a machine that does not run is told before anything is started: {refused}");
}

#[test]
fn what_the_given_machines_cannot_be_is_told_before_a_test_or_with_it() {
    testkit::require_programs!();
    let tests = "[[test]]\nname = \"plain\"\ncommand = \"true\"\n\
                 [[test]]\nname = \"alone\"\ncommand = \"true\"\nisolation = \"machine\"\n";
    let ground = Ground::new(&["m1"], tests);
    let run = |on: &str| ground.home.run_cli(&["run", "suite", "--json", "--on", on]);
    let output = run("m1");
    assert_eq!(output.code, 0, "{output}");
    let words: Vec<Value> = results(&output).iter().map(|result| result["result"].clone()).collect();
    assert_eq!(words, ["passed", "skipped"]);
    for (on, message) in [("m1,m1", "twice"), ("nowhere", "there is no machine nowhere"), ("", "name")] {
        let output = run(on);
        assert!(output.code == 2 && output.stderr.contains(message), "--on {on:?}: {output}");
    }
}
