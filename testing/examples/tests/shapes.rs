//! `examples/shapes`: shell, Rust, Python and C tests, each the way that it usually comes; `examples/nextest`: an archive.

mod copied;

use std::path::Path;
use std::time::Duration;

use testkit::{Ability, Output, TestHome};

const DEADLINE: Duration = Duration::from_secs(300);
/// Three scripts, four Rust functions, two files of pytest, one of unittest, two C programs.
const TESTS: usize = 12;

/// With the compiler that compiles this test, wherever it is installed.
fn build(home: &TestHome, script: &Path) {
    let mut build = home.command(script);
    let tools = ["PATH", "RUSTUP_HOME", "CARGO_HOME", "RUSTUP_TOOLCHAIN"];
    build.envs(std::env::vars().filter(|(name, _)| tools.contains(&name.as_str())));
    build.env("HOME", std::env::var_os("HOME").unwrap_or_default());
    let _ = Output::of(&mut build, DEADLINE).expect_success();
}

#[test]
fn every_shape_runs() {
    testkit::require!(Ability::UserNamespaces);
    testkit::require!(Ability::Program("pytest-3"));
    testkit::require!(Ability::Program("cc"));
    let home = TestHome::new();
    let example = copied::example(&home, "shapes");
    build(&home, &example.join("build.sh"));
    let mut command = home.cli(&["run"]);
    let output = Output::of(command.arg(&example), DEADLINE);
    assert_eq!(output.code, 0, "{output}");
    assert!(output.stdout.contains(&format!("{TESTS} passed, 0 failed, 0 skipped")), "{output}");
    for name in
        ["shell/exit-codes.sh", "build/rust/port/is_free_for_one.test", "python/test_server.py", "build/c/host_name"]
    {
        assert!(output.stdout.contains(name), "{name}: {output}");
    }
    home.finish();
}

#[test]
fn an_archive_of_nextest_runs() {
    testkit::require!(Ability::UserNamespaces);
    testkit::require!(Ability::Program("cargo-nextest"));
    let home = TestHome::new();
    let example = copied::example(&home, "nextest");
    build(&home, &example.join("archive.sh"));
    // What is left to do needs neither: the archive has everything.
    for source in ["src/lib.rs", "tests/server.rs", "Cargo.toml"] {
        std::fs::remove_file(example.join(source)).expect("our own copy");
    }
    let mut command = home.cli(&["run"]);
    let output = Output::of(command.arg(&example), DEADLINE);
    assert_eq!(output.code, 0, "{output}");
    assert!(output.stdout.contains("5 passed, 0 failed, 0 skipped"), "{output}");
    for name in ["build/tests/counter/tests/goes_on.test", "build/tests/server/another_answers.test"] {
        assert!(output.stdout.contains(name), "{name}: {output}");
    }
    home.finish();
}
