//! What a cluster is after it was stopped and started, after two changed it at once, and after one was killed changing it.

use std::process::{Child, Stdio};

use testkit::{Output, TestHome, wait_until};
use testyard_model::step::Step;

use super::{DEADLINE, as_root, await_drained, cluster, create, info, on, state};

#[test]
fn a_cluster_is_whole_after_starts_changes_at_once_and_killed_ones() {
    possible!();
    let home = TestHome::new();
    create(&home, "lab", &["--nodes", "2"]);
    a_start_goes_on_with_queue_and_homes(&home);
    changes_take_turns(&home);
    a_killed_scale_is_repaired(&home);
    a_fork_waits_for_the_end_of_a_stop(&home);
    killed_forks_starts_and_stops_are_repaired(&home);
    drop(cluster(&home, &["delete", "lab", "lab2"]).expect_success());
    assert_eq!(home.must_run(&["list", "--names"]), "");
    home.finish();
}

/// Jobs that ran and jobs that wait, a drained node, and a user's own keys: none of them is
/// in the way of a start, and all of them are there after it.
fn a_start_goes_on_with_queue_and_homes(home: &TestHome) {
    let own = "cd ~/.ssh && rm id_ed25519 id_ed25519.pub && ssh-keygen -q -N '' -C own -t ed25519 -f id_ed25519 && \
               echo 'ssh-ed25519 AAAA of-another' >> authorized_keys && cat id_ed25519.pub authorized_keys";
    let keys = on(home, "lab", "1", own).expect_success().stdout;
    drop(cluster(home, &["node", "drain", "lab", "2"]).expect_success());
    let submit = |options: &str, script: &str| {
        let submitted = on(home, "lab", "1", &format!("sbatch --parsable {options} --wrap '{script}'"));
        submitted.expect_success().stdout.trim().to_owned()
    };
    let lost = submit("-w lab-1 --exclusive --no-requeue", "sleep 600");
    assert!(wait_until(DEADLINE, || state(home, "lab", 1) == "allocated"), "the job runs");
    let next = submit("-w lab-1 --exclusive", "until test -e go; do sleep 0.1; done");
    let waiting = submit("-w lab-2", "hostname");
    drop(cluster(home, &["stop", "lab"]).expect_success());
    drop(cluster(home, &["start", "lab"]).expect_success());
    await_drained(home, 2);
    let of = |job: &str| {
        let shown = on(home, "lab", "1", &format!("scontrol show job {job} | grep -o 'JobState=[A-Z_]*'")).stdout;
        shown.trim().trim_start_matches("JobState=").to_owned()
    };
    assert_eq!(of(&waiting), "PENDING");
    // A node whose job went with the stop is busy at the start; Slurm takes such a job for lost a minute later.
    drop(on(home, "lab", "1", &format!("scancel {lost}")).expect_success());
    assert!(wait_until(DEADLINE, || of(&next) == "RUNNING"), "{}, and that before it {}", of(&next), of(&lost));
    drop(on(home, "lab", "1", "touch go").expect_success());
    drop(cluster(home, &["node", "restore", "lab", "2"]).expect_success());
    assert!(wait_until(DEADLINE, || of(&next) == "COMPLETED" && of(&waiting) == "COMPLETED"));
    let now = on(home, "lab", "1", "cd ~/.ssh && cat id_ed25519.pub authorized_keys").expect_success().stdout;
    assert_eq!(now, keys);
}

/// Who changes a node waits for who changes the cluster.
fn changes_take_turns(home: &TestHome) {
    let scaling = Change::begin(home, "3");
    assert!(wait_until(DEADLINE, || home.must_run(&["list", "--names"]).contains("lab-3")), "it is being scaled");
    drop(cluster(home, &["node", "drain", "lab", "2"]).expect_success());
    assert_eq!(info(home, "lab")["nodes"].as_array().map(Vec::len), Some(3), "draining came after scaling");
    drop(scaling.end().expect_success());
    await_drained(home, 2);
    drop(cluster(home, &["node", "restore", "lab", "2"]).expect_success());
}

/// The nodes that a node's configuration names, and those that the controller knows.
fn told(home: &TestHome, node: &str) -> String {
    let look = "grep -o '^NodeName=lab-[0-9]*' /etc/slurm/slurm.conf | sed 's/.*=//'; sinfo -h -N -o %N | sort -u";
    let told = as_root(home, "lab", node, look).expect_success().stdout;
    told.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn a_killed_scale_is_repaired(home: &TestHome) {
    // More nodes: those who were told of one that never came are told so by the reaper that removes it.
    let scaling = Change::begin(home, "4");
    let knows = || as_root(home, "lab", "2", "grep -q ^NodeName=lab-4 /etc/slurm/slurm.conf").code == 0;
    assert!(wait_until(DEADLINE, knows), "the others are told of the fourth node");
    scaling.kill();
    if info(home, "lab")["nodes"].as_array().map(Vec::len) == Some(3) {
        drop(home.run_cli(&["reap"]).expect_success());
    } else {
        drop(cluster(home, &["scale", "lab", "--nodes", "3"]).expect_success());
    }
    assert!(!home.must_run(&["list", "--names"]).contains("lab-4"));
    for node in ["1", "2", "3"] {
        assert_eq!(told(home, node), "lab-1 lab-2 lab-3 lab-1 lab-2 lab-3", "on node {node}");
    }
    assert_eq!(on(home, "lab", "1", "srun -N3 hostname | wc -l").expect_success().stdout, "3\n");
    // Fewer: the same order again does what is left to be done.
    let scaling = Change::begin(home, "2");
    assert!(wait_until(DEADLINE, || info(home, "lab")["nodes"].as_array().map(Vec::len) == Some(2)));
    scaling.kill();
    drop(home.run_cli(&["reap"]).expect_success());
    // What a killed one had not come to.
    let old =
        "sed 's/^NodeName=lab-2 \\(.*\\)/&\\nNodeName=lab-3 \\1/; s/lab-\\[1-2\\]/lab-[1-3]/' -i /etc/slurm/slurm.conf";
    drop(as_root(home, "lab", "2", old).expect_success());
    drop(cluster(home, &["scale", "lab", "--nodes", "2"]).expect_success());
    for node in ["1", "2"] {
        assert_eq!(told(home, node), "lab-1 lab-2 lab-1 lab-2", "on node {node}");
    }
    let usable = || on(home, "lab", "1", "srun --immediate=5 -N2 hostname | wc -l").stdout == "2\n";
    assert!(wait_until(DEADLINE, usable), "both nodes run jobs");
}

fn a_fork_waits_for_the_end_of_a_stop(home: &TestHome) {
    let stopping = Change { child: Some(spawn(home, &["cluster", "stop", "lab"])) };
    let ends = || info(home, "lab")["nodes"].as_array().into_iter().flatten().any(|node| node["state"] == "down");
    assert!(wait_until(DEADLINE, ends), "it is being stopped");
    drop(cluster(home, &["fork", "lab", "lab2"]).expect_success());
    drop(stopping.end().expect_success());
    // The key that the user made is none of the fork's own; whoever else was let in still is.
    let keys =
        on(home, "lab2", "2", "cat ~/.ssh/authorized_keys; hostname; ssh lab2-1 hostname").expect_success().stdout;
    assert!(keys.contains("of-another") && keys.ends_with("lab2-2\nlab2-1\n"), "{keys}");
    // Nor does the one that the cluster had made open the fork any more, which the user had left there.
    assert!(keys.contains(" slurm@lab2\n") && !keys.contains(" slurm@lab\n"), "{keys}");
}

/// Whoever forks a cluster, starts or stops one may be killed at any step: of a fork nothing is left, the one that it
/// began with is as it was, and a start or a stop goes on where it was.
fn killed_forks_starts_and_stops_are_repaired(home: &TestHome) {
    let killed_at = |step: Step, arguments: &[&str]| {
        let mut command = home.cli(arguments);
        let ended = Output::of(command.env("TESTYARD_KILL_AT", step.as_str()), DEADLINE);
        assert!(ended.code != 0 && ended.stdout.is_empty(), "{step:?}: {ended}");
    };
    for step in [Step::ClusterIntent, Step::ClusterKeys, Step::ClusterNode, Step::ClusterDaemon, Step::ClusterReady] {
        killed_at(step, &["cluster", "fork", "lab", "third"]);
        // A machine that ends by itself just now is removed at the next pass.
        let mut passes = Vec::new();
        let is_gone = || {
            passes.push(home.run_cli(&["reap", "--json"]));
            let count = |folder: &str| std::fs::read_dir(home.state().join(folder)).map_or(0, Iterator::count);
            ["networks", "clusters"].map(count) == [2, 2] && !home.must_run(&["list", "--names"]).contains("third")
        };
        assert!(wait_until(DEADLINE, is_gone), "{step:?}: {passes:?}");
    }
    assert_eq!(info(home, "lab")["state"], "stopped");
    killed_at(Step::ClusterDaemon, &["cluster", "start", "lab"]);
    drop(cluster(home, &["start", "lab"]).expect_success());
    assert_eq!(on(home, "lab", "1", "srun -N2 hostname | wc -l").expect_success().stdout, "2\n");
    let stopping = Change { child: Some(spawn(home, &["cluster", "stop", "lab"])) };
    let ends = || info(home, "lab")["nodes"].as_array().into_iter().flatten().any(|node| node["state"] == "down");
    assert!(wait_until(DEADLINE, ends), "it is being stopped");
    stopping.kill();
    drop(cluster(home, &["stop", "lab"]).expect_success());
    let nodes = info(home, "lab")["nodes"].clone();
    assert!(nodes.as_array().into_iter().flatten().all(|node| node["state"] == "down"), "{nodes}");
}

/// A change of the cluster that runs beside the test.
struct Change {
    child: Option<Child>,
}

fn spawn(home: &TestHome, arguments: &[&str]) -> Child {
    let mut command = home.cli(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

impl Change {
    fn begin(home: &TestHome, nodes: &str) -> Self {
        Self { child: Some(spawn(home, &["cluster", "scale", "lab", "--nodes", nodes])) }
    }

    fn end(mut self) -> Output {
        let mut child = self.child.take().expect("not ended yet");
        Output::of_child(&mut child, "a change beside the test", DEADLINE)
    }

    fn kill(mut self) {
        let mut child = self.child.take().expect("not ended yet");
        child.kill().expect("our child");
        child.wait().expect("our child");
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The test has failed; what the child was doing is removed with the home.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
