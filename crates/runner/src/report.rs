//! What people and files see of a run. A thread of its own does all the writing, in the order of what happened.

mod file;
mod json_lines;
mod junit;
mod safe_text;
mod status_line;
mod terminal;

use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use testyard_model::{Problem, ProblemKind};

pub use file::write_whole;
pub use safe_text::{SafeText, safe_ends, safe_line};
pub use terminal::{Style, Terminal, columns_of};

use crate::clock::Clock;
use crate::job::JobEvent;
use crate::plan::Plan;
use crate::result::{Attempt, RunSummary, Stop, TestResult, TreeInfo};
use crate::suite::nearest;
use json_lines::JsonLines;
use junit::Junit;

/// How often a terminal's status line is drawn again.
const REDRAW: Duration = Duration::from_millis(100);

/// A report to write, as `--report` names it: `junit=FILE`, `jsonl=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportSpec {
    /// JUnit's XML, written whole at the end.
    Junit(PathBuf),
    /// A line of JSON for each event, written as it happens.
    JsonLines(PathBuf),
}

/// A report that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Not `kind=FILE`.
    #[error("`{0}` is not a report: write junit=FILE or jsonl=FILE")]
    NoFile(String),
    /// A kind that does not exist.
    #[error("unknown report `{kind}`")]
    UnknownKind {
        /// The kind.
        kind: String,
        /// The nearest that exists.
        nearest: Option<&'static str>,
    },
    /// A file that cannot be written.
    #[error("cannot write report {path}", path = path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread can be started.
    #[error("cannot start the thread that writes reports")]
    Thread(#[source] io::Error),
}

impl ReportError {
    /// As every other error is shown.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::NoFile(_) => {
                Problem::new(ProblemKind::Usage, self.to_string()).hint("such as --report junit=junit.xml")
            }
            Self::UnknownKind { nearest: Some(nearest), .. } => {
                Problem::new(ProblemKind::Usage, self.to_string()).hint(format!("did you mean `{nearest}`?"))
            }
            Self::UnknownKind { .. } => {
                Problem::new(ProblemKind::Usage, self.to_string()).hint("reports are junit and jsonl")
            }
            Self::Write { source, .. } => Problem::from_error(written(source), self)
                .hint("check that the folder exists, can be written and has room"),
            Self::Thread(_) => {
                Problem::from_error(ProblemKind::Exhausted, self).hint("raise the limit of processes (ulimit -u)")
            }
        }
    }
}

/// A wrong path is the caller's to correct.
fn written(error: &io::Error) -> ProblemKind {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => ProblemKind::Usage,
        io::ErrorKind::PermissionDenied => ProblemKind::Denied,
        io::ErrorKind::StorageFull => ProblemKind::Exhausted,
        _ => ProblemKind::System,
    }
}

impl FromStr for ReportSpec {
    type Err = ReportError;

    fn from_str(text: &str) -> Result<Self, ReportError> {
        let (kind, file) = text.split_once('=').ok_or_else(|| ReportError::NoFile(text.to_owned()))?;
        if file.is_empty() {
            return Err(ReportError::NoFile(text.to_owned()));
        }
        match kind {
            "junit" => Ok(Self::Junit(PathBuf::from(file))),
            "jsonl" => Ok(Self::JsonLines(PathBuf::from(file))),
            _ => Err(ReportError::UnknownKind { kind: kind.to_owned(), nearest: nearest(kind, ["junit", "jsonl"]) }),
        }
    }
}

/// What a run begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// The run's id, a UUID.
    pub run: String,
    /// When, in milliseconds since 1970-01-01 UTC.
    pub started_ms: i64,
    /// How many tests there are.
    pub tests: usize,
    /// How many at once.
    pub jobs: usize,
    /// What each suite runs.
    pub trees: Vec<TreeInfo>,
}

/// Something that whoever watches a run may want to know.
#[derive(Debug, Clone)]
pub enum Announcement {
    /// The first.
    RunStarted(RunInfo),
    /// A test is about to be started.
    TestStarted {
        /// Which, by its place in the plan.
        test: usize,
        /// Which attempt, from 1.
        attempt: u32,
    },
    /// News of a running test.
    TestProgress {
        /// Which.
        test: usize,
        /// The news.
        event: JobEvent,
    },
    /// An attempt met an infrastructure error and will be repeated.
    AttemptFailed {
        /// Of which test.
        test: usize,
        /// The attempt.
        attempt: Attempt,
        /// When it will be repeated.
        after: Duration,
    },
    /// A test is done.
    TestFinished(Arc<TestResult>),
    /// Nothing more will be started.
    Stopping(Stop),
    /// Something beside the tests went wrong; the run goes on.
    Warning(Problem),
    /// The last.
    RunFinished(Arc<RunSummary>),
}

/// Where a run's announcements go.
pub struct Reporting {
    sender: Sender<Announcement>,
    thread: JoinHandle<Vec<Problem>>,
}

impl Reporting {
    /// Starts the thread. Files are tried at once, so that a wrong path is found before the first test.
    ///
    /// # Errors
    /// Where a report's file cannot be written.
    pub fn start(
        plan: &Arc<Plan>,
        clock: Arc<dyn Clock>,
        terminal: Option<Terminal>,
        reports: &[ReportSpec],
    ) -> Result<Self, ReportError> {
        let mut sinks = Vec::new();
        for spec in reports {
            sinks.push(match spec {
                ReportSpec::Junit(path) => Sink::Junit(Junit::create(path)?),
                ReportSpec::JsonLines(path) => Sink::JsonLines(JsonLines::create(path)?),
            });
        }
        // The terminal comes last: when it says that the run is over, the files are there.
        sinks.extend(terminal.map(|terminal| Sink::Terminal(Box::new(terminal))));
        let (sender, receiver) = channel();
        let writer = Writer { plan: plan.clone(), clock, sinks };
        let builder = std::thread::Builder::new().name("reports".to_owned());
        let thread = builder.spawn(move || writer.write(&receiver)).map_err(ReportError::Thread)?;
        Ok(Self { sender, thread })
    }

    /// Passes it on; never waits.
    pub(crate) fn announce(&mut self, announcement: Announcement) {
        // The thread lives as long as the sender.
        let _ = self.sender.send(announcement);
    }

    /// Waits until everything is written; what could not be.
    pub(crate) fn close(self) -> Vec<Problem> {
        drop(self.sender);
        let bug = |_| vec![Problem::new(ProblemKind::Bug, "a bug in Testyard ended the thread that writes reports")];
        self.thread.join().unwrap_or_else(bug)
    }
}

enum Sink {
    Terminal(Box<Terminal>),
    Junit(Junit),
    JsonLines(JsonLines),
}

struct Writer {
    plan: Arc<Plan>,
    clock: Arc<dyn Clock>,
    sinks: Vec<Sink>,
}

impl Writer {
    fn write(mut self, announcements: &Receiver<Announcement>) -> Vec<Problem> {
        let live = self.sinks.iter().any(|sink| matches!(sink, Sink::Terminal(terminal) if terminal.is_live()));
        let mut drawn = self.clock.now();
        loop {
            let next = if live {
                match announcements.recv_timeout(REDRAW) {
                    Ok(announcement) => Some(announcement),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            } else {
                match announcements.recv() {
                    Ok(announcement) => Some(announcement),
                    Err(_) => break,
                }
            };
            let now = self.clock.now();
            let redraw = live && (next.is_none() || now.saturating_sub(drawn) >= REDRAW);
            if redraw {
                drawn = now;
            }
            for sink in &mut self.sinks {
                match (sink, &next) {
                    (Sink::Terminal(terminal), next) => {
                        if let Some(next) = next {
                            terminal.take(&self.plan, now, next);
                        }
                        if redraw {
                            terminal.redraw(now);
                        }
                    }
                    (Sink::Junit(junit), Some(next)) => junit.take(next),
                    (Sink::JsonLines(lines), Some(next)) => {
                        lines.take(&self.plan, self.clock.unix_ms(), next);
                    }
                    (_, None) => {}
                }
            }
        }
        let close = |sink| match sink {
            Sink::Junit(junit) => junit.close().err(),
            Sink::JsonLines(lines) => lines.close().err(),
            Sink::Terminal(_) => None,
        };
        self.sinks.into_iter().filter_map(close).map(|error| error.problem()).collect()
    }
}
