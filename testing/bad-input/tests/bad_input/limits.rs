//! Environments at the end of what they may use.

use testkit::{Ability, Output, TestHome};

use crate::{DEADLINE, INFRASTRUCTURE, check_refusal, make};

fn run(home: &TestHome, options: &[&str], script: &str) -> Output {
    let arguments = [&["env", "run", "m"][..], options, &["--", "sh", "-c", script]].concat();
    Output::of(&mut home.cli(&arguments), DEADLINE)
}

#[test]
fn a_full_environment_fails_its_own_writes_only() {
    let home = TestHome::new();
    make(&home, "m");
    let output = run(
        &home,
        &["--disk", "1M"],
        "head -c 3000000 /dev/zero > /tmp/big || head -c 3000000 /dev/zero > /var/tmp/big; echo $?",
    );
    assert_eq!((output.code, output.stdout.as_str()), (0, "1\n"), "{output}");
    assert!(output.stderr.contains("No space left"), "{output}");
    let next = run(&home, &["--disk", "1M"], "echo fine > /tmp/small && cat /tmp/small");
    assert_eq!((next.code, next.stdout.as_str()), (0, "fine\n"), "{next}");
    home.finish();
}

#[test]
fn too_many_processes_fail_inside_and_too_few_are_explained() {
    testkit::require!(Ability::Root);
    let home = TestHome::new();
    make(&home, "m");
    let output = run(&home, &["--pids", "20"], "for i in $(seq 40); do sleep 5 & done; wait");
    assert_ne!(output.code, 0, "{output}");
    assert!(output.stderr.contains("fork"), "{output}");
    let output = home.run_cli(&["env", "run", "m", "--pids", "1", "--", "true"]);
    check_refusal("--pids 1", &output, INFRASTRUCTURE, &["limit of 1 processes", "hint: allow more: --pids"]);
    assert_eq!(run(&home, &["--pids", "20"], "echo fine").stdout, "fine\n");
    home.finish();
}

#[test]
fn a_command_killed_for_its_memory_says_so() {
    testkit::require!(Ability::Root);
    testkit::require!(Ability::MemoryCgroup);
    let home = TestHome::new();
    make(&home, "m");
    let output = run(&home, &["--memory", "20M"], "exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    assert_eq!(output.code, 137, "{output}");
    assert!(output.stderr.contains("its memory of 20M was not enough"), "{output}");
    home.finish();
}

#[test]
fn limits_that_cannot_be_set_are_refused_where_they_must_be() {
    let home = TestHome::new();
    make(&home, "m");
    let lenient = run(&home, &["--memory", "200M"], "echo fine");
    assert_eq!(lenient.stdout, "fine\n", "{lenient}");
    let strict = run(&home, &["--memory", "200M", "--strict-limits"], "echo fine");
    if strict.code != 0 {
        check_refusal("strict", &strict, INFRASTRUCTURE, &["cannot limit memory", "hint: "]);
    }
    let combined = home.run_cli(&["env", "run", "m", "--isolation", "none", "--memory", "1G", "--", "true"]);
    check_refusal("none", &combined, crate::USAGE, &["without isolation", "hint: leave out --isolation none"]);
    let machine = home.run_cli(&["env", "run", "m", "--isolation", "machine", "--", "true"]);
    check_refusal("machine", &machine, crate::USAGE, &["a machine of its own", "hint: testyard create"]);
    home.finish();
}

#[test]
fn a_command_out_of_time_is_ended_with_all_it_started() {
    let home = TestHome::new();
    make(&home, "m");
    for how in [&["exec", "m"][..], &["env", "run", "m"]] {
        let arguments =
            [how, &["--timeout", "200ms", "--", "sh", "-c", "trap '' TERM; sleep 1013 & sleep 1013"]].concat();
        let output = home.run_cli(&arguments);
        check_refusal("timeout", &output, 124, &["200ms had passed"]);
    }
    let left = home.run_cli(&["exec", "m", "--", "sh", "-c", "grep -lz '^1013' /proc/[0-9]*/cmdline"]);
    assert_eq!(left.stdout, "");
    home.finish();
}
