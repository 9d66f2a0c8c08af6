//! `testyard run`: what is shown and written.

use std::io::{self, Write};

use rustix::termios::{isatty, tcgetwinsize};
use testyard_model::Problem;
use testyard_runner::report::{ReportError, ReportSpec, Style, Terminal};

use crate::output::Output;

/// What is written beside the terminal.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Reporting")]
pub(super) struct ReportOptions {
    /// Write a report: junit=FILE or jsonl=FILE; may be repeated
    #[arg(long, value_name = "KIND=FILE")]
    report: Vec<String>,
}

impl ReportOptions {
    /// The reports that were asked for.
    pub(super) fn specs(&self) -> Result<Vec<ReportSpec>, Problem> {
        self.report.iter().map(|text| text.parse().map_err(|error: ReportError| error.problem())).collect()
    }
}

/// Where people watch: standard output, unless that is for the JSON.
pub(super) fn terminal(output: Output) -> Terminal {
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
