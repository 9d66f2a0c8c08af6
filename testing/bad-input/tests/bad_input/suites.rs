//! Suites that are wrong: one error, with the line and what to do.

use std::os::unix::fs::PermissionsExt as _;

use testkit::TestHome;

use crate::{USAGE, listed, refused};

#[track_caller]
fn wrong(home: &TestHome, text: impl AsRef<[u8]>, words: &[&str]) {
    std::fs::write(home.work().join("testyard.toml"), text).expect("the home is ours");
    let words = [words, &["testyard.toml", "hint: "]].concat();
    refused(home, &["run"], USAGE, &words);
}

#[test]
fn a_suite_file_is_read_strictly() {
    let home = TestHome::new();
    refused(&home, &["run"], USAGE, &["no testyard.toml", "hint: "]);
    refused(&home, &["run", "no-such"], USAGE, &["no-such does not exist", "hint: "]);
    wrong(&home, "", &["no `format`", "add `format = 1`"]);
    wrong(&home, "format = 2", &["version 2 is not known"]);
    wrong(&home, "format = '1'", &["`format` must be a whole number"]);
    wrong(&home, "format = 1", &["no tests"]);
    wrong(&home, "format = 1\n[[test]", &["not valid TOML", ":2:"]);
    wrong(&home, b"format = 1\nx = '\xff'", &["UTF-8"]);
    wrong(&home, "format = 1\n[suites]\n", &["unknown", "`suites`", "did you mean `suite`?"]);
    wrong(&home, "format = 1\n[[tests]]\nglob = '*.none'", &["`*.none` matches no file", ":3:"]);
    for glob in ["", "[a", "../*", "/etc/*"] {
        wrong(&home, format!("format = 1\n[[tests]]\nglob = '{glob}'"), &["is not a valid pattern"]);
    }
    let twice = "format = 1\n[[test]]\nname = 'a'\ncommand = 'true'\n[[test]]\nname = 'a'\ncommand = 'true'";
    wrong(&home, twice, &["two tests are named `a`", "line 3", ":6:"]);
    for (name, words) in [
        ("", "cannot be empty"),
        (&"a".repeat(300), "longer than 255"),
        ("a\\u0001b", "cannot contain"),
        ("a\\nb", "cannot contain"),
    ] {
        wrong(&home, format!("format = 1\n[[test]]\nname = \"{name}\"\ncommand = 'true'"), &["`name`", words]);
    }
    assert_eq!(listed(&home), [""; 0]);
    home.finish();
}

#[test]
fn a_tests_values_are_checked() {
    let home = TestHome::new();
    for (line, words) in [
        ("comand = 'true'", "did you mean `command`?"),
        ("timeout = 0", "`timeout` must be a string"),
        ("timeout = '0s'", "is not a time span"),
        ("isolation = 'vm'", "none, workspace, namespace, machine"),
        ("network = 'x'", "private, outbound, host, none"),
        ("needs = ['warp']", "`needs` cannot be `warp`"),
        ("user = 'bob'", "caller, root"),
        ("cwd = 'no-such'", "no-such does not exist"),
        ("retries = -1", "out of range"),
        ("env = { '' = 'a' }", "cannot be a variable's name"),
        ("env = { 'A=B' = 'a' }", "cannot be a variable's name"),
        ("env = { A = 1 }", "must be a string"),
        ("env = { A = \"a\\u0000b\" }", "zero byte"),
        ("resources = { cpus = 0 }", "out of range"),
        ("resources = { memory = '0' }", "is not a size"),
        ("resources = { pids = 0 }", "out of range"),
        ("resources = { cpu = 1 }", "did you mean `cpus`?"),
        ("outputs = ['../x']", "leads out of the suite's folder"),
        ("tags = ['']", "is not a word"),
        ("isolation = 'none'\nnetwork = 'private'", "share the machine's network"),
    ] {
        wrong(&home, format!("format = 1\n[[test]]\nname = 'a'\ncommand = 'true'\n{line}"), &[words, "testyard.toml:"]);
    }
    for command in ["1", "[]", "''"] {
        wrong(&home, format!("format = 1\n[[test]]\nname = 'a'\ncommand = {command}"), &["`command`"]);
    }
    home.finish();
}

#[test]
fn what_a_backend_cannot_give_is_seen_in_the_file() {
    let home = TestHome::new();
    let test = "[[test]]\nname = 'a'\ncommand = 'true'";
    let isolated = format!("format = 1\n[suite]\nbackend = 'host'\n{test}\nisolation = 'namespace'");
    wrong(&home, isolated, &["backend `host` gives at most isolation `workspace`", ":7:"]);
    let image = format!("format = 1\n[suite]\nbackend = 'host'\nimage = 'debian:12'\n{test}\nisolation = 'none'");
    wrong(&home, image, &["cannot start from an image", ":4:"]);
    // Once for all tests of the suite, not for each.
    let missing = format!("format = 1\n[suite]\nimage = 'no-such:1'\n{test}\n{}", test.replace("'a'", "'b'"));
    wrong(&home, missing, &["there is no image no-such:1", ":3:", "testyard image list"]);
    let unknown = format!("format = 1\n[suite]\nbackend = 'nope'\n{test}");
    wrong(&home, unknown, &["there is no backend `nope`", "host, namespace", ":3:"]);
    home.finish();
}

#[test]
fn a_suite_that_cannot_be_read_is_told() {
    if testkit::user::is_root() {
        testkit::skip!("a_suite_that_cannot_be_read_is_told", host: "root reads every file");
    }
    let home = TestHome::new();
    let path = home.work().join("testyard.toml");
    std::fs::write(&path, "format = 1").expect("the home is ours");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).expect("the home is ours");
    refused(&home, &["run"], USAGE, &["cannot read", "testyard.toml", "Permission denied", "hint: "]);
    home.finish();
}

#[test]
fn a_report_needs_a_folder_and_a_selection_needs_tests() {
    let home = TestHome::new();
    std::fs::write(home.work().join("testyard.toml"), "format = 1\n[[test]]\nname = 'a'\ncommand = 'true'")
        .expect("ours");
    refused(&home, &["run", "--report", "junit=/no/such/x.xml"], USAGE, &["/no/such/x.xml", "hint: "]);
    refused(&home, &["run", "--report", "junit="], USAGE, &["is not a report", "hint: "]);
    refused(&home, &["run", "--report", "htm=x"], USAGE, &["unknown report `htm`", "hint: did you mean `html`?"]);
    refused(&home, &["run", "--filter", "nothing-like-it"], USAGE, &["nothing selected", "hint: "]);
    refused(&home, &["run", "--filter", "name("], USAGE, &["filter `name(`"]);
    assert_eq!(listed(&home), [""; 0]);
    home.finish();
}
