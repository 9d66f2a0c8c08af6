//! Runs that are interrupted, flooded, or whose commands cannot be started.

use rustix::process::Signal;
use testkit::{Output, TestHome};

use crate::{DEADLINE, end, start};

fn suite(home: &TestHome, tests: &[(&str, &str)]) {
    let mut text = "format = 1\n".to_owned();
    for (name, command) in tests {
        text.push_str(&format!("[[test]]\nname = \"{name}\"\ncommand = {command}\n"));
    }
    std::fs::write(home.work().join("testyard.toml"), text).expect("the home is ours");
}

fn run(home: &TestHome, options: &[&str]) -> Output {
    Output::of(&mut home.cli(&[&["run"], options].concat()), DEADLINE)
}

/// What a test's process shows on the host while it runs.
pub(crate) fn runs(seconds: &str) -> bool {
    testkit::processes::runs(&format!("sleep {seconds}"))
}

#[test]
fn an_interrupted_run_ends_its_tests() {
    let home = TestHome::new();
    for (seconds, signals) in
        [("1021", &[Signal::INT][..]), ("1022", &[Signal::INT, Signal::INT]), ("1023", &[Signal::TERM])]
    {
        let command = format!("\"trap '' INT TERM; sleep {seconds}; sleep {seconds}\"");
        suite(&home, &[("a", &command), ("b", &command), ("c", &command)]);
        let mut child = start(&home, &["run", "--jobs", "2"]);
        crate::wait("a running test", || runs(seconds));
        for signal in signals {
            // The first may have been enough.
            if child.try_wait().expect("our child").is_none() {
                crate::signal(child.id().cast_signed(), *signal);
            }
        }
        let output = end(&mut child, "run");
        assert_eq!(output.code, 130, "{output}");
        assert!(!output.stdout.contains("PASS"), "{output}");
        home.must_run(&["reap"]);
        crate::wait("the tests' end", || !runs(seconds));
    }
    home.finish();
}

#[test]
fn a_killed_run_leaves_nothing() {
    let home = TestHome::new();
    suite(&home, &[("a", "\"sleep 1031\"")]);
    let mut child = start(&home, &["run"]);
    crate::wait("a running test", || runs("1031"));
    child.kill().expect("our child");
    child.wait().expect("our child");
    home.must_run(&["reap"]);
    crate::wait("the test's end", || !runs("1031"));
    home.finish();
}

#[test]
fn commands_that_cannot_be_started_fail_their_tests() {
    let home = TestHome::new();
    std::fs::write(home.work().join("plain"), "").expect("the home is ours");
    suite(&home, &[("absent", "['/no/such']"), ("plain", "['./plain']"), ("folder", "['/etc']"), ("good", "'true'")]);
    let output = run(&home, &[]);
    assert_eq!(output.code, 1, "{output}");
    for words in ["cannot run `/no/such`", "cannot run `./plain`", "cannot run `/etc`", "1 passed, 3 failed"] {
        assert!(output.stdout.contains(words), "{words}: {output}");
    }
    home.finish();
}

#[test]
fn a_flood_and_bytes_that_are_no_text_are_shown_as_text() {
    let home = TestHome::new();
    suite(
        &home,
        &[
            ("flood", "\"head -c 3000000 /dev/zero | tr '\\\\0' x; exit 1\""),
            ("bytes", "\"printf '\\\\377\\\\033[31mred\\\\000'; exit 3\""),
        ],
    );
    let (junit, lines) = (home.work().join("junit.xml"), home.work().join("lines.jsonl"));
    let (to_junit, to_lines) = (format!("junit={}", junit.display()), format!("jsonl={}", lines.display()));
    let output = run(&home, &["--report", &to_junit, "--report", &to_lines]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stdout.matches('x').count() >= 3_000_000, "the whole output is shown");
    assert!(!output.stdout.contains('\u{1b}'), "a test cannot colour our terminal");
    for line in std::fs::read_to_string(&lines).expect("a report").lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
    let text = std::fs::read_to_string(&junit).expect("a report in UTF-8");
    assert!(text.ends_with("</testsuites>\n") || text.trim_end().ends_with("</testsuites>"), "it is whole");
    assert!(
        text.chars().all(|char| char >= ' ' || matches!(char, '\n' | '\t' | '\r')),
        "XML has no control characters"
    );
    home.finish();
}
