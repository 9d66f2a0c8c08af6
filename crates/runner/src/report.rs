//! What people and files see of a run. A thread of its own does all the writing, in the order of what happened.

mod ending;
mod file;
mod github;
mod html;
mod json_lines;
mod junit;
mod lanes;
mod record;
mod safe_text;
mod spec;
mod status_line;
mod tap;
mod terminal;
mod trace;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use testyard_model::{Problem, ProblemKind};

pub use ending::render;
pub use file::write_whole;
pub use json_lines::RECORD;
pub use record::{RecordError, RunInfo, RunRecord};
pub use safe_text::{SafeText, safe_ends, safe_line};
pub use spec::{ReportError, ReportKind, ReportSpec};
pub use terminal::{OnKept, Size, Style, Terminal, size_of};

use crate::clock::Clock;
use crate::job::JobEvent;
use crate::plan::Plan;
use crate::result::{Attempt, RunSummary, Stop, TestResult};
use ending::Endings;
use json_lines::JsonLines;

/// How often a terminal's status line is drawn again.
const REDRAW: Duration = Duration::from_millis(100);

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
    /// An attempt met an infrastructure error, or failed and may be tried again: it will be repeated.
    AttemptFailed {
        /// Of which test.
        test: usize,
        /// The attempt.
        attempt: Attempt,
        /// When it will be repeated.
        after: Duration,
    },
    /// A running test has become slow.
    TestSlow {
        /// Which.
        test: usize,
        /// How long it has run.
        after: Duration,
    },
    /// A test is done.
    TestFinished(Arc<TestResult>),
    /// Somebody at the terminal wants to know what runs.
    Asked,
    /// Nothing more will be started.
    Stopping(Stop),
    /// Something beside the tests went wrong; the run goes on.
    Warning(Problem),
    /// The last.
    RunFinished(Arc<RunSummary>),
}

/// Who is told of a run.
#[derive(Default)]
pub struct Audience {
    /// People who watch.
    pub terminal: Option<Terminal>,
    /// Reports that were asked for.
    pub reports: Vec<ReportSpec>,
    /// The folder in which runs are kept, each in a folder named by its id.
    pub keep: Option<PathBuf>,
    /// A file to which the summary of a job is added.
    pub job_summary: Option<PathBuf>,
    /// Where annotations go that are asked for without a file.
    pub annotations: Option<Box<dyn Write + Send>>,
}

/// Where a run's announcements go.
pub struct Reporting {
    sender: Sender<Announcement>,
    thread: JoinHandle<Written>,
}

/// What could not be written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Of what was asked for: the run is not what it should be.
    pub(crate) failed: Vec<Problem>,
    /// Of what comes by itself.
    pub(crate) missed: Vec<Problem>,
}

impl Reporting {
    /// Starts the thread. Files are tried at once, so that a wrong path is found before the first test.
    ///
    /// # Errors
    /// Where a report's file cannot be written.
    pub fn start(plan: &Arc<Plan>, clock: Arc<dyn Clock>, audience: Audience) -> Result<Self, ReportError> {
        let mut sinks = Vec::new();
        // First what must survive whatever happens to the rest.
        sinks.extend(audience.keep.map(|runs| Sink::Kept(JsonLines::of_kept(runs))));
        let (live, ending): (Vec<_>, Vec<_>) =
            audience.reports.into_iter().partition(|spec| spec.kind == ReportKind::JsonLines);
        for path in live.into_iter().filter_map(|spec| spec.file) {
            sinks.push(Sink::JsonLines(JsonLines::create(&path)?));
        }
        let endings = Endings::prepare(ending, audience.job_summary, audience.annotations)?;
        sinks.extend(endings.map(|endings| Sink::Endings(Box::new(endings))));
        // The terminal comes last: when it says that the run is over, the files are there.
        sinks.extend(audience.terminal.map(|terminal| Sink::Terminal(Box::new(terminal))));
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
    pub(crate) fn close(self) -> Written {
        drop(self.sender);
        self.thread.join().unwrap_or_else(|_| {
            let bug = Problem::new(ProblemKind::Bug, "a bug in Testyard ended the thread that writes reports");
            Written { failed: vec![bug], ..Written::default() }
        })
    }
}

/// Shows a run that is over, as it was shown when it ended.
pub fn show(record: &RunRecord, terminal: &mut Terminal) {
    let none = Plan { suites: Vec::new(), tests: Vec::new(), shard: None };
    let mut tell = |announcement| terminal.take(&none, Duration::ZERO, &announcement);
    for problem in &record.warnings {
        tell(Announcement::Warning(problem.clone()));
    }
    for result in &record.results {
        tell(Announcement::TestFinished(result.clone()));
    }
    tell(Announcement::RunFinished(Arc::new(record.summary())));
}

enum Sink {
    Kept(JsonLines),
    JsonLines(JsonLines),
    Endings(Box<Endings>),
    Terminal(Box<Terminal>),
}

struct Writer {
    plan: Arc<Plan>,
    clock: Arc<dyn Clock>,
    sinks: Vec<Sink>,
}

impl Writer {
    fn write(mut self, announcements: &Receiver<Announcement>) -> Written {
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
                    (Sink::Endings(endings), Some(next)) => endings.take(next),
                    (Sink::Kept(lines) | Sink::JsonLines(lines), Some(next)) => {
                        lines.take(&self.plan, self.clock.unix_ms(), next);
                    }
                    (_, None) => {}
                }
            }
        }
        self.close()
    }

    fn close(self) -> Written {
        let mut written = Written::default();
        for sink in self.sinks {
            match sink {
                Sink::Kept(lines) => written.missed.extend(lines.close().err().map(|error| error.problem())),
                Sink::JsonLines(lines) => written.failed.extend(lines.close().err().map(|error| error.problem())),
                Sink::Endings(endings) => {
                    written.failed.extend(endings.into_failed().iter().map(ReportError::problem));
                }
                Sink::Terminal(_) => {}
            }
        }
        written
    }
}
