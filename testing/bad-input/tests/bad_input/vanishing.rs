//! Supervisors and agents that are killed in the middle of something.

use rustix::process::Signal;
use testkit::{Output, TestHome};

use crate::{DEADLINE, INFRASTRUCTURE, check_refusal, end, make, signal, start, supervisor, until_it_runs};

/// The agent is the supervisor's only child.
fn agent(supervisor: i32) -> i32 {
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).expect("it runs");
    children.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("a supervisor has an agent")
}

#[test]
fn commands_of_a_killed_agent_end_with_one_error() {
    let home = TestHome::new();
    make(&home, "m");
    let mut exec = start(&home, &["exec", "m", "--", "sh", "-c", "touch /tmp/runs; exec sleep 1000"]);
    let mut fresh = start(&home, &["env", "run", "m", "--", "sleep", "1000"]);
    until_it_runs(&home, "m", "/tmp/runs");
    signal(agent(supervisor(&home, "m")), Signal::KILL);
    for child in [&mut exec, &mut fresh] {
        let words = ["machine m went away", "hint: testyard info m", "hint: testyard start m"];
        check_refusal("killed agent", &end(child, "killed agent"), INFRASTRUCTURE, &words);
    }
    crate::wait("the machine to be seen as failed", || home.must_run(&["list"]).contains("failed"));
    let output = home.run_cli(&["exec", "m", "--", "true"]);
    check_refusal("exec in a failed machine", &output, crate::USAGE, &["machine m is failed", "hint: start it"]);
    home.must_run(&["start", "m"]);
    home.must_run(&["exec", "m", "--", "true"]);
    home.finish();
}

#[test]
fn a_machine_survives_its_supervisor() {
    let home = TestHome::new();
    make(&home, "m");
    let mut exec = start(
        &home,
        &["exec", "m", "--", "sh", "-c", "touch /tmp/runs; until test -e /tmp/end; do sleep 0.05; done; exit 7"],
    );
    until_it_runs(&home, "m", "/tmp/runs");
    let old = supervisor(&home, "m");
    signal(old, Signal::KILL);
    home.must_run(&["exec", "m", "--", "touch", "/tmp/end"]);
    assert_eq!(end(&mut exec, "a command without its supervisor").code, 7);
    home.must_run(&["env", "run", "m", "--", "true"]);
    assert_ne!(supervisor(&home, "m"), old);
    home.must_run(&["delete", "m"]);
    home.finish();
}

#[test]
fn a_run_goes_on_when_its_machine_vanishes() {
    let home = TestHome::new();
    let tests = "[[test]]\nname = 'a'\ncommand = 'sleep 2'\n[[test]]\nname = 'b'\ncommand = 'sleep 2'\n";
    std::fs::write(home.work().join("testyard.toml"), format!("format = 1\n{tests}")).expect("the home is ours");
    // The machine is warm, so that its name is known.
    let _ = Output::of(&mut home.cli(&["run", "--timeout", "50ms"]), DEADLINE);
    let name = home.must_run(&["list", "--names"]).trim().to_owned();
    let victim = agent(supervisor(&home, &name));
    let mut child = start(&home, &["run", "--jobs", "2"]);
    crate::wait("a test that runs", || {
        std::fs::read_to_string(format!("/proc/{victim}/task/{victim}/children"))
            .is_ok_and(|pids| pids.split_whitespace().count() > 1)
    });
    signal(victim, Signal::KILL);
    let output = end(&mut child, "a run whose machine vanishes");
    assert_eq!(output.code, 0, "{output}");
    assert!(output.stdout.contains("2 passed"), "{output}");
    home.finish();
}

#[test]
fn a_tree_that_goes_while_its_tests_run() {
    let home = TestHome::new();
    home.must_run(&["create", "far", "--backend", "command", "--through", "env", "--inside", "namespace"]);
    for more in [&[][..], &["--source", "synced"], &["--on", "far"]] {
        let suite = home.work().join("suite");
        std::fs::create_dir(&suite).expect("the home is ours");
        // Not a sleep that another test has.
        let nap = format!("sleep 1.{}", std::process::id());
        let tests = format!(
            "[[test]]\nname = 'a'\ncommand = '{nap}'\n\
             [[test]]\nname = 'b'\ncommand = 'cat value'\n[[test]]\nname = 'c'\ncommand = 'true'\n"
        );
        std::fs::write(suite.join("testyard.toml"), format!("format = 1\n{tests}")).expect("the home is ours");
        std::fs::write(suite.join("value"), "one").expect("the home is ours");
        let run = ["run", "suite", "--jobs", "1", "--order", "file", "--json"];
        let mut child = start(&home, &[&run, more].concat());
        // Its environment is told before the tree is mounted there.
        crate::wait("a test that runs", || testkit::processes::runs(&nap));
        std::process::Command::new("rm").arg("-rf").arg(&suite).status().expect("rm");
        let output = end(&mut child, "a run whose tree goes");
        let report = output.json();
        let results = report["results"].as_array().expect("results");
        let outcome = |index: usize| (results[index]["name"].clone(), results[index]["result"].clone());
        // What a machine has a copy of goes on; what needs the tree itself says what is wrong.
        let (expected, code) = if more.is_empty() { ("infrastructure-error", INFRASTRUCTURE) } else { ("passed", 0) };
        assert_eq!(outcome(0), ("a".into(), "passed".into()), "{more:?}: {output}");
        assert_eq!(outcome(1), ("b".into(), expected.into()), "{more:?}: {output}");
        assert_eq!(outcome(2), ("c".into(), expected.into()), "{more:?}: {output}");
        let gone = format!("the working tree {} is gone", suite.display());
        assert_eq!((results.len(), output.code), (3, code), "{more:?}: {output}");
        assert_eq!(output.stderr.contains(&gone), more.is_empty(), "{more:?}: {output}");
    }
    home.finish();
}
