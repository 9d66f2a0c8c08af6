//! Services: commands that run beside others in an environment, each ready before what comes after it starts.
//!
//! ```text
//! starting ─► ready ─► stopping ─► ended
//!     │         └────► died
//!     └─► never ready: nothing after it is started
//! ```
//!
//! No thread belongs to the services of one command: whoever runs that command watches them too. Those that several
//! commands share have one thread ([`SharedServices`]), because between two commands nobody else would read
//! what they write.

mod company;
mod log;
mod suite_wide;
mod with_command;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use testyard_model::{CommandStatus, Problem, UserSpec};
use testyard_protocol::RawText;

pub use log::LogEnd;
pub use suite_wide::SharedServices;
pub use with_command::Served;

/// A service that is to run.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name, for errors.
    pub name: String,
    /// Program and arguments, verbatim.
    pub argv: Vec<RawText>,
    /// Where it runs.
    pub cwd: Option<PathBuf>,
    /// Variables over the machine's own.
    pub env: Vec<(RawText, RawText)>,
    /// Whom it runs as.
    pub user: UserSpec,
    /// When it counts as ready.
    pub ready: Readiness,
    /// How long it may take until then.
    pub patience: Duration,
    /// The signal by which it is asked to end.
    pub stop_signal: i32,
    /// How long it may take to end after that.
    pub stop_patience: Duration,
}

/// When a service counts as ready.
#[derive(Debug, Clone)]
pub enum Readiness {
    /// Once it runs.
    Started,
    /// Once something accepts connections on this port of the environment's loopback.
    Port(u16),
    /// Once it has written a line that matches.
    Line(regex::bytes::Regex),
    /// Once this command, run over and over in the environment, exits with 0.
    Command(Vec<RawText>),
}

/// What became of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    /// Its name.
    pub name: String,
    /// How long it took to be ready; none where it never was.
    pub ready_after: Option<Duration>,
    /// How it ended, where it did so unasked.
    pub died: Option<CommandStatus>,
    /// What it wrote.
    pub log: LogEnd,
}

/// Why something with services could not be run, and what is known of them.
#[derive(Debug)]
pub struct ServiceFailure {
    /// Why. Of kind `Service` where a service is to blame.
    pub problem: Problem,
    /// Every service that was started.
    pub services: Vec<ServiceRecord>,
}

impl From<Problem> for ServiceFailure {
    fn from(problem: Problem) -> Self {
        Self { problem, services: Vec::new() }
    }
}

/// What is known of one service, shared between who watches it and who asks.
#[derive(Debug)]
struct State {
    name: String,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    ready_after: Option<Duration>,
    stopping: bool,
    died: Option<CommandStatus>,
    /// Why it never came to be.
    refused: Option<Problem>,
    log: log::Log,
}

impl State {
    fn new(name: &str) -> Arc<Self> {
        Arc::new(Self { name: name.to_owned(), known: Mutex::default() })
    }

    // Each change under this lock is complete in itself, so a panic elsewhere leaves it sound.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self) -> ServiceRecord {
        let known = self.known();
        ServiceRecord {
            name: self.name.clone(),
            ready_after: known.ready_after,
            died: known.died,
            log: known.log.end(),
        }
    }
}
