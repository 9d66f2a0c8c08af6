//! Slurm's commands on another host: allocations and runs asked for over SSH, at a cluster of Testyard's own. The real
//! binary, in a home of the test's own; all tests share the cluster.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use testkit::{Output, TestHome, wait_until};

const DEADLINE: Duration = Duration::from_secs(90);

/// A cluster, and the options that lead to its controller.
struct Ground {
    home: TestHome,
    login: Vec<String>,
}

impl Ground {
    fn new() -> Self {
        let home = TestHome::new();
        let made = home.run_cli(&["cluster", "create", "slurm", "lab", "--nodes", "3", "--cpus", "2", "--json"]);
        let ssh = made.expect_success().json()["cluster"]["ssh"].clone();
        let text = |key: &str| ssh[key].as_str().unwrap_or_else(|| panic!("{key} in {ssh}")).to_owned();
        let known = home.work().join("known");
        std::fs::write(&known, format!("[127.0.0.1]:{} {}\n", ssh["port"], text("host_key"))).expect("a file");
        let host = format!("{}@127.0.0.1:{}", text("user"), ssh["port"]);
        let known = known.display().to_string();
        let login = ["--host", &host, "--identity", &text("identity"), "--known-hosts", &known];
        Self { login: login.map(str::to_owned).to_vec(), home }
    }

    fn words<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        arguments.iter().copied().chain(self.login.iter().map(String::as_str)).collect()
    }

    fn queue(&self) -> String {
        self.home.must_run(&["cluster", "exec", "lab", "1", "--", "squeue", "--noheader", "--states=PENDING,RUNNING"])
    }

    fn suite(&self, name: &str, count: usize, command: &str) {
        self.suite_of(name, std::iter::repeat_n(command, count));
    }

    /// With a test for each of these commands.
    fn suite_of<'a>(&self, name: &str, commands: impl Iterator<Item = &'a str>) {
        let folder = self.home.work().join(name);
        std::fs::create_dir(&folder).expect("the home is empty");
        let mut suite = format!("format = 1\n[suite]\nname = \"{name}\"\n");
        for (index, command) in commands.enumerate() {
            suite.push_str(&format!(
                "[[test]]\nname = \"t{index}\"\ncommand = \"{command}\"\nisolation = \"namespace\"\n"
            ));
        }
        std::fs::write(folder.join("testyard.toml"), suite).expect("a suite");
    }

    /// Nothing is left but the cluster.
    fn assert_clean(&self, said: &impl std::fmt::Display) {
        assert_eq!(self.queue(), "", "{said}");
        let machines = self.home.must_run(&["list", "--names"]);
        assert!(machines.lines().all(|name| name.starts_with("lab-")), "{machines}{said}");
        for node in ["1", "2", "3"] {
            self.assert_clean_node(node, said);
        }
    }

    /// No process of a job's machine is left on a node, and no session's folder: what is kept are programs and lists.
    fn assert_clean_node(&self, node: &str, said: &impl std::fmt::Display) {
        let look =
            "pgrep -a -u slurm testyard; ls -d /var/tmp/testyard-far-*/*/home /dev/shm/testyard-far-* 2> /dev/null; :";
        let look = ["cluster", "exec", "lab", node, "--user", "root", "--", "sh", "-c", look];
        let mut left = String::new();
        let clean = wait_until(DEADLINE, || {
            left = self.home.must_run(&look);
            left.is_empty()
        });
        assert!(clean, "node {node}: {left}{said}");
    }
}

#[test]
fn allocations_and_runs_are_asked_for_on_another_host() {
    testkit::require!(testkit::Ability::Root);
    testkit::require_cluster!();
    let ground = Ground::new();
    an_allocation(&ground);
    a_run(&ground);
    an_interrupted_run(&ground);
    a_run_that_loses_a_job_and_is_killed(&ground);
    the_pages_command(&ground);
    bad_input(&ground);
    drop(ground.home.run_cli(&["cluster", "delete", "lab"]).expect_success());
    ground.home.finish();
}

fn an_allocation(ground: &Ground) {
    let create = ["create", "g1", "--backend", "slurm-allocation", "--cpus", "1", "--memory", "100M"];
    ground.home.must_run(&ground.words(&create));
    let where_ = ground.home.must_run(&["exec", "g1", "--", "hostname"]);
    assert!(!where_.trim().is_empty());
    let info = ground.home.must_run(&["info", "g1"]);
    assert!(info.contains("1 processors, 100M memory"), "{info}");
    ground.home.must_run(&["delete", "g1"]);
    ground.assert_clean(&info);
}

fn a_run(ground: &Ground) {
    // Two at once keep each node busy until the others have joined: programs come to each of them over the login.
    let (long, short) = ("test -f testyard.toml && sleep 30", "test -f testyard.toml");
    ground.suite_of("quick", std::iter::repeat_n(long, 6).chain(std::iter::repeat_n(short, 24)));
    let run = ["run", "quick", "--on", "slurm:debug", "--nodes", "3", "--jobs", "2", "--json"];
    let output = ground.home.run_cli(&ground.words(&run));
    let results = output.json()["results"].as_array().cloned().unwrap_or_default();
    let passed = results.iter().filter(|result| result["result"] == "passed").count();
    assert_eq!((output.code, results.len(), passed), (0, 30, 30), "{output}");
    let machines: BTreeSet<String> =
        results.iter().map(|result| result["attempts"][0]["machine"].to_string()).collect();
    assert_eq!(machines.len(), 3, "{output}");
    ground.assert_clean(&output);
}

fn an_interrupted_run(ground: &Ground) {
    ground.suite("long", 6, "sleep 1000");
    let events = ground.home.work().join("events.jsonl");
    let report = format!("jsonl={}", events.display());
    let run = ["run", "long", "--on", "slurm", "--nodes", "3", "--jobs", "1", "--report", &report];
    let mut command = ground.home.cli(&ground.words(&run));
    let child = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let began = wait_until(DEADLINE, || {
        std::fs::read_to_string(&events).unwrap_or_default().matches("\"test-environment\"").count() == 3
    });
    let group = Pid::from_raw(child.id().cast_signed()).expect("a process");
    kill_process_group(group, Signal::INT).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    let output = Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    assert!(began && output.code == 130, "{output}");
    ground.assert_clean(&output);
}

/// Somebody cancels one job, then the run itself is killed.
fn a_run_that_loses_a_job_and_is_killed(ground: &Ground) {
    let events = ground.home.work().join("killed.jsonl");
    let report = format!("jsonl={}", events.display());
    let run = ["run", "long", "--on", "slurm", "--nodes", "3", "--jobs", "2", "--report", &report];
    let mut command = ground.home.cli(&ground.words(&run));
    let mut child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let started = |count: usize| {
        let told = || std::fs::read_to_string(&events).unwrap_or_default();
        let began = wait_until(DEADLINE, || told().matches("\"test-environment\"").count() >= count);
        assert!(began, "{}", told());
    };
    // Each job has a node of its own: two processors.
    started(6);
    let job =
        "squeue -h -t RUNNING -o '%A %N' | sort | tail -n 1 | { read job node; scancel $job; echo ${node#lab-}; }";
    let node = ground.home.must_run(&["cluster", "exec", "lab", "1", "--", "sh", "-c", job]);
    ground.assert_clean_node(node.trim(), &"a job was cancelled");
    let others = ground.queue();
    assert_eq!(others.lines().filter(|line| line.contains(" R ")).count(), 2, "{others}");
    child.kill().expect("it runs");
    child.wait().expect("ours");
    let ours = || ground.home.must_run(&["list", "--names"]).lines().any(|name| !name.starts_with("lab-"));
    assert!(wait_until(DEADLINE, || ground.queue().is_empty() && !ours()), "{}", ground.queue());
    ground.assert_clean(&"the run was killed");
}

/// `docs/scale-out.md`: what it shows for Slurm's commands on another host.
fn the_pages_command(ground: &Ground) {
    let page = testkit::Page::load("scale-out");
    let block = page.commands_with("--host me@login");
    let folder = ground.home.work();
    std::fs::create_dir(folder.join("tests")).expect("the home is ours");
    for (name, text) in [
        ("testyard.toml", "format = 1\n[[tests]]\nglob = \"tests/*.sh\"\ncommand = [\"sh\", \"{file}\"]\n"),
        ("tests/a.sh", "test -f testyard.toml"),
        ("tests/b.sh", "hostname"),
        ("tests/c.sh", "true"),
    ] {
        std::fs::write(folder.join(name), text).expect("the home is ours");
    }
    let words: Vec<&str> = block.trim().split(' ').collect();
    let (program, words) = words.split_first().expect("a command");
    let without: Vec<&str> = words.iter().copied().filter(|word| !["--host", "me@login"].contains(word)).collect();
    assert_eq!((*program, without.len() + 2), ("testyard", words.len()), "{block}");
    let output = ground.home.run_cli(&ground.words(&without));
    assert!(output.code == 0 && output.stdout.contains("3 passed"), "{output}");
    ground.assert_clean(&output);
}

fn bad_input(ground: &Ground) {
    let refused = |arguments: &[&str], message: &str| {
        let output = ground.home.run_cli(arguments);
        assert!(output.code != 0 && output.stderr.contains(message), "{arguments:?}: {output}");
    };
    refused(
        &["run", "quick", "--on", "slurm", "--identity", "key"],
        "--identity is for Slurm's commands on another host",
    );
    refused(&["run", "quick", "--host", "me@login"], "--host is for runs over a Slurm cluster");
    refused(&["run", "quick", "--on", "slurm", "--host", "me@"], "a name is missing");
    let nowhere = ground.words(&["run", "quick", "--on", "slurm:nope", "--jobs", "1"]);
    refused(&nowhere, "the Slurm cluster has no partition nope");
    // Nobody listens there.
    let absent = ["run", "quick", "--on", "slurm", "--host", "me@127.0.0.1:1", "--jobs", "1"];
    refused(&absent, "127.0.0.1");
    ground.assert_clean(&"bad input");
}
