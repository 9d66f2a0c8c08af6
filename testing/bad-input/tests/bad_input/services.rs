//! Services that are wrong, that never get ready, and that die: named, with their logs, and nothing left.

use testkit::{Output, TestHome};

use crate::{DEADLINE, INFRASTRUCTURE, USAGE, refused, start};

const TEST: &str = "[[test]]\nname = 'a'\ncommand = 'true'\n";

#[track_caller]
fn wrong(home: &TestHome, text: &str, words: &[&str]) {
    std::fs::write(home.work().join("testyard.toml"), format!("format = 1\n{text}\n")).expect("the home is ours");
    refused(home, &["run"], USAGE, &[words, &["testyard.toml", "hint: "]].concat());
}

#[test]
fn services_are_read_strictly() {
    let home = TestHome::new();
    let db = "[[service]]\nname = 'db'\ncommand = 'x'\n";
    wrong(&home, &format!("{db}{db}{TEST}"), &["two services are named `db`", "line 3", ":6:"]);
    wrong(&home, &format!("{db}after = ['db']\n{TEST}"), &["services wait for each other: db after db", ":5:"]);
    let circle = "[[service]]\nname = 'a'\ncommand = 'x'\nafter = ['b']\n[[service]]\nname = 'b'\ncommand = 'x'\nafter = ['a']\n";
    wrong(&home, &format!("{circle}{TEST}"), &["services wait for each other: a after b after a", ":9:"]);
    wrong(&home, &format!("{db}after = ['bd']\n{TEST}"), &["`after` cannot be `bd`", "did you mean `db`?", ":5:"]);
    wrong(
        &home,
        &format!("{db}{TEST}services = ['dbs']"),
        &["`services` cannot be `dbs`", "did you mean `db`?", ":8:"],
    );
    wrong(&home, &format!("{TEST}services = ['db']"), &["`services` cannot be `db`", "this suite has none", ":5:"]);
    wrong(
        &home,
        &format!("{db}{TEST}services = ['db']\nisolation = 'none'"),
        &["has no environment for services", ":8:"],
    );
    let shared = format!("{db}scope = 'suite'\n");
    wrong(&home, &format!("{shared}{TEST}services = 'db'\nisolation = 'workspace'"), &["isolation `namespace`", ":9:"]);
    wrong(&home, &format!("{shared}{TEST}services = 'db'\nnetwork = 'host'"), &["shares its network", ":9:"]);
    let later = format!("{db}[[service]]\nname = 'web'\ncommand = 'x'\nscope = 'suite'\nafter = ['db']\n{TEST}");
    wrong(&home, &later, &["cannot come after one that each test has", ":9:"]);
    for (line, words) in [
        ("redy = {}", "did you mean `ready`?"),
        ("ready = { prot = 1 }", "did you mean `port`?"),
        ("ready = { port = 0 }", "0 is out of range"),
        ("ready = { port = 65536 }", "65536 is out of range"),
        ("ready = { port = 'x' }", "must be a whole number"),
        ("ready = { log = 'a(' }", "not a regular expression: unclosed group"),
        ("ready = { port = 1, log = 'x' }", "exclude each other"),
        ("ready = { port = 1, timeout = '0s' }", "is not a time span"),
        ("ready = { command = [] }", "needs at least a program"),
        ("scope = 'run'", "environment, suite"),
        ("stop = { signal = 'TREM' }", "did you mean `TERM`?"),
        ("user = 'a b'", "not a user's name"),
        ("cwd = 'no-such'", "no-such does not exist"),
        ("may-end = 1", "must be true or false"),
    ] {
        wrong(&home, &format!("{db}{line}\n{TEST}"), &[words, "testyard.toml:5:"]);
    }
    wrong(&home, &format!("[[service]]\nname = 'a b'\ncommand = 'x'\n{TEST}"), &["cannot contain spaces", ":3:"]);
    wrong(&home, &format!("[[service]]\nname = 'a'\n{TEST}"), &["[[service]] has no `command`"]);
    home.finish();
}

/// Runs one test with one service; the command line's output and the test's result.
fn run(home: &TestHome, service: &str, command: &str) -> (Output, serde_json::Value) {
    let suite = format!(
        "format = 1\n[[service]]\nname = 'it'\n{service}\n[[test]]\nname = 'a'\nservices = ['it']\ncommand = {command:?}\n"
    );
    std::fs::write(home.work().join("testyard.toml"), suite).expect("the home is ours");
    let report = home.work().join("report.jsonl");
    let mut command = home.cli(&["run"]);
    command.arg("--report").arg(format!("jsonl={}", report.display()));
    let output = Output::of(&mut command, DEADLINE);
    let text = std::fs::read_to_string(&report).expect("a report");
    std::fs::remove_file(&report).expect("just read");
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let result = lines.into_iter().find(|line| line["event"] == "test-finished").expect("a result");
    (output, result)
}

#[test]
fn a_service_that_does_not_get_ready_is_no_tests_fault() {
    testkit::require!(testkit::Ability::UserNamespaces);
    let home = TestHome::new();
    for (service, words) in [
        (
            "command = 'echo its words; exec sleep 1000'\nready = { port = 1, timeout = '1500ms' }",
            "port 1 of its loopback",
        ),
        (
            "command = 'echo its words; exec sleep 1000'\nready = { log = '^no$', timeout = '1500ms' }",
            "no line that matches `^no$`",
        ),
        (
            "command = 'echo its words; exec sleep 1000'\nready = { command = 'false', timeout = '1500ms' }",
            "never exited with 0",
        ),
        ("command = 'echo its words; exit 3'\nready = { port = 1 }", "ended before it was ready: exit code 3"),
        ("command = 'echo its words; kill -9 $$'\nready = { log = 'x' }", "ended before it was ready: signal 9"),
        (
            "scope = 'suite'\ncommand = 'echo its words; exit 3'\nready = { port = 1 }",
            "ended before it was ready: exit code 3",
        ),
    ] {
        let (output, result) = run(&home, service, "true");
        assert_eq!(output.code, INFRASTRUCTURE, "{service}: {output}");
        for words in [words, "service `it`", "---- service it", "its words", "hint: "] {
            assert!(output.stdout.contains(words), "{words}: {output}");
        }
        assert_eq!(result["result"], "infrastructure-error", "{result}");
        assert_eq!(result["problem"]["kind"], "service", "{result}");
        assert_eq!(result["services"][0]["name"], "it", "{result}");
        assert_eq!(result["services"][0]["text"], "its words\n", "{result}");
        // It would not get ready a moment later either.
        assert_eq!(result["attempts"].as_array().map(Vec::len), Some(1), "{result}");
    }
    let (output, _) = run(&home, "command = ['/no/such']", "sleep 0.2");
    assert_eq!(output.code, INFRASTRUCTURE, "{output}");
    assert!(output.stdout.contains("service `it` could not be started: cannot run `/no/such`"), "{output}");
    home.finish();
}

#[test]
fn a_service_that_dies_during_a_test_is_named() {
    testkit::require!(testkit::Ability::UserNamespaces);
    let home = TestHome::new();
    let dying = "command = 'while test ! -e /tmp/die; do sleep 0.01; done; echo last words; exit 7'";
    let kill = "touch /tmp/die; sleep 2";
    let (output, result) = run(&home, dying, kill);
    assert_eq!(output.code, 1, "{output}");
    for words in ["service `it` died: exit code 7; the test itself: exit code 0", "last words"] {
        assert!(output.stdout.contains(words), "{words}: {output}");
    }
    assert_eq!((&result["cause"], &result["service"]), (&"service-died".into(), &"it".into()), "{result}");
    assert_eq!(result["services"][0]["died"]["exited"], 7, "{result}");
    let (output, result) = run(&home, &format!("{dying}\nmay-end = true"), kill);
    assert_eq!(output.code, 0, "{output}");
    assert_eq!(result["services"][0]["died"]["exited"], 7, "{result}");
    home.finish();
}

#[test]
fn a_killed_run_with_services_leaves_nothing() {
    testkit::require!(testkit::Ability::UserNamespaces);
    let home = TestHome::new();
    let text = "format = 1
[[service]]
name = 'own'
command = 'setsid sleep 1041 & exec sleep 1041'
[[service]]
name = 'shared'
command = 'setsid sleep 1042 & exec sleep 1042'
scope = 'suite'
[[test]]
name = 'a'
command = 'sleep 1043'
services = ['own', 'shared']
";
    std::fs::write(home.work().join("testyard.toml"), text).expect("the home is ours");
    let runs = |seconds: &str| crate::runs::runs(seconds);
    let mut child = start(&home, &["run"]);
    crate::wait("all that runs", || ["1041", "1042", "1043"].into_iter().all(runs));
    child.kill().expect("our child");
    child.wait().expect("our child");
    home.must_run(&["reap"]);
    crate::wait("the end of all", || !["1041", "1042", "1043"].into_iter().any(runs));
    home.finish();
}
