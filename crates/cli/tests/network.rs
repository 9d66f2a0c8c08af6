//! The real binaries: machines with a network of their own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use testkit::{Ability, Output, TestHome, wait_until};

/// Skips where only this crate was built.
macro_rules! home {
    ($make:expr) => {{
        testkit::require_programs!();
        $make
    }};
}

const SETTLED: Duration = Duration::from_secs(20);
const MANY: usize = 10_000_000;

/// Answers each connection with ten million bytes, each the sum of its place.
const SERVER: &str = "
import socket
listener = socket.create_server(('', 9000))
print('ready', flush=True)
while True:
    connection, _ = listener.accept()
    try:
        connection.sendall(bytes(range(250)) * 40_000)
    except OSError:
        pass
    connection.close()
";

/// Prints how much came, and whether it was what was sent.
const CLIENT: &str = "
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 9000), float(sys.argv[2])) as connection:
        connection.settimeout(20)
        got = b''.join(iter(lambda: connection.recv(1 << 20), b''))
    print(len(got), got == bytes(range(250)) * 40_000)
except OSError as error:
    print('no:', error)
";

/// A server on a machine, until this is dropped.
struct Server(Child);

impl Server {
    fn start(home: &TestHome, machine: &str) -> Self {
        let mut command = home.cli(&["exec", machine, "--", "python3", "-c", SERVER]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("it is a pipe");
        BufReader::new(output).read_line(&mut line).expect("it is read");
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its command ends with its connection.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(home: &TestHome, machine: &str, whom: &str, patience: &str) -> String {
    home.must_run(&["exec", machine, "--", "python3", "-c", CLIENT, whom, patience]).trim().to_owned()
}

fn all_came() -> String {
    format!("{MANY} True")
}

fn info(home: &TestHome, machine: &str) -> serde_json::Value {
    home.run_cli(&["info", machine, "--json"]).expect_success().json()["machine"].clone()
}

/// The host's port that leads to the machine's 9000.
fn published(home: &TestHome, machine: &str) -> u16 {
    let network = info(home, machine)["spec"]["network"]["private"].clone();
    let pair = network["publish"][0].as_str().expect("a pair of ports").to_owned();
    pair.strip_suffix(":9000").expect("it leads to 9000").parse().expect("a port")
}

/// What comes from a port of the host, in bytes.
fn fetch(port: u16) -> usize {
    let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else { return 0 };
    let mut got = Vec::new();
    // One that is closed at once was not served.
    let _ = connection.read_to_end(&mut got);
    got.len()
}

fn create(home: &TestHome, machine: &str, more: &[&str]) -> Output {
    let first = ["create", machine, "--backend", "namespace", "--network", "private:lab"];
    home.run_cli(&[&first, more].concat())
}

fn must_create(home: &TestHome, machine: &str, more: &[&str]) {
    let created = create(home, machine, more);
    assert_eq!(created.code, 0, "{created}");
}

fn networks_left(home: &TestHome) -> usize {
    std::fs::read_dir(home.state().join("networks")).map_or(0, Iterator::count)
}

#[test]
fn machines_of_a_network_work_together() {
    let home = home!(TestHome::new());
    work_together(&home);
    home.must_run(&["delete", "n1", "n2", "n3", "n4", "--force"]);
    assert_eq!(networks_left(&home), 0);
    home.finish();
}

fn work_together(home: &TestHome) {
    for machine in ["n1", "n2", "n3"] {
        must_create(home, machine, &["--common", "/home", "--publish", "9000"]);
    }
    let server = Server::start(home, "n1");
    // Those that were there before know those that came later, and all know themselves.
    for name in ["n1", "n2", "n3"] {
        let known = home.must_run(&["exec", "n1", "--", "getent", "hosts", name]);
        assert_eq!(known.split_whitespace().nth(1), Some(name), "{known}");
    }
    assert_eq!(ask(home, "n2", "n1", "5"), all_came());
    assert_eq!(ask(home, "n3", "10.213.0.1", "5"), all_came());
    assert_eq!(fetch(published(home, "n1")), MANY);
    // Nobody listens there.
    assert_eq!(fetch(published(home, "n2")), 0);

    // An environment has a network of its own, or that of its machine.
    let isolated = home.run_cli(&["env", "run", "n2", "--", "python3", "-c", CLIENT, "n1", "2"]);
    assert!(isolated.stdout.starts_with("no:"), "{isolated}");
    let network = ["env", "run", "n2", "--network", "host", "--", "python3", "-c", CLIENT, "n1", "5"];
    assert_eq!(home.must_run(&network).trim(), all_came());
    // And the machine nothing of the host's.
    let host = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = host.local_addr().expect("an address").port().to_string();
    let reached = [
        "exec",
        "n1",
        "--",
        "python3",
        "-c",
        "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2)",
    ];
    assert_ne!(home.run_cli(&[&reached[..], &[&port]].concat()).code, 0, "the host's loopback is its own");

    home.must_run(&["network", "cut", "n2"]);
    assert!(ask(home, "n2", "n1", "1").starts_with("no:"));
    assert_eq!(ask(home, "n3", "n1", "5"), all_came());
    home.must_run(&["network", "heal", "n2"]);
    assert_eq!(ask(home, "n2", "n1", "5"), all_came());
    drop(server);

    // What is common has the same owners everywhere.
    home.must_run(&[
        "exec",
        "n1",
        "--user",
        "root",
        "--",
        "sh",
        "-c",
        "echo hello > /home/letter && chmod 640 /home/letter",
    ]);
    let seen = ["exec", "n3", "--user", "root", "--", "sh", "-c", "stat -c '%u %g %a' /home/letter; cat /home/letter"];
    assert_eq!(home.must_run(&seen), "0 0 640\nhello\n");
    // An environment's writing there is its own.
    let write = ["env", "run", "n3", "--user", "root", "--", "sh", "-c", "echo other > /home/letter; cat /home/letter"];
    assert_eq!(home.must_run(&write), "other\n");
    assert_eq!(home.must_run(&seen), "0 0 640\nhello\n");

    let said = home.must_run(&["info", "n2"]);
    assert!(said.contains("private:lab, 10.213.0.2/24") && said.contains("leads to port 9000"), "{said}");
    home.must_run(&["clone", "n1", "n4"]);
    assert!(home.must_run(&["info", "n4"]).contains("10.213.0.4/24"));
    assert_ne!(published(home, "n4"), published(home, "n1"));
    home.must_run(&["restart", "n1"]);
    let _server = Server::start(home, "n1");
    assert_eq!(ask(home, "n4", "n1", "5"), all_came());
    assert_eq!(fetch(published(home, "n1")), MANY);
}

#[test]
fn services_of_a_machine_change_to_their_users_and_limit_what_they_start() {
    let home = home!(TestHome::new());
    if let Err(lack) = Ability::Root.check().and_then(|()| Ability::MemoryCgroup.check()) {
        testkit::skip!("services of a machine", host: lack.reason);
    }
    must_create(&home, "n1", &["--user", "root"]);
    home.must_run(&["exec", "n1", "--", "useradd", "--create-home", "ada"]);
    assert_eq!(home.must_run(&["exec", "n1", "--", "su", "ada", "-c", "id -un"]), "ada\n");
    // The kernel ends what goes over a limit that the machine's own root has set.
    let limited = "
        cd /sys/fs/cgroup/memory && mkdir step && echo 40000000 > step/memory.limit_in_bytes || exit 9
        sh -c 'echo 0 > step/tasks && exec python3 -c \"bytearray(200_000_000); print(1)\"'; echo $?
        rmdir step";
    let v1 = Path::new("/sys/fs/cgroup/memory/tasks").exists();
    if v1 {
        assert_eq!(home.must_run(&["exec", "n1", "--", "sh", "-c", limited]), "137\n");
    }
    home.finish();
}

#[test]
fn what_cannot_be_had_is_named_with_a_way_out() {
    let home = home!(TestHome::new());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let refused = create(&home, "n1", &["--publish", &format!("{port}:22")]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains(&format!("port {port} of 127.0.0.1 is taken")), "{refused}");
    assert!(refused.stderr.contains("hint: publish it elsewhere: --publish "), "{refused}");
    assert_eq!(home.run_cli(&["list", "--json"]).json()["machines"].as_array().map(Vec::len), Some(0));

    must_create(&home, "n1", &["--address", "10.9.8.7/24"]);
    for (more, said) in [
        (&["--address", "10.9.8.7/24"][..], "is that of machine n1"),
        (&["--address", "10.9.9.7/24"][..], "is not of network lab"),
        (&["--publish", "1:1", "--publish", "1:2"][..], "publishes port 1 of the host twice"),
        (&["--common", "home"][..], "whose home"),
        (&["--address", "10.9.8.255/24"][..], "is not an address of a machine"),
    ] {
        let refused = create(&home, "n2", more);
        assert_ne!(refused.code, 0, "{more:?}");
        assert!(refused.stderr.contains(said), "{refused}");
    }
    let refused = home.run_cli(&["create", "n2", "--publish", "22"]);
    assert!(refused.stderr.contains("--publish is for machines with a network of their own"), "{refused}");
    let refused = home.run_cli(&["create", "n2", "--network", "lab"]);
    assert!(refused.stderr.contains("write host, private, or private:NAME"), "{refused}");
    let refused = home.run_cli(&["create", "n2", "--backend", "host", "--network", "private"]);
    assert!(refused.stderr.contains("a network of its own"), "{refused}");
    // The next free one is beside those that are there.
    must_create(&home, "n2", &[]);
    assert!(home.must_run(&["info", "n2"]).contains("10.9.8.1/24"));
    home.must_run(&["create", "plain", "--backend", "namespace"]);
    let refused = home.run_cli(&["network", "cut", "plain"]);
    assert!(refused.stderr.contains("in the host's network"), "{refused}");
    home.finish();
}

/// Processes by parent, as the kernel tells now.
fn children_of(parent: i32) -> Vec<i32> {
    let pids = testkit::processes::all().map(|process| process.pid);
    let parent_of = |pid: &i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        text.rsplit_once(") ")?.1.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    pids.filter(|pid| parent_of(pid) == Some(parent)).collect()
}

fn network_of(pid: i32) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

/// The supervisor of a machine, its agent, the agent's router, and the router's publisher.
fn processes(home: &TestHome, machine: &str) -> [i32; 4] {
    let supervisor = info(home, machine)["supervisor_pid"].as_i64().expect("it runs") as i32;
    let own = network_of(std::process::id() as i32);
    let agent = children_of(supervisor).into_iter().next().expect("an agent");
    let router = children_of(agent).into_iter().find(|pid| network_of(*pid) == own).expect("a router");
    let publisher = children_of(router).into_iter().find(|pid| network_of(*pid) != own).expect("a publisher");
    [supervisor, agent, router, publisher]
}

#[test]
fn what_is_killed_is_replaced_or_named_and_nothing_is_left_alone() {
    let home = home!(TestHome::alone());
    for machine in ["n1", "n2"] {
        must_create(&home, machine, &["--publish", "9000"]);
    }
    let server = Server::start(&home, "n1");
    let port = published(&home, "n1");
    let [supervisor, _, router, publisher] = processes(&home, "n1");
    testkit::processes::signal(&[publisher], Signal::KILL);
    assert!(wait_until(SETTLED, || fetch(port) == MANY), "another publisher serves the port");
    testkit::processes::signal(&[supervisor], Signal::KILL);
    assert_eq!(ask(&home, "n2", "n1", "5"), all_came());
    assert_eq!(home.must_run(&["exec", "n1", "--", "echo", "here"]), "here\n");
    assert_eq!(fetch(port), MANY);

    // Who linked it to the others is gone: the links stay, as another member holds the network, and what is lost is named.
    testkit::processes::signal(&[router], Signal::KILL);
    assert!(wait_until(SETTLED, || TcpStream::connect(("127.0.0.1", port)).is_err()), "its ports are free again");
    let refused = home.run_cli(&["network", "cut", "n1"]);
    assert!(refused.stderr.contains("has ended") && refused.stderr.contains("testyard restart"), "{refused}");
    assert_eq!(ask(&home, "n2", "n1", "5"), all_came());
    drop(server);
    home.must_run(&["restart", "n1", "--force"]);
    let server = Server::start(&home, "n1");
    assert_eq!(ask(&home, "n2", "n1", "5"), all_came());
    assert_eq!(fetch(port), MANY);

    // Everything of both at once: the network goes with them.
    for machine in ["n1", "n2"] {
        testkit::processes::signal(&processes(&home, machine), Signal::KILL);
    }
    drop(server);
    home.must_run(&["reap"]);
    home.must_run(&["delete", "n1", "n2", "--force"]);
    assert_eq!(networks_left(&home), 0);
    home.finish();
}
