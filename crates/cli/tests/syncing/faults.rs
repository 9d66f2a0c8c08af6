//! Syncs that are disturbed in the middle: what is on the machine is one tree, the old or the new one.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::{Ability, Output, wait_until};

use crate::{Ground, ground};

const PATIENCE: Duration = Duration::from_secs(60);

/// A way to another host that stops in the middle, once it is told to: after 200,000 bytes. Then it goes on, or breaks.
const GATE: &str = r"
import os, subprocess, sys, threading, time
at = lambda name: os.path.join(sys.argv[1], name)
if os.path.exists(at('down')):
    sys.exit(1)
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def forward(block, to):
    while block:
        block = block[os.write(to, block):]
def back():
    while block := os.read(child.stdout.fileno(), 65536):
        forward(block, 1)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
passed = 0
while block := os.read(0, 16384):
    passed = passed + len(block) if os.path.exists(at('limit')) else 0
    if passed > 200_000:
        open(at('reached'), 'w').close()
        while not os.path.exists(at('go')):
            if os.path.exists(at('cut')):
                child.kill()
                os._exit(1)
            time.sleep(0.01)
        os.unlink(at('reached'))
    forward(block, child.stdin.fileno())
child.stdin.close()
child.wait()
";

/// A machine `far` behind a gate, with a tree that was synced once and has much to send now.
struct Gate {
    ground: Ground,
    folder: PathBuf,
    noise: u64,
}

/// So many files are to be sent, of so many bytes that no packing makes fewer: more than lies on the way at any time.
const FILES: usize = 400;
const SIZE: usize = 40_000;

impl Gate {
    fn new(ground: Ground, options: &[&str]) -> Self {
        let folder = ground.home.work().join("gate");
        std::fs::create_dir(&folder).expect("a new folder");
        let program = ground.home.work().join("gate.py");
        std::fs::write(&program, GATE).expect("a file");
        let through = format!("python3 {} {}", program.display(), folder.display());
        let words = ["create", "far", "--backend", "command", "--inside", "namespace", "--through", &through];
        ground.home.must_run(&[&words, options].concat());
        ground.write("value", "one");
        let gate = Self { ground, folder, noise: 7 };
        assert_eq!(gate.sync().expect_success().json()["sync"]["sent_files"], 1);
        gate
    }

    /// Writes much that was never there.
    fn write_more(&mut self) {
        for number in 0..FILES {
            let mut bytes = Vec::with_capacity(SIZE + 8);
            while bytes.len() < SIZE {
                self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                bytes.extend((self.noise ^ (self.noise >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes());
            }
            let path = self.ground.tree.join(format!("many-{number:03}"));
            std::fs::write(path, bytes).expect("there is room");
        }
        self.ground.write("value", "two");
        self.ground.write("zz-last", "as listed");
    }

    fn tell(&self, name: &str) {
        std::fs::write(self.folder.join(name), "").expect("a file");
    }

    fn forget(&self, names: &[&str]) {
        for name in names {
            // It need not be there.
            let _ = std::fs::remove_file(self.folder.join(name));
        }
    }

    fn sync(&self) -> Output {
        self.ground.home.run_cli(&["sync", "far", "tree", "--json"])
    }

    /// Starts to sync; back when it is in the middle.
    fn begin(&self) -> Child {
        self.tell("limit");
        let mut command = self.ground.home.cli(&["sync", "far", "tree", "--json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let reached = || self.folder.join("reached").exists() || child.try_wait().expect("ours").is_some();
        assert!(wait_until(PATIENCE, reached) && child.try_wait().expect("ours").is_none(), "it does not stop");
        child
    }

    /// Lets it go on to its end.
    fn end(&self, child: &mut Child) -> Output {
        self.forget(&["limit", "cut"]);
        self.tell("go");
        let output = Output::of_child(child, "sync", PATIENCE);
        assert!(wait_until(PATIENCE, || !self.folder.join("reached").exists()), "it does not go on");
        self.forget(&["go"]);
        output
    }

    /// What is in a file there.
    fn there(&self, name: &str) -> String {
        let path = self.ground.tree.join(name).display().to_string();
        self.ground.home.must_run(&["exec", "far", "--", "cat", &path])
    }
}

/// A machine `far` behind a gate; skips where there can be none.
macro_rules! gate {
    ($($option:expr),*) => {{
        testkit::require!(Ability::Program("python3"));
        Gate::new(ground!(), &[$($option),*])
    }};
}

#[test]
fn a_tree_that_changes_or_goes_in_the_middle_is_seen_whole_or_not_at_all() {
    let mut gate = gate!();
    gate.write_more();
    let mut child = gate.begin();
    gate.ground.write("zz-last", "as written meanwhile");
    let output = gate.end(&mut child).expect_success();
    assert_eq!(output.json()["sync"]["files"], FILES + 2, "{output}");
    assert_eq!((gate.there("value").as_str(), gate.there("zz-last").as_str()), ("two", "as written meanwhile"));

    gate.write_more();
    gate.ground.write("value", "three");
    let mut child = gate.begin();
    let removed = Command::new("rm").arg("-rf").arg(&gate.ground.tree).status().expect("rm starts");
    assert!(removed.success());
    let output = gate.end(&mut child);
    assert_ne!(output.code, 0, "{output}");
    assert!(output.stderr.contains("cannot open the"), "{output}");
    assert_eq!(gate.there("value"), "two", "the machine's copy stays");
}

#[test]
fn a_sync_goes_on_over_a_cut_and_its_killed_sender_leaves_the_old_tree() {
    let mut gate = gate!();
    gate.write_more();
    let mut child = gate.begin();
    gate.forget(&["limit"]);
    gate.tell("cut");
    // The way is there again at once.
    let output = Output::of_child(&mut child, "sync", PATIENCE).expect_success();
    assert_eq!(output.json()["sync"]["sent_files"], FILES + 2, "{output}");
    gate.forget(&["reached", "cut"]);
    assert_eq!((gate.there("value").as_str(), gate.there("zz-last").as_str()), ("two", "as listed"));

    gate.write_more();
    gate.ground.write("value", "three");
    let mut child = gate.begin();
    child.kill().expect("it runs");
    gate.end(&mut child);
    assert_eq!(gate.there("value"), "two", "half a tree is none");
    let report = gate.sync().expect_success().json();
    assert_eq!(report["sync"]["known"], false, "{report}");
    assert_eq!(gate.there("value"), "three");
}

#[test]
fn a_way_that_stays_away_is_told_and_the_next_sync_begins_anew() {
    let mut gate = gate!("--grace", "1s");
    gate.write_more();
    let mut child = gate.begin();
    gate.tell("down");
    gate.tell("cut");
    let output = Output::of_child(&mut child, "sync", PATIENCE);
    assert_eq!(output.code, 69, "{output}");
    gate.forget(&["limit", "reached", "cut", "down"]);
    let state = || gate.ground.home.must_run(&["info", "far", "--json"]).contains("\"failed\"");
    assert!(wait_until(PATIENCE, state), "it is not told");
    gate.ground.home.must_run(&["start", "far"]);
    let report = gate.sync().expect_success().json();
    assert_eq!(report["sync"]["sent_files"], FILES + 2, "{report}");
    assert_eq!(gate.there("value"), "two");
}

#[test]
fn a_full_disk_is_told_and_the_old_tree_stays_until_there_is_room() {
    let ground = ground!();
    let state = ground.home.path().join("home/.local/state");
    std::fs::create_dir_all(&state).expect("folders");
    // All of that host's machines lie on a small file system.
    let way = ground.home.work().join("way");
    let user = if testkit::user::is_root() { "" } else { "--user --map-root-user" };
    let mount = format!("mount -t tmpfs -o size=24m,mode=700 none '{}' && exec \"$@\"", state.display());
    let mount = mount.replace('"', "\\\"").replace("$@", "\\$@");
    let text = format!("#!/bin/sh\nexec unshare {user} --mount --propagation private sh -c \"{mount}\" sh \"$@\"\n");
    std::fs::write(&way, text).expect("a file");
    std::fs::set_permissions(&way, std::fs::Permissions::from_mode(0o755)).expect("ours");
    let through = way.display().to_string();
    ground.home.must_run(&["create", "far", "--backend", "command", "--inside", "namespace", "--through", &through]);
    let sync = || ground.home.run_cli(&["sync", "far", "tree", "--json"]);
    let value = ground.tree.join("value").display().to_string();
    let there = || ground.home.must_run(&["exec", "far", "--", "cat", &value]);
    ground.write("value", "one");
    let _ = sync().expect_success();
    assert_eq!(there(), "one");

    ground.write("value", "two");
    ground.write("large", &"not a hole\n".repeat(4_000_000));
    for _ in 0..2 {
        let output = sync();
        assert_ne!(output.code, 0, "{output}");
        assert!(output.stderr.contains("cannot write large") && output.stderr.contains("No space left"), "{output}");
        assert_eq!(there(), "one", "the old tree stays");
    }
    std::fs::remove_file(ground.tree.join("large")).expect("it was there");
    // What had come of the large file is removed by somebody for whom nobody waits.
    assert!(wait_until(PATIENCE, || sync().code == 0), "there is room again");
    assert_eq!(there(), "two");
}

/// The next thing that a watching sync says.
fn next(lines: &mut BufReader<ChildStdout>) -> Value {
    let mut line = String::new();
    lines.read_line(&mut line).expect("it writes text");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

#[test]
fn a_watching_sync_sends_what_is_saved_until_it_is_stopped_or_the_tree_goes() {
    let ground = ground!();
    ground.write("sub/value", "one");
    let watch = || {
        let mut command = ground.home.cli(&["sync", "m", "tree", "--watch", "--json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        (child, lines)
    };
    let (mut child, mut lines) = watch();
    assert_eq!(next(&mut lines)["sync"]["sent_files"], 1);
    for value in ["two", "three"] {
        ground.save("sub/value", value);
        let report = next(&mut lines);
        assert_eq!(report["sync"]["sent_files"], 1, "{report}");
        assert_eq!(ground.inside("cat sub/value"), value);
    }
    // A new folder and a file that is written in place may be seen before all of it is there, and then once more.
    ground.write("new/value", "four");
    let seen = |_: &usize| {
        next(&mut lines);
        ground.inside("cat new/value 2> /dev/null || true") == "four"
    };
    assert!((0..4).find(seen).is_some(), "what was saved in place never came");
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    assert_eq!(child.wait().expect("ours").code(), Some(0));

    let (mut child, mut lines) = watch();
    assert_eq!(next(&mut lines)["sync"]["known"], true);
    let removed = Command::new("rm").arg("-rf").arg(&ground.tree).status().expect("rm starts");
    assert!(removed.success());
    let output = Output::of_child(&mut child, "sync --watch", PATIENCE);
    assert_ne!(output.code, 0, "{output}");
    assert!(output.stderr.contains("cannot open the tree"), "{output}");
}
