//! Rows over whole runs of tests: the runner, and the two examples.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use testyard_model::{Problem, ProblemKind};

use crate::Options;
use crate::environments::make_folder;
use crate::programs::{Testyard, failed, or_skip, timed};
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
    or_skip(name, Goal::AtMost(1.0), "×", row, thousand(options, testyard));
    let name = "200 tests that sleep 50 ms, 64 jobs: first start to last end, against the ideal schedule";
    or_skip(name, Goal::AtMost(1.1), "×", row, sleepers(options, testyard));
    let name = "testyard run, warm, until its first test runs: 1,000 selected from 10,000 files";
    or_skip(name, Goal::AtMost(60.0), "ms", row, first_start(options, testyard));
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
        std::fs::write(&path, text).map_err(failed)?;
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

/// The middle one of five runs, between the first start and the last end: four rounds of 50 ms are the least.
fn sleepers(options: &Options, testyard: &Testyard) -> Result<(f64, String), Problem> {
    const IDEAL: Duration = Duration::from_millis(200);
    let folder = options.folder.join("sleepers");
    make_folder(&folder)?;
    let mut suite = String::from("format = 1\n[suite]\nname = \"sleepers\"\n");
    for number in 0..200 {
        let _ = write!(suite, "[[test]]\nname = \"s{number}\"\ncommand = [\"sleep\", \"0.05\"]\n");
    }
    std::fs::write(folder.join("testyard.toml"), suite).map_err(failed)?;
    let report = folder.with_extension("jsonl");
    let line = format!("run {} --jobs 64 --report jsonl={}", folder.display(), report.display());
    testyard.run(&line)?;
    let mut times = Vec::new();
    for _ in 0..5 {
        testyard.run(&line)?;
        let took = event(&report, "run-finished", "duration_us")?;
        times.push(Duration::from_micros(took.unsigned_abs()));
    }
    times.sort_unstable();
    Ok((ratio(times[2], IDEAL), format!("{} / {}", shown(times[2]), shown(IDEAL))))
}

/// From the start of the process to the moment at which the first test's command runs, as the run itself reports it.
fn first_start(options: &Options, testyard: &Testyard) -> Result<(f64, String), Problem> {
    let folder = options.folder.join("files");
    make_folder(&folder)?;
    for part in 0..100 {
        let part = folder.join(format!("part{part:02}"));
        make_folder(&part)?;
        for number in 0..100 {
            std::fs::write(part.join(format!("t{number:02}.txt")), "").map_err(failed)?;
        }
    }
    let suite =
        "format = 1\n[suite]\nname = \"files\"\n[[tests]]\nglob = \"part*/*.txt\"\ncommand = [\"true\", \"{file}\"]\n";
    std::fs::write(folder.join("testyard.toml"), suite).map_err(failed)?;
    let report = folder.with_extension("jsonl");
    let line =
        format!("run {} --filter name(#part?3/*) --fail-fast --report jsonl={}", folder.display(), report.display());
    testyard.run(&line)?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = unix_ms();
        testyard.run(&line)?;
        times.push(event(&report, "test-environment", "time_ms")? - begun);
    }
    times.sort_unstable();
    Ok((times[2] as f64, format!("{} to {} ms", times[0], times[4])))
}

/// A number of the first event of this name in a report of JSON lines.
fn event(report: &Path, name: &str, key: &str) -> Result<i64, Problem> {
    let text = std::fs::read_to_string(report).map_err(failed)?;
    let mut events = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let found = events.find(|event| event["event"] == name).and_then(|event| event[key].as_i64());
    found.ok_or_else(|| Problem::new(ProblemKind::System, format!("the report has no {name} with {key}")))
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn real(options: &Options, testyard: &Testyard) -> Result<(f64, String), Problem> {
    let example = source(options)?.join("examples/real");
    let fetched = Command::new(example.join("fetch.sh")).output();
    let fetched = fetched.map_err(failed)?;
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
