//! Machines asked for in vain, twice, or at the wrong moment.

use std::os::unix::fs::PermissionsExt as _;

use testkit::{Output, TestHome};

use crate::{DEADLINE, INFRASTRUCTURE, USAGE, end, listed, make, refused, start, until_it_runs};

#[test]
fn what_a_backend_cannot_give_is_named() {
    let home = TestHome::new();
    for (option, value, words) in [
        ("--image", "debian:12", "from image debian:12"),
        ("--memory", "1G", "a memory limit"),
        ("--cpus", "1", "a processor limit"),
        ("--disk", "1G", "a disk limit"),
        ("--expose", "/etc", "exposed paths"),
    ] {
        refused(
            &home,
            &["create", "m", "--backend", "host", option, value],
            USAGE,
            &[words, "hint: use --backend namespace"],
        );
    }
    refused(&home, &["create", "m", "--backend", "host", "--privileged"], USAGE, &["privileges"]);
    refused(
        &home,
        &["create", "m", "--arch", "sparc"],
        INFRASTRUCTURE,
        &["architecture sparc", "this host is", "hint: leave --arch out"],
    );
    refused(
        &home,
        &["create", "m", "--image", "no-such:1"],
        USAGE,
        &["there is no image no-such:1", "hint: see the images there are: testyard image list"],
    );
    assert_eq!(listed(&home), [""; 0]);
    home.finish();
}

#[test]
fn a_host_machine_isolates_no_more_than_a_workspace() {
    let home = TestHome::new();
    home.must_run(&["create", "m", "--backend", "host"]);
    let output = home.run_cli(&["env", "run", "m", "--isolation", "namespace", "--", "true"]);
    assert_ne!(output.code, 0, "{output}");
    assert!(
        output.stderr.contains("error: ") && output.stderr.contains("cannot isolate more than workspaces"),
        "{output}"
    );
    home.must_run(&["env", "run", "m", "--isolation", "workspace", "--network", "host", "--", "true"]);
    home.finish();
}

#[test]
fn what_is_not_there_is_said_by_every_command() {
    let home = TestHome::new();
    for arguments in [
        &["info", "m"][..],
        &["start", "m"],
        &["stop", "m"],
        &["restart", "m"],
        &["delete", "m"],
        &["rename", "m", "n"],
        &["clone", "m", "n"],
        &["logs", "m"],
        &["shell", "m"],
        &["exec", "m", "--", "true"],
        &["env", "run", "m", "--", "true"],
        &["push", "m", "/etc/hostname", "/tmp"],
        &["pull", "m", "/etc/hostname", "."],
    ] {
        refused(&home, arguments, USAGE, &["there is no machine m", "hint: see those there are: testyard list"]);
    }
    home.finish();
}

#[test]
fn nothing_runs_in_a_stopped_machine() {
    let home = TestHome::new();
    make(&home, "m");
    home.must_run(&["stop", "m"]);
    for arguments in [
        &["exec", "m", "--", "true"][..],
        &["env", "run", "m", "--", "true"],
        &["shell", "m"],
        &["push", "m", "/etc/hostname", "/tmp"],
        &["pull", "m", "/etc/hostname", "."],
    ] {
        refused(&home, arguments, USAGE, &["machine m is stopped", "hint: start it: testyard start m"]);
    }
    home.must_run(&["start", "m"]);
    home.must_run(&["exec", "m", "--", "true"]);
    home.finish();
}

#[test]
fn of_many_that_create_one_name_one_succeeds() {
    let home = TestHome::new();
    let mut started: Vec<_> = (0..6).map(|_| start(&home, &["create", "same"])).collect();
    let ended: Vec<Output> = started.iter_mut().map(|child| end(child, "create same")).collect();
    let (made, others): (Vec<_>, Vec<_>) = ended.iter().partition(|output| output.code == 0);
    assert_eq!(made.len(), 1, "{ended:?}");
    for output in others {
        crate::check_refusal("create same", output, USAGE, &["same", "already exists", "hint: "]);
    }
    assert_eq!(listed(&home), ["same"]);
    home.must_run(&["exec", "same", "--", "true"]);
    home.finish();
}

#[test]
fn a_taken_name_is_not_given_again() {
    let home = TestHome::new();
    make(&home, "a");
    make(&home, "b");
    let taken = ["machine `b` already exists", "hint: use it: testyard exec b -- true"];
    refused(&home, &["create", "b"], USAGE, &taken);
    refused(&home, &["rename", "a", "b"], USAGE, &taken);
    refused(&home, &["clone", "a", "b"], USAGE, &taken);
    // All are tried, and the error is told.
    let output = home.run_cli(&["delete", "a", "c", "b"]);
    assert_eq!(output.code, USAGE, "{output}");
    assert!(output.stderr.contains("error: there is no machine c"), "{output}");
    assert_eq!(listed(&home), [""; 0]);
    home.finish();
}

#[test]
fn a_machine_in_use_is_deleted_only_by_force() {
    let home = TestHome::new();
    make(&home, "m");
    let mut exec = start(&home, &["exec", "m", "--", "sh", "-c", "touch /tmp/runs; exec sleep 1000"]);
    let mut fresh = start(&home, &["env", "run", "m", "--", "sleep", "1000"]);
    until_it_runs(&home, "m", "/tmp/runs");
    refused(
        &home,
        &["delete", "m"],
        USAGE,
        &["machine m is in use", "hint: end them with it: testyard delete m --force"],
    );
    assert!(exec.try_wait().expect("our child").is_none(), "the command goes on");
    home.must_run(&["delete", "m", "--force"]);
    // TERM comes first and KILL soon after: either may be what ends it.
    let code = end(&mut exec, "exec").code;
    assert!([137, 143].contains(&code), "{code}");
    assert_ne!(end(&mut fresh, "env run").code, 0);
    assert_eq!(listed(&home), [""; 0]);
    home.finish();
}

#[test]
fn two_homes_do_not_see_each_other() {
    let (one, other) = (TestHome::new(), TestHome::new());
    make(&one, "m");
    assert_eq!(listed(&other), [""; 0]);
    refused(&other, &["exec", "m", "--", "true"], USAGE, &["there is no machine m"]);
    refused(&other, &["delete", "m", "--force"], USAGE, &["there is no machine m"]);
    make(&other, "m");
    other.must_run(&["exec", "m", "--", "touch", "/tmp/of-the-other"]);
    other.must_run(&["reap"]);
    other.must_run(&["delete", "m"]);
    assert_eq!(one.run_cli(&["exec", "m", "--", "test", "-e", "/tmp/of-the-other"]).code, 1);
    one.finish();
    other.finish();
}

#[test]
fn a_home_deeper_than_a_sockets_path_works() {
    let home = TestHome::new();
    let deep = (0..6).fold(home.state(), |path, _| path.join("d".repeat(49)));
    std::fs::create_dir_all(&deep).expect("the home is ours");
    std::fs::set_permissions(&deep, std::fs::Permissions::from_mode(0o700)).expect("the home is ours");
    assert!(deep.as_os_str().len() > 300);
    let run = |arguments: &[&str]| {
        let mut command = home.cli(arguments);
        Output::of(command.env("TESTYARD_HOME", &deep).env("XDG_RUNTIME_DIR", home.work()), DEADLINE)
    };
    if !testkit::user::is_root() {
        let output = Output::of(home.cli(&["list"]).env("TESTYARD_HOME", &deep), DEADLINE);
        let words = ["no runtime folder is short enough", "hint: set TESTYARD_HOME", "hint: or give the session"];
        crate::check_refusal("without a runtime folder", &output, USAGE, &words);
    }
    let made = run(&["create", "m"]);
    let ran = run(&["exec", "m", "--", "echo", "deep"]);
    let fresh = run(&["env", "run", "m", "--", "echo", "deep"]);
    let deleted = run(&["delete", "m", "--force"]);
    assert_eq!((made.code, deleted.code), (0, 0), "{made} {deleted}");
    assert_eq!((ran.stdout.as_str(), fresh.stdout.as_str()), ("deep\n", "deep\n"), "{ran} {fresh}");
    home.finish();
}

#[test]
fn a_home_that_cannot_be_one_is_refused() {
    let home = TestHome::new();
    let file = home.work().join("file");
    std::fs::write(&file, "").expect("the home is ours");
    let open = home.work().join("open");
    std::fs::create_dir(&open).expect("the home is ours");
    std::fs::write(open.join("something"), "").expect("the home is ours");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("the home is ours");
    let proc = std::path::PathBuf::from("/proc/no-such");
    for (path, code, words) in [
        (std::path::PathBuf::from("relative"), USAGE, "not absolute"),
        (file.clone(), USAGE, "is not a folder"),
        (open, INFRASTRUCTURE, "open to others"),
        (proc, INFRASTRUCTURE, "cannot make"),
    ] {
        let output = Output::of(home.cli(&["list"]).env("TESTYARD_HOME", &path), DEADLINE);
        crate::check_refusal(
            &path.display().to_string(),
            &output,
            code,
            &[words, "hint: ", &path.display().to_string()],
        );
    }
    home.finish();
}

#[test]
fn an_unknown_user_is_told_when_a_command_is_to_run() {
    let home = TestHome::new();
    make(&home, "m");
    for command in [&["exec", "m"][..], &["env", "run", "m"]] {
        let arguments = [command, &["--user", "nosuchuser", "--", "true"]].concat();
        refused(&home, &arguments, USAGE, &["no user `nosuchuser`", "hint: "]);
        let arguments = [command, &["--user", "70000", "--", "true"]].concat();
        let output = home.run_cli(&arguments);
        // Whoever has only one id can be nobody else, whatever its number.
        assert!(output.code == INFRASTRUCTURE || output.code == 0, "{output}");
    }
    home.finish();
}

#[test]
fn a_machines_user_may_be_a_number() {
    testkit::require!(testkit::Ability::Root);
    let home = TestHome::new();
    for (written, expected) in [("12", "12:12\n"), ("12:13", "12:13\n")] {
        home.must_run(&["create", "m", "--user", written]);
        assert_eq!(home.must_run(&["exec", "m", "--", "sh", "-c", "echo $(id -u):$(id -g)"]), expected);
        home.must_run(&["delete", "m"]);
    }
    home.finish();
}
