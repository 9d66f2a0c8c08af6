//! Files in and out, and machines as files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::orb::{Orb, with_debian};

#[test]
fn files_go_in_and_come_out_with_equal_content() {
    let orb = with_debian!();
    orb.must(&["create", "debian:12", "m", "--user", "dev"]);
    let content: Vec<u8> = (0..200_000_u32).map(|number| (number >> 2) as u8).collect();
    let source = orb.home.work().join("source");
    fs::write(&source, &content).expect("the home is ours");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o640)).expect("the home is ours");
    // Relative: below the default user's home.
    orb.must(&["push", "-m", "m", "source", "inside"]);
    assert_eq!(orb.must(&["run", "-m", "m", "stat", "-c", "%U %a %s", "/home/dev/inside"]), "dev 640 200000\n");
    orb.must(&["pull", "inside", "back", "-m", "m"]);
    assert_eq!(fs::read(orb.home.work().join("back")).expect("pulled"), content);
    orb.must(&["push", "-m", "m", "source", "/tmp/absolute"]);
    orb.must(&["pull", "-m", "m", "/tmp/absolute", "again"]);
    assert_eq!(fs::read(orb.home.work().join("again")).expect("pulled"), content);
    // A stopped one is started, as by `run`.
    orb.must(&["stop", "m"]);
    orb.must(&["push", "-m", "m", "source"]);
    assert_eq!(orb.must(&["run", "-m", "m", "ls"]), "inside\nsource\n");
    orb.refused(&["push", "-m", "m", "missing", "x"], "cannot read missing");
    orb.refused(&["pull", "-m", "m", "/no/such/file", "x"], "/no/such/file");
    orb.refused(&["push", "-m", "m"], "FROM and TO are missing");
    orb.must(&["delete", "-f", "m"]);
    orb.home.finish();
}

#[test]
fn a_machine_goes_through_a_file() {
    let orb = with_debian!();
    let limits = limited(&orb);
    orb.must(&["run", "-m", "m", "-u", "root", "sh", "-c", "echo kept > /etc/kept && chmod 600 /etc/kept"]);
    orb.must(&["run", "-m", "m", "sh", "-c", "echo mine > own; ln -s own link"]);
    for (number, file) in ["m.tar.zst", "m.tar.gz", "m.tar"].into_iter().enumerate() {
        // A stopped one is only started for the time that it takes.
        if number == 1 {
            orb.must(&["stop", "m"]);
        }
        orb.must(&["export", "m", file]);
        let name = format!("copy-{number}");
        orb.must(&["import", "-n", &name, file]);
        let looked = orb.must(&["run", "-m", &name, "sh", "-c", "whoami; cat own link; stat -c '%U %a' own"]);
        assert_eq!(looked, "dev\nmine\nmine\ndev 644\n");
        assert_eq!(orb.must(&["run", "-m", &name, "-u", "root", "cat", "/etc/kept"]), "kept\n");
        assert_eq!(orb.must(&["run", "-m", &name, "-u", "root", "stat", "-c", "%a", "/etc/kept"]), "600\n");
        let record = &orb.json(&["info", &name, "-f", "json"])["record"];
        assert_eq!((&record["image"]["distro"], &record["image"]["version"]), (&"debian".into(), &"12".into()));
        assert_eq!(record["config"]["default_username"], "dev");
        if let Some(limits) = &limits {
            assert_eq!(limits_of(&orb, &name), *limits);
        }
        orb.must(&["delete", "-f", &name]);
    }
    assert_eq!(orb.states(), [("m".into(), "stopped".into())]);
    // Without a name it has that of its maker, which is taken here; and nothing of it stays.
    orb.refused(&["import", "m.tar"], "m already exists");
    orb.refused(&["import", "-n", "x", "nothing.tar"], "no such file: nothing.tar");
    fs::write(orb.home.work().join("junk.tar"), "junk").expect("the home is ours");
    orb.refused(&["import", "-n", "x", "junk.tar"], "not a tar archive");
    let images = orb.home.run_cli(&["image", "list", "--json"]).json();
    assert_eq!(images["images"].as_array().expect("a list").len(), 1, "{images}");
    let names: Vec<_> = fs::read_dir(orb.home.work()).expect("ours").flatten().map(|entry| entry.file_name()).collect();
    assert!(names.iter().all(|name| !name.as_encoded_bytes().starts_with(b".")), "{names:?}");
    orb.must(&["delete", "-f", "m"]);
    orb.home.finish();
}

/// Makes `m` with limits, where this host can keep them; what limits it has then.
fn limited(orb: &Orb) -> Option<Value> {
    let line = ["create", "debian:12", "m", "--user", "dev"];
    let limits = ["--cpus", "1", "--memory", "512", "--disk", "1G", "--arch", std::env::consts::ARCH];
    let made = orb.run(&[&line[..], &limits].concat());
    if made.code == 69 && made.stderr.contains("cannot give") {
        testkit::skip_case!("limits through a file", host: "limits of machines, which take cgroups to write to, and root for the disk");
        orb.must(&line);
        return None;
    }
    assert_eq!(made.code, 0, "{made}");
    let limits = limits_of(orb, "m");
    assert_eq!(limits, json!([1.0, 512 << 20, 1 << 30, std::env::consts::ARCH]));
    Some(limits)
}

fn limits_of(orb: &Orb, name: &str) -> Value {
    let spec = &orb.home.run_cli(&["info", name, "--json"]).expect_success().json()["machine"]["spec"];
    json!([spec["cpus"], spec["memory"], spec["disk"], spec["arch"]])
}
