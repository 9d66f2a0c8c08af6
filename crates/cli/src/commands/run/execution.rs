//! `testyard run`: how the tests are run.

use std::num::NonZeroUsize;

use testyard::KeptName;
use testyard::run::{SlurmNodes, SourceMode, TestBench, Where};
use testyard_model::{MachineName, Problem, ProblemKind, Span};
use testyard_runner::order::Order;
use testyard_runner::plan::Plan;
use testyard_runner::report::OnKept;
use testyard_runner::result::TestResult;
use testyard_runner::run::RunOptions;

use crate::commands::elsewhere::Login;
use crate::commands::env::kept::{KEPT_FOR, enter};
use crate::commands::slurm::JobOptions;
use crate::output::Output;
use crate::{attend, describe, values, yard};

/// How often `--until-fail` repeats where nobody says.
const UNTIL_FAIL: u32 = 1_000;

/// How tests are run.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Execution")]
pub(super) struct Execution {
    /// Tests at once, with --on on each machine [default: one a processor]
    #[arg(long, short, value_name = "N", value_parser = values::jobs)]
    jobs: Option<NonZeroUsize>,
    /// Spread the tests over these machines, which run; or over a Slurm cluster: slurm, or slurm:PARTITION
    #[arg(long, value_name = "WHERE,...", value_delimiter = ',')]
    on: Vec<String>,
    /// Over so many nodes of the Slurm cluster [default: 1]
    #[arg(long, value_name = "N", value_parser = values::jobs)]
    nodes: Option<NonZeroUsize>,
    #[command(flatten)]
    job: JobOptions,
    #[command(flatten)]
    login: Login,
    /// Replace every test's own time limit, such as 90s
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    /// Try failures again so often; replaces every test's own `retries`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    retries: Option<u32>,
    /// Start nothing more after a failure
    #[arg(long)]
    fail_fast: bool,
    /// A skipped test is a failure
    #[arg(long)]
    no_skip: bool,
    /// Which tests start first: `longest` known, as in the `file`, or `random`
    #[arg(long, value_name = "ORDER", default_value = "longest", value_parser = ["longest", "file", "random"])]
    order: String,
    /// What a random order follows from; it is shown where it is left out
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Start tests that failed when they last ran before all others
    #[arg(long)]
    failed_first: bool,
    /// Run each test so often, each time in an environment of its own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: Option<u32>,
    /// Repeat until the first failure, at most as --repeat says [default: 1000 times]
    #[arg(long)]
    until_fail: bool,
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
    /// What tests see: the working tree, an immutable copy of what its hash covers, or such a copy on each machine
    #[arg(long, value_name = "MODE", default_value = "live", value_parser = values::source())]
    pub(super) source: SourceMode,
}

impl Execution {
    /// Where the tests run.
    pub(super) fn place(&self) -> Result<Where, Problem> {
        let partition = |word: &String| match word.split_once(':') {
            None if word == "slurm" => Some(None),
            Some(("slurm", partition)) => Some(Some(partition.to_owned())),
            _ => None,
        };
        if let [word] = &self.on[..]
            && let Some(partition) = partition(word)
        {
            let cpus = self.jobs.map(NonZeroUsize::get);
            let count = self.nodes.map_or(1, NonZeroUsize::get);
            let submit = self.login.to_host()?;
            if let Some((option, _)) = self.login.given().into_iter().find(|(_, given)| *given && submit.is_none()) {
                return Err(Problem::new(
                    ProblemKind::Usage,
                    format!("{option} is for Slurm's commands on another host"),
                )
                .hint("say which: --host USER@HOST"));
            }
            let job = self.job.job(partition, cpus.is_none(), submit);
            return Ok(Where::Slurm(Box::new(SlurmNodes { job, count, cpus })));
        }
        let nodes = std::iter::once(("--nodes", self.nodes.is_some()));
        let mut of_slurm = nodes.chain(self.job.given()).chain(self.login.given());
        if let Some((option, _)) = of_slurm.find(|(_, given)| *given) {
            return Err(Problem::new(ProblemKind::Usage, format!("{option} is for runs over a Slurm cluster"))
                .hint("say so: --on slurm"));
        }
        if self.on.is_empty() {
            return Ok(Where::Here);
        }
        let named = |word: &String| {
            word.parse::<MachineName>().map_err(|error| Problem::from_error(ProblemKind::Usage, &error))
        };
        Ok(Where::Machines(self.on.iter().map(named).collect::<Result<_, _>>()?))
    }

    /// How often each test runs, where that was said.
    pub(super) fn repetitions(&self) -> Option<u32> {
        self.repeat.or(self.until_fail.then_some(UNTIL_FAIL))
    }

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
            keep
        })))
    }

    /// What the command line says wins over what the suites say; strictness is never lost.
    pub(super) fn options(&self, plan: &Plan, bench: &TestBench) -> RunOptions {
        let said = plan.run_settings();
        let mut options = RunOptions::new(bench.kept.folder().to_owned());
        if let Some(jobs) = self.jobs.map(NonZeroUsize::get).or(said.jobs.map(|jobs| jobs as usize)) {
            options.jobs = jobs;
            options.node_jobs = Some(jobs);
        }
        options.timeout = self.timeout.map(|timeout| timeout.0);
        options.retries = self.retries;
        options.fail_fast = self.fail_fast || self.until_fail || said.fail_fast.unwrap_or(false);
        options.no_skip = self.no_skip || said.no_skip.unwrap_or(false);
        options.keep_failed = (self.keep_failed || self.shell).then_some(self.keep_for.0);
        options.order = match self.order.as_str() {
            "file" => Order::File,
            "random" => Order::Random,
            _ if self.seed.is_some() => Order::Random,
            _ => Order::Longest,
        };
        options.failed_first = self.failed_first;
        options.seed = self.seed.unwrap_or_else(fresh_seed);
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

/// Short enough to be typed again.
fn fresh_seed() -> u64 {
    let now = describe::now_ms().unsigned_abs();
    (now ^ (u64::from(std::process::id()) << 12)) % 1_000_000
}
