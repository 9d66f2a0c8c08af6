//! Rows over whole runs of tests: the runner, and the two examples.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use testyard_model::{Problem, ProblemKind};

use crate::Options;
use crate::environments::make_folder;
use crate::programs::{Testyard, or_skip, timed};
use crate::report::{Goal, Row};
use testyard_measure::{ratio, shown};

/// Measures them all.
pub(crate) fn rows(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    let quickstart = quickstart(options, testyard);
    or_skip("quickstart, 50 tests, warm", Goal::AtMost(1.0), "s", row, quickstart);
    if options.quick {
        return;
    }
    let name = "runner: 1,000 isolated `true` tests, against nextest's 1,000 empty ones in bare processes";
    or_skip(name, Goal::AtMost(1.1), "×", row, thousand(options, testyard));
    let name = "examples/real, against xargs -P2 of the same files";
    or_skip(name, Goal::AtMost(1.1), "×", row, real(options, testyard));
}

fn source(options: &Options) -> Result<&Path, Problem> {
    let none = || Problem::new(ProblemKind::NotFound, "the examples are not here: run `cargo xtask bench` in a clone");
    options.source.as_deref().filter(|source| source.join("examples").is_dir()).ok_or_else(none)
}

fn quickstart(options: &Options, testyard: &Testyard) -> Result<(f64, String), Problem> {
    let example = source(options)?.join("examples/quickstart");
    let line = format!("run {}", example.display());
    let mut times = vec![testyard.run(&line)?];
    for _ in 0..3 {
        times.push(testyard.run(&line)?);
    }
    let cold = times.remove(0);
    times.sort_unstable();
    Ok((times[1].as_secs_f64(), format!("the first run {}", shown(cold))))
}

fn thousand(options: &Options, testyard: &Testyard) -> Result<(f64, String), Problem> {
    let folder = options.folder.join("suite");
    let crate_ = options.folder.join("nextest");
    make_folder(&folder)?;
    make_folder(&crate_)?;
    make_folder(&crate_.join("src"))?;
    let mut suite =
        String::from("format = 1\n[suite]\nname = \"thousand\"\n[suite.defaults]\nisolation = \"namespace\"\n");
    let mut tests = String::new();
    for number in 0..1_000 {
        // Writing to a string cannot fail.
        let _ = write!(suite, "[[test]]\nname = \"true-{number}\"\ncommand = [\"true\"]\n");
        let _ = writeln!(tests, "#[test]\nfn empty_{number}() {{}}");
    }
    let manifest = "[package]\nname = \"thousand\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    let files = [
        (folder.join("testyard.toml"), suite.as_str()),
        (crate_.join("Cargo.toml"), manifest),
        (crate_.join("src/lib.rs"), &tests),
    ];
    for (path, text) in files {
        std::fs::write(&path, text).map_err(|error| Problem::from_error(ProblemKind::System, &error))?;
    }
    let nextest = || {
        let mut command = Command::new("cargo");
        command.args(["nextest", "run", "--offline"]).current_dir(&crate_);
        timed(&mut command)
    };
    let line = format!("run {}", folder.display());
    // The first of each builds and warms up.
    nextest()?;
    testyard.run(&line)?;
    let mut figures = Vec::new();
    for _ in 0..5 {
        let (peer, ours) = (nextest()?, testyard.run(&line)?);
        figures.push((ratio(ours, peer), format!("{} / {}", shown(ours), shown(peer))));
    }
    figures.sort_by(|one, other| one.0.total_cmp(&other.0));
    Ok(figures.swap_remove(2))
}

fn real(options: &Options, testyard: &Testyard) -> Result<(f64, String), Problem> {
    let example = source(options)?.join("examples/real");
    let fetched = Command::new(example.join("fetch.sh")).output();
    let fetched = fetched.map_err(|error| Problem::from_error(ProblemKind::System, &error))?;
    if !fetched.status.success() {
        return Err(Problem::new(ProblemKind::Unavailable, "examples/real could not be fetched")
            .because(String::from_utf8_lossy(&fetched.stderr).trim().to_owned()));
    }
    let project = String::from_utf8_lossy(&fetched.stdout).trim().to_owned();
    let peer = || timed(&mut Command::new(example.join("peer.sh")));
    let ours = || testyard.run(&format!("run {project} --jobs 2"));
    ours()?;
    let (one, other) = (peer()?, ours()?);
    Ok((ratio(other, one), format!("{} / {}", shown(other), shown(one))))
}
