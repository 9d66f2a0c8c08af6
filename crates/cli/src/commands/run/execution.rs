//! `testyard run`: how the tests are run.

use std::num::NonZeroUsize;

use testyard::KeptName;
use testyard::run::{SourceMode, TestBench};
use testyard_model::{Problem, ProblemKind, Span};
use testyard_runner::plan::Plan;
use testyard_runner::report::OnKept;
use testyard_runner::result::TestResult;
use testyard_runner::run::RunOptions;

use crate::commands::env::kept::{KEPT_FOR, enter};
use crate::output::Output;
use crate::{attend, values, yard};

/// How tests are run.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Execution")]
pub(super) struct Execution {
    /// Tests at once [default: one a processor]
    #[arg(long, short, value_name = "N", value_parser = values::jobs)]
    jobs: Option<NonZeroUsize>,
    /// Replace every test's own time limit, such as 90s
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    /// Start nothing more after a failure
    #[arg(long)]
    fail_fast: bool,
    /// A skipped test is a failure
    #[arg(long)]
    no_skip: bool,
    /// Keep the environments of failed tests for a look; each result tells the command that enters it
    #[arg(long)]
    keep_failed: bool,
    /// How long they are kept
    #[arg(long, value_name = "DURATION", default_value = KEPT_FOR)]
    keep_for: Span,
    /// Open a shell in the environment of each test that fails, as it fails; needs a terminal
    #[arg(long, conflicts_with_all = ["list", "json"])]
    pub(super) shell: bool,
    /// Run again whenever something is saved: what that concerns, and what failed; Ctrl-C ends it
    #[arg(long, conflicts_with = "list")]
    pub(super) watch: bool,
    /// What tests see: the working tree, or an immutable copy of what its hash covers
    #[arg(long, value_name = "MODE", default_value = "live", value_parser = values::source())]
    pub(super) source: SourceMode,
}

impl Execution {
    /// What is done with a failed test, if anything: a shell in its environment.
    pub(super) fn on_kept(&self, output: Output) -> Result<Option<OnKept>, Problem> {
        if !self.shell {
            return Ok(None);
        }
        if !attend::has_terminal() || !rustix::termios::isatty(std::io::stdout()) {
            return Err(Problem::new(ProblemKind::Usage, "--shell needs a terminal for its input and output")
                .hint("keep the environments instead: --keep-failed"));
        }
        let keep = self.keep_failed;
        Ok(Some(Box::new(move |result| {
            if let Err(problem) = shell_in(result, keep, output) {
                output.warn_of(&problem);
            }
        })))
    }

    /// What the command line says wins over what the suites say; strictness is never lost.
    pub(super) fn options(&self, plan: &Plan, bench: &TestBench) -> RunOptions {
        let said = plan.run_settings();
        let mut options = RunOptions::new(bench.kept.folder().to_owned());
        if let Some(jobs) = self.jobs.map(NonZeroUsize::get).or(said.jobs.map(|jobs| jobs as usize)) {
            options.jobs = jobs;
        }
        options.timeout = self.timeout.map(|timeout| timeout.0);
        options.fail_fast = self.fail_fast || said.fail_fast.unwrap_or(false);
        options.no_skip = self.no_skip || said.no_skip.unwrap_or(false);
        options.keep_failed = (self.keep_failed || self.shell).then_some(self.keep_for.0);
        options.seed = u64::from(std::process::id());
        options.step = testyard_linux::step::reach;
        options
    }
}

/// Opens a shell in a failed test's environment, which ends with it unless it is to be kept.
fn shell_in(result: &TestResult, keep: bool, output: Output) -> Result<(), Problem> {
    let Some(kept) = &result.aftermath.kept else { return Ok(()) };
    let name: KeptName = kept.environment.parse().map_err(|error| Problem::from_error(ProblemKind::Bug, &error))?;
    output.say(format_args!("a shell where {}::{} failed; `exit` goes on with the run", result.suite, result.name));
    let entered = enter(&name, None, &[], output);
    if !keep {
        yard::open()?.delete_kept(&name)?;
    }
    entered.map(drop)
}
