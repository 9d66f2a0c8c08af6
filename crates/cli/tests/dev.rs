//! The developer's machine: `testyard dev`, shared folders, and the machine's own docker. The real binary.

use std::process::{Child, Stdio};

use serde_json::Value;
use testkit::{Output, TestHome, wait_until};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// Skips where only this crate was built.
macro_rules! ground {
    ($backend:expr) => {{
        testkit::require_programs!();
        let home = TestHome::new();
        let made = home.run_cli(&["dev", "ensure-started", "--backend", $backend, "--json"]);
        if $backend == "namespace" && made.code != 0 {
            testkit::skip!(module_path!(), "this host gives no namespaces: {made}");
        }
        assert_eq!(made.code, 0, "{made}");
        home
    }};
}

fn exec(home: &TestHome, command: &str) -> Output {
    home.run_cli(&["dev", "exec", command])
}

/// A command on the machine itself, as the SDK sends it.
fn on_machine(home: &TestHome, command: &str) -> Output {
    let name = status(home)["vm"]["name"].as_str().expect("it runs").to_owned();
    home.run_cli(&["exec", &name, "--", "sh", "-c", command])
}

fn succeed(output: Output) {
    assert_eq!(output.code, 0, "{output}");
}

fn status(home: &TestHome) -> Value {
    home.run_cli(&["dev", "status", "--json"]).expect_success().json()
}

fn background(home: &TestHome, command: &str) -> Child {
    home.cli(&["dev", "exec", command]).stdout(Stdio::null()).spawn().expect("it starts")
}

#[test]
fn what_one_command_leaves_the_next_finds_and_nothing_else() {
    let home = ground!("namespace");
    succeed(exec(&home, "echo one > /tmp/left; echo two > left; echo three > /etc/left"));
    assert_eq!(exec(&home, "cat /tmp/left left; ls /etc/left 2>/dev/null").stdout, "one\ntwo\n");
    assert_eq!(home.run_cli(&["dev", "exec", "--", "sh", "-c", "exit 3"]).code, 3);
    // An environment that does not ask sees the same and leaves nothing.
    let name = status(&home)["vm"]["name"].as_str().expect("it runs").to_owned();
    let apart =
        home.run_cli(&["env", "run", &name, "--", "sh", "-c", "cat /tmp/left; echo x > /tmp/left; stat -c %a /tmp"]);
    assert_eq!(apart.expect_success().stdout, "one\n1777\n");
    assert_eq!(exec(&home, "cat /tmp/left").stdout, "one\n");
    home.must_run(&["dev", "stop"]);
    home.must_run(&["dev", "ensure-started"]);
    assert_eq!(exec(&home, "cat /tmp/left left").stdout, "one\ntwo\n");
    home.must_run(&["clone", &name, "copy"]);
    assert_eq!(home.must_run(&["exec", "copy", "--", "cat", "/tmp/left", "/root/left"]), "one\ntwo\n");
    home.must_run(&["dev", "ensure-started", "--force-new"]);
    assert_eq!(exec(&home, "ls /tmp /root").stdout, "/root:\n\n/tmp:\n");
    home.must_run(&["dev", "stop", "--delete"]);
    home.finish();
}

#[test]
fn there_is_one_machine_however_many_ask() {
    let home = ground!("host");
    home.must_run(&["dev", "stop", "--delete"]);
    let start = || home.cli(&["dev", "ensure-started", "--backend", "host", "--json"]).stdout(Stdio::piped()).spawn();
    let all: Vec<Child> = (0..4).map(|_| start().expect("it starts")).collect();
    let ids: Vec<Value> = all
        .into_iter()
        .map(|one| {
            let output = one.wait_with_output().expect("it ends");
            assert!(output.status.success());
            let told: Value = serde_json::from_slice(&output.stdout).expect("a document");
            told["machine"]["id"].clone()
        })
        .collect();
    assert!(ids.windows(2).all(|two| two[0] == two[1]), "{ids:?}");
    assert_eq!(home.run_cli(&["list", "--json"]).json()["machines"].as_array().map(Vec::len), Some(1));
    home.must_run(&["dev", "stop", "--delete"]);
    home.finish();
}

#[test]
fn what_runs_is_told_and_reset_ends_it() {
    let home = ground!("host");
    let mut sleeper = background(&home, "sleep 600");
    assert!(wait_until(DEADLINE, || status(&home)["active_containers"] == 1));
    let one = status(&home)["containers"][0].clone();
    assert_eq!((&one["Command"], &one["State"]), (&"sleep 600".into(), &"running".into()));
    for field in ["Names", "Status", "Image", "CreatedAt", "ID"] {
        assert!(one[field].is_string(), "{field} of {one}");
    }
    let reset = home.run_cli(&["dev", "reset", "--json"]).expect_success().json();
    assert_eq!(reset["removed"], 1);
    assert!(!sleeper.wait().expect("it ends").success());
    assert_eq!(status(&home)["active_containers"], 0);
    let mut killed = background(&home, "sleep 600");
    assert!(wait_until(DEADLINE, || status(&home)["active_containers"] == 1));
    killed.kill().expect("it runs");
    killed.wait().expect("it ends");
    assert!(wait_until(DEADLINE, || status(&home)["active_containers"] == 0));
    assert_eq!(home.run_cli(&["dev", "stop", "--json"]).json()["stopped"], true);
    assert_eq!(home.run_cli(&["dev", "stop", "--json"]).json()["stopped"], false);
    assert!(status(&home)["vm"].is_null());
    let refused = exec(&home, "true");
    assert_eq!((refused.code, refused.stdout.as_str()), (2, ""));
    assert!(refused.stderr.contains("hint: start it: testyard dev ensure-started"), "{refused}");
    home.must_run(&["dev", "stop", "--delete"]);
    home.finish();
}

#[test]
fn the_machines_docker_answers_what_the_sdk_sends() {
    let home = ground!("namespace");
    let sent = |command: &str| on_machine(&home, command);
    assert_eq!(sent("docker image inspect ubuntu:22.04 >/dev/null 2>&1").code, 1);
    let pulled = sent("docker image inspect ubuntu:22.04 >/dev/null 2>&1 || docker pull ubuntu:22.04").expect_success();
    assert!(pulled.stdout.contains("Pulling from library/ubuntu"), "{pulled}");
    assert!(pulled.stderr.contains("is stood in for by this machine's own root"), "{pulled}");
    assert_eq!(sent("docker image inspect ubuntu:22.04 >/dev/null 2>&1 || docker pull ubuntu:22.04").stdout, "");
    let run = "docker run --rm --name n-1 -v /root:/root -w /root --pull missing -e A=1 --gpus all ubuntu:22.04 sh -c ";
    let done = sent(&format!("{run} 'echo $A; pwd; echo kept > f; echo gone > /etc/gone; exit 7'"));
    assert_eq!((done.code, done.stdout.as_str()), (7, "1\n/root\n"), "{done}");
    // On a host that is a machine itself there may be no room for one more layer, which is said.
    let layered = !done.stderr.contains("allows no layer over this machine's root");
    let expected = if layered { "kept\n" } else { "kept\n/etc/gone\n" };
    assert_eq!(sent("cat /root/f; ls /etc/gone 2>/dev/null; docker ps -aq").stdout, expected, "{done}");
    for (command, code) in [("nope", 127), ("/etc/passwd", 126), ("sh -c 'kill -9 $$'", 137)] {
        assert_eq!(sent(&format!("docker run --rm ubuntu:22.04 {command}")).code, code, "{command}");
    }
    let unknown = sent("docker run --rm nonexistent/image:latest true");
    assert_eq!(unknown.code, 125);
    assert!(unknown.stderr.contains("Unable to find image 'nonexistent/image:latest' locally"), "{unknown}");
    succeed(sent("docker run -d --name flow-dev-exec-1 ubuntu:22.04 sh -c 'echo said; sleep 600'"));
    let listed: Value = sent("docker ps -f name=flow-dev-exec --format json").expect_success().json();
    assert_eq!((&listed["Names"], &listed["State"]), (&"flow-dev-exec-1".into(), &"running".into()));
    assert_eq!(sent("docker exec flow-dev-exec-1 sh -c 'exit 3'").code, 3);
    assert_eq!(sent("docker run --name flow-dev-exec-1 ubuntu:22.04 true").code, 125, "the name is taken");
    assert_eq!(status(&home)["active_containers"], 1);
    succeed(sent("docker ps -q -f name=flow-dev-exec | xargs -r docker stop"));
    assert_eq!(sent("docker logs flow-dev-exec-1").stdout, "said\n");
    assert_eq!(
        sent("docker ps -q; docker container prune -f >/dev/null; docker image prune -f >/dev/null; docker ps -aq")
            .stdout,
        ""
    );
    assert!(!sent("docker info --format '{{json .Runtimes}}'").expect_success().stdout.contains("\"nvidia\""));
    home.must_run(&["dev", "stop", "--delete"]);
    home.finish();
}

#[test]
fn a_container_ends_with_who_attends_it() {
    let home = ground!("namespace");
    succeed(on_machine(&home, "docker run --rm --name gone-1 debian:12 sleep 600 & sleep 1; kill -9 $!; wait"));
    assert!(wait_until(DEADLINE, || on_machine(&home, "docker ps -aq; pgrep -x sleep").stdout.is_empty()));
    home.must_run(&["dev", "stop", "--delete"]);
    home.finish();
}

#[test]
fn who_may_not_mount_runs_containers_too() {
    let home = ground!("namespace");
    let name = status(&home)["vm"]["name"].as_str().expect("it runs").to_owned();
    let run = "docker run --rm debian:12 sh -c 'id -u; echo kept > /tmp/kept'; docker run --rm debian:12 cat /tmp/kept";
    let ran = home.run_cli(&["exec", &name, "--user", "1000", "--", "sh", "-c", run]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "0\nkept\n"), "{ran}");
    assert!(ran.stderr.matches("allows no layer over this machine's root").count() <= 1, "{ran}");
    home.must_run(&["dev", "stop", "--delete"]);
    home.finish();
}

#[test]
fn a_machine_of_another_sort_is_not_taken() {
    let home = ground!("host");
    home.must_run(&["create", "plain", "--backend", "host"]);
    let refused = home.run_cli(&["dev", "ensure-started", "--name", "plain"]);
    assert_eq!(refused.code, 2, "{refused}");
    assert!(refused.stderr.contains("is not a developer's machine"), "{refused}");
    for bad in ["tmp", "/", "/proc/x", "/a/../b"] {
        assert_eq!(home.run_cli(&["create", "x", "--share", bad]).code, 2, "{bad}");
    }
    home.finish();
}
