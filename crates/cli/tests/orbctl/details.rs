//! What scripts and people meet besides: several machines in one line, questions, logs, text for people, exit codes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use testkit::{Output, wait_until};
use testyard_linux::terminal::{Size, open_pty};

use crate::orb::{Orb, with_debian};

const PATIENCE: Duration = Duration::from_secs(120);

fn states(orb: &Orb, expected: [&str; 2]) {
    let states: Vec<String> = orb.states().into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, expected);
}

#[test]
fn the_details_are_as_scripts_and_people_expect() {
    let orb = with_debian!();
    several_machines_are_meant_in_one_line(&orb);
    orb.must(&["create", "debian:12", "m"]);
    force_does_not_wait_for_what_runs(&orb);
    a_log_is_told_in_whole_or_its_end(&orb);
    errors_have_their_exit_codes(&orb);
    whoever_sits_at_a_terminal_is_asked_before_a_deletion(&orb);
    orb.home.finish();
}

fn several_machines_are_meant_in_one_line(orb: &Orb) {
    orb.must(&["create", "debian:12", "a", "--user", "dev"]);
    orb.must(&["create", "debian:12", "b"]);
    orb.must(&["stop", "a", "b"]);
    states(orb, ["stopped", "stopped"]);
    orb.must(&["start", "-a"]);
    states(orb, ["running", "running"]);
    // When its first process began.
    let life = |name: &str| orb.must(&["run", "-m", name, "cut", "-d ", "-f22", "/proc/1/stat"]);
    let before = (life("a"), life("b"));
    assert_eq!((life("a"), life("b")), before);
    orb.must(&["restart", "b", "a"]);
    states(orb, ["running", "running"]);
    assert!(life("a") != before.0 && life("b") != before.1);
    orb.must(&["stop", "b"]);
    shown_to_people(orb);
    // One wrong name, and nothing is done.
    orb.refused(&["start", "b", "ghost"], "no such name: ghost");
    orb.refused(&["stop", "a", "a/b"], "no such name: a/b");
    orb.refused(&["delete", "--all", "b"], "write names, or --all");
    states(orb, ["running", "stopped"]);
    orb.must(&["restart", "--all"]);
    states(orb, ["running", "running"]);
    orb.must(&["stop", "--all", "-f"]);
    states(orb, ["stopped", "stopped"]);
    orb.must(&["delete", "--all", "--force"]);
    assert_eq!(orb.states(), []);
}

/// `a` runs, `b` does not.
fn shown_to_people(orb: &Orb) {
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let list = orb.must(&["list"]);
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "STATE", "DISTRO", "VERSION", "ARCH"]);
    assert_eq!(rows[1..], [["a", "running", "debian", "12", arch], ["b", "stopped", "debian", "12", arch]]);
    assert_eq!((orb.must(&["list", "-q"]), orb.must(&["list", "-q", "--running"])), ("a\nb\n".into(), "a\n".into()));
    let info = orb.must(&["info", "a"]);
    let keys: Vec<&str> = info.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
    let all = ["ID", "Name", "State", "Distro", "Version", "Architecture", "Username", "IPv4", "IPv6", "Disk size"];
    assert_eq!(keys, all, "{info}");
    for line in ["Name: a", "State: running", "Distro: debian", "Username: dev", "IPv6: ::1"] {
        assert!(info.lines().any(|one| one == line), "{line}: {info}");
    }
    assert!(!orb.must(&["info", "b"]).contains("IPv4"));
}

fn force_does_not_wait_for_what_runs(orb: &Orb) {
    let began = || orb.run(&["run", "-m", "m", "test", "-e", "/srv/began"]).code == 0;
    for (words, told) in
        [(&["restart", "m"][..], true), (&["restart", "-f", "m"], false), (&["stop", "-f", "m"], false)]
    {
        // It needs a while to end well, and is given it unless somebody is in a hurry.
        let script = "trap 'sleep 3; touch /srv/ended; exit' TERM; touch /srv/began; while :; do sleep 0.1; done";
        let line = ["run", "-m", "m", "sh", "-c", &format!("rm -f /srv/*; {script}")];
        let mut client = orb.command(&line).stderr(Stdio::null()).spawn().expect("it starts");
        assert!(wait_until(PATIENCE, began), "it does not begin");
        orb.must(words);
        client.wait().expect("ours");
        assert_eq!(orb.run(&["run", "-m", "m", "test", "-e", "/srv/ended"]).code == 0, told, "{words:?}");
        orb.must(&["run", "-m", "m", "rm", "/srv/began"]);
    }
}

fn whoever_sits_at_a_terminal_is_asked_before_a_deletion(orb: &Orb) {
    // Control-D is the end of what is typed.
    for (typed, code, left) in [("n\n", 130, 1), ("\n", 130, 1), ("\x04", 130, 1), ("y\n", 0, 0)] {
        let (controller, terminal) = open_pty(Size { rows: 24, columns: 80 }).expect("a terminal");
        let mut command = orb.command(&["delete", "m"]);
        command.stdin(terminal.try_clone().expect("a copy")).stderr(terminal).stdout(Stdio::null());
        let mut child = command.spawn().expect("it starts");
        drop(command);
        let mut controller = fs::File::from(controller);
        let mut asked = String::new();
        while !asked.contains("[y/N]") {
            let mut part = [0; 256];
            let length = controller.read(&mut part).expect("it asks");
            asked.push_str(&String::from_utf8_lossy(&part[..length]));
        }
        assert!(asked.contains("delete m and all that is in it?"), "{asked}");
        controller.write_all(typed.as_bytes()).expect("typed");
        let ended = Output::of_child(&mut child, "orbctl delete m", PATIENCE);
        assert_eq!((ended.code, orb.states().len()), (code, left), "{typed:?}");
    }
}

fn a_log_is_told_in_whole_or_its_end(orb: &Orb) {
    let whole = orb.must(&["logs", "m", "--all"]);
    assert_eq!(whole, orb.home.run_cli(&["logs", "m"]).expect_success().stdout);
    let folders = fs::read_dir(orb.home.state().join("machines")).expect("a machine").flatten();
    let log = folders.map(|folder| folder.path().join("supervisor.log")).find(|log| log.exists()).expect("a log");
    let mut file = fs::OpenOptions::new().append(true).open(&log).expect("the log");
    let lines: String = (0..150).map(|number| format!("line {number}\n")).collect();
    file.write_all(lines.as_bytes()).expect("the home is ours");
    let end = orb.must(&["logs", "m"]);
    assert_eq!((end.lines().next(), end.lines().count()), (Some("line 50"), 100));
    assert_eq!(orb.must(&["logs", "-a", "m"]), whole + &lines);
}

fn errors_have_their_exit_codes(orb: &Orb) {
    fs::write(orb.home.work().join("failing"), "#!/bin/sh\nexit 3\n").expect("the home is ours");
    let other = if cfg!(target_arch = "x86_64") { "arm64" } else { "amd64" };
    for (words, code) in [
        (&["dance"][..], 2),
        (&["info", "ghost"], 2),
        (&["create", "debian:12", "m"], 2),
        (&["create", "debian:12", "x", "--arch", "mips"], 2),
        (&["run", "-m", "ghost", "true"], 2),
        (&["create", "debian:12", "x", "--arch", other], 69),
        (&["create", "debian:12", "x", "-c", "failing"], 69),
        (&["export", "m", "/proc/x.tar"], 69),
        // What runs has a code of its own, as shells have it.
        (&["run", "-m", "m", "no-such-program"], 127),
        (&["run", "-m", "m", "sh", "-c", "exit 42"], 42),
    ] {
        let output = orb.run(words);
        assert_eq!(output.code, code, "{words:?}: {output}");
    }
}
