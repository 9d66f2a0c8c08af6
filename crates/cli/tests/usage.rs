//! The real binary, asked wrongly: one clear error, exit code 2, and nothing on standard output.

use std::process::{Command, Output, Stdio};

fn testyard(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_testyard"))
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .expect("the binary was just built")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Checks the first line of what goes wrong.
#[track_caller]
fn refused(arguments: &[&str], first_line: &str) {
    let output = testyard(arguments);
    let said = text(&output.stderr);
    assert_eq!(said.lines().next(), Some(first_line), "{arguments:?}: {said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

#[test]
fn names_are_checked_before_anything_is_done() {
    refused(
        &["create", ".."],
        "error: invalid value '..' for '<NAME>': machine name \"..\" contains '.'; use letters, digits, `-`, `_` and \
         `.`, beginning with a letter or digit",
    );
    refused(&["create", ""], "error: invalid value '' for '<NAME>': a machine name cannot be empty");
    refused(
        &["create", &"x".repeat(300)],
        &format!(
            "error: invalid value '{}' for '<NAME>': machine name `xxxxxxxxxxxxxxxxxxxx…` is 300 characters long; at \
             most 63 are allowed",
            "x".repeat(300)
        ),
    );
    refused(
        &["info", "a/b"],
        "error: invalid value 'a/b' for '<NAME>': machine name \"a/b\" contains '/'; use letters, digits, `-`, `_` \
         and `.`, beginning with a letter or digit",
    );
}

#[test]
fn values_are_checked_and_explained() {
    refused(
        &["create", "m", "--memory", "lots"],
        "error: invalid value 'lots' for '--memory <SIZE>': `lots` is not a size: write a number and a unit, such as \
         512M or 2G (K, M, G, T are powers of 1024)",
    );
    refused(
        &["create", "m", "--idle", "5"],
        "error: invalid value '5' for '--idle <DURATION>': `5` is not a time span: write a number and a unit, such \
         as 500ms, 90s, 5m, 2h or 1d",
    );
    refused(
        &["env", "run", "m", "--isolation", "vm", "--", "true"],
        "error: invalid value 'vm' for '--isolation <LEVEL>'",
    );
    refused(
        &["exec", "m", "--env", "=x", "--", "true"],
        "error: invalid value '=x' for '--env <NAME=VALUE>': write NAME=VALUE, or NAME alone to pass this shell's \
         value on",
    );
    refused(&["run", "--report", "htm=x"], "error: unknown report `htm`");
    refused(&["run", "--filter", "name(", "/"], "error: filter `name(`, at character 6: expected `)`, found the end");
}

#[test]
fn unknown_words_are_refused_with_the_nearest() {
    refused(&["lsit"], "error: unrecognized subcommand 'lsit'");
    refused(&["exec", "m", "--cdw", "/", "true"], "error: unexpected argument '--cdw' found");
    refused(&["exec", "m"], "error: the following required arguments were not provided:");
    refused(&["delete"], "error: the following required arguments were not provided:");
}

#[test]
fn help_and_version_are_data() {
    for arguments in [&["--help"][..], &["--version"], &["exec", "--help"], &["env", "run", "-h"]] {
        let output = testyard(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}");
        assert!(!text(&output.stdout).contains('\x1b'), "{arguments:?}");
    }
    let output = testyard(&[]);
    assert_eq!(output.status.code(), Some(2), "no command is wrong usage");
}
