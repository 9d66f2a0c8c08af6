//! `testyard cluster`: real Slurm on machines. The real binary, in a home of the test's own; tests share a cluster where
//! they can.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::{Output, TestHome, User, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// Skips where a cluster cannot be made.
macro_rules! possible {
    () => {
        testkit::require!(testkit::Ability::Root);
        testkit::require_cluster!();
    };
}

mod changes;
mod page;
mod rest;

fn cluster(home: &TestHome, arguments: &[&str]) -> Output {
    home.run_cli(&[&["cluster"], arguments].concat())
}

fn create(home: &TestHome, name: &str, arguments: &[&str]) -> Value {
    let created = cluster(home, &[&["create", "slurm", name, "--json"], arguments].concat()).expect_success();
    created.json()["cluster"].clone()
}

/// A command on a node, of the cluster's user.
fn on(home: &TestHome, name: &str, node: &str, script: &str) -> Output {
    cluster(home, &["exec", name, node, "--timeout", "30s", "--", "bash", "-c", script])
}

fn as_root(home: &TestHome, name: &str, node: &str, script: &str) -> Output {
    cluster(home, &["exec", name, node, "--user", "root", "--timeout", "30s", "--", "bash", "-c", script])
}

fn info(home: &TestHome, name: &str) -> Value {
    cluster(home, &["info", name, "--json"]).expect_success().json()["cluster"].clone()
}

fn state(home: &TestHome, name: &str, number: usize) -> String {
    info(home, name)["nodes"][number - 1]["slurm"].as_str().unwrap_or_default().to_owned()
}

/// Logs in from the host; with a password where one is given, else with the cluster's own key.
fn ssh(home: &TestHome, ssh: &Value, password: Option<&str>, script: &str) -> Output {
    let ask = home.work().join("ask");
    std::fs::write(&ask, format!("#!/bin/sh\necho '{}'\n", password.unwrap_or_default())).expect("a file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&ask, mode).expect("ours");
    let mut command = Command::new("ssh");
    for option in
        ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "NumberOfPasswordPrompts=1", "LogLevel=ERROR"]
    {
        command.args(["-o", option]);
    }
    match password {
        Some(_) => command.args(["-F", "none", "-o", "PubkeyAuthentication=no"]),
        None => command.args(["-F", "none", "-i", ssh["identity"].as_str().expect("a path")]),
    };
    let to = format!("{}@127.0.0.1", ssh["user"].as_str().expect("a user"));
    command.args(["-p", &ssh["port"].to_string(), &to, script]);
    command.env("SSH_ASKPASS", ask).env("SSH_ASKPASS_REQUIRE", "force").stdin(Stdio::null());
    Output::of(&mut command, DEADLINE)
}

#[test]
fn a_cluster_runs_jobs_and_takes_logins() {
    possible!();
    let home = TestHome::new();
    let made = create(
        &home,
        "lab",
        &["--nodes", "3", "--password", "secret", "--cpus", "16", "--gpus", "2", "--user", "slurm", "--user", "alice"],
    );
    assert_eq!((made["state"].as_str(), made["nodes"].as_array().map(Vec::len)), (Some("running"), Some(3)), "{made}");
    assert!(made["nodes"].as_array().into_iter().flatten().all(|node| node["slurm"] == "idle"), "{made}");
    jobs_run_as_their_users(&home);
    logins_are_let_in(&home, &made["ssh"]);
    node_faults(&home);
    daemon_faults(&home);
    full_disk(&home);
    scaling(&home);
    let again = cluster(&home, &["create", "slurm", "lab"]);
    assert!(again.code == 2 && again.stderr.contains("already exists"), "{again}");
    drop(cluster(&home, &["delete", "lab"]).expect_success());
    assert_eq!(home.must_run(&["list", "--names"]), "");
    home.finish();
}

fn jobs_run_as_their_users(home: &TestHome) {
    let names = on(home, "lab", "2", "srun -N3 hostname | sort; id -un; pwd").expect_success().stdout;
    assert_eq!(names, "lab-1\nlab-2\nlab-3\nslurm\n/home/slurm\n");
    let alice = cluster(
        home,
        &[
            "exec",
            "lab",
            "3",
            "--user",
            "alice",
            "--",
            "srun",
            "-w",
            "lab-1",
            "sh",
            "-c",
            "id -un; pwd; touch made; echo $CUDA_VISIBLE_DEVICES",
        ],
    );
    assert_eq!(alice.expect_success().stdout, "alice\n/home/alice\n\n");
    // The home is the same everywhere.
    let seen = cluster(home, &["exec", "lab", "lab-2", "--user", "alice", "--", "ls"]).expect_success().stdout;
    assert_eq!(seen, "made\n");
    let gpus = on(home, "lab", "1", "srun --gres=gpu:2 sh -c 'echo $CUDA_VISIBLE_DEVICES'").expect_success().stdout;
    assert_eq!(gpus, "0,1\n");
    let shown = on(home, "lab", "1", "sinfo -h -o '%R|%a|%D|%T|%c'; squeue -h -o '%A|%j|%T|%u|%S|%M|%l|%P|%a|%D|%r'");
    assert_eq!(shown.expect_success().stdout, "debug|up|3|idle|16\n");
    let batch =
        on(home, "lab", "1", "sbatch --wait --array=0-3%2 --wrap 'echo $SLURM_ARRAY_TASK_ID' -o 'o-%a'; cat o-*");
    assert!(batch.expect_success().stdout.ends_with("0\n1\n2\n3\n"));
    let accounts = on(home, "lab", "1", "sacct");
    assert!(accounts.code == 1 && accounts.stderr.contains("accounting storage is disabled"), "{accounts}");
}

fn logins_are_let_in(home: &TestHome, access: &Value) {
    let nested = "hostname; ssh $(hostname) hostname; ssh lab-2 id -un";
    assert_eq!(ssh(home, access, Some("secret"), nested).expect_success().stdout, "lab-1\nlab-1\nslurm\n");
    assert_eq!(ssh(home, access, None, "id -un").expect_success().stdout, "slurm\n");
    let wrong = ssh(home, access, Some("wrong"), "id");
    assert!(wrong.code == 255 && wrong.stderr.contains("Permission denied"), "{wrong}");
}

fn node_faults(home: &TestHome) {
    drop(cluster(home, &["node", "drain", "lab", "2"]).expect_success());
    assert_eq!(state(home, "lab", 2), "drained");
    drop(cluster(home, &["node", "fail", "lab", "3"]).expect_success());
    assert_eq!(info(home, "lab")["nodes"][2]["state"], "down");
    assert_eq!(on(home, "lab", "1", "srun -N1 hostname").expect_success().stdout, "lab-1\n");
    for node in ["2", "3"] {
        drop(cluster(home, &["node", "restore", "lab", node]).expect_success());
    }
    drop(cluster(home, &["node", "cut", "lab", "2"]).expect_success());
    assert!(on(home, "lab", "1", "timeout 2 bash -c 'echo > /dev/tcp/lab-2/6818'").code != 0);
    assert!(wait_until(DEADLINE, || state(home, "lab", 2).ends_with('*')), "the controller notices");
    drop(cluster(home, &["node", "restore", "lab", "lab-2"]).expect_success());
    assert!(on(home, "lab", "1", "srun -N3 hostname").expect_success().stdout.contains("lab-2"));
    let controller = cluster(home, &["node", "fail", "lab", "1"]);
    assert!(controller.code == 2 && controller.stderr.contains("runs the controller"), "{controller}");
    let absent = cluster(home, &["node", "fail", "lab", "9"]);
    assert!(absent.code == 2 && absent.stderr.contains("no node \"9\""), "{absent}");
}

fn daemon_faults(home: &TestHome) {
    // A controller that is killed and started again goes on with the jobs that it had written down.
    let job =
        on(home, "lab", "1", "touch now; sbatch --parsable --wrap 'until test -e go; do sleep 0.1; done' -o kept");
    let job = job.expect_success().stdout;
    let killed = "until test /var/lib/slurm/slurmctld/job_state -nt /home/slurm/now; do sleep 0.1; done; \
                  kill -9 $(cat /run/slurmctld.pid); slurmctld";
    drop(as_root(home, "lab", "1", killed).expect_success());
    drop(on(home, "lab", "1", "touch go").expect_success());
    let ended = || on(home, "lab", "1", &format!("scontrol show job {}", job.trim())).stdout.contains("COMPLETED");
    assert!(wait_until(DEADLINE, ended), "the job of before ends well");
    // A node whose daemon is killed in the middle of a job comes back with a new one.
    let job =
        on(home, "lab", "1", "sbatch --parsable -w lab-3 --no-requeue --wrap 'sleep 600'").expect_success().stdout;
    assert!(wait_until(DEADLINE, || state(home, "lab", 3) == "mixed"), "the job runs");
    drop(as_root(home, "lab", "3", "pkill -9 slurmstepd; pkill -9 slurmd; slurmd").expect_success());
    let gone = || !on(home, "lab", "1", &format!("squeue -h -j {}", job.trim())).stdout.contains("RUNNING");
    assert!(wait_until(DEADLINE, gone), "the job is not taken for one that runs");
    drop(cluster(home, &["node", "restore", "lab", "3"]).expect_success());
    // Fewer processors than declared, an own key: the controller says so of the node, and the others go on.
    let less = as_root(home, "lab", "3", "slurmd -C").expect_success().stdout;
    assert!(less.contains("CPUs="), "{less}");
    drop(as_root(home, "lab", "2", "cp /etc/munge/munge.key /root/key; pkill munged; while pgrep munged; do sleep 0.1; done; \
        head -c 64 /dev/urandom > /etc/munge/munge.key; rm -f /run/munge/*; setpriv --reuid=munge --regid=munge --clear-groups munged")
    .expect_success());
    let refused = on(home, "lab", "2", "timeout 20 srun -N1 hostname");
    assert!(refused.code != 0 && !refused.stderr.is_empty(), "{refused}");
    drop(
        as_root(
            home,
            "lab",
            "2",
            "pkill munged; while pgrep munged; do sleep 0.1; done; cat /root/key > /etc/munge/munge.key; \
        rm -f /run/munge/*; setpriv --reuid=munge --regid=munge --clear-groups munged",
        )
        .expect_success(),
    );
    drop(cluster(home, &["node", "restore", "lab", "2"]).expect_success());
    assert_eq!(on(home, "lab", "2", "srun -N3 hostname | wc -l").expect_success().stdout, "3\n");
}

/// A node whose disk is full is taken out of service by Slurm, and its job is kept for later.
fn full_disk(home: &TestHome) {
    let fill = "mount -t tmpfs -o size=8k none /var/lib/slurm/slurmd; head -c 100000 /dev/zero > /var/lib/slurm/slurmd/full; true";
    drop(as_root(home, "lab", "2", fill).expect_success());
    let job = on(home, "lab", "1", "sbatch --parsable -w lab-2 --wrap hostname").expect_success().stdout;
    assert!(wait_until(DEADLINE, || state(home, "lab", 2).starts_with("drain")), "the controller takes it out");
    let why = on(home, "lab", "1", "sinfo -N -h -n lab-2 -o %E").expect_success().stdout;
    assert!(why.contains("is full"), "{why}");
    let held = on(home, "lab", "1", &format!("scontrol release {0}; scancel {0}", job.trim()));
    drop(held.expect_success());
    drop(as_root(home, "lab", "2", "umount /var/lib/slurm/slurmd").expect_success());
    drop(cluster(home, &["node", "restore", "lab", "2"]).expect_success());
    assert_eq!(on(home, "lab", "1", "srun -w lab-2 hostname").expect_success().stdout, "lab-2\n");
}

fn scaling(home: &TestHome) {
    // A machine that has the name of a node to come is nobody's but its owner's.
    home.must_run(&["create", "lab-4"]);
    let taken = cluster(home, &["scale", "lab", "--nodes", "4"]);
    assert!(taken.code == 2 && taken.stderr.contains("is no node of the cluster"), "{taken}");
    home.must_run(&["delete", "lab-4"]);
    drop(cluster(home, &["scale", "lab", "--nodes", "4"]).expect_success());
    assert_eq!(
        on(home, "lab", "4", "srun -N4 hostname | wc -l; ssh lab-1 hostname").expect_success().stdout,
        "4\nlab-1\n"
    );
    drop(cluster(home, &["scale", "lab", "--nodes", "2"]).expect_success());
    assert_eq!(info(home, "lab")["nodes"].as_array().map(Vec::len), Some(2));
    let none = cluster(home, &["scale", "lab", "--nodes", "0"]);
    assert!(none.code == 2 && none.stderr.contains("0 nodes"), "{none}");
}

#[test]
fn a_fork_begins_with_the_files_and_has_keys_of_its_own() {
    possible!();
    testkit::require!(testkit::Ability::Program("slurmdbd"));
    testkit::require!(testkit::Ability::Program("mariadbd"));
    let home = TestHome::new();
    create(&home, "base", &["--nodes", "1", "--accounting", "--password", "one"]);
    drop(
        on(&home, "base", "1", "echo kept > file; srun hostname; sacctmgr -n -P show assoc user=slurm format=account")
            .expect_success(),
    );
    drop(
        as_root(&home, "base", "1", "touch /opt/installed; sacctmgr -i add account team; sacctmgr -i add qos fast")
            .expect_success(),
    );
    let busy = cluster(&home, &["fork", "base", "other"]);
    assert!(busy.code == 2 && busy.stderr.contains("files at rest"), "{busy}");
    drop(cluster(&home, &["stop", "base"]).expect_success());
    let forked = cluster(&home, &["fork", "base", "other", "--json"]).expect_success().json()["cluster"].clone();
    let seen = on(&home, "other", "1", "cat file; ls /opt/installed; hostname; srun hostname").expect_success().stdout;
    assert_eq!(seen, "kept\n/opt/installed\nother-1\nother-1\n");
    let done = || on(&home, "other", "1", "sacct -X -n -P --format=JobID,State").stdout;
    assert!(wait_until(DEADLINE, || done().lines().any(|line| line.ends_with("|COMPLETED"))), "{}", done());
    assert!(on(&home, "other", "1", "sacctmgr -n -P show qos format=name").stdout.contains("fast"));
    drop(cluster(&home, &["start", "base"]).expect_success());
    let key = |name: &str| as_root(&home, name, "1", "cat /etc/munge/munge.key /etc/ssh/ssh_host_ed25519_key").stdout;
    assert!(key("base").len() > 100 && key("base") != key("other"));
    assert_eq!(ssh(&home, &forked["ssh"], Some("one"), "hostname").expect_success().stdout, "other-1\n");
    drop(cluster(&home, &["delete", "base", "other"]).expect_success());
    home.finish();
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    possible!();
    let home = TestHome::new();
    for (arguments, said) in [
        (&["--nodes", "0"][..], "0 nodes"),
        (&["--partitions", "a:9"], "only nodes 1 to 1"),
        (&["--partitions", "a b"], "not a partition"),
        (&["--user", "root"], "own programs run as"),
        (&["--memory", "1M"], "16M at least"),
        (&["--password", ""], "password of slurm is empty"),
    ] {
        let refused = cluster(&home, &[&["create", "slurm", "lab"], arguments].concat());
        assert!(refused.code == 2 && refused.stderr.contains(said), "{arguments:?}: {refused}");
    }
    let name = cluster(&home, &["create", "slurm", "Lab"]);
    assert!(name.code == 2 && name.stderr.contains("lower-case"), "{name}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port().to_string();
    let taken = cluster(&home, &["create", "slurm", "lab", "--ssh-port", &port]);
    assert!(taken.code == 2 && taken.stderr.contains(&port), "{taken}");
    let missing = cluster(&home, &["info", "lab"]);
    assert!(missing.code == 2 && missing.stderr.contains("no cluster lab"), "{missing}");
    assert_eq!(home.must_run(&["list", "--names"]), "");
    home.finish();
}

#[test]
fn an_ordinary_user_with_a_range_of_ids_has_clusters() {
    testkit::require_cluster!();
    testkit::require!(testkit::Ability::OrdinaryUser);
    testkit::require!(testkit::Ability::GrantedIds);
    let home = TestHome::of(User::ordinary().expect("just required"));
    let made = cluster(&home, &["create", "slurm", "lab", "--nodes", "2", "--password", "secret", "--json"]);
    if made.code != 0 && made.stderr.contains("belong to nobody on node") {
        testkit::skip!("clusters of an ordinary user", host: "this kernel refuses overlays with data-only layers");
    }
    let made = made.expect_success().json()["cluster"].clone();
    assert!(made["nodes"].as_array().into_iter().flatten().all(|node| node["slurm"] == "idle"), "{made}");
    let names = on(&home, "lab", "2", "srun -N2 hostname | sort; id -un; pwd").expect_success().stdout;
    assert_eq!(names, "lab-1\nlab-2\nslurm\n/home/slurm\n");
    // Who is who: munge's, Slurm's and the user's own files, and what a batch job writes on the other node.
    let owners =
        "stat -c %U /etc/munge/munge.key /var/lib/slurm/slurmctld /home/slurm /root; ps -o user= -C munged,slurmctld";
    let owners = as_root(&home, "lab", "1", owners).expect_success().stdout;
    assert_eq!(owners.split_whitespace().collect::<Vec<_>>(), ["munge", "slurm", "slurm", "root", "munge", "slurm"]);
    let job = "sbatch --parsable --wait -w lab-2 -o out --wrap 'id -un; hostname' >/dev/null; stat -c %U out; cat out";
    assert_eq!(on(&home, "lab", "1", job).expect_success().stdout, "slurm\nslurm\nlab-2\n");
    logins_are_let_in(&home, &made["ssh"]);
    for (action, node) in [("cut", "2"), ("restore", "2"), ("fail", "2"), ("restore", "2")] {
        drop(cluster(&home, &["node", action, "lab", node]).expect_success());
    }
    drop(cluster(&home, &["stop", "lab"]).expect_success());
    let forked = cluster(&home, &["fork", "lab", "other", "--json"]).expect_success().json()["cluster"].clone();
    assert_eq!(
        on(&home, "other", "1", "cat out; srun -N2 hostname | wc -l").expect_success().stdout,
        "slurm\nlab-2\n2\n"
    );
    assert_eq!(ssh(&home, &forked["ssh"], None, "hostname").expect_success().stdout, "other-1\n");
    let held = cluster(&home, &["create", "slurm", "held", "--cgroups"]);
    assert!(held.code != 0 && held.stderr.contains("leave --cgroups out"), "{held}");
    composed_roots_are_refused(&home);
    drop(cluster(&home, &["delete", "lab", "other"]).expect_success());
    assert_eq!(home.must_run(&["list", "--names"]), "");
    for folder in ["networks", "clusters"] {
        let left = std::fs::read_dir(home.state().join(folder)).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{folder}");
    }
    home.finish();
}

/// As on a kernel that refuses the tree by which the host's files are the user's own: what is known of that is written
/// down once a boot.
fn composed_roots_are_refused(home: &TestHome) {
    let verdict = home.state().join("run/metadata-tree");
    let works = std::fs::read_to_string(&verdict).expect("machines were made");
    let (key, _) = works.split_once('\n').expect("the key and a word");
    std::fs::write(&verdict, format!("{key}\nthe test says so")).expect("ours");
    let refused = cluster(home, &["create", "slurm", "composed", "--nodes", "1"]);
    assert!(refused.code != 0 && refused.stderr.contains("testyard image build slurm"), "{refused}");
    std::fs::write(&verdict, works).expect("ours");
}

/// Whom nothing is granted is told how to get it.
#[test]
fn one_id_is_too_few() {
    possible!();
    // Debian's `nobody`, whom nobody gives ids.
    let home = TestHome::of(User { uid: 65534, gid: 65534 });
    let refused = cluster(&home, &["create", "slurm", "lab"]);
    assert!(refused.code != 0 && refused.stderr.contains("an ordinary user's machine has one"), "{refused}");
    assert!(refused.stderr.contains("hint: sudo usermod --add-subuids"), "{refused}");
    assert!(refused.stderr.contains("nobody"), "{refused}");
    assert_eq!(home.must_run(&["list", "--names"]), "");
    home.finish();
}
