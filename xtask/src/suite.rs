//! `cargo xtask test`: every check there is, one closing line with true totals.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::cargo::{cargo, has_subcommand, must_succeed, shown, succeeds, target_folder, watched};
use crate::fault::{Fault, Outcome};
use crate::tally::{Reader, Skip, Summaries, Tally, read_skips, with_skips};
use crate::{own, policy, python, requirements, tidy, unprivileged};

/// Whether continuous integration runs this.
pub(crate) fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

/// Runs everything. In CI a skip that the host does not force is a failure.
pub(crate) fn test(ci: bool) -> Outcome<ExitCode> {
    requirements::provide()?;
    let mut run = Run::default();
    run.check("tidy", || Ok(tidy::report()? == ExitCode::SUCCESS))?;
    run.check("policy", || Ok(policy::report()? == ExitCode::SUCCESS))?;
    if has_subcommand("deny") {
        run.command("cargo-deny", cargo().args(["deny", "--locked", "check", "bans", "licenses", "sources"]))?;
    } else {
        println!("note: cargo-deny is not installed; `policy` above checked its three rules from the same deny.toml");
    }
    run.command("fmt", cargo().args(["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    run.command("clippy", cargo().args(lints))?;
    run.command("fuzz targets", &mut fuzz_targets()?)?;

    // What tests start as real programs is not built by building the tests.
    run.time("programs built", || {
        must_succeed(cargo().args(["build", "--quiet", "--workspace", "--bins", "--examples", "--locked"]))
    })?;
    let log = target_folder()?.join("skips.jsonl");
    std::fs::write(&log, "").map_err(|error| Fault::file(&log, &error))?;
    let (mut suite, reader) = suite_command();
    run.tests(suite.env("TESTYARD_SKIP_LOG", &log), reader, &log)?;
    if reader == Reader::Nextest {
        run.own()?;
    }
    let mut examples_in_docs = cargo();
    examples_in_docs.args(["test", "--quiet", "--doc", "--workspace", "--locked"]);
    run.tests(&mut examples_in_docs, Reader::Libtest, Path::new("/dev/null"))?;
    if requirements::is_root() {
        run.unprivileged()?;
    }
    python::as_installed(&mut run, &[])?;
    Ok(run.close(ci))
}

/// Runs only the suite in the root, with what is built.
pub(crate) fn own() -> Outcome<ExitCode> {
    must_succeed(cargo().args(["build", "--quiet", "--locked", "-p", "testyard-cli", "-p", "testyard-agent"]))?;
    let mut run = Run::default();
    run.own()?;
    Ok(run.close(in_ci()))
}

/// Fuzzing takes a nightly compiler; that its targets still fit the crates is checked with any.
fn fuzz_targets() -> Outcome<Command> {
    let mut command = cargo();
    command.args(["check", "--quiet", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--target-dir"]);
    // Nothing is linked, so libFuzzer need not be compiled, which would take a C++ compiler.
    command.arg(target_folder()?.join("fuzz")).env("CUSTOM_LIBFUZZER_PATH", "/nonexistent/libfuzzer.a");
    Ok(command)
}

fn suite_command() -> (Command, Reader) {
    let mut command = cargo();
    if has_subcommand("nextest") {
        command.args(["nextest", "run", "--workspace", "--locked", "--color=never", "--no-tests=pass"]);
        command.args(["--filterset", &own::others()]);
        return (command, Reader::Nextest);
    }
    println!("note: cargo-nextest is not installed; the slower `cargo test` runs the same tests");
    command.args(["test", "--workspace", "--locked", "--no-fail-fast", "--lib", "--bins", "--tests"]);
    (command, Reader::Libtest)
}

/// What has been counted so far.
#[derive(Default)]
pub(crate) struct Run {
    tally: Tally,
    skips: Vec<Skip>,
    failures: Vec<String>,
    /// What each command that failed printed of its failed tests.
    said: Vec<(String, Vec<String>)>,
    /// What took how long.
    took: Vec<(String, Duration)>,
}

/// What was over sooner is not told of.
const QUICK: Duration = Duration::from_secs(10);

impl Run {
    /// A check that is one thing: it passed or it failed.
    fn check(&mut self, name: &str, check: impl FnOnce() -> Outcome<bool>) -> Outcome<()> {
        println!("==> {name}");
        let passed = self.time(name, check)?;
        self.tally.add(Tally::of(passed));
        if !passed {
            self.failures.push(name.to_owned());
        }
        Ok(())
    }

    /// Notes how long this takes.
    pub(crate) fn time<T>(&mut self, name: &str, act: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = act();
        self.took.push((name.to_owned(), started.elapsed()));
        done
    }

    /// [`Run::check`] of a program's exit code.
    pub(crate) fn command(&mut self, name: &str, command: &mut Command) -> Outcome<()> {
        println!("$ {}", shown(command));
        self.check(name, || succeeds(command))
    }

    /// Test programs, counted by what they print and by what they wrote into the skip log.
    pub(crate) fn tests(&mut self, command: &mut Command, reader: Reader, log: &Path) -> Outcome<()> {
        let line = shown(command);
        println!("==> {line}");
        let mut summaries = Summaries::new(reader);
        let passed = self.time(&line, || watched(command, |text| summaries.look(text)))?;
        let skips = read_skips(log);
        let mut tally = with_skips(summaries.tally, &skips);
        // It may have failed to compile, or have been ended, with no failed test to count.
        if (!passed && tally.failed == 0) || summaries.seen == 0 {
            tally.failed += 1;
        }
        if tally.failed > 0 {
            self.said.extend((!summaries.failures.is_empty()).then(|| (line.clone(), summaries.failures)));
            self.failures.push(line);
        }
        self.tally.add(tally);
        self.skips.extend(skips);
        Ok(())
    }

    /// Something whole that could be provided, and is not.
    pub(crate) fn skip(&mut self, name: &str, reason: String) {
        self.skips.push(Skip { name: name.to_owned(), reason, forced_by_host: false, whole_test: false });
        self.tally.skipped += 1;
    }

    /// The tests that nextest left to Testyard.
    fn own(&mut self) -> Outcome<()> {
        let suite = self.time("the suite laid out", own::Own::lay_out)?;
        self.tests(&mut suite.command()?, Reader::Testyard, &suite.skip_log())?;
        suite.remove()
    }

    fn unprivileged(&mut self) -> Outcome<()> {
        let stage = match self.time("programs for an ordinary user", unprivileged::Stage::prepare)? {
            Ok(stage) => stage,
            Err(reason) => {
                self.skip("the suite as an ordinary user", reason);
                return Ok(());
            }
        };
        for mut program in stage.programs() {
            self.tests(&mut program, Reader::Libtest, stage.skip_log())?;
            stage.clear_skip_log()?;
        }
        stage.remove()
    }

    /// Prints the skips and the closing line; the exit code says the same.
    pub(crate) fn close(&self, ci: bool) -> ExitCode {
        println!();
        // Between a failure and the end of everything lie minutes and pages.
        for (line, failures) in &self.said {
            println!("==> what failed in {line}");
            failures.iter().for_each(|line| println!("{line}"));
        }
        for skip in &self.skips {
            let kind = if skip.forced_by_host { "the host lacks it" } else { "not forced by the host" };
            println!("SKIPPED {}: {} ({kind})", skip.name, skip.reason);
        }
        for (what, took) in self.took.iter().filter(|(_, took)| *took >= QUICK) {
            println!("took {:3}m{:02}s: {what}", took.as_secs() / 60, took.as_secs() % 60);
        }
        for failure in &self.failures {
            println!("FAILED {failure}");
        }
        let avoidable = self.skips.iter().filter(|skip| !skip.forced_by_host).count();
        if ci && avoidable > 0 {
            println!("FAILED {avoidable} skips that this host does not force (CI=true)");
        }
        println!("{}", self.tally);
        let passed = self.tally.failed == 0 && (!ci || avoidable == 0);
        if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(skip_forced: Option<bool>, failed: u64, ci: bool) -> bool {
        let skips = skip_forced.map(|forced_by_host| Skip {
            name: "a".to_owned(),
            reason: "b".to_owned(),
            forced_by_host,
            whole_test: true,
        });
        let run = Run {
            tally: Tally { passed: 1, failed, skipped: 0 },
            skips: skips.into_iter().collect(),
            ..Run::default()
        };
        run.close(ci) == ExitCode::SUCCESS
    }

    #[test]
    fn the_exit_code_is_honest() {
        assert!(closed(None, 0, true));
        assert!(!closed(None, 1, false));
        assert!(closed(Some(false), 0, false));
        assert!(!closed(Some(false), 0, true));
        assert!(closed(Some(true), 0, true));
    }
}
