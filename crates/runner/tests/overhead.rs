//! What the runner itself costs; the bound is for release builds:
//! `cargo test --release -p testyard-runner --test overhead -- --nocapture`.

use std::path::Path;
use std::sync::Arc;

use testyard_model::{CommandStatus, Isolation, Problem, Usage};
use testyard_runner::cancel::Cancel;
use testyard_runner::capture::Stream;
use testyard_runner::clock::SystemClock;
use testyard_runner::filter::Filter;
use testyard_runner::history::NoHistory;

use testyard_runner::job::{Ability, EnvironmentUsed, Executor, Finished, Job, JobEvent, JobOutcome, SourceTree};
use testyard_runner::plan::{Plan, Selection};
use testyard_runner::report::{Audience, ReportKind, ReportSpec, Reporting, Style, Terminal};
use testyard_runner::run::{Control, RunOptions, Surroundings, run};

/// Ends every job at once.
struct Instantly;

impl Executor for Instantly {
    fn abilities(&self, _needs: &[String]) -> Vec<Ability> {
        Vec::new()
    }

    fn source_tree(&self, _root: &Path) -> Result<SourceTree, Problem> {
        Ok(SourceTree::default())
    }

    fn source_changed(&self, _root: &Path) -> bool {
        false
    }

    fn run(&self, job: &Job, cancel: &Cancel, events: &dyn Fn(JobEvent)) -> JobOutcome {
        let _descriptor = cancel.descriptor();
        events(JobEvent::Started { environment: "namespace/m/e1".to_owned() });
        JobOutcome::Finished(Finished {
            status: CommandStatus::Exited(0),
            usage: Usage::default(),
            stdout: job.capture(Stream::Stdout).finish(),
            stderr: job.capture(Stream::Stderr).finish(),
            environment: EnvironmentUsed { label: "namespace/m/e1".to_owned(), isolation: Isolation::Namespace },
            aftermath: Box::default(),
            services: Vec::new(),
        })
    }
}

fn processor_us() -> u128 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    u128::try_from(time.tv_sec).expect("positive") * 1_000_000 + u128::try_from(time.tv_nsec).expect("positive") / 1_000
}

#[test]
fn a_thousand_tests_cost_little() {
    const TESTS: u128 = 1_000;
    let folder = tempfile::tempdir().expect("a folder");
    let tests: String = (0..TESTS).map(|n| format!("[[test]]\nname = \"t{n}\"\ncommand = \"true\"\n")).collect();
    std::fs::write(folder.path().join("testyard.toml"), format!("format = 1\n{tests}")).expect("written");
    let before = processor_us();
    let plan = Arc::new(Plan::load(&[], folder.path(), &Selection::of(Filter::All), &NoHistory).expect("a plan"));
    let planned = processor_us();
    let clock = Arc::new(SystemClock::start());
    let out = std::fs::File::create(folder.path().join("out")).expect("made");
    let style = Style { live: false, color: false, passed: true, obeyed: false };
    let terminal = Terminal::new(Box::new(out), Box::new(|| None), style);
    let reports = vec![
        ReportSpec::file(ReportKind::Junit, folder.path().join("junit.xml")),
        ReportSpec::file(ReportKind::JsonLines, folder.path().join("run.jsonl")),
    ];
    let keep = Some(folder.path().join("runs"));
    let audience = Audience { terminal: Some(terminal), reports, keep, ..Audience::default() };
    let reporting = Reporting::start(&plan, clock.clone(), audience).expect("started");
    let around =
        Surroundings { executor: Arc::new(Instantly), history: Arc::new(NoHistory), clock, kill: Box::new(|| ()) };
    let options = RunOptions::new(folder.path().join("output"));
    let report = run(&plan, &options, &around, Control::new().0, reporting).expect("it begins");
    let each = (processor_us() - before) / TESTS;
    println!("planning {} us, all in all {each} us of processor time a test", (planned - before) / TESTS);
    assert_eq!(report.summary.passed, TESTS as usize);
    assert!(each < 150 || cfg!(debug_assertions), "{each} us");
}
