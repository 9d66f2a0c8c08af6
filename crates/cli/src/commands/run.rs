//! `testyard run`

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::termios::{isatty, tcgetwinsize};
use serde_json::json;
use testyard::run::TestBench;
use testyard_linux::signal::{Signal, SignalFd};
use testyard_model::{ExitCode, Problem, ProblemKind, Span};
use testyard_runner::clock::{Clock, SystemClock};
use testyard_runner::filter::Filter;
use testyard_runner::plan::{Plan, PlanError};
use testyard_runner::report::{ReportError, ReportSpec, Reporting, Style, Terminal};
use testyard_runner::run::{Control, RunError, RunOptions, Surroundings, run};

use super::{DONE, Outcome};
use crate::attend;
use crate::output::{Output, wants_colour};
use crate::streams::{Feeder, duplicate};
use crate::{values, yard};

/// Run the tests of a suite, each in an environment of its own.
///
/// PATH is a suite's folder or testyard.toml, a test file or folder in one, or a folder below
/// which suites lie; the default is this folder. Failures' output is shown once, at the end.
/// Ctrl-C ends the tests and cleans up; a second one kills them.
///
/// Examples:
///     testyard run
///     testyard run tests --filter 'tag(quick) and not name(~slow)' --jobs 4
///     testyard run --fail-fast --report junit=report.xml --report jsonl=results.jsonl
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Run {
    /// Suites, test files, or folders with such
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Tests at once [default: one a processor]
    #[arg(long, short, value_name = "N", value_parser = values::jobs)]
    jobs: Option<NonZeroUsize>,
    /// Only these tests: part of a name, or an expression of name(), suite(), tag(), needs(), owner(), and, or, not
    #[arg(long, short, value_name = "EXPRESSION")]
    filter: Option<String>,
    /// Replace every test's own time limit, such as 90s
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    /// Start nothing more after a failure
    #[arg(long)]
    fail_fast: bool,
    /// A skipped test is a failure
    #[arg(long)]
    no_skip: bool,
    /// Only list the tests
    #[arg(long)]
    list: bool,
    /// Write a report: junit=FILE or jsonl=FILE; may be repeated
    #[arg(long, value_name = "KIND=FILE")]
    report: Vec<String>,
}

impl Run {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let filter = match &self.filter {
            Some(text) => Filter::parse(text).map_err(|error| error.problem())?,
            None => Filter::All,
        };
        let reports = self.reports()?;
        let current = std::env::current_dir()
            .map_err(|error| Problem::new(ProblemKind::System, "cannot tell the current folder").because(error))?;
        let plan = match Plan::load(&self.paths, &current, &filter) {
            Ok(plan) => Arc::new(plan),
            Err(error) => return refused(&error, output),
        };
        if self.list { list(&plan, output) } else { self.execute(&plan, &reports, output) }
    }

    fn execute(self, plan: &Arc<Plan>, reports: &[ReportSpec], output: Output) -> Outcome {
        // Before any thread is started: all of them must leave these signals to the descriptor.
        let signals = SignalFd::new(&[Signal::INT, Signal::TERM, Signal::HUP]).map_err(attend::local)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        let bench = yard::test_bench(&yard::open()?, plan)?;
        let options = self.options(plan, &bench);
        // At the second Ctrl-C this process ends, and the machines' agents end what it had asked for.
        let kill = Box::new(|| ());
        let around = Surroundings { executor: bench.executor, history: bench.history, clock: clock.clone(), kill };
        let reporting =
            Reporting::start(plan, clock, Some(terminal(output)), reports).map_err(|error| error.problem())?;
        let (control, interrupter) = Control::new();
        let watched = duplicate(signals.as_fd())?;
        let _watcher = Feeder::watch(watched, move || {
            while let Ok(Some(_)) = signals.read() {
                interrupter.interrupt();
            }
            true
        })?;
        let report = match run(plan, &options, &around, control, reporting) {
            Ok(report) => report,
            Err(RunError::Plan(error)) => return refused(&error, output),
            Err(error) => return Err(error.problem()),
        };
        for problem in &report.problems {
            output.warn_of(problem);
        }
        if output.json {
            let results: Vec<_> = report.results.iter().map(AsRef::as_ref).collect();
            output.json_object(json!({ "run": report.run, "summary": report.summary, "results": results }))?;
        }
        Ok(report.summary.exit_code)
    }

    /// What the command line says wins over what the suites say; strictness is never lost.
    fn options(&self, plan: &Plan, bench: &TestBench) -> RunOptions {
        let said = plan.run_settings();
        let mut options = RunOptions::new(bench.output.clone());
        if let Some(jobs) = self.jobs.map(NonZeroUsize::get).or(said.jobs.map(|jobs| jobs as usize)) {
            options.jobs = jobs;
        }
        options.timeout = self.timeout.map(|timeout| timeout.0);
        options.fail_fast = self.fail_fast || said.fail_fast.unwrap_or(false);
        options.no_skip = self.no_skip || said.no_skip.unwrap_or(false);
        options.seed = u64::from(std::process::id());
        options.step = testyard_linux::step::reach;
        options
    }

    fn reports(&self) -> Result<Vec<ReportSpec>, Problem> {
        self.report.iter().map(|text| text.parse().map_err(|error: ReportError| error.problem())).collect()
    }
}

/// Where people watch: standard output, unless that is for the JSON.
fn terminal(output: Output) -> Terminal {
    let (out, is_terminal): (Box<dyn Write + Send>, bool) = if output.json {
        (Box::new(io::stderr()), isatty(io::stderr()))
    } else {
        (Box::new(io::stdout()), isatty(io::stdout()))
    };
    let width = move || if output.json { tcgetwinsize(io::stderr()) } else { tcgetwinsize(io::stdout()) };
    let mut style = Style::detect(is_terminal, |name| std::env::var(name).ok());
    if output.quiet {
        style = Style { live: false, passed: false, ..style };
    }
    Terminal::new(out, Box::new(move || width().ok().map(|size| size.ws_col)), style)
}

fn list(plan: &Plan, output: Output) -> Outcome {
    let mut text = Vec::new();
    // Writing to memory does not fail.
    let _ = if output.json { plan.list_json(&mut text) } else { plan.list(&mut text) };
    output.data(&String::from_utf8_lossy(&text))?;
    DONE
}

/// A mistake in a suite file is shown with its line.
fn refused(error: &PlanError, output: Output) -> Outcome {
    match error {
        PlanError::Config(fault) => {
            output.rendered(&fault.render(wants_colour()), &error.problem());
            Ok(ExitCode::Usage.code())
        }
        error => Err(error.problem()),
    }
}
