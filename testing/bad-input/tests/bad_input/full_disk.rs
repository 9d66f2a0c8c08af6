//! A home on a disk that is full or far away: refused clearly, and never in the way of making room.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::{Ability, Output, TestHome, wait_until};

use crate::{DEADLINE, INFRASTRUCTURE, check_refusal};

/// A small file system in the home's own folder; unmounted on drop, when nothing may hold it any more.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(home: &TestHome, size: &str) -> Self {
        let path = home.work().join("disk");
        std::fs::create_dir(&path).expect("the home is ours");
        let options = format!("size={size},mode=700");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).status();
        assert!(status.expect("mount is installed").success());
        Self(path)
    }

    fn fill(&self) {
        // Ends when no block is left.
        let _ = std::fs::write(self.0.join("fill"), vec![1; 128 << 20]);
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("fill")).expect("just filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The kernel takes the mounts of whoever has just ended down in its own time.
        let unmounted = || Command::new("umount").arg(&self.0).status().expect("umount is installed").success();
        let free = wait_until(DEADLINE, unmounted);
        assert!(free || std::thread::panicking(), "{} is still in use", self.0.display());
    }
}

fn cli(home: &TestHome, state: &Path, arguments: &[&str]) -> Output {
    Output::of(home.cli(arguments).env("TESTYARD_HOME", state), DEADLINE)
}

#[test]
fn a_new_home_on_a_full_disk_is_refused() {
    testkit::require!(Ability::Root);
    let home = TestHome::new();
    let disk = SmallDisk::mount(&home, "4m");
    let state = disk.0.join("state");
    std::fs::create_dir(&state).expect("there is room");
    disk.fill();
    for arguments in [&["list"][..], &["create", "m"], &["reap"]] {
        let output = cli(&home, &state, arguments);
        check_refusal(
            "a full disk",
            &output,
            INFRASTRUCTURE,
            &["no space left", "registry.sqlite", "hint: free some space"],
        );
    }
    disk.make_room();
    assert_eq!(cli(&home, &state, &["list", "--names"]).expect_success().stdout, "");
    drop(disk);
    home.finish();
}

#[test]
fn a_machine_on_a_full_disk_can_be_used_and_deleted() {
    testkit::require!(Ability::Root);
    let home = TestHome::new();
    let disk = SmallDisk::mount(&home, "24m");
    let state = disk.0.join("state");
    std::fs::create_dir(&state).expect("there is room");
    let made = cli(&home, &state, &["create", "m"]);
    disk.fill();
    let ran = cli(&home, &state, &["exec", "m", "--", "sh", "-c", "echo x > /root/big"]);
    let pushed = cli(&home, &state, &["push", "m", "/etc/passwd", "/root/x"]);
    let imported = cli(&home, &state, &["create", "other"]);
    let deleted = cli(&home, &state, &["delete", "m", "--force"]);
    let names = cli(&home, &state, &["list", "--names"]);
    disk.make_room();
    // Whatever was asserted first, the disk must be free to be unmounted.
    let again = cli(&home, &state, &["list", "--names"]);
    for name in again.stdout.lines() {
        let _ = cli(&home, &state, &["delete", name, "--force"]);
    }
    drop(disk);
    assert_eq!(made.code, 0, "{made}");
    assert_eq!(deleted.code, 0, "what makes room must not need room: {deleted}");
    assert_eq!(names.stdout, "", "{names}");
    assert_ne!(ran.code, 0, "{ran}");

    check_refusal("push", &pushed, INFRASTRUCTURE, &["/root/x", "No space left"]);
    assert_eq!(imported.code, INFRASTRUCTURE, "{imported}");
    home.finish();
}

#[test]
fn tests_on_a_full_disk_lose_what_finds_no_room_and_nothing_else() {
    testkit::require!(Ability::Root);
    let home = TestHome::new();
    let disk = SmallDisk::mount(&home, "120m");
    let state = disk.0.join("state");
    let suite = home.work().join("suite");
    for folder in [&state, &suite] {
        std::fs::create_dir(folder).expect("there is room");
    }
    let text = "format = 1\n[suite]\nname = \"s\"\n\
        [[test]]\nname = \"large\"\ncommand = \"head -c 60M /dev/zero > big.bin\"\nartifacts = [\"big.bin\"]\n\
        [[test]]\nname = \"talks\"\ncommand = \"head -c 200M /dev/zero; exit 1\"\n\
        [[test]]\nname = \"small\"\ncommand = \"echo a > small.log; echo b > out\"\nartifacts = [\"*.log\"]\noutputs = [\"out\"]\n";
    std::fs::write(suite.join("testyard.toml"), text).expect("there is room");
    let run = ["run", "suite", "--jobs", "1", "--order", "file", "--json"];
    let roomy = cli(&home, &state, &run);
    let kept = suite.join("out").exists();
    disk.fill();
    let full = cli(&home, &state, &run);
    disk.make_room();
    let names = cli(&home, &state, &["list", "--names"]);
    for name in names.stdout.lines() {
        let _ = cli(&home, &state, &["delete", name, "--force"]);
    }
    drop(disk);
    let result = |output: &Output, index: usize| output.json()["results"][index].clone();
    let large = result(&roomy, 0);
    let told = large["problems"][0]["message"].as_str().unwrap_or_default();
    assert!(told.starts_with("the test's artifacts are 60M together, and "), "{large}");
    let talks = result(&roomy, 1);
    assert!(talks["stdout"]["lost"].as_u64().is_some_and(|lost| lost > 100 << 20), "{talks}");
    // One that prints without end leaves room for others.
    let small = result(&roomy, 2);
    assert!(kept && small["result"] == "passed" && small["artifacts"][0]["path"] == "small.log", "{small}");
    assert_eq!(roomy.code, 1, "{roomy}");

    let verdicts: Vec<_> = (0..3).map(|index| result(&full, index)["result"].clone()).collect();
    assert_eq!(verdicts, ["passed", "failed", "infrastructure-error"], "{full}");
    let small = result(&full, 2)["problem"].clone();
    assert!(small["hints"][0].as_str().is_some_and(|hint| hint.starts_with("free some space")), "{small}");
    assert!(
        full.stderr.contains("cannot keep the results") && full.stderr.contains("the run itself is complete"),
        "{full}"
    );
    home.finish();
}

/// A FUSE mount that nobody serves and that shows root nothing but its kind: as good as any network storage.
#[test]
fn a_home_on_network_storage_is_refused() {
    testkit::require!(Ability::Root);
    if !Path::new("/dev/fuse").exists() {
        testkit::skip!("a_home_on_network_storage_is_refused", host: "there is no /dev/fuse to stand in for NFS");
    }
    let home = TestHome::new();
    let path = home.work().join("remote");
    std::fs::create_dir(&path).expect("the home is ours");
    let script = "exec 5<>/dev/fuse\n\
        mount -i -t fuse -o fd=5,rootmode=40000,user_id=1,group_id=1 nobody \"$1\" || exit 99\n\
        TESTYARD_HOME=$1 \"$2\" create m\ncode=$?\numount \"$1\" || exit 98\nexit $code";
    let mut command = home.command("/bin/sh");
    command.args(["-c", script, "sh"]).arg(&path).arg(home.cli(&[]).get_program());
    let output = Output::of(&mut command, DEADLINE);
    check_refusal("fuse", &output, INFRASTRUCTURE, &["remote is on a fuse file system", "hint: set TESTYARD_HOME"]);
    home.finish();
}
