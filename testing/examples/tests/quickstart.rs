//! `examples/quickstart`, run as its reader would run it: all pass together, cold and warm, and the host is untouched.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::{Ability, HostSnapshot, Kind, Output, TestHome, User};

/// How many tests the example promises.
const TESTS: usize = 50;
const DEADLINE: Duration = Duration::from_secs(300);

/// A copy of the example in a home, so that nobody else's run can touch it.
fn copy_into(home: &TestHome) -> PathBuf {
    let to = home.work().join("quickstart");
    let from = testkit::programs::source_folder().join("examples/quickstart");
    let status = Command::new("cp").args(["-r", "--"]).arg(&from).arg(&to).status().expect("cp starts");
    assert!(status.success());
    for path in all_below(&to) {
        home.give(&path);
    }
    to
}

fn all_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a folder of the copy");
            found.extend(entries.map(|entry| entry.expect("an entry of the copy").path()));
        }
    }
    found
}

fn scripts(example: &Path) -> Vec<PathBuf> {
    let mut files = all_below(&example.join("tests"));
    files.retain(|path| path.is_file());
    files
}

/// Runs the suite; the names of the tests that passed.
fn run(home: &TestHome, example: &Path, arguments: &[&str]) -> (Output, Vec<String>) {
    let report = home.work().join("results.jsonl");
    let mut command = home.cli(&["run"]);
    command.arg(example).arg("--report").arg(format!("jsonl={}", report.display())).args(arguments);
    let output = Output::of(&mut command, DEADLINE);
    let text = std::fs::read_to_string(&report).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line of JSON"));
    let passed = lines.filter(|line| line["event"] == "test-finished" && line["result"] == "passed");
    let names = passed.map(|line| line["name"].as_str().expect("each test has a name").to_owned()).collect();
    (output, names)
}

fn all_pass_cold_and_warm(user: User) {
    let home = TestHome::alone_of(user);
    let example = copy_into(&home);
    let before = HostSnapshot::take();
    for round in ["cold", "warm"] {
        let (output, passed) = run(&home, &example, &[]);
        assert_eq!(output.code, 0, "{round}: {output}");
        assert_eq!(passed.len(), TESTS, "{round}: {output}");
        let shared = std::fs::read_to_string(example.join("data/shared.txt")).expect("the source is whole");
        assert_eq!(shared, "original\n", "{round}: a test's edit reached the source");
        assert_eq!(scripts(&example).len(), TESTS, "{round}: a test's deletion reached the source");
    }
    let difference = before.difference(&HostSnapshot::take()).only(&[Kind::HostFile, Kind::Ipc, Kind::Link]);
    assert!(difference.is_empty(), "{difference}");
    home.finish();
}

#[test]
fn all_pass_together_alone_on_the_host() {
    testkit::require!(Ability::UserNamespaces);
    all_pass_cold_and_warm(User::current());
}

#[test]
fn all_pass_together_alone_for_an_ordinary_user() {
    testkit::require!(Ability::UserNamespaces);
    testkit::require!(Ability::OrdinaryUser);
    let user = User::ordinary().expect("just required");
    // The round of the ordinary user does this in the test above.
    if user != User::current() {
        all_pass_cold_and_warm(user);
    }
}

#[test]
fn nothing_weaker_will_do() {
    let home = TestHome::new();
    let example = copy_into(&home);
    let suite = example.join("testyard.toml");
    let text = std::fs::read_to_string(&suite).expect("the suite");
    let weaker = text.replace("name = \"quickstart\"\n", "name = \"quickstart\"\nbackend = \"host\"\n");
    assert_ne!(text, weaker);
    std::fs::write(&suite, weaker).expect("a copy of our own");
    let (output, passed) = run(&home, &example, &[]);
    assert_eq!(passed, [""; 0], "{output}");
    assert_eq!(output.code, 2, "{output}");
    assert!(output.stderr.contains("isolation"), "{output}");
    home.finish();
}

#[test]
fn every_test_refuses_a_bare_machine_first() {
    let example = testkit::programs::source_folder().join("examples/quickstart");
    let scripts = scripts(&example);
    assert_eq!(scripts.len(), TESTS);
    for script in scripts {
        let text = std::fs::read_to_string(&script).expect("a script");
        let code: Vec<&str> = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()).collect();
        let guarded = match script.extension().and_then(|extension| extension.to_str()) {
            Some("sh") => code.starts_with(&["set -eu", ". ./guard.sh"]),
            Some("py") => text.lines().filter(|line| line.starts_with("import ")).nth(1).is_some_and(is_guard),
            _ => false,
        };
        assert!(guarded, "{}", script.display());
    }
}

fn is_guard(line: &str) -> bool {
    line.starts_with("import guard")
}

// The scripts themselves are never started on the host: only what guards them.
#[test]
fn the_guards_refuse_this_host() {
    let example = testkit::programs::source_folder().join("examples/quickstart");
    for command in [["sh", "-c", ". ./guard.sh"], ["python3", "-Bc", "import guard"]] {
        let mut guard = Command::new(command[0]);
        guard.args(&command[1..]).current_dir(&example).env("TESTYARD_TEST", "forged").stdin(Stdio::null());
        let output = Output::of(&mut guard, DEADLINE);
        assert_ne!(output.code, 0, "{output}");
        assert!(output.stderr.contains("refused"), "{output}");
    }
}
