//! `testyard run`: how the tests are run.

use std::num::NonZeroUsize;

use testyard::run::{SourceMode, TestBench};
use testyard_model::Span;
use testyard_runner::plan::Plan;
use testyard_runner::run::RunOptions;

use crate::commands::env::kept::KEPT_FOR;
use crate::values;

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
    /// Run again whenever something is saved: what that concerns, and what failed; Ctrl-C ends it
    #[arg(long, conflicts_with = "list")]
    pub(super) watch: bool,
    /// What tests see: the working tree, or an immutable copy of what its hash covers
    #[arg(long, value_name = "MODE", default_value = "live", value_parser = values::source())]
    pub(super) source: SourceMode,
}

impl Execution {
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
        options.keep_failed = self.keep_failed.then_some(self.keep_for.0);
        options.seed = u64::from(std::process::id());
        options.step = testyard_linux::step::reach;
        options
    }
}
