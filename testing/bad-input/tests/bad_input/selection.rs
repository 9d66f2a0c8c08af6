//! Selections that select nothing, quarantines past their day, a history cut short, tests that hang, and two runs
//! in one tree.

use std::fs;

use testkit::{Ability, Output, TestHome};

use crate::{DEADLINE, USAGE, end, refused, start};

fn suite(home: &TestHome, text: &str) {
    let whole = format!("format = 1\n[suite]\nname = \"s\"\n{text}");
    fs::write(home.work().join("testyard.toml"), whole).expect("the home is ours");
}

fn test(name: &str, command: &str) -> String {
    format!("[[test]]\nname = \"{name}\"\ncommand = {command:?}\n")
}

fn run(home: &TestHome, options: &[&str]) -> Output {
    Output::of(&mut home.cli(&[&["run"], options].concat()), DEADLINE)
}

#[test]
fn what_selects_nothing_is_refused() {
    let home = TestHome::new();
    suite(&home, &test("one", "true"));
    for (options, words) in [
        (&["--filter", "tow"][..], &["nothing selected: none of 1 tests matches the filter"][..]),
        (&["--filter", "oen"], &["did you mean `one`?"]),
        (&["--last-failed"], &["nothing selected: none of 1 tests failed in its last run"]),
        (&["--shard", "2/2"], &["nothing selected: none of 1 tests is in shard 2/2"]),
        (&["--shard", "3/2"], &["there is no shard 3 of 2: write 1/2 to 2/2"]),
        (&["--shard", "0/2"], &["there is no shard 0 of 2"]),
        (&["--changed-since", "HEAD"], &["cannot tell what changed since `HEAD`"]),
        (&["--filter", "result(pased)"], &["unknown result `pased`", "did you mean `passed`?"]),
        (&["--filter", "name(/(/)"], &["`(` is not a valid regular expression: unclosed group"]),
        (&["--repeat", "0"], &["--repeat"]),
        (&["--order", "backwards"], &["random"]),
    ] {
        refused(&home, &[&["run"], options].concat(), USAGE, words);
    }
    home.finish();
}

#[test]
fn a_quarantine_past_its_day_fails_the_run_with_its_line() {
    let home = TestHome::new();
    let quarantine =
        |until: &str| format!("[[quarantine]]\ntest = \"b*\"\nowner = \"ana\"\nreason = \"mirror\"\nuntil = {until}\n");
    let tests = format!("{}{}", test("good", "true"), test("bad", "exit 4"));
    suite(&home, &format!("{tests}{}", quarantine("2999-12-31")));
    let output = run(&home, &["--fail-fast", "--jobs", "1"]);
    assert_eq!(output.code, 0, "{output}");
    assert!(output.stdout.contains("1 passed, 0 failed, 0 skipped, 1 quarantined"), "{output}");
    suite(&home, &format!("{}{}", test("bad", "true"), quarantine("2020-01-31")));
    let output = run(&home, &[]);
    assert_eq!(output.code, 1, "{output}");
    let words = "testyard.toml:8: the quarantine of `b*` (owner ana: mirror) ended on 2020-01-31";
    assert!(output.stdout.contains(words) && output.stdout.contains("1 passed, 0 failed"), "{output}");
    suite(&home, &format!("{}{}", test("good", "true"), quarantine("2999-12-31")));
    refused(&home, &["run"], USAGE, &["`b*` means no test of this suite", "remove the entry if its test is gone"]);
    home.finish();
}

#[test]
fn a_history_cut_short_costs_no_result() {
    let home = TestHome::new();
    suite(&home, &test("one", "test $TESTYARD_ATTEMPT = 2"));
    let first = run(&home, &["--retries", "1"]);
    assert_eq!(first.code, 0, "{first}");
    let shown = home.must_run(&["history", "one"]);
    assert!(shown.contains("flaky (failed 1x)"), "{shown}");
    let file = home.state().join("history.sqlite");
    for length in [0, 100, 5_000, 8_192] {
        let opened = fs::File::options().write(true).open(&file).expect("it was made");
        opened.set_len(length).expect("cut");
        // Without the log, which would mend it.
        let _ = fs::remove_file(home.state().join("history.sqlite-wal"));
        let output = run(&home, &["--last-failed", "--filter", "one"]);
        assert_eq!(output.code, USAGE, "cut to {length} bytes, it remembers nothing: {output}");
        let output = run(&home, &[]);
        assert_eq!(output.code, 1, "cut to {length} bytes: {output}");
        let shown = home.run_cli(&["history", "one", "--json"]).expect_success().json();
        assert_eq!(shown["tests"][0]["last"], "failed", "cut to {length} bytes: {shown}");
        assert!(home.state().join("history.sqlite.damaged").exists(), "cut to {length} bytes");
    }
    home.finish();
}

#[test]
fn a_test_that_hangs_is_shown_with_its_processes() {
    let home = TestHome::new();
    let debugger = Ability::Program("eu-stack").check().is_ok();
    // The kernel shows its stacks to root of the host only, and a debugger may look at whom its user may. It takes what time
    // a busy host has for it, and gets more where there is more.
    let owed = debugger && testkit::user::is_host_root();
    let told = ["4s", "30s"].iter().any(|timeout| hangs(&home, timeout) || !owed);
    assert!(told, "no stack outside the kernel was told");
    if !debugger {
        testkit::skip_case!("a_test_that_hangs_is_shown: its stack", "eu-stack is not installed: apt install elfutils");
    }
    home.finish();
}

/// Runs a test that hangs and checks what is told of it; whether its stacks outside the kernel are.
fn hangs(home: &TestHome, timeout: &str) -> bool {
    let command = "sleep 1051 & env -i sh -c 'sleep 1052; true'";
    suite(home, &format!("{}timeout = \"{timeout}\"\nslow-after = \"1s\"\n", test("hangs", command)));
    let output = run(home, &["--json"]);
    assert_eq!(output.code, 1, "{output}");
    let json = output.json();
    let result = &json["results"][0];
    assert_eq!((&result["result"], &result["slow"]), (&"timed-out".into(), &true.into()), "{result}");
    let processes = result["attempts"][0]["inspection"]["processes"].as_array().expect("it was looked at");
    let told = ["1051", "1052"].map(|seconds| {
        let sleep = processes.iter().find(|process| process["command"] == format!("sleep {seconds}"));
        let sleep = sleep.unwrap_or_else(|| panic!("{seconds}: {result}"));
        assert_eq!(sleep["threads"][0]["state"], "S (sleeping)", "{seconds}: {result}");
        let (inside, outside) = (sleep["threads"][0]["kernel_stack"].to_string(), sleep["user_stack"].to_string());
        assert!(inside.contains("nanosleep") || !testkit::user::is_host_root(), "{seconds}: {result}");
        outside.contains("nanosleep")
    });
    told == [true; 2]
}

#[test]
fn two_runs_in_one_tree_at_once_both_work() {
    let home = TestHome::new();
    let tests: String = (0..8)
        .map(|number| {
            let command = format!("test ! -e made && echo {number} > made && sleep 0.1 && test $(cat made) = {number}");
            test(&format!("t{number}"), &command)
        })
        .collect();
    suite(&home, &tests);
    let mut runs: Vec<_> = (0..3).map(|_| start(&home, &["run", "--jobs", "4"])).collect();
    for child in &mut runs {
        let output = end(child, "run");
        assert_eq!(output.code, 0, "{output}");
        assert!(output.stdout.contains("8 passed, 0 failed, 0 skipped"), "{output}");
    }
    assert!(!home.work().join("made").exists(), "a test wrote into the tree");
    let known = home.run_cli(&["history", "t3", "--json"]).expect_success().json();
    assert_eq!(known["tests"][0]["outcomes"].as_array().map(Vec::len), Some(3), "{known}");
    home.finish();
}
