//! Runs that are over, through the real binary: kept, listed, shown, written in other forms; and the suite files,
//! completions and manual pages that it writes.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::{Ability, Output, TestHome};

const DEADLINE: Duration = Duration::from_secs(120);

fn put(home: &TestHome, name: &str, text: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = home.work().join(name);
    std::fs::create_dir_all(path.parent().expect("below the work folder")).expect("ours");
    std::fs::write(&path, text).expect("ours");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("ours");
}

const SUITE: &str = "format = 1\n[suite]\nname = 'demo'\n[[test]]\nname = 'good'\ncommand = 'true'\n\
    [[test]]\nname = 'bad'\ncommand = 'echo out; echo err >&2; exit 3'\n\
    [[test]]\nname = 'big'\ncommand = \"head -c 200000 /dev/zero | tr '\\\\0' y; exit 1\"\n";

#[test]
fn a_run_that_is_over_can_be_seen_again_in_every_form() {
    let home = TestHome::new();
    put(&home, "testyard.toml", SUITE, 0o644);
    let nothing = home.run_cli(&["report"]);
    assert_eq!(nothing.code, 2, "{nothing}");
    assert!(nothing.stderr.contains("no run is kept in this home\nhint: testyard run"), "{nothing}");
    let ran = home.run_cli(&["run", "--json"]);
    assert_eq!(ran.code, 1, "{ran}");
    let run = ran.json()["run"].as_str().expect("an id").to_owned();
    let end = &run[run.len() - 12..];

    let listed = home.run_cli(&["report", "--list", "--json"]).expect_success().json();
    assert_eq!((&listed["runs"][0]["run"], &listed["runs"][0]["summary"]["failed"]), (&run.as_str().into(), &2.into()));
    let shown = home.must_run(&["report", end]);
    for words in ["==== failed demo::bad: exit code 3", "---- stderr\nerr\n", "1 passed, 2 failed, 0 skipped", &run] {
        assert!(shown.contains(words), "{words}\n{shown:.2000}");
    }
    assert!(shown.matches('y').count() >= 200_000, "what was too much to hold is still there whole");
    let again = home.run_cli(&["report", &run[..18], "--json"]).expect_success().json();
    let results = again["results"].as_array().expect("a list");
    assert_eq!((results.len(), &again["complete"]), (3, &Value::Bool(true)));
    assert_eq!(results[1]["stdout"]["text"], "out\n");

    for (kind, words) in [
        ("junit", "<testcase name=\"bad\" classname=\"demo\""),
        ("jsonl", "\"event\":\"run-finished\""),
        ("tap", "not ok 2 - demo::bad"),
        ("trace", "\"traceEvents\""),
        ("html", "<!doctype html>"),
        ("markdown", "<code>demo::bad</code> failed: exit code 3"),
        ("github", "::error title=demo%3A%3Abad failed::exit code 3"),
    ] {
        let text = home.must_run(&["report", "last", "--format", kind]);
        assert!(text.contains(words), "{kind}: {text:.400}");
        let path = home.work().join(kind);
        home.must_run(&["report", "--format", kind, "--failed", "--to", &path.display().to_string()]);
        let text = std::fs::read_to_string(&path).expect("just written");
        assert!(!text.contains("\"name\":\"good\"") && !text.contains("ok 1 - demo::good"), "{kind}: {text:.400}");
    }
    let unknown = home.run_cli(&["report", "--format", "jnit"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("hint: did you mean `junit`?"), "{unknown}");
    let unknown = home.run_cli(&["report", "ffff"]);
    assert!(
        unknown.code == 2 && unknown.stderr.contains("hint: see what is kept: testyard report --list"),
        "{unknown}"
    );
    home.finish();
}

#[test]
fn a_run_that_was_killed_is_shown_as_far_as_it_came() {
    let home = TestHome::new();
    put(
        &home,
        "testyard.toml",
        "format = 1\nrun = { jobs = 1 }\n[[test]]\nname = 'a'\ncommand = 'exit 5'\n[[test]]\nname = 'b'\ncommand = 'sleep 1061'\n",
        0o644,
    );
    let mut child = home.cli(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it was built");
    let runs = home.state().join("runs");
    let record = || {
        let folder = std::fs::read_dir(&runs).ok()?.flatten().next()?.path();
        std::fs::read_to_string(folder.join("run.jsonl")).ok()
    };
    let second =
        || record().is_some_and(|text| text.contains("test-finished") && text.matches("test-started").count() == 2);
    assert!(testkit::wait_until(DEADLINE, second));
    child.kill().expect("our child");
    child.wait().expect("our child");
    let shown = home.run_cli(&["report"]);
    assert!(shown.stdout.contains("==== failed work::a: exit code 5"), "{shown}");
    assert!(shown.stderr.contains("did not come to its end: 1 of its tests have no result"), "{shown}");
    assert!(shown.stderr.contains("it ran work::b at that moment"), "{shown}");
    home.must_run(&["reap"]);
    home.finish();
}

#[test]
fn github_is_told_without_being_asked() {
    let home = TestHome::new();
    put(&home, "testyard.toml", "format = 1\n[suite]\nname = 's'\n[[tests]]\nglob = 'tests/*.sh'\n", 0o644);
    put(&home, "tests/a.sh", "#!/bin/sh\necho '::error::forged'\nexit 1\n", 0o755);
    put(&home, "summary.md", "before\n", 0o644);
    let mut command = home.cli(&["run"]);
    command.env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", home.work().join("summary.md"));
    let output = Output::of(&mut command, DEADLINE);
    let errors: Vec<&str> = output.stdout.lines().filter(|line| line.starts_with("::error ")).collect();
    let [error] = errors[..] else { panic!("{output}") };
    assert!(error.contains("tests/a.sh,line=1,title=s%3A%3Atests/a.sh failed::exit code 1"), "{error}");
    let forged = output.stdout.find("\n::error::forged\n").expect("it is shown");
    let stop = output.stdout[..forged].rfind("\n::stop-commands::").expect("and not obeyed");
    let word = output.stdout[stop + 18..forged].trim();
    assert!(output.stdout[forged..].contains(&format!("\n::{word}::\n")), "{output}");
    let summary = std::fs::read_to_string(home.work().join("summary.md")).expect("there");
    assert!(summary.starts_with("before\n## ❌ s\n"), "{summary}");
    home.finish();
}

#[test]
fn a_suite_file_is_written_for_what_is_there_and_runs() {
    testkit::require!(Ability::Program("python3"));
    let home = TestHome::new();
    put(&home, "tests/a.sh", "#!/bin/sh\nexit 0\n", 0o755);
    put(&home, "tests/lib.sh", "exit 1\n", 0o644);
    put(&home, "tests/probe", "#!/bin/sh\nexit 0\n", 0o755);
    put(&home, "tools/x_test.sh", "exit 0\n", 0o644);
    put(
        &home,
        "checks/test_a.py",
        "import unittest\n\nclass A(unittest.TestCase):\n    def test_a(self):\n        pass\n",
        0o644,
    );
    let path = home.must_run(&["init"]);
    assert_eq!(path.trim(), home.work().join("testyard.toml").display().to_string());
    let text = std::fs::read_to_string(home.work().join("testyard.toml")).expect("just written");
    assert!(text.starts_with("# What `testyard run` runs here"), "{text}");
    let ran = home.run_cli(&["run"]).expect_success();
    assert!(ran.stdout.ends_with("4 passed, 0 failed, 0 skipped\n"), "{text}\n{ran}");
    let again = home.run_cli(&["init"]);
    assert!(again.code == 2 && again.stderr.contains("testyard.toml exists\nhint: "), "{again}");
    assert_eq!(std::fs::read_to_string(home.work().join("testyard.toml")).expect("there"), text);
    // A folder with nothing in it gets an example that passes.
    std::fs::create_dir(home.work().join("empty")).expect("ours");
    let told = home.run_cli(&["init", "empty", "--json"]).expect_success().json();
    assert_eq!(told["found"], Value::Array(Vec::new()));
    assert!(home.must_run(&["run", "empty"]).ends_with("1 passed, 0 failed, 0 skipped\n"));
    assert_eq!(home.run_cli(&["init", "no-such"]).code, 2);
    home.finish();
}

#[test]
fn projects_are_tested_by_their_own_tools() {
    testkit::require!(Ability::Program("cargo"));
    let home = TestHome::new();
    put(&home, "Cargo.toml", "[package]\nname = \"small\"\nversion = \"0.0.0\"\nedition = \"2021\"\n", 0o644);
    put(&home, "src/lib.rs", "#[test]\nfn works() {}\n", 0o644);
    // The tool is where the developer has it, not in the test's own home.
    let own = |command: &mut Command| {
        for name in ["PATH", "CARGO_HOME", "RUSTUP_HOME"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("HOME", std::env::var_os("HOME").unwrap_or_default());
    };
    let mut init = home.cli(&["init"]);
    own(&mut init);
    let said = Output::of(&mut init, DEADLINE).expect_success();
    assert!(said.stderr.contains("found cargo "), "{said}");
    let mut run = home.cli(&["run"]);
    own(&mut run);
    let ran = Output::of(&mut run, DEADLINE);
    let text = std::fs::read_to_string(home.work().join("testyard.toml")).expect("just written");
    if ran.code == 77 && ran.stdout.contains("a route out of an environment needs") {
        testkit::skip!("projects_are_tested_by_their_own_tools", host: "environments have no route out here");
    }
    assert!(ran.stdout.ends_with("1 passed, 0 failed, 0 skipped\n"), "{text}\n{ran}");
    home.finish();
}

#[test]
fn shells_accept_the_completions() {
    let home = TestHome::new();
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "-n"), ("elvish", ""), ("powershell", "")] {
        let script = home.must_run(&["completions", shell]);
        for word in ["report", "completions", "--filter"] {
            assert!(script.contains(word) || script.contains(word.trim_start_matches('-')), "{shell}: {word}");
        }
        let path = home.work().join(shell);
        std::fs::write(&path, &script).expect("ours");
        if check.is_empty() {
            continue;
        }
        if Ability::Program(shell).check().is_err() {
            testkit::skip_case!(format!("shells_accept_the_completions: {shell}"), "it is not installed");
            continue;
        }
        let checked = Output::of(home.command(format!("/usr/bin/{shell}")).arg(check).arg(&path), DEADLINE);
        assert_eq!(checked.code, 0, "{checked}");
    }
    // What bash offers after `testyard rep`.
    let script =
        "source ./bash; COMP_WORDS=(testyard rep); COMP_CWORD=1; _testyard testyard rep testyard; echo ${COMPREPLY[@]}";
    let offered = Output::of(home.command("/bin/bash").args(["-c", script]), DEADLINE).expect_success();
    assert_eq!(offered.stdout.trim(), "report");
    home.finish();
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let home = TestHome::new();
    let folder = home.work().join("man/man1");
    home.must_run(&["man", &folder.display().to_string()]);
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("just made")
        .map(|entry| entry.expect("ours").file_name().display().to_string())
        .collect();
    names.sort();
    assert!(names.len() > 25 && names.contains(&"testyard-env-run.1".to_owned()), "{names:?}");
    let page = std::fs::read_to_string(folder.join("testyard-run.1")).expect("just written");
    for words in [".TH TESTYARD-RUN 1", "testyard run", "\\-\\-fail\\-fast", ".nf\n", "Examples:"] {
        assert!(page.contains(words), "{words}\n{page}");
    }
    home.finish();
}
