//! The real binaries: machines of backend `namespace`, as far as they are more than plain processes.

use std::path::Path;

use testkit::TestHome;

/// Skips where only this crate was built.
macro_rules! home {
    () => {{
        testkit::require_programs!();
        TestHome::new()
    }};
}

/// Stores an image that holds one file, `/etc/version`.
fn import(home: &TestHome, version: &str) {
    let root = home.work().join(version);
    std::fs::create_dir_all(root.join("etc")).expect("the home is ours");
    std::fs::write(root.join("etc/version"), version).expect("the home is ours");
    let archive = home.work().join(format!("{version}.tar"));
    let status = std::process::Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("etc").status();
    assert!(status.expect("tar is everywhere").success());
    home.must_run(&["image", "import", "mine:1", text(&archive)]);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn a_machine_stays_on_the_image_that_it_was_made_from() {
    let home = home!();
    import(&home, "first");
    home.must_run(&["create", "m", "--backend", "namespace", "--image", "mine:1"]);
    home.must_run(&["stop", "m"]);
    import(&home, "second");
    // Without a name, but a machine stands on it.
    home.must_run(&["image", "prune"]);
    home.must_run(&["start", "m"]);
    home.must_run(&["create", "n", "--backend", "namespace", "--image", "mine:1"]);
    for (machine, version) in [("m", "first"), ("n", "second")] {
        let copy = home.work().join(format!("of-{machine}"));
        home.must_run(&["pull", machine, "/etc/version", text(&copy)]);
        assert_eq!(std::fs::read_to_string(copy).expect("it was pulled"), version);
    }
    home.must_run(&["delete", "m", "n"]);
    home.must_run(&["image", "prune"]);
    let left = home.run_cli(&["image", "list", "--json"]).expect_success().json();
    assert_eq!(left["images"].as_array().map(Vec::len), Some(1), "{left}");
    home.finish();
}

#[test]
fn a_new_name_is_the_host_name_at_once() {
    let home = home!();
    home.must_run(&["create", "before", "--backend", "namespace"]);
    assert_eq!(home.must_run(&["exec", "before", "--", "uname", "-n"]), "before\n");
    home.must_run(&["rename", "before", "after"]);
    // To the name that it has: it stays reachable by it.
    home.must_run(&["rename", "after", "after"]);
    assert_eq!(home.must_run(&["exec", "after", "--", "uname", "-n"]), "after\n");
    home.must_run(&["restart", "after"]);
    assert_eq!(home.must_run(&["exec", "after", "--", "uname", "-n"]), "after\n");
    home.finish();
}

#[test]
fn an_environment_runs_as_the_machines_user() {
    let home = home!();
    home.must_run(&["create", "m", "--backend", "namespace", "--user", "root"]);
    home.must_run(&["create", "n", "--backend", "namespace"]);
    let capable = |machine: &str, more: &[&str]| {
        let arguments =
            [&["env", "run", machine], more, &["--", "sh", "-c", "mount -t tmpfs t /mnt && id -u"]].concat();
        home.run_cli(&arguments).stdout
    };
    // With root's capabilities inside, and not merely with the number 0.
    assert_eq!(capable("m", &[]), "0\n");
    assert_eq!(capable("n", &[]), "");
    assert_eq!(capable("n", &["--user", "root"]), "0\n");
    home.finish();
}

#[test]
fn what_is_exposed_of_the_host_itself_is_copy_on_write() {
    let home = home!();
    let folder = |name: &str| {
        let folder = home.work().join(name);
        std::fs::create_dir(&folder).expect("the home is ours");
        std::fs::write(folder.join("file"), "host\n").expect("the home is ours");
        folder.join("file")
    };
    let (one, other, hidden) = (folder("one"), folder("other"), folder("hidden"));
    let below = |file: &Path| text(file.parent().expect("a folder")).to_owned();
    // Lists of other paths: an ordinary user's machines stand on the same tree all the same.
    home.must_run(&["create", "a", "--backend", "namespace", "--expose", &below(&one)]);
    home.must_run(&["create", "b", "--backend", "namespace", "--expose", &below(&one), "--expose", &below(&other)]);
    let script = "cat $0 && echo inside > $0 && cat $0 && test ! -e $1";
    for (machine, file) in [("a", &one), ("b", &one), ("b", &other)] {
        let run = |way: &[&str]| {
            let words = [way, &["--", "sh", "-c", script, text(file), text(&hidden)]].concat();
            assert_eq!(home.must_run(&words), "host\ninside\n", "{words:?}");
        };
        run(&["env", "run", machine]);
        run(&["exec", machine]);
        assert_eq!(std::fs::read_to_string(file).expect("it stays"), "host\n");
    }
    home.must_run(&["stop", "a"]);
    home.must_run(&["start", "a"]);
    assert_eq!(home.must_run(&["exec", "a", "--", "cat", text(&one)]), "inside\n");
    home.must_run(&["delete", "a", "b"]);
    home.finish();
}

#[test]
fn what_is_exposed_is_written_to_only_where_that_was_asked_for() {
    let home = home!();
    import(&home, "first");
    let data = home.work().join("data");
    std::fs::create_dir(&data).expect("the home is ours");
    std::fs::write(data.join("file"), "host").expect("the home is ours");
    let push = |machine: &str| {
        let new = home.work().join("new");
        std::fs::write(&new, "inside").expect("the home is ours");
        home.run_cli(&["push", machine, text(&new), text(&data.join("file"))]).code
    };
    home.must_run(&["create", "ro", "--backend", "namespace", "--image", "mine:1", "--expose", text(&data)]);
    assert_ne!(push("ro"), 0, "it is read-only");
    assert_eq!(std::fs::read_to_string(data.join("file")).expect("it stays"), "host");
    let writable = format!("{}:rw", text(&data));
    home.must_run(&["create", "rw", "--backend", "namespace", "--image", "mine:1", "--expose", &writable]);
    assert_eq!(push("rw"), 0);
    assert_eq!(std::fs::read_to_string(data.join("file")).expect("it stays"), "inside");
    assert!(home.must_run(&["info", "rw"]).contains(&writable));
    home.finish();
}

#[test]
fn what_is_exposed_read_only_shows_each_change_at_once() {
    let home = home!();
    let data = home.work().join("data");
    std::fs::create_dir(&data).expect("the home is ours");
    let version = data.join("version");
    let replace = |content: &str| {
        let new = data.join("new");
        std::fs::write(&new, content).expect("the home is ours");
        // As editors and version control save: the old file goes, and one of another inode is there.
        std::fs::rename(&new, &version).expect("the home is ours");
    };
    replace("one");
    let exposed = format!("{}:ro", text(&data));
    home.must_run(&["create", "m", "--backend", "namespace", "--expose", &exposed]);
    for content in ["one", "two", "three"] {
        replace(content);
        assert_eq!(home.must_run(&["exec", "m", "--", "cat", text(&version)]), content);
        assert_eq!(home.must_run(&["env", "run", "m", "--", "cat", text(&version)]), content);
    }
    let write = ["exec", "m", "--user", "root", "--", "sh", "-c", "echo inside > \"$0\"", text(&version)];
    assert_ne!(home.run_cli(&write).code, 0, "it is read-only");
    assert_eq!(std::fs::read_to_string(&version).expect("it stays"), "three");
    assert!(home.must_run(&["info", "m"]).contains(&exposed));
    home.finish();
}
