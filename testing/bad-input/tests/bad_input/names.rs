//! Names that are none: of machines, images, users and variables.

use testkit::TestHome;

use crate::{USAGE, listed, refused};

fn long() -> String {
    "a".repeat(300)
}

#[test]
fn a_machine_cannot_have_a_bad_name() {
    let home = TestHome::new();
    for name in ["", ".", "..", "/", "a/b", "../a", &long(), "a\tb", "a\nb", "a\u{1b}[31mb", " ", "ä", "-a", "a;b"] {
        for command in [&["create"][..], &["exec"], &["info"], &["delete"], &["env", "run"], &["clone", "m"]] {
            let mut arguments = command.to_vec();
            arguments.extend(["--", name, "true"]);
            if !matches!(command[0], "exec" | "env" | "delete") {
                arguments.pop();
            }
            refused(&home, &arguments, USAGE, &["machine name"]);
        }
    }
    assert_eq!(listed(&home), [""; 0]);
    home.finish();
}

#[test]
fn an_image_cannot_have_a_bad_name() {
    let home = TestHome::new();
    for name in ["", "..", "/", "a//b", "../b", "a/", &long(), "a\tb", "a:b:c", "a:", ":b", "sha256:00"] {
        refused(&home, &["create", "m", "--image", name], USAGE, &["is not an image", "name:tag"]);
        refused(&home, &["image", "import", name, "x.tar"], USAGE, &["is not an image", "name:tag"]);
        refused(&home, &["image", "delete", name], USAGE, &["is not an image"]);
    }
    refused(&home, &["image", "import", "host", "x.tar"], USAGE, &["`host` cannot be given"]);
    assert_eq!(listed(&home), [""; 0]);
    home.finish();
}

#[test]
fn a_user_cannot_have_a_bad_name() {
    let home = TestHome::new();
    for name in ["", "..x/", "/", &long(), "a b", "a\nb", "99999999999", "4294967295", "1:x"] {
        refused(&home, &["create", "m", "--user", name], USAGE, &["is not a user"]);
        refused(&home, &["exec", "m", "--user", name, "--", "true"], USAGE, &["is not a user"]);
    }
    home.finish();
}

#[test]
fn a_variable_cannot_have_a_bad_name() {
    let home = TestHome::new();
    for name in ["", "=", "=x"] {
        refused(&home, &["exec", "m", "--env", name, "--", "true"], USAGE, &["NAME=VALUE"]);
        refused(&home, &["env", "run", "m", "--env", name, "--", "true"], USAGE, &["NAME=VALUE"]);
    }
    refused(&home, &["exec", "m", "--env", "NOT_SET_HERE", "--", "true"], USAGE, &["NOT_SET_HERE"]);
    for name in ["", "A=B"] {
        refused(&home, &["create", "m", "--pass-env", name], USAGE, &["variable's name"]);
    }
    assert_eq!(listed(&home), [""; 0]);
    home.finish();
}

#[test]
fn values_out_of_range_are_refused_with_the_form_that_is_right() {
    let home = TestHome::new();
    for value in ["0", "1X", "99999999999999999999G", "16777216T", "lots"] {
        refused(&home, &["create", "m", "--memory", value], USAGE, &["is not a size", "512M"]);
    }
    refused(&home, &["create", "m", "--memory", "1"], USAGE, &["--memory 1", "at least 1M"]);
    for value in ["0", "nan", "inf", "two"] {
        refused(&home, &["create", "m", "--cpus", value], USAGE, &["number of processors", "0.5"]);
    }
    for value in ["0", "0s", "5", "5x"] {
        refused(&home, &["create", "m", "--idle", value], USAGE, &["is not a time span", "90s"]);
        refused(&home, &["exec", "m", "--timeout", value, "--", "true"], USAGE, &["is not a time span"]);
        refused(&home, &["run", "--timeout", value], USAGE, &["is not a time span"]);
    }
    for value in ["0", "-0", "x", "99999999999999999999"] {
        let option = format!("--jobs={value}");
        refused(&home, &["run", &option], USAGE, &["number of tests at once"]);
    }
    refused(&home, &["env", "run", "m", "--pids", "0", "--", "true"], USAGE, &["--pids"]);
    refused(&home, &["create", "m", "--backend", "warp"], USAGE, &["warp", "host, namespace"]);
    refused(&home, &["create", "m", "--expose", "here"], USAGE, &["--expose", "absolute path"]);
    refused(&home, &["create", "m", "--expose", "/no/such"], USAGE, &["/no/such", "does not exist"]);
    refused(&home, &["create", "m", "--expose", "/usr/../etc"], USAGE, &["/usr/../etc", "absolute path"]);
    assert_eq!(listed(&home), [""; 0]);
    home.finish();
}
