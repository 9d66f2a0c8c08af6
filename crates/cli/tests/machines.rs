//! The real binaries: a machine's life as its user sees it. On backend `host`, which every host can give.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use serde_json::Value;
use testkit::TestHome;

/// Skips where only this crate was built.
macro_rules! home {
    () => {{
        testkit::require_programs!();
        TestHome::new()
    }};
}

fn machine(home: &TestHome, name: &str) -> Value {
    home.run_cli(&["create", name, "--backend", "host", "--json"]).expect_success().json()["machine"].clone()
}

#[test]
fn a_machine_lives_and_is_seen() {
    let home = home!();
    let made = machine(&home, "m");
    assert_eq!((&made["name"], &made["state"]), (&"m".into(), &"running".into()));
    let list = home.run_cli(&["list", "--json"]).json();
    assert_eq!((&list["version"], &list["machines"][0]["id"]), (&1.into(), &made["id"]));
    assert_eq!(home.must_run(&["list", "--names"]), "m\n");
    assert!(home.must_run(&["info", "m"]).contains("state:      running\n"));

    assert_eq!(home.run_cli(&["exec", "m", "--", "sh", "-c", "exit 42"]).code, 42);
    home.must_run(&["stop", "m"]);
    let refused = home.run_cli(&["exec", "m", "true"]);
    assert_eq!(refused.code, 2);
    assert_eq!(refused.stderr, "error: machine m is stopped\nhint: start it: testyard start m\n");
    home.must_run(&["start", "m"]);
    home.must_run(&["restart", "m", "--force"]);
    let renamed = home.run_cli(&["rename", "m", "n", "--json"]).expect_success().json();
    assert_eq!((&renamed["machine"]["name"], &renamed["machine"]["id"]), (&"n".into(), &made["id"]));
    home.must_run(&["exec", "n", "true"]);
    home.must_run(&["clone", "n", "copy"]);
    assert_eq!(home.must_run(&["list", "--names"]), "copy\nn\n");
    home.must_run(&["logs", "n"]);
    let deleted = home.run_cli(&["delete", "n", "copy", "--json"]).expect_success().json();
    assert_eq!(deleted["deleted"], serde_json::json!(["n", "copy"]));
    assert_eq!(home.must_run(&["reap"]), "nothing was left behind\n");
    home.finish();
}

#[test]
fn a_deletion_that_insists_waits_for_a_creation() {
    let home = home!();
    for _ in 0..5 {
        let mut creation = home.cli(&["create", "m", "--backend", "host"]).spawn().expect("it starts");
        let deleted = || home.run_cli(&["delete", "m", "--force"]);
        // Until its name is there, there is nothing to delete.
        let last = std::iter::repeat_with(deleted).take(1000).find(|deleted| !deleted.stderr.contains("no machine m"));
        assert_eq!(last.as_ref().map(|deleted| deleted.code), Some(0), "{last:?}");
        creation.wait().expect("it ends");
        assert_eq!(home.must_run(&["list", "--names"]), "");
    }
    home.finish();
}

#[test]
fn what_is_not_there_is_one_clear_error() {
    let home = home!();
    for arguments in [&["info", "x"][..], &["exec", "x", "true"], &["stop", "x"], &["pull", "x", "/a", "/b"]] {
        let output = home.run_cli(arguments);
        assert_eq!(output.code, 2, "{output}");
        assert!(output.stderr.starts_with("error: there is no machine x\nhint: "), "{output}");
        assert_eq!(output.stderr.matches("error:").count(), 1, "{output}");
        assert!(output.stdout.is_empty(), "{output}");
    }
    let json = home.run_cli(&["info", "x", "--json"]).json();
    assert_eq!((&json["version"], &json["error"]["kind"]), (&1.into(), &"not-found".into()));

    machine(&home, "m");
    let again = home.run_cli(&["create", "m", "--backend", "host"]);
    assert_eq!(again.code, 2, "{again}");
    assert!(again.stderr.starts_with("error: machine `m` already exists and is running\n"), "{again}");
    // All names are tried, and each error is told once.
    let deleted = home.run_cli(&["delete", "x", "m", "y"]);
    assert_eq!(deleted.code, 2, "{deleted}");
    assert_eq!(deleted.stderr.matches("error: there is no machine").count(), 2, "{deleted}");
    assert_eq!(home.must_run(&["list", "--names"]), "");
    home.finish();
}

#[test]
fn trees_go_in_and_come_out_as_they_were() {
    let home = home!();
    machine(&home, "m");
    let source = home.work().join("source");
    fs::create_dir_all(source.join("inner")).expect("made");
    fs::write(source.join("inner/run"), "#!/bin/sh\n").expect("written");
    fs::set_permissions(source.join("inner/run"), fs::Permissions::from_mode(0o4755)).expect("ours");
    fs::hard_link(source.join("inner/run"), source.join("same")).expect("linked");
    symlink("inner/run", source.join("link")).expect("linked");
    let (inside, back) = (home.path().join("tmp/inside"), home.work().join("back"));
    home.give(&source);

    let inside = inside.to_str().expect("text");
    let pushed = home.run_cli(&["push", "m", "source", inside, "--json"]).expect_success().json();
    assert_eq!((&pushed["entries"], &pushed["bytes"]), (&5.into(), &10.into()));
    home.must_run(&["pull", "m", &format!("{inside}/."), "back"]);
    let run = fs::metadata(back.join("inner/run")).expect("pulled");
    assert_eq!(run.mode() & 0o7777, 0o755, "without its setuid bit");
    assert_eq!((run.nlink(), run.ino()), (2, fs::metadata(back.join("same")).expect("pulled").ino()));
    assert_eq!(fs::read_link(back.join("link")).expect("pulled").to_str(), Some("inner/run"));

    for (arguments, named) in [
        (&["push", "m", "missing", inside][..], "missing"),
        (&["push", "m", "source/same", "/nonexistent/folder/x"], "/nonexistent/folder"),
        (&["pull", "m", "/nonexistent", "x"], "/nonexistent"),
    ] {
        let output = home.run_cli(arguments);
        assert!(output.code == 2 && output.stderr.contains(named), "{arguments:?}: {output}");
        assert_eq!(output.stderr.matches("error:").count(), 1, "{output}");
    }
    home.finish();
}

#[test]
fn the_bytes_of_a_file_go_in_and_come_out() {
    let home = home!();
    machine(&home, "m");
    let (source, inside) = (home.work().join("source"), home.path().join("tmp/inside"));
    let content: Vec<u8> = (0..300_000_u32).map(|number| (number >> 3) as u8).collect();
    fs::write(&source, &content).expect("written");
    let inside = inside.to_str().expect("text");
    let push = home.cli(&["push", "m", "-", inside]).stdin(fs::File::open(&source).expect("there")).output();
    let push = push.expect("it starts");
    assert!(push.status.success(), "{}", String::from_utf8_lossy(&push.stderr));
    let pulled = home.cli(&["pull", "m", inside, "-"]).output().expect("it starts");
    assert!(pulled.status.success() && pulled.stdout == content, "{}", String::from_utf8_lossy(&pulled.stderr));
    for (arguments, named) in [
        (&["pull", "m", "/etc", "-"][..], "it is a folder"),
        (&["pull", "m", inside, "-", "--json"], "leave out --json"),
        (&["pull", "m", "/nonexistent", "-"], "/nonexistent"),
    ] {
        let output = home.run_cli(arguments);
        assert!(output.code == 2 && output.stderr.contains(named), "{arguments:?}: {output}");
    }
    home.finish();
}

#[test]
fn a_command_gets_a_terminal_of_its_own() {
    use std::io::Read as _;
    let home = home!();
    machine(&home, "m");
    let size = testyard_linux::terminal::Size { rows: 33, columns: 77 };
    let (controller, terminal) = testyard_linux::terminal::open_pty(size).expect("devpts is mounted");
    let stdio = || std::process::Stdio::from(terminal.try_clone().expect("descriptors are left"));
    let mut command = home.cli(&["exec", "-t", "m", "--", "sh", "-c", "stty size; echo \"$TERM\"; exit 5"]);
    command.env("TERM", "vt220").stdin(stdio()).stdout(stdio()).stderr(stdio());
    let mut child = command.spawn().expect("built");
    drop((command, terminal));
    let mut shown = Vec::new();
    // Reading ends with an error once nobody has the terminal open any more.
    let _ = fs::File::from(controller).read_to_end(&mut shown);
    assert_eq!(child.wait().expect("it ends").code(), Some(5));
    assert_eq!(String::from_utf8_lossy(&shown), "33 77\r\nvt220\r\n");
    home.finish();
}

#[test]
fn an_environment_runs_one_command() {
    let home = home!();
    machine(&home, "m");
    let run = ["env", "run", "m", "--isolation", "workspace"];
    let output = home.run_cli(&[&run[..], &["--usage", "--", "sh", "-c", "echo \"$TMPDIR\"; exit 9"]].concat());
    assert_eq!(output.code, 9, "{output}");
    assert!(output.stderr.starts_with("used "), "{output}");
    // It is answered first, and put away after.
    let folder = std::path::Path::new(output.stdout.trim());
    assert!(testkit::wait_until(std::time::Duration::from_secs(10), || !folder.exists()), "{output}");
    let json = home.run_cli(&[&run[..], &["--json", "--", "echo", "hi"]].concat()).json();
    assert_eq!((&json["stdout"], &json["code"]), (&"hi\n".into(), &0.into()));

    let weaker = home.run_cli(&["env", "run", "m", "--", "true"]);
    assert!(weaker.code != 0 && weaker.stderr.starts_with("error: "), "never weaker than asked for: {weaker}");
    let machine = home.run_cli(&["env", "run", "m", "--isolation", "machine", "--", "true"]);
    assert_eq!(machine.code, 2, "{machine}");
    for isolation in ["none", "workspace"] {
        let with = |network| home.run_cli(&["env", "run", "m", "-i", isolation, "-n", network, "--", "true"]);
        let _ = with("host").expect_success();
        for network in ["private", "outbound", "none"] {
            let refused = with(network);
            let told = "error: isolation `none` and `workspace` share the machine's network\nhint: leave out --network";
            assert!(refused.code == 2 && refused.stderr.starts_with(told), "{refused}");
        }
    }
    home.finish();
}

#[test]
fn doctor_and_images_answer() {
    let home = home!();
    let report = home.run_cli(&["doctor", "--json"]).expect_success().json();
    assert!(report["probes"].as_array().is_some_and(|probes| probes.len() > 20));
    assert!(home.must_run(&["doctor"]).contains("\nbackend auto is "));
    assert_eq!(home.run_cli(&["image", "list", "--json"]).json()["images"], serde_json::json!([]));
    fs::write(home.work().join("broken.tar"), [1; 5000]).expect("written");
    let broken = home.run_cli(&["image", "import", "broken:1", "broken.tar"]);
    assert_eq!(broken.code, 2, "{broken}");
    assert_eq!(broken.stderr.matches("error:").count(), 1, "{broken}");
    home.finish();
}
