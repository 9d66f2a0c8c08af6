//! `testyard report`

use std::io::{self, Write};
use std::path::PathBuf;

use rustix::termios::isatty;
use serde_json::json;
use testyard::run::{KeptRun, KeptRuns};
use testyard_model::{Problem, ProblemKind};
use testyard_runner::report::{ReportError, ReportKind, RunRecord, Style, Terminal, render, show, write_whole};

use super::{DONE, Outcome};
use crate::output::{Output, table};
use crate::yard;

/// Tests that are named which a killed run was running.
const UNFINISHED: usize = 20;

/// Show a run that is over, or write it in another form.
///
/// Every run is kept, with its results and the output of what did not pass, until newer ones need
/// the room. RUN is the beginning or the end of a run's id, `last`, or `last~1` for the one before
/// it. Without --format it is shown as it was when it ended.
///
/// Examples:
///     testyard report
///     testyard report --list
///     testyard report last --format html --to report.html
///     testyard report last~1 --failed --format junit
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Report {
    /// Which run
    #[arg(value_name = "RUN", default_value = "last")]
    run: String,
    /// Its form: junit, jsonl, tap, trace, html, markdown or github
    #[arg(long, short, value_name = "KIND")]
    format: Option<String>,
    /// The file to write instead of standard output
    #[arg(long, short, value_name = "FILE", requires = "format")]
    to: Option<PathBuf>,
    /// Only the tests that did not pass
    #[arg(long)]
    failed: bool,
    /// List the runs that are kept
    #[arg(long, conflicts_with_all = ["format", "failed"])]
    list: bool,
}

impl Report {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let kind = self.format.as_deref().map(str::parse::<ReportKind>).transpose();
        let kind = kind.map_err(|error| error.problem())?;
        let kept = KeptRuns::of(&yard::open()?.options().home);
        if self.list {
            return list(&kept, output);
        }
        let mut record = kept.find(&self.run)?.read()?;
        if self.failed {
            record.keep_failed();
        }
        match (kind, self.to) {
            (Some(kind), Some(path)) => {
                let written = write_whole(&path, |out| render(kind, &record, out));
                written.map_err(|source| ReportError::Write { path, source }.problem())?;
            }
            (Some(kind), None) => written(render(kind, &record, &mut io::BufWriter::new(io::stdout().lock())))?,
            (None, _) if output.json => {
                let results = record.results.iter().map(|result| result.to_json());
                let results = results.collect::<Result<Vec<_>, _>>();
                let results = results.map_err(|error| Problem::from_error(ProblemKind::Exhausted, &error))?;
                let complete = record.ended.is_some();
                let summary = record.summary();
                output.json_object(
                    json!({ "run": record.info.run, "complete": complete, "summary": summary, "results": results }),
                )?;
            }
            (None, _) => shown(&record, output)?,
        }
        DONE
    }
}

/// As the run showed itself.
fn shown(record: &RunRecord, output: Output) -> Result<(), Problem> {
    output.data(&format!("run {}, {}\n", record.info.run, testyard::run::local_time(record.info.started_ms)))?;
    let style = Style::detect(isatty(io::stdout()), |name| std::env::var(name).ok());
    let style = Style { live: false, passed: false, ..style };
    let mut terminal = Terminal::new(Box::new(io::stdout()), Box::new(|| None), style);
    show(record, &mut terminal);
    if record.ended.is_none() {
        let missing = record.info.tests.saturating_sub(record.results.len());
        output.warn(format_args!("this run did not come to its end: {missing} of its tests have no result"));
        for name in record.unfinished.iter().take(UNFINISHED) {
            output.say(format_args!("it ran {name} at that moment"));
        }
    }
    Ok(())
}

fn list(kept: &KeptRuns, output: Output) -> Outcome {
    let runs: Vec<(KeptRun, Option<RunRecord>)> = kept
        .list()?
        .into_iter()
        .map(|run| {
            let read = run.read().ok();
            (run, read)
        })
        .collect();
    if output.json {
        let told: Vec<_> = runs
            .iter()
            .map(|(run, record)| match record {
                Some(record) => json!({
                    "run": run.id,
                    "started_ms": record.info.started_ms,
                    "suites": record.suites(),
                    "complete": record.ended.is_some(),
                    "summary": record.summary(),
                }),
                None => json!({ "run": run.id }),
            })
            .collect();
        output.json("runs", &told)?;
        return DONE;
    }
    let rows: Vec<Vec<String>> = runs.iter().map(|(run, record)| row(run, record.as_ref())).collect();
    output.data(&table(&["RUN", "BEGAN", "SUITES", "RESULT"], &rows))?;
    DONE
}

fn row(run: &KeptRun, record: Option<&RunRecord>) -> Vec<String> {
    let Some(record) = record else {
        return vec![run.id.clone(), "-".to_owned(), "-".to_owned(), "cannot be read".to_owned()];
    };
    let began = testyard::run::local_time(record.info.started_ms);
    let mut result = record.summary().line();
    if record.ended.is_none() {
        result.push_str(", did not come to its end");
    }
    vec![run.id.clone(), began, record.suites().join(", "), result]
}

/// Whoever reads standard output may have read enough.
fn written(result: io::Result<()>) -> Result<(), Problem> {
    match result.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Problem::new(ProblemKind::System, "cannot write to standard output").because(error))
        }
        _ => Ok(()),
    }
}
