//! The project's one task runner: `cargo xtask <verb>`. Continuous integration calls nothing else.
//!
//! It knows how to check, build and measure the workspace; it knows nothing of machines, which it drives
//! only through the `testyard` program, as a user would.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

mod bench;
mod cargo;
mod fault;
mod install;
mod newcomer;
mod own;
mod policy;
mod python;
mod requirements;
mod suite;
mod tally;
mod tidy;
mod unprivileged;

use std::process::ExitCode;

use fault::{Fault, Outcome};

const USAGE: &str = "\
cargo xtask <verb>

  run [ARGS…]            build Testyard and run `testyard run ARGS`
  test                   check and test everything: tidy, fmt, clippy, policy, tests, doc tests
  ci                     the same as `test`, with CI=true: a skip that the host does not force is a failure
  python [--fast] [ARGS…]
                         check the Python package and test its wheel, as root and as an ordinary user; ARGS are
                         pytest's. --fast: the sources and the debug programs as they stand, as you
  wheel [--out DIR]      build the Python package's wheel (default target/wheels)
  own                    only the integration tests that Testyard itself runs: the suite of the root's testyard.toml
  tidy                   only the rules of the tree: crate arrows, file sizes, module docs, links
  policy                 only the dependency rules of deny.toml
  install [--root DIR]   build static release programs and copy them to DIR/bin (default ~/.local),
                         with the manual's pages and completions in DIR/share
  bench [ARGS…]          run the benchmarks
  bench python [ARGS…]   run those of the Python package
  newcomer               run the README's two commands in a fresh Debian machine and time them
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(code) => code,
        Err(fault) => {
            eprintln!("error: {fault}");
            ExitCode::from(fault.exit_code())
        }
    }
}

fn dispatch(arguments: &[String]) -> Outcome<ExitCode> {
    let (verb, rest) = match arguments.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => ("help", &[][..]),
    };
    let without_arguments = |done: fn() -> Outcome<ExitCode>| match rest.first() {
        Some(extra) => Err(Fault::Usage(format!("`{verb}` takes no arguments, but got `{extra}`"))),
        None => done(),
    };
    match verb {
        "run" => install::run(rest),
        "test" => without_arguments(|| suite::test(suite::in_ci())),
        "ci" => without_arguments(|| suite::test(true)),
        "python" => python::run(rest),
        "wheel" => python::wheel(rest),
        "own" => without_arguments(suite::own),
        "tidy" => without_arguments(tidy::report),
        "policy" => without_arguments(policy::report),
        "install" => install::install(rest),
        "bench" => bench::run(rest),
        "newcomer" => without_arguments(newcomer::run),
        "help" | "-h" | "--help" => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Fault::Usage(format!("`{other}` is not a verb; `cargo xtask help` lists them"))),
    }
}
