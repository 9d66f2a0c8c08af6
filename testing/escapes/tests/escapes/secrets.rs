//! What of the host is masked stays masked, whatever the path.

use std::process::Command;

use crate::attempt::{Prison, jailers};

#[test]
fn masked_secrets_cannot_be_read() {
    let state_of = |prison: &Prison| prison.home.state().display().to_string();
    for user in jailers() {
        let prison = Prison::of(user);
        let state = state_of(&prison);
        let attempts = [
            r"grep -E '^[^:]+:[$]' /etc/shadow".to_owned(),
            "ls /etc/shadow-".to_owned(),
            "ls /etc/ssh/ssh_host_*key".to_owned(),
            "ls -A /root | grep .".to_owned(),
            "ls /run/*.sock /var/run/*.sock /run/docker.sock /run/systemd".to_owned(),
            format!("ls -A {state}"),
            format!("ls -A /proc/1/root{state}"),
            format!("ls -A /proc/self/root{state}"),
            format!("ls -A /proc/self/cwd/../../../../..{state}"),
            format!("ln {state}/registry.sqlite /tmp/hard"),
            format!("mkdir -p /tmp/b && mount --rbind / /tmp/b && ls -A /tmp/b{state}"),
            format!("mkdir -p /tmp/b && mount --bind / /tmp/b && ls -A /tmp/b{state}"),
            format!("unshare --user --map-root-user --mount sh -c 'umount -l /tmp; ls -A {state}'"),
            format!("find / -xdev -name registry.sqlite -path '*{state}*' | grep ."),
        ];
        prison.refuses(&attempts.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// Names that a hostile machine hands to `pull` end below the target or nowhere.
#[test]
fn pulled_names_stay_below_the_target() {
    for user in jailers() {
        let prison = Prison::of(user);
        let script = "mkdir -p /opt/out/sub && cd /opt/out && ln -s /etc/passwd absolute && ln -s ../../../../../../etc up \
            && ln -s / root && mkfifo pipe && echo x > sub/file && ln -s ../../../../tmp sub/away";
        prison.home.must_run(&["exec", "m", "--user", "root", "--", "sh", "-c", script]);
        let output = prison.home.run_cli(&["pull", "m", "/opt/out", "got"]);
        let got = prison.home.work().join("got");
        let list = Command::new("find").arg(&got).args(["-printf", "%y %P -> %l\n"]).output().expect("find starts");
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        // Links come as links, never as what they lead to here; devices and pipes do not come.
        assert!(!list.lines().any(|line| line.starts_with(['b', 'c', 's'])), "{list}\n{output}");
        assert!(list.is_empty() || !list.contains("f absolute"), "{list}");
        for traversal in ["../../../../etc/hostname", "/opt/../etc/hostname", "/proc/1/root/etc/hostname"] {
            let output = prison.home.run_cli(&["pull", "m", traversal, "taken"]);
            let taken = std::fs::read(prison.home.work().join("taken")).unwrap_or_default();
            let secret = std::fs::read("/etc/shadow").unwrap_or_else(|_| b"unreadable".to_vec());
            assert_ne!(taken, secret, "{output}");
            let _ = std::fs::remove_file(prison.home.work().join("taken"));
        }
    }
}

/// Whoever is root in the machine may have replaced its lists of users by something that is read for ever.
#[test]
fn a_pipe_for_a_list_of_users_keeps_nobody() {
    for user in jailers() {
        let prison = Prison::of(user);
        prison.home.must_run(&["exec", "m", "--user", "root", "--", "sh", "-c", "rm /etc/passwd; mkfifo /etc/passwd"]);
        let output = prison.home.run_cli(&["pull", "m", "/etc/hostname", "name"]);
        assert_eq!(output.code, 0, "{output}");
        let output = prison.home.run_cli(&["exec", "m", "--timeout", "20s", "--", "true"]);
        assert_eq!(output.code, 0, "{output}");
        prison.home.finish();
    }
}
