//! What a machine's clients see of its life.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use testkit::wait_until;

use crate::orb::{Orb, has_many_ids, with_debian};

#[test]
fn an_empty_home_is_ready_and_lists_nothing() {
    testkit::require_programs!();
    let orb = Orb::new();
    assert_eq!(orb.must(&["status"]), "Running\n");
    assert!(orb.must(&["version"]).starts_with("Version: "));
    for words in [&["list", "-f", "json"][..], &["list", "--format", "json"], &["list", "-fjson"]] {
        assert_eq!(orb.must(words), "[]\n");
    }
    assert_eq!(orb.home.must_run(&["orbctl", "list", "--format=json"]), "[]\n");
    orb.home.finish();
}

#[test]
fn a_machine_lives_as_its_clients_expect() {
    let orb = with_debian!();
    orb.must(&["create", "debian:12", "web", "--arch", std::env::consts::ARCH]);
    let info = orb.json(&["info", "web", "--format", "json"]);
    let record = &info["record"];
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert_eq!(
        record["image"],
        json!({"distro": "debian", "version": "12", "arch": arch, "variant": "default"}),
        "{info}"
    );
    assert_eq!((&record["state"], &record["builtin"]), (&json!("running"), &json!(false)));
    assert_eq!(record["config"], json!({"isolated": false, "default_username": "root"}));
    assert!(info["ip4"].as_str().is_some_and(|address| address.starts_with("127.")) && info["ip6"].is_string());
    assert!(info["disk_size"].as_u64().is_some_and(|bytes| bytes > 0), "{info}");
    assert_eq!(orb.json(&["list", "-f", "json"])[0], *record);

    orb.must(&["start", "web"]);
    orb.must(&["stop", "web"]);
    orb.must(&["stop", "-f", "web"]);
    let stopped = orb.json(&["info", "-f", "json", "web"]);
    assert_eq!(stopped["record"]["state"], "stopped");
    assert!(stopped.get("ip4").is_none() && stopped.get("ip6").is_none(), "{stopped}");
    // A command starts it.
    assert_eq!(orb.must(&["run", "-m", "web", "echo", "up"]), "up\n");
    orb.must(&["restart", "web"]);
    orb.must(&["rename", "web", "site"]);
    assert_eq!(orb.json(&["info", "site", "-f", "json"])["record"]["id"], record["id"]);
    orb.must(&["run", "-m", "site", "sh", "-c", "echo kept > /etc/kept"]);
    orb.must(&["clone", "site", "copy"]);
    assert_eq!(orb.must(&["run", "-m", "copy", "cat", "/etc/kept"]), "kept\n");
    assert_eq!(orb.states(), [("copy".into(), "running".into()), ("site".into(), "running".into())]);
    orb.must(&["logs", "site", "--all"]);
    assert!(orb.must(&["ssh"]).contains("orbctl run"));
    orb.must(&["delete", "--force", "site"]);
    orb.must(&["delete", "copy"]);
    assert_eq!(orb.states(), []);
    orb.home.finish();
}

#[test]
fn a_command_gets_its_words_its_user_and_its_folder() {
    let orb = with_debian!();
    orb.must(&["create", "--user", "dev", "debian:12", "m"]);
    let said =
        orb.run(&["run", "-m", "m", "sh", "-c", "echo \"$0|$*\"; echo oops >&2; exit 7", "a b", "--", "-u", "$x"]);
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (7, "a b|-- -u $x\n", "oops\n"));
    assert_eq!(orb.must(&["run", "-m", "m", "--", "echo", "-m"]), "-m\n");
    assert_eq!(orb.must(&["run", "-m", "m", "whoami"]), "dev\n");
    assert_eq!(orb.must(&["run", "-m", "m", "pwd"]), "/home/dev\n");
    assert_eq!(orb.must(&["run", "-m", "m", "-w", "/tmp", "pwd"]), "/tmp\n");
    assert_eq!(orb.must(&["run", "-u", "root", "-w/var", "-m", "m", "sh", "-c", "whoami; pwd"]), "root\n/var\n");
    assert_eq!(orb.must(&["run", "-m", "m", "-u", "nobody", "whoami"]), "nobody\n");
    // The only one is meant where none is named.
    assert_eq!(orb.must(&["run", "true"]), "");
    let user = if has_many_ids() { "dev" } else { "root" };
    for (words, told) in [
        (&["sudo", "-H", "-n", "whoami"][..], "root\n"),
        (&["sudo", "-H", "-n", "-u", "root", "id", "-u"], "0\n"),
        (&["sudo", "-n", "-u", "nobody", "whoami"], "nobody\n"),
    ] {
        let line: Vec<&str> = ["run", "-m", "m", "-u", user].into_iter().chain(words.iter().copied()).collect();
        let output = orb.run(&line);
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (0, told, ""), "{line:?}");
    }
    orb.refused(&["run", "-m", "m", "-u", "stranger", "true"], "no such user: stranger");
    assert_eq!(orb.run(&["run", "-m", "m", "no-such-program"]).code, 127);
    // A user who is set later is made when a command needs it.
    orb.must(&["config", "set", "machine.m.username", "eve"]);
    assert_eq!(orb.must(&["config", "get", "machine.m.username"]), "eve\n");
    assert_eq!(orb.must(&["run", "-m", "m", "whoami"]), "eve\n");
    assert_eq!(orb.json(&["list", "-f", "json"])[0]["config"]["default_username"], "eve");
    orb.must(&["delete", "m", "-f"]);
    orb.home.finish();
}

#[test]
fn what_runs_ends_with_its_client() {
    let orb = with_debian!();
    orb.must(&["create", "debian:12", "m"]);
    let line = ["run", "-m", "m", "sh", "-c", "echo begun; exec sleep 4242"];
    let mut client = orb.command(&line).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut begun = [0; 6];
    client.stdout.take().expect("piped").read_exact(&mut begun).expect("it says so");
    client.kill().expect("ours");
    client.wait().expect("ours");
    let gone = || orb.run(&["run", "-m", "m", "pgrep", "-f", "sleep 4242"]).code == 1;
    assert!(wait_until(Duration::from_secs(20), gone), "the command outlives its client");
    orb.must(&["delete", "-f", "m"]);
    orb.home.finish();
}

#[test]
fn machines_find_each_other_by_name() {
    let orb = with_debian!();
    orb.must(&["create", "debian:12", "one"]);
    orb.must(&["run", "-m", "one", "sh", "-c", "echo 10.1.1.1 mine >> /etc/hosts"]);
    orb.must(&["create", "debian:12", "two"]);
    let address = |name: &str| orb.json(&["info", name, "-f", "json"])["ip4"].as_str().expect("running").to_owned();
    let (one, two) = (address("one"), address("two"));
    assert_ne!(one, two);
    let looked_up = |from: &str, name: &str| {
        let said = orb.run(&["run", "-m", from, "getent", "hosts", name]).stdout;
        said.split_whitespace().next().unwrap_or_default().to_owned()
    };
    assert_eq!((looked_up("one", "two.orb.local"), looked_up("two", "one.orb.local")), (two.clone(), one.clone()));
    assert_eq!((looked_up("one", "one"), looked_up("one", "mine")), (one, "10.1.1.1".to_owned()));
    is_reached_from_everywhere(&orb, &address("one"));
    orb.must(&["rename", "two", "three"]);
    assert_eq!((looked_up("one", "three.orb.local"), looked_up("one", "two.orb.local")), (two, String::new()));
    orb.must(&["stop", "one"]);
    orb.must(&["rename", "three", "four"]);
    orb.must(&["start", "one"]);
    assert_eq!(looked_up("one", "three.orb.local"), "");
    assert_eq!(looked_up("one", "mine"), "10.1.1.1");
    orb.must(&["delete", "-f", "one", "four"]);
    orb.home.finish();
}

/// What listens on a machine's address, asked from the host and from every machine.
fn is_reached_from_everywhere(orb: &Orb, address: &str) {
    let script =
        "use IO::Socket::INET; $| = 1; my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => $ARGV[0]) or die $!;
                  print $s->sockport, \"\\n\"; while (my $c = $s->accept) { print $c \"from one\\n\"; close $c }";
    let mut server = orb.command(&["run", "-m", "one", "perl", "-e", script, address]);
    let mut server = server.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut port = String::new();
    BufReader::new(server.stdout.take().expect("piped")).read_line(&mut port).expect("it listens");
    let port = port.trim();
    let mut said = String::new();
    let mut host = TcpStream::connect(format!("{address}:{port}")).expect("reached from the host");
    host.read_to_string(&mut said).expect("it answers");
    assert_eq!(said, "from one\n");
    for machine in ["one", "two"] {
        let ask = format!("exec 3<>/dev/tcp/one.orb.local/{port}; cat <&3");
        assert_eq!(orb.must(&["run", "-m", machine, "bash", "-c", &ask]), "from one\n", "{machine}");
    }
    server.kill().expect("ours");
    server.wait().expect("ours");
}

#[test]
fn settings_are_read_back_and_count() {
    let orb = with_debian!();
    let memory: u64 = orb.must(&["config", "get", "memory_mib"]).trim().parse().expect("a number");
    assert!(memory > 0);
    assert!(orb.must(&["config", "get", "network.subnet4"]).contains("/16"));
    for (key, value) in [
        ("rosetta", "true"),
        ("docker.expose_ports_to_lan", "false"),
        ("machines.forward_ports", "false"),
        ("network.https", "true"),
        ("setup.use_admin", "true"),
        ("app.start_at_login", "true"),
        ("network.subnet4", "127.77.0.0/24"),
        ("cpu", "1"),
    ] {
        orb.must(&["config", "set", key, value]);
        assert_eq!(orb.must(&["config", "get", key]), format!("{value}\n"));
    }
    let made = orb.run(&["create", "debian:12", "m", "--isolated"]).expect_success();
    let shown = orb.must(&["config", "show"]);
    assert!(shown.lines().all(|line| line.contains(':')), "{shown}");
    assert!(shown.contains("cpu: 1\n") && shown.contains("machine.m.username: root\n"), "{shown}");
    let info = orb.json(&["info", "m", "-f", "json"]);
    assert_eq!((&info["ip4"], &info["record"]["config"]["isolated"]), (&json!("127.77.0.1"), &json!(true)));
    // Set for all, it holds where it can; asked for by the line itself, it holds or is refused.
    let spec = &orb.home.run_cli(&["info", "m", "--json"]).json()["machine"]["spec"];
    if made.stderr.is_empty() {
        assert_eq!(spec["cpus"], 1.0, "{spec}");
    } else {
        assert!(made.stderr.starts_with("warning: without the limits that are set for all: "), "{made}");
        assert!(spec.get("cpus").is_none(), "{spec}");
        orb.refused(&["create", "debian:12", "n", "--cpus", "1"], "with limits");
    }
    orb.must(&["delete", "-f", "m"]);
    orb.home.finish();
}

#[test]
fn a_copy_of_the_program_under_the_other_name_serves_too() {
    let orb = with_debian!();
    let folder = orb.home.work().join("copied");
    std::fs::create_dir(&folder).expect("the home is ours");
    for (from, to) in [("testyard", "orb"), ("testyard-agent", "testyard-agent")] {
        std::fs::copy(orb.home.program(from), folder.join(to)).expect("copied");
    }
    for line in ["create debian:12 m", "run -m m true", "stop m", "start m", "delete -f m"] {
        let mut command = orb.home.command(folder.join("orb"));
        let output = testkit::Output::of(command.args(line.split(' ')), Duration::from_secs(120));
        assert_eq!(output.code, 0, "{line}: {output}");
    }
    orb.home.finish();
}
