//! `testyard run`

mod execution;
mod keys;
mod reporting;
mod selection;
mod watching;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use serde_json::json;
use testyard::Testyard;
use testyard::run::{Limits, RegistryHistory, SourceMode, TestBench, Where};
use testyard_model::{ExitCode, Problem, ProblemKind};
use testyard_runner::clock::{Clock, SystemClock};
use testyard_runner::history::{History, NoHistory};
use testyard_runner::plan::{Plan, PlanError, Selection};
use testyard_runner::report::{ReportSpec, Reporting};
use testyard_runner::run::{Control, RunError, Surroundings, run};

use super::{DONE, Outcome};
use crate::output::{Output, wants_colour};
use crate::yard;
use watching::{Failed, Interrupts};

/// Run the tests of a suite, each in an environment of its own.
///
/// PATH is a suite's folder or testyard.toml, a test file or folder in one, or a folder below
/// which suites lie; the default is this folder. Failures' output is shown once, at the end.
/// Ctrl-C ends the tests and cleans up; a second one kills them. `t`, `?` or Enter tells what runs.
///
/// Examples:
///     testyard run
///     testyard run tests --filter 'tag(quick) and not name(~slow)' --jobs 4
///     testyard run --fail-fast --report junit=report.xml --report jsonl=results.jsonl
///     testyard run --last-failed --retries 2
///     testyard run --changed-since main --shard 1/4
///     testyard run --filter boot --repeat 200 --jobs 16
///     testyard run --on m1,m2,m3
///     testyard run --on slurm:debug --nodes 3 --time 30m
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Run {
    /// Suites, test files, or folders with such
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    selection: selection::Selection,
    #[command(flatten)]
    execution: execution::Execution,
    #[command(flatten)]
    reports: reporting::ReportOptions,
}

impl Run {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let selection = self.selection.read(self.execution.repetitions())?;
        let reports = self.reports.specs()?;
        let current = std::env::current_dir()
            .map_err(|error| Problem::new(ProblemKind::System, "cannot tell the current folder").because(error))?;
        // A list that asks for nothing of earlier runs makes no home.
        let history: Box<dyn History> = if selection.needs_history() {
            Box::new(RegistryHistory::new(&yard::options()?.home))
        } else {
            Box::new(NoHistory)
        };
        let load = || Plan::load(&self.paths, &current, &selection, history.as_ref());
        if self.selection.list {
            return match load() {
                Ok(plan) => list(&plan, output),
                Err(error) => refused(&error, output),
            };
        }
        let place = self.execution.place()?;
        // Before any thread is started: all of them must leave these signals to the descriptor.
        let interrupts = Interrupts::begin(reporting::is_live(output))?;
        // Before anything is started that it would be asked for.
        drop(self.execution.on_kept(output)?);
        let ground =
            Ground::lay(self.paths.first().unwrap_or(&current), self.execution.source, place, interrupts.stopped()?)?;
        let plan = match load() {
            Ok(plan) => Arc::new(plan),
            Err(error) => {
                // What it began, it ends: probes leave nothing when they are done.
                drop(ground.take());
                return refused(&error, output);
            }
        };
        let (yard, bench) = ground.take()?;
        if let Err(error) = yard::check_places(&yard, &plan) {
            return refused(&error, output);
        }
        let (mut code, mut failed) = self.execute(&plan, &reports, &bench, &interrupts, output)?;
        if !self.execution.watch {
            return Ok(code);
        }
        // What failed last is what this very command saw fail.
        let selection = Selection { last_failed: false, ..selection };
        while let Some(changed) = watching::await_change(&bench.trees, &interrupts, output)? {
            // A suite that is just being written is shown with its mistake, and looked at again.
            let plan = match Plan::load(&self.paths, &current, &selection, history.as_ref()) {
                Ok(plan) => plan,
                Err(error) => {
                    code = refused(&error, output).unwrap_or_else(|problem| {
                        output.warn_of(&problem);
                        ExitCode::Usage.code()
                    });
                    continue;
                }
            };
            let Some(plan) = watching::concerned(plan, &changed, &failed) else { continue };
            (code, failed) = self.execute(&Arc::new(plan), &reports, &bench, &interrupts, output)?;
        }
        Ok(code)
    }

    /// Runs a plan; the exit code, and the tests that did not pass.
    fn execute(
        &self,
        plan: &Arc<Plan>,
        reports: &[ReportSpec],
        bench: &TestBench,
        interrupts: &Interrupts,
        output: Output,
    ) -> Result<(u8, Failed), Problem> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        let options = self.execution.options(plan, bench);
        // At the second Ctrl-C this process ends, and the machines' agents end what it had asked for.
        let kill = Box::new(|| ());
        let (executor, history) = (Arc::clone(&bench.executor), Arc::clone(&bench.history));
        let around = Surroundings { executor, history, clock: clock.clone(), kill };
        let audience = reporting::audience(reports.to_vec(), &bench.kept, self.execution.on_kept(output)?, output);
        let reporting = Reporting::start(plan, clock, audience).map_err(|error| error.problem())?;
        let (control, interrupter) = Control::new();
        let keys =
            (reporting::is_live(output) && !self.execution.shell).then(keys::Keys::enter).flatten().map(Arc::new);
        let asker = keys.as_ref().map(|keys| keys.attend(interrupter.clone())).transpose()?;
        let running = interrupts.go_to(interrupter, keys);
        let report = run(plan, &options, &around, control, reporting);
        // Before anything else is printed: the terminal is the user's again.
        drop((asker, running));
        let report = match report {
            Ok(report) => report,
            Err(RunError::Plan(error)) => return refused(&error, output).map(|code| (code, Failed::new())),
            Err(error) => return Err(error.problem()),
        };
        for problem in report.problems.iter().chain(bench.kept.prune(Limits::USUAL).err().as_ref()) {
            output.warn_of(problem);
        }
        if output.json {
            let results: Vec<_> = report.results.iter().map(AsRef::as_ref).collect();
            output.json_object(json!({ "run": report.run, "summary": report.summary, "results": results }))?;
        }
        let failed = report.results.iter().filter(|result| watching::is_open(&result.verdict));
        let failed = failed.map(|result| (result.suite.clone(), result.name.clone())).collect();
        Ok((report.summary.exit_code, failed))
    }
}

/// What tests stand on, got ready by a thread while this one reads which tests there are.
struct Ground(JoinHandle<Result<(Testyard, TestBench), Problem>>);

impl Ground {
    /// Also looks at the tree of the suite that `path` is in: the run asks for that first.
    fn lay(path: &Path, source: SourceMode, place: Where, stop: OwnedFd) -> Result<Self, Problem> {
        // As the plan names it, or its tree would be looked at twice.
        let suite = path.canonicalize().ok().and_then(|path| {
            let mut folders = path.ancestors();
            folders.find(|folder| folder.join("testyard.toml").is_file()).map(Path::to_path_buf)
        });
        let work = move || {
            let yard = yard::open()?;
            let bench = yard::test_bench(&yard, source, &place, suite.as_deref(), stop.as_fd())?;
            Ok((yard, bench))
        };
        let thread = std::thread::Builder::new().name("ground".to_owned()).spawn(work);
        thread.map(Self).map_err(|error| Problem::new(ProblemKind::System, "cannot start a thread").because(error))
    }

    fn take(self) -> Result<(Testyard, TestBench), Problem> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
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
