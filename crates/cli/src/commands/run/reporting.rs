//! `testyard run`: what is shown and written.

use std::io::{self, Write};
use std::path::PathBuf;

use rustix::termios::isatty;
use testyard::run::KeptRuns;
use testyard_model::Problem;
use testyard_runner::report::{Audience, OnKept, ReportError, ReportKind, ReportSpec, Style, Terminal, size_of};

use crate::output::Output;

/// What is written beside the terminal.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Reporting")]
pub(super) struct ReportOptions {
    /// Write a report: junit, jsonl, tap, trace, html, markdown or github, and =FILE; may be repeated
    #[arg(long, value_name = "KIND=FILE")]
    report: Vec<String>,
}

impl ReportOptions {
    /// The reports that were asked for.
    pub(super) fn specs(&self) -> Result<Vec<ReportSpec>, Problem> {
        self.report.iter().map(|text| text.parse().map_err(|error: ReportError| error.problem())).collect()
    }
}

/// Who is told: people, whoever asked for a report, the home that keeps the run, and GitHub where it runs the job.
pub(super) fn audience(
    mut reports: Vec<ReportSpec>,
    kept: &KeptRuns,
    on_kept: Option<OnKept>,
    output: Output,
) -> Audience {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let in_github = variable("GITHUB_ACTIONS").is_some_and(|value| value == "true");
    if in_github && !reports.iter().any(|spec| spec.kind == ReportKind::Github) {
        reports.push(ReportSpec { kind: ReportKind::Github, file: None });
    }
    let annotations: Box<dyn Write + Send> = if output.json { Box::new(io::stderr()) } else { Box::new(io::stdout()) };
    Audience {
        terminal: Some(match on_kept {
            Some(act) => terminal(output).with_kept(act),
            None => terminal(output),
        }),
        reports,
        keep: Some(kept.folder().to_owned()),
        job_summary: variable("GITHUB_STEP_SUMMARY").filter(|_| in_github).map(PathBuf::from),
        annotations: Some(annotations),
    }
}

/// Whether people watch at a terminal that can be drawn over.
pub(super) fn is_live(output: Output) -> bool {
    style(output).live
}

fn style(output: Output) -> Style {
    let is_terminal = if output.json { isatty(io::stderr()) } else { isatty(io::stdout()) };
    let style = Style::detect(is_terminal, |name| std::env::var(name).ok());
    if output.quiet { Style { live: false, passed: false, ..style } } else { style }
}

/// Where people watch: standard output, unless that is for the JSON.
fn terminal(output: Output) -> Terminal {
    let out: Box<dyn Write + Send> = if output.json { Box::new(io::stderr()) } else { Box::new(io::stdout()) };
    let size = move || if output.json { size_of(io::stderr()) } else { size_of(io::stdout()) };
    Terminal::new(out, Box::new(size), style(output))
}
