//! `testyard hold`: machines that end with the process that holds them. The real binary, in a home of the test's own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::{TestHome, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

struct Keeper {
    child: Child,
    asked: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Keeper {
    fn start(home: &TestHome) -> Self {
        let mut command = home.cli(&["hold", "--for", "a test"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("testyard starts");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Self { asked: child.stdin.take(), child, answers }
    }

    fn ask(&mut self, line: &str) -> Value {
        let asked = self.asked.as_mut().expect("not let go yet");
        writeln!(asked, "{line}").expect("it reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("it answers");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{line}: {answer}: {error}"))
    }

    fn hold(&mut self, name: &str) {
        let answer = self.ask(&format!("hold {name}"));
        assert_eq!(answer["held"], name, "{answer}");
    }

    /// Its starter is gone.
    fn end(mut self) {
        drop(self.asked.take());
        assert!(self.child.wait().expect("ours").success());
    }
}

fn names(home: &TestHome) -> Vec<String> {
    home.must_run(&["list", "--names"]).lines().map(str::to_owned).collect()
}

#[test]
fn a_machine_ends_with_the_last_who_holds_it() {
    testkit::require_programs!();
    let home = TestHome::new();
    let (mut first, mut second) = (Keeper::start(&home), Keeper::start(&home));
    home.must_run(&["create", "mine", "--backend", "host"]);
    let made = first.ask(r#"create ["held", "--backend", "host"]"#);
    assert_eq!((&made["held"], &made["machine"]["state"]), (&"held".into(), &"running".into()), "{made}");
    second.hold("held");
    second.hold("held");
    first.end();
    assert_eq!(names(&home), ["held", "mine"]);
    let released = second.ask("release held");
    assert_eq!(released["deleted"], true, "{released}");
    assert_eq!(names(&home), ["mine"], "what was never held stays");
    second.end();
    assert_eq!(names(&home), ["mine"]);
    home.must_run(&["delete", "mine"]);
    home.finish();
}

#[test]
fn what_is_wrong_is_answered_and_nothing_ends_of_it() {
    testkit::require_programs!();
    let home = TestHome::new();
    let mut keeper = Keeper::start(&home);
    for (line, words) in [
        ("hold nobody", "there is no machine nobody"),
        ("hold a/b", "machine name"),
        ("release nobody", "is not held here"),
        ("frob", "none of hold, create"),
        ("create nonsense", "JSON list"),
        (r#"create ["x", "--bogus"]"#, "--bogus"),
        ("keep x 1h t", "not the name of a kept environment"),
        ("", "none of hold, create"),
    ] {
        let answer = keeper.ask(line);
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "{line}: {answer}");
    }
    keeper.end();
    home.finish();
}

#[test]
fn signals_of_the_terminal_do_not_end_the_keeper() {
    testkit::require_programs!();
    let home = TestHome::new();
    let mut keeper = Keeper::start(&home);
    keeper.ask(r#"create ["held", "--backend", "host"]"#);
    for signal in ["INT", "HUP", "TERM", "QUIT"] {
        let pid = keeper.child.id().to_string();
        let sent = home.command("kill").args([&format!("-{signal}"), &pid]).status().expect("kill is everywhere");
        assert!(sent.success());
    }
    keeper.hold("held");
    assert_eq!(names(&home), ["held"]);
    keeper.end();
    assert_eq!(names(&home), [""; 0]);
    home.finish();
}

#[test]
fn a_killed_keepers_machine_is_reaped_unless_another_holds_it() {
    testkit::require_programs!();
    let home = TestHome::new();
    let (mut killed, mut lives) = (Keeper::start(&home), Keeper::start(&home));
    for name in ["shared", "alone"] {
        let answer = killed.ask(&format!(r#"create ["{name}", "--backend", "host"]"#));
        assert_eq!(answer["held"], name, "{answer}");
    }
    lives.hold("shared");
    killed.child.kill().expect("ours");
    killed.child.wait().expect("ours");
    let report: Value = serde_json::from_str(&home.must_run(&["reap", "--json"])).expect("JSON");
    let reaped: Vec<_> = report["machines"].as_array().into_iter().flatten().map(|one| one["name"].clone()).collect();
    // Another command may have looked around before.
    assert!(reaped.iter().all(|name| name == "alone"), "{report}");
    assert_eq!(names(&home), ["shared"]);
    lives.end();
    assert_eq!(names(&home), [""; 0]);
    home.finish();
}

#[test]
fn a_machine_waits_for_the_environments_that_are_kept_in_it() {
    testkit::require_programs!();
    let home = TestHome::new();
    let mut keeper = Keeper::start(&home);
    keeper.ask(r#"create ["held", "--backend", "host"]"#);
    // Nobody holds an environment of this number: it is gone as soon as anybody looks closely.
    let kept = keeper.ask("keep held/e9 1h test_x.py::test_y");
    assert_eq!(kept["enter"], "testyard env enter held/e9", "{kept}");
    let released = keeper.ask("release held");
    assert_eq!(released["deleted"], false, "{released}");
    assert_eq!(names(&home), ["held"]);
    drop(keeper.asked.take());
    assert!(wait_until(DEADLINE, || names(&home).is_empty()));
    assert!(keeper.child.wait().expect("ours").success());
    home.finish();
}
