//! Allocations of a Slurm cluster as machines, and runs over its nodes: real slurmctld, slurmd and munge, in namespaces
//! of the test's own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::{Output, TestHome, User, wait_until};
use testyard_model::SlurmJob;

#[path = "../../testyard/tests/machines/mod.rs"]
#[expect(dead_code, reason = "shared with the contract's tests of other backends")]
mod machines;

const DEADLINE: Duration = Duration::from_secs(90);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm/cluster.sh");

/// A cluster, and a home whose commands run on its controller's host.
struct Cluster {
    home: TestHome,
    folder: PathBuf,
    namespaces: Child,
    inside: String,
}

/// What is missing to have one.
fn lacks() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root has namespaces with several users".to_owned());
    }
    if !testkit::programs::are_built() {
        return Some("the agent is not built: cargo build -p testyard-agent".to_owned());
    }
    let programs = ["/usr/sbin/slurmctld", "/usr/sbin/slurmd", "/usr/sbin/munged", "/usr/bin/srun"];
    let missing = programs.into_iter().find(|program| !std::path::Path::new(program).exists())?;
    Some(format!("{missing} is not installed: apt-get install slurm-wlm munge"))
}

/// A program in a home's environment, of root whoever the home's user is.
fn as_root(home: &TestHome, program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir(home.path()).stdin(Stdio::null());
    command.envs(home.command(program).get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

impl Cluster {
    fn new() -> Self {
        Self::of(User::current())
    }

    /// One whose jobs are asked for by this user.
    fn of(user: User) -> Self {
        let home = TestHome::of(user);
        let folder = home.path().join("cluster");
        std::fs::create_dir(&folder).expect("the home is empty");
        // Munge and the nodes' users pass through it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(home.path(), open).expect("it is ours");
        let mut command = as_root(&home, "/usr/bin/unshare");
        command.args(["--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]);
        let log = std::fs::File::create(folder.join("log.txt")).expect("a file");
        let errors = log.try_clone().expect("a descriptor");
        command.args(["/bin/bash", SCRIPT]).arg(&folder).stdout(log).stderr(errors);
        let namespaces = command.spawn().expect("unshare starts");
        let up = wait_until(DEADLINE, || folder.join("up").exists());
        assert!(up, "{}", std::fs::read_to_string(folder.join("log.txt")).unwrap_or_default());
        let pid = namespaces.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it lives");
        Self { home, folder, namespaces, inside: children.trim().to_owned() }
    }

    /// A command on the controller's host, with this home's environment.
    fn command(&self, program: &str) -> Command {
        let mut command = as_root(&self.home, "/usr/bin/nsenter");
        command.args(["--target", &self.inside, "--mount", "--net", "--uts", "--pid"]);
        let User { uid, gid } = self.home.user();
        command.args([format!("--setuid={uid}"), format!("--setgid={gid}")]);
        command.arg(format!("--wdns={}", self.home.work().display())).arg(program);
        command
    }

    fn testyard(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(self.home.program("testyard").to_str().expect("text"));
        command.args(arguments);
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Output {
        Output::of(&mut self.testyard(arguments), DEADLINE)
    }

    #[track_caller]
    fn must_run(&self, arguments: &[&str]) -> String {
        self.run(arguments).expect_success().stdout
    }

    fn must(&self, program: &str, arguments: &[&str]) -> String {
        Output::of(self.command(program).args(arguments), DEADLINE).expect_success().stdout
    }

    fn queue(&self) -> String {
        self.must("squeue", &["--noheader", "--states=PENDING,RUNNING", "-o", "%A %j %T %N"])
    }

    /// The processes of a node's slurmd and of the jobs on it, as a power cut would end them.
    fn kill_node(&self, node: &str) {
        let job = self.queue().lines().find(|line| line.ends_with(node)).expect("a job there").to_owned();
        let job = job.split(' ').next().expect("a number").to_owned();
        let script = format!(
            "all() {{ echo $1; for child in $(pgrep -P $1); do all $child; done; }}\n\
             roots=$(cat {0}/state/{node}.process; pgrep -f 'slurmstepd: .{job}[.]')\n\
             for pid in $(pgrep -x testyard); do\n\
             tr '\\0' '\\n' < /proc/$pid/environ | grep -qx SLURM_JOB_ID={job} && roots=\"$roots $pid\"; done\n\
             kill -9 $(for root in $roots; do all $root; done | sort -u) 2> /dev/null; true",
            self.folder.display()
        );
        self.must("sh", &["-c", &script]);
    }

    fn suite(&self, tests: &str) {
        let folder = self.home.work().join("suite");
        std::fs::create_dir(&folder).expect("the home is empty");
        std::fs::write(folder.join("testyard.toml"), format!("format = 1\n[suite]\nname = \"s\"\n{tests}"))
            .expect("a suite");
        // The home is its user's, and so is what is in it.
        self.home.give(&folder);
        self.home.give(&folder.join("testyard.toml"));
    }

    /// A run in a session of its own, its number within the cluster's process namespace, and what it reports as it goes.
    fn begin(&self, arguments: &[&str]) -> (Child, PathBuf) {
        let events = self.home.work().join("events.jsonl");
        let report = format!("jsonl={}", events.display());
        let mut command = self.command("/usr/bin/setsid");
        command.arg("--wait").arg(self.home.program("testyard")).args(["run", "suite", "--report", &report]);
        let child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        (child.expect("it starts"), events)
    }

    /// Ctrl-C: to everybody in the run's process group.
    fn interrupt(&self) {
        let script = "kill -INT -- -$(pgrep -o -f 'testyard run suit[e]')";
        self.must("bash", &["-c", script]);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for name in ["g1", "g2", "g3"] {
            let _ = self.testyard(&["delete", name, "--force"]).output();
        }
        let _ = self.namespaces.kill();
        let _ = self.namespaces.wait();
    }
}

#[test]
fn an_allocation_is_a_machine_that_ends_with_its_job() {
    if let Some(lacks) = lacks() {
        testkit::skip!(module_path!(), lacks);
    }
    let cluster = Cluster::new();
    let allocation = |name: &'static str| {
        [
            &["create", name, "--backend", "slurm-allocation", "--partition", "debug", "--time", "30m"][..],
            &["--cpus", "1", "--memory", "100M"],
        ]
        .concat()
    };
    cluster.must_run(&allocation("g1"));
    let info = cluster.must_run(&["info", "g1"]);
    assert!(info.contains("1 processors, 100M memory"), "{info}");
    assert_eq!(cluster.must_run(&["exec", "g1", "--", "echo", "there"]), "there\n");
    cluster.must_run(&["delete", "g1"]);
    assert_eq!(cluster.queue(), "", "its job goes with it");

    // What a job has, however it asked for it: here so much a processor, as the cluster's default has it.
    cluster.must_run(&["create", "g1", "--backend", "slurm-allocation", "--cpus", "2"]);
    let info = cluster.must_run(&["info", "g1"]);
    assert!(info.contains("2 processors, 400M memory"), "{info}");
    cluster.must_run(&["delete", "g1"]);

    preemption(&cluster);
    endings(&cluster);
    for (arguments, message) in [
        (&["--partition", "nope"][..], "the Slurm cluster has no partition nope"),
        (&["--memory", "900G"], "no node of partition"),
        (&["--cpus", "99", "--wait", "1s"], "Slurm's reason: "),
    ] {
        let output = cluster.run(&[&["create", "g1", "--backend", "slurm-allocation"], arguments].concat());
        assert!(output.code != 0 && output.stderr.contains(message), "{arguments:?}: {output}");
        assert_eq!(cluster.queue(), "", "{arguments:?}");
    }
    // Where there is no Slurm, and where it does not answer.
    let mut without = cluster.testyard(&["create", "g1", "--backend", "slurm-allocation"]);
    let without = Output::of(without.env("PATH", cluster.home.work()), DEADLINE);
    assert!(without.code != 0 && without.stderr.contains("there is no `sbatch` here"), "{without}");
    cluster.must("pkill", &["-KILL", "slurmctld"]);
    let silent = cluster.run(&["create", "g1", "--backend", "slurm-allocation"]);
    assert!(silent.code != 0 && silent.stderr.contains("Slurm's controller does not answer"), "{silent}");
    assert!(!cluster.run(&["list"]).stdout.contains("g1"));
}

/// A field of the job of a machine, as [`Cluster::queue`] has it.
fn job_of(cluster: &Cluster, name: &str, field: usize) -> String {
    let info = cluster.run(&["info", name, "--json"]).expect_success().json();
    let id = info["machine"]["id"].as_str().unwrap_or_else(|| panic!("{info}")).to_owned();
    let queue = cluster.queue();
    let line = queue.lines().find(|line| line.contains(&id)).unwrap_or_else(|| panic!("{id}: {queue}"));
    line.split(' ').nth(field).expect("four fields").to_owned()
}

/// Waits until a machine has failed for this reason, and deletes it.
fn await_ending(cluster: &Cluster, name: &str, causes: &[&str]) {
    let mut info = String::new();
    let told = format!("the allocation of machine {name} has ended: {}", causes[0]);
    let ended = wait_until(DEADLINE, || {
        info = cluster.run(&["info", name]).stdout;
        info.contains("failed") && info.contains(&told)
    });
    assert!(ended && causes.iter().all(|cause| info.contains(cause)), "{causes:?}: {info}");
    cluster.must_run(&["delete", name]);
}

/// Somebody whose partition comes first takes the node, while a command runs there.
fn preemption(cluster: &Cluster) {
    let create = ["create", "g1", "--backend", "slurm-allocation", "--exclusive", "--time", "30m"];
    cluster.must_run(&[&create[..], &["--partition", "debug"]].concat());
    let (job, node) = (job_of(cluster, "g1", 0), job_of(cluster, "g1", 3));
    let mut command = cluster.testyard(&["exec", "g1", "--", "sleep", "1000"]);
    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let urgent = ["--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1000"];
    let nodes = format!("--nodelist={node}");
    cluster.must("sbatch", &[&urgent[..], &["--job-name=urgent", &nodes]].concat());
    let told = Output::of_child(&mut running, "a command whose node is taken", DEADLINE);
    assert!(told.code != 0, "{told}");
    await_ending(cluster, "g1", &["another job was given its node", &format!("job {job} is PREEMPTED")]);
    cluster.must("scancel", &["--name=urgent"]);
    assert!(wait_until(DEADLINE, || cluster.queue().is_empty()), "{}", cluster.queue());
}

/// Set for the test below within its cluster, where it runs once more: the library's machines are made by whoever has
/// Slurm's commands.
const INSIDE: &str = "TESTYARD_TEST_INSIDE_CLUSTER";

#[test]
fn an_allocation_keeps_the_contract() {
    if std::env::var_os(INSIDE).is_some() {
        return machines::keep_the_contract(machines::Machines::of_slurm(SlurmJob::default()));
    }
    if let Some(lacks) = lacks() {
        testkit::skip!(module_path!(), lacks);
    }
    let cluster = Cluster::new();
    let own = std::env::current_exe().expect("a running program");
    let mut command = cluster.command(own.to_str().expect("text"));
    command.args(["--exact", "an_allocation_keeps_the_contract", "--nocapture"]).env(INSIDE, "1");
    for name in ["TESTYARD_TEST_BIN", "TESTYARD_SKIP_LOG"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let output = Output::of(&mut command, DEADLINE * 2).expect_success();
    assert!(output.stdout.contains("1 passed"), "{output}");
    assert_eq!(cluster.queue(), "", "its jobs go with its machines");
}

/// A job that somebody else ends is the machine's end, and the cause is Slurm's. One of each on a node of its own.
fn endings(cluster: &Cluster) {
    let (cut, failed, over) = ("it was cancelled", "its node failed", "its time limit has passed");
    let machines = [("g1", over), ("g2", failed), ("g3", cut)];
    for (name, _) in machines {
        cluster.must_run(&["create", name, "--backend", "slurm-allocation", "--exclusive", "--time", "30m"]);
    }
    cluster.must("scontrol", &["update", &format!("JobId={}", job_of(cluster, "g1", 0)), "EndTime=now"]);
    cluster.kill_node(&job_of(cluster, "g2", 3));
    cluster.must("scancel", &[&job_of(cluster, "g3", 0)]);
    for (name, cause) in machines.into_iter().rev() {
        await_ending(cluster, name, &[cause]);
    }
}

#[test]
fn two_hundred_tests_over_three_nodes_of_which_one_dies_have_two_hundred_results() {
    if let Some(lacks) = lacks() {
        testkit::skip!(module_path!(), lacks);
    }
    let cluster = Cluster::new();
    let mut tests = String::from("prepare = \"echo made > made\"\n");
    for index in 0..200 {
        // Those that tell the time of the kill wait until they are tried again: more than there are slots, since a node
        // takes tests as soon as it is there.
        let held = if index < 12 { "if test $TESTYARD_ATTEMPT = 1; then sleep 4; fi; " } else { "" };
        let code = if index % 10 == 0 { 3 } else { 0 };
        tests.push_str(&format!(
            "[[test]]\nname = \"t{index}\"\ncommand = \"grep -q made made && {held}exit {code}\"\nisolation = \"namespace\"\n"
        ));
    }
    cluster.suite(&tests);
    let events = cluster.home.work().join("events.jsonl");
    let report = format!("jsonl={}", events.display());
    let mut command =
        cluster.testyard(&["run", "suite", "--on", "slurm:debug", "--nodes", "3", "--json", "--report", &report]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let began = wait_until(DEADLINE, || {
        let events = std::fs::read_to_string(&events).unwrap_or_default();
        let running = |node: i32| {
            let named = |line: &str| line.contains("\"test-environment\"") && line.contains(&format!("-{node}\""));
            events.lines().any(named)
        };
        (1..=3).all(running)
    });
    if began {
        cluster.kill_node("n2");
    }
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(began, "{errors}");
    let results: Value = serde_json::from_slice(&output.stdout).expect(&errors);
    let results = results["results"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<&str> = results.iter().filter_map(|result| result["name"].as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!((results.len(), names.len()), (200, 200), "none is lost and none is there twice");
    for result in &results {
        let fails = result["name"].as_str().is_some_and(|name| name.ends_with('0'));
        assert_eq!(result["result"], if fails { "failed" } else { "passed" }, "{result}\n{errors}");
    }
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let again = results.iter().filter(|result| result["attempts"].as_array().is_some_and(|all| all.len() > 1));
    assert!(again.count() > 0 && errors.contains("is lost"), "{errors}");
    let gone = wait_until(DEADLINE, || cluster.queue().is_empty());
    assert!(gone, "{}", cluster.queue());
}

#[test]
fn a_run_that_is_interrupted_ends_with_its_jobs() {
    if let Some(lacks) = lacks() {
        testkit::skip!(module_path!(), lacks);
    }
    let cluster = Cluster::new();
    let tests = (0..6).map(|index| format!("[[test]]\nname = \"t{index}\"\ncommand = \"sleep 1000\"\n"));
    cluster.suite(&tests.collect::<String>());
    let left = || (cluster.queue(), cluster.must_run(&["list", "--names"]));

    // In the middle of tests on all nodes.
    let (child, events) = cluster.begin(&["--on", "slurm", "--nodes", "3", "--jobs", "1"]);
    let began = wait_until(DEADLINE, || {
        std::fs::read_to_string(&events).unwrap_or_default().matches("\"test-environment\"").count() == 3
    });
    cluster.interrupt();
    let output = child.wait_with_output().expect("it ends");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(began && output.status.code() == Some(130), "{said}");
    assert!(said.contains("0 passed") && said.contains("interrupted"), "{said}");
    assert_eq!(left(), (String::new(), String::new()), "{said}");

    // While its jobs wait for nodes that somebody else has.
    cluster.must("sbatch", &["--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1000"]);
    assert!(wait_until(DEADLINE, || cluster.queue().contains("RUNNING")), "{}", cluster.queue());
    let (child, _) = cluster.begin(&["--on", "slurm", "--nodes", "2", "--jobs", "1", "--wait", "30m"]);
    let waits = wait_until(DEADLINE, || cluster.queue().matches("PENDING").count() == 2);
    cluster.interrupt();
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(waits && output.status.code() == Some(130), "{said}");
    assert!(said.contains("the allocations were called off"), "{said}");
    let (queue, machines) = left();
    assert!(queue.lines().count() == 1 && !queue.contains("testyard-") && machines.is_empty(), "{queue}{machines}");
}

/// A node that somebody else has is not waited for: the others do it all, and its job is taken back.
#[test]
fn a_run_begins_on_the_nodes_that_are_there() {
    if let Some(lacks) = lacks() {
        testkit::skip!(module_path!(), lacks);
    }
    let cluster = Cluster::new();
    cluster.must("sbatch", &["--nodelist=n3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1000"]);
    assert!(wait_until(DEADLINE, || cluster.queue().contains("RUNNING")), "{}", cluster.queue());
    let tests = (0..20).map(|index| format!("[[test]]\nname = \"t{index}\"\ncommand = \"true\"\n"));
    cluster.suite(&tests.collect::<String>());
    let spread = ["run", "suite", "--on", "slurm", "--nodes", "3", "--jobs", "2", "--json"];
    let output = cluster.run(&[&spread[..], &["--wait", "30m"]].concat());
    let results = output.json()["results"].as_array().cloned().unwrap_or_default();
    let passed = results.iter().filter(|result| result["result"] == "passed").count();
    assert_eq!((output.code, passed), (0, 20), "{output}");
    let queue = cluster.queue();
    assert!(queue.lines().count() == 1 && !queue.contains("testyard-"), "{queue}");
    assert_eq!(cluster.must_run(&["list", "--names"]), "");
}

#[test]
fn an_ordinary_user_spreads_a_run_over_nodes() {
    if let Some(lacks) = lacks() {
        testkit::skip!(module_path!(), lacks);
    }
    testkit::require!(testkit::Ability::OrdinaryUser);
    let cluster = Cluster::of(User::ordinary().expect("just required"));
    let mut tests = String::from("prepare = \"echo made > made\"\n");
    for index in 0..60 {
        // So much that no node can do it all before another has joined.
        let span = if index < 12 { "4" } else { "0.1" };
        tests.push_str(&format!(
            "[[test]]\nname = \"t{index}\"\ncommand = \"grep -q made made && touch here && sleep {span}\"\n\
             isolation = \"namespace\"\n"
        ));
    }
    cluster.suite(&tests);
    let output = cluster.run(&["run", "suite", "--on", "slurm", "--nodes", "3", "--jobs", "2", "--json"]);
    let results = output.json()["results"].as_array().cloned().unwrap_or_default();
    let passed = results.iter().filter(|result| result["result"] == "passed").count();
    assert_eq!((output.code, results.len(), passed), (0, 60, 60), "{output}");
    let nodes: std::collections::BTreeSet<String> =
        results.iter().map(|result| result["attempts"][0]["machine"].to_string()).collect();
    assert_eq!(nodes.len(), 3, "{output}");
    assert_eq!((cluster.queue(), cluster.must_run(&["list", "--names"])), (String::new(), String::new()));
}

#[test]
fn a_run_that_is_killed_leaves_no_job() {
    if let Some(lacks) = lacks() {
        testkit::skip!(module_path!(), lacks);
    }
    let cluster = Cluster::new();
    cluster.suite("[[test]]\nname = \"long\"\ncommand = \"sleep 1000\"\nisolation = \"workspace\"\n");
    let mut command = cluster.testyard(&["run", "suite", "--on", "slurm", "--jobs", "1"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    assert!(wait_until(DEADLINE, || cluster.queue().contains("testyard-")));
    // Within the process namespace of this cluster.
    cluster.must("pkill", &["-KILL", "-f", "testyard run suite"]);
    child.wait().expect("ours");
    // By its keeper, which lives on without it.
    let gone = wait_until(DEADLINE, || cluster.queue().is_empty() && !cluster.run(&["list"]).stdout.contains("slurm-"));
    assert!(gone, "{}", cluster.queue());
}

/// `docs/scale-out.md`: every command of the page is run, in its order; the one over SSH is in `submitting.rs`.
#[test]
fn the_pages_commands_work_as_written() {
    if let Some(lacks) = lacks() {
        testkit::skip!(module_path!(), lacks);
    }
    let cluster = Cluster::new();
    let page = testkit::Page::load("scale-out");
    let blocks: Vec<&str> = page.commands().filter(|block| !block.contains("me@login")).collect();
    assert_eq!(blocks.len(), 3, "the page has commands");
    let folder = cluster.home.work();
    std::fs::create_dir(folder.join("tests")).expect("the home is ours");
    let suite = "format = 1\n[[tests]]\nglob = \"tests/*.sh\"\ncommand = [\"sh\", \"{file}\"]\n";
    std::fs::write(folder.join("testyard.toml"), suite).expect("the home is ours");
    for name in ["a", "b", "c"] {
        std::fs::write(folder.join(format!("tests/{name}.sh")), "test -f testyard.toml").expect("the home is ours");
    }
    let programs = cluster.home.program("testyard").parent().expect("a folder").display().to_string();
    let script = format!("PATH={programs}:$PATH\n{}testyard delete m1 m2\n", blocks.concat());
    let mut command = cluster.command("/bin/bash");
    let output = Output::of(command.args(["-e", "-o", "pipefail", "-c", &script]), DEADLINE * 2).expect_success();
    assert_eq!(output.stdout.matches("3 passed").count(), 3, "{output}");
    assert!(output.stdout.lines().any(|line| line == "gpu"), "{output}");
    assert_eq!((cluster.queue(), cluster.must_run(&["list", "--names"])), (String::new(), String::new()));
}
