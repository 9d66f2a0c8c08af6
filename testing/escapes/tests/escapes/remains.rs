//! What tries to outlive its environment. The home's end proves that nothing is left on the host.

use std::process::Command;
use std::time::Duration;

use testkit::wait_until;

use crate::attempt::{Prison, jailers};

fn is_running(mark: &str) -> bool {
    let found = Command::new("pgrep").args(["--full", &format!("sleep {mark}")]).output().expect("pgrep starts");
    !found.stdout.is_empty()
}

#[test]
fn nothing_outlives_its_environment() {
    for (number, user) in jailers().into_iter().enumerate() {
        let prison = Prison::of(user);
        let mark = format!("71{number}77{}", std::process::id());
        let ways = [
            format!("setsid sleep {mark} >/dev/null 2>&1 &"),
            format!("(setsid sh -c 'setsid sleep {mark} &' &) >/dev/null 2>&1"),
            format!("env -i setsid sleep {mark} >/dev/null 2>&1 & kill -STOP $!"),
            format!("unshare --user --map-root-user --pid --fork --mount-proc sleep {mark} >/dev/null 2>&1 &"),
            format!("trap '' TERM HUP INT; nohup sleep {mark} >/dev/null 2>&1 &"),
            format!("sleep {mark} >/dev/null 2>&1 & kill -STOP 0"),
            format!("mount -t tmpfs x /proc; mount -t tmpfs x /tmp; setsid sleep {mark} >/dev/null 2>&1 &"),
            format!(
                "mount --make-rshared /; mkdir -p /tmp/x; mount --rbind / /tmp/x; setsid sleep {mark} >/dev/null 2>&1 &"
            ),
        ];
        for way in &ways {
            for inside in ["root", "1000"] {
                let script = format!("{way}\nsleep 0.05; true");
                let output = prison.run(inside, &["--timeout", "5s"], &script);
                assert!(matches!(output.code, 0 | 124), "{way}: {output}");
                let gone = wait_until(Duration::from_secs(5), || !is_running(&mark));
                assert!(gone, "as {inside}: {way}");
            }
        }
        prison.home.finish();
    }
}

/// Its init reads `/proc`, which whoever is root inside can replace by what never answers.
#[test]
fn a_replaced_proc_does_not_hold_up_the_end() {
    for user in jailers() {
        let prison = Prison::of(user);
        let script = "mount -t tmpfs x /proc; for n in 2 3 4 5 6 7 8 9; do mkdir /proc/$n; \
            for f in stat status environ; do mkfifo /proc/$n/$f; done; done; sleep 100";
        let output = prison.run("root", &["--timeout", "1s"], script);
        assert_eq!(output.code, 124, "{output}");
        let words = ["exec", "m", "--user", "root", "--timeout", "1s", "--", "sh", "-c", script];
        let output = prison.home.run_cli(&words);
        assert!(output.code == 124 || output.code == 69, "{output}");
        prison.home.must_run(&["delete", "m", "--force"]);
        prison.home.finish();
    }
}

/// The supervisor's death ends nothing: whoever comes next finds the machine as it was.
#[test]
fn a_killed_supervisor_is_replaced_by_the_next_command() {
    for user in jailers() {
        let prison = Prison::of(user);
        prison.home.must_run(&["exec", "m", "--user", "root", "--", "sh", "-c", "echo kept > /opt/kept"]);
        let entries = std::fs::read_dir(prison.home.state().join("machines")).expect("the machines' folder");
        for machine in entries.flatten() {
            let supervisor = format!("supervise --id {}", machine.file_name().to_string_lossy());
            let found = Command::new("pgrep").args(["--full", &supervisor]).output().expect("pgrep starts");
            for pid in String::from_utf8_lossy(&found.stdout).lines() {
                testkit::processes::signal(&[pid.parse().expect("a pid")], rustix::process::Signal::KILL);
            }
        }
        let output = prison.home.must_run(&["exec", "m", "--", "cat", "/opt/kept"]);
        assert_eq!(output, "kept\n");
        prison.home.finish();
    }
}
