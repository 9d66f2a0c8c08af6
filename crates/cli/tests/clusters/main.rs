//! `testyard cluster`: real Slurm on machines. The real binary, in a home of the test's own; tests share a cluster where
//! they can.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
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
mod faults;
mod forks;
mod held;
mod image;
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
    cluster(home, &["exec", name, node, "--timeout", "100s", "--", "bash", "-c", script])
}

fn as_root(home: &TestHome, name: &str, node: &str, script: &str) -> Output {
    cluster(home, &["exec", name, node, "--user", "root", "--timeout", "100s", "--", "bash", "-c", script])
}

fn info(home: &TestHome, name: &str) -> Value {
    cluster(home, &["info", name, "--json"]).expect_success().json()["cluster"].clone()
}

fn state(home: &TestHome, name: &str, number: usize) -> String {
    info(home, name)["nodes"][number - 1]["slurm"].as_str().unwrap_or_default().to_owned()
}

/// Waits until the controller says so of a node: of one that was just started, it may not be asked yet.
fn await_drained(home: &TestHome, number: usize) {
    let drained = wait_until(DEADLINE, || state(home, "lab", number) == "drained");
    assert!(drained, "{}", state(home, "lab", number));
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
    // More processors than this host has, at a port that was free a moment ago.
    let processors = std::fs::read_to_string("/proc/cpuinfo").expect("a file of the kernel's");
    let cpus = (2 * processors.lines().filter(|line| line.starts_with("processor")).count().max(1)).to_string();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let port = free.port().to_string();
    let made = create(
        &home,
        "lab",
        &[
            &["--nodes", "3", "--password", "secret", "--gpus", "2", "--user", "slurm", "--user", "alice"][..],
            &["--cpus", &cpus, "--memory", "2G", "--partitions", "debug,long:2", "--ssh-port", &port],
        ]
        .concat(),
    );
    assert_eq!(made["ssh"]["port"].to_string(), port);
    assert_eq!((made["state"].as_str(), made["nodes"].as_array().map(Vec::len)), (Some("running"), Some(3)), "{made}");
    assert!(made["nodes"].as_array().into_iter().flatten().all(|node| node["slurm"] == "idle"), "{made}");
    jobs_run_as_their_users(&home, &cpus);
    logins_are_let_in(&home, &made["ssh"]);
    faults::of_nodes(&home);
    faults::of_daemons(&home);
    faults::of_keys(&home);
    faults::of_disks(&home);
    scaling(&home);
    let again = cluster(&home, &["create", "slurm", "lab"]);
    assert!(again.code == 2 && again.stderr.contains("already exists"), "{again}");
    drop(cluster(&home, &["delete", "lab"]).expect_success());
    assert_eq!(home.must_run(&["list", "--names"]), "");
    home.finish();
}

fn jobs_run_as_their_users(home: &TestHome, cpus: &str) {
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
    // A node is completing a job for a moment after `srun` has returned.
    let ask = "sinfo -h -o '%R|%a|%D|%T|%c'; squeue -h -o '%A|%j|%T|%u|%S|%M|%l|%P|%a|%D|%r'";
    let shown = || on(home, "lab", "1", ask).expect_success().stdout;
    let idle = format!("debug|up|3|idle|{cpus}\nlong|up|1|idle|{cpus}\n");
    assert!(wait_until(DEADLINE, || shown() == idle), "{}", shown());
    let script =
        format!("srun -c {cpus} sh -c 'echo $SLURM_CPUS_PER_TASK'; srun -p long hostname; sinfo -h -p long -o %m");
    assert_eq!(on(home, "lab", "1", &script).expect_success().stdout, format!("{cpus}\nlab-2\n2048\n"));
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
    let port = access["port"].to_string().parse().expect("a port");
    assert_eq!(listeners(port), ["0100007F"]);
    // Those that have not logged in yet are the ones that are turned away first.
    let connect = |_| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("somebody listens");
    let mut open: Vec<TcpStream> = (0..60).map(connect).collect();
    for stream in &mut open {
        let mut banner = [0; 4];
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        stream.read_exact(&mut banner).expect("a banner");
        assert_eq!(&banner, b"SSH-");
    }
}

/// The addresses at which a port of this host is listened to, as the kernel writes them.
fn listeners(port: u16) -> Vec<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let listens = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, number) = fields.get(1)?.split_once(':')?;
        (fields[3] == "0A" && u16::from_str_radix(number, 16) == Ok(port)).then(|| address.to_owned())
    };
    tables.iter().flat_map(|table| table.lines()).filter_map(listens).collect()
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
    let needed = cluster(home, &["scale", "lab", "--nodes", "1"]);
    assert!(needed.code == 2 && needed.stderr.contains("partition long has node 2"), "{needed}");
    drop(cluster(home, &["scale", "lab", "--nodes", "2"]).expect_success());
    assert_eq!(info(home, "lab")["nodes"].as_array().map(Vec::len), Some(2));
    let none = cluster(home, &["scale", "lab", "--nodes", "0"]);
    assert!(none.code == 2 && none.stderr.contains("0 nodes"), "{none}");
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
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port().to_string();
    let taken = cluster(&home, &["create", "slurm", "lab", "--ssh-port", &port]);
    assert!(taken.code == 2 && taken.stderr.contains(&port), "{taken}");
    a_daemon_that_ends_takes_the_cluster_along(&home);
    let missing = cluster(&home, &["info", "lab"]);
    assert!(missing.code == 2 && missing.stderr.contains("no cluster lab"), "{missing}");
    assert_eq!(home.must_run(&["list", "--names"]), "");
    home.finish();
}

/// On a host whose `slurmd` ends as soon as it is started: nodes see what is mounted on the host.
fn a_daemon_that_ends_takes_the_cluster_along(home: &TestHome) {
    let mut command = home.command("unshare");
    let broken = "mount -t tmpfs none /usr/local/sbin; cd /usr/local/sbin; umask 022; \
                  printf '#!/bin/sh\necho the last words of one; exit 1\n' > slurmd; chmod 755 slurmd; cd /; exec \"$@\"";
    command.args(["--mount", "sh", "-ec", broken, "sh"]).arg(home.program("testyard"));
    let ended = Output::of(command.args(["cluster", "create", "slurm", "lab", "--nodes", "2"]), DEADLINE);
    assert!(ended.code == 69 && ended.stderr.contains("slurmd ended on node lab-"), "{ended}");
    assert!(ended.stderr.contains("the last words of one"), "{ended}");
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
