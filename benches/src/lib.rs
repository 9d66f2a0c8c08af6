//! What Testyard costs, against what the kernel and its peers cost, measured in the same run.
//!
//! ```text
//! worker, bare_probe   small forked processes that do what the kernel alone must
//! machine              a machine without a supervisor, and clients of its agent
//! environments, peers  rows over that machine
//! programs, syncs, …   rows over the installed programs, as users start them
//! report               the table and its JSON
//! ```
//!
//! Absolute times say as much about the host as about Testyard: each row compares contenders that took turns.

mod bare_probe;
mod clusters;
mod environments;
mod machine;
mod networks;
mod orbctl;
mod peers;
mod programs;
mod report;
mod scale_out;
mod ssh;
mod static_program;
mod suites;
mod syncs;
mod worker;

use std::path::PathBuf;

use testyard_model::Problem;

use programs::Testyard;

pub use bare_probe::{FullProbe, PlainProbe};
pub use machine::{Client, Machine, strongest};
pub use report::{Goal, Outcome, Report, Row};
pub use worker::{Task, Worker};

/// The parts over a machine and its agent, as [`Options::only`] may name them.
pub const PARTS_OF_THE_AGENT: [&str; 6] = ["fresh", "commands", "throughput", "unprivileged", "peers", "growth"];

/// What measures a part over the installed programs, in a home of its own.
type Measure = fn(&Options, &Testyard, &mut dyn FnMut(Row));

const OF_THE_PROGRAMS: [(&str, Measure); 6] = [
    ("programs", programs::rows),
    ("networks", networks::rows),
    ("clusters", clusters::rows),
    ("scale-out", scale_out::rows),
    ("sync", syncs::rows),
    ("ssh", ssh::rows),
];

/// The parts over the installed programs.
pub fn parts_of_the_programs() -> impl Iterator<Item = &'static str> {
    OF_THE_PROGRAMS.into_iter().map(|(part, _)| part)
}

/// How a run is made.
pub struct Options {
    /// An empty folder, readable by every user, for everything that a run makes. Short enough for sockets below it.
    pub folder: PathBuf,
    /// The agent's program.
    pub agent: PathBuf,
    /// The folder with `testyard`, for rows that start it.
    pub programs: PathBuf,
    /// The workspace's top, where its examples are.
    pub source: Option<PathBuf>,
    /// A tenth of the rounds, and none of the rows that take long.
    pub quick: bool,
    /// Only this part: one of [`PARTS_OF_THE_AGENT`] or [`parts_of_the_programs`].
    pub only: Option<String>,
    /// Told of each row as soon as it is measured.
    pub progress: Box<dyn Fn(&Row)>,
}

impl Options {
    /// So many rounds of a full run.
    pub(crate) fn rounds(&self, full: usize) -> usize {
        if self.quick { (full / 10).max(3) } else { full }
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| part == only)
    }
}

/// Measures everything.
///
/// # Errors
/// What stopped the measuring; rows that cannot be measured here are skipped and say why.
pub fn run(options: &Options) -> Result<Report, Problem> {
    let mut report = Report::new();
    if PARTS_OF_THE_AGENT.iter().any(|part| options.wants(part)) {
        environments::rows(options, &options.folder, &mut report.rows)?;
    }
    for (number, (part, measure)) in OF_THE_PROGRAMS.into_iter().enumerate() {
        if options.wants(part) {
            let testyard = Testyard::at_home(options, options.folder.join(number.to_string()))?;
            measure(options, &testyard, &mut |row: Row| {
                (options.progress)(&row);
                report.rows.push(row);
            });
            testyard.delete_all();
        }
    }
    Ok(report)
}
