//! What a dispatcher is told, and what it says.

use std::time::Duration;

use testyard_model::{CommandStatus, Problem};

use crate::cancel::CancelReason;
use crate::job::{JobEvent, Refusal};
use crate::result::{Attempt, Stop, Verdict};
use crate::schedule::{Demand, Room};

/// What decides how tests are dispatched.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The nodes on which tests run, at least one.
    pub nodes: Vec<Room>,
    /// Those of them that are not there yet.
    pub awaited: Vec<usize>,
    /// Start nothing more after a failure.
    pub fail_fast: bool,
    /// A skip for want of something is a failure.
    pub no_skip: bool,
    /// Attempts of a test that meets transient infrastructure errors or loses its node; above 0.
    pub attempts: u32,
    /// Decides the jitter.
    pub seed: u64,
}

/// A test as far as dispatching goes.
#[derive(Debug, Clone, Default)]
pub struct Dispatched {
    /// How long its command may take.
    pub timeout: Duration,
    /// What it sets aside.
    pub demand: Demand,
    /// Why it is not to be run at all.
    pub refused: Option<Refusal>,
    /// How often a failure is tried again.
    pub retries: u32,
    /// Its failures do not count.
    pub quarantined: bool,
    /// After how long it is called slow.
    pub slow_after: Option<Duration>,
}

/// A moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Monotonic.
    pub since: Duration,
    /// Milliseconds since 1970-01-01 UTC.
    pub unix_ms: i64,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// Time has passed, or the run begins.
    Tick,
    /// The user asked to stop.
    Interrupt,
    /// A node that was awaited is there.
    Joined {
        /// Which.
        node: usize,
        /// What it gives.
        room: Room,
    },
    /// A node that was awaited does not come.
    Missed {
        /// Which.
        node: usize,
        /// Why.
        problem: Problem,
    },
    /// News of a running job.
    Job {
        /// Of which test.
        test: usize,
        /// Of which attempt.
        attempt: u32,
        /// The news.
        event: JobEvent,
    },
    /// A job ended.
    Ended {
        /// Of which test.
        test: usize,
        /// Of which attempt.
        attempt: u32,
        /// How.
        end: End,
    },
}

/// How a job ended, as far as the decision goes.
#[derive(Debug, Clone)]
pub enum End {
    /// Its command ended.
    Status(CommandStatus),
    /// Its command ended, and before that a service that it uses.
    ServiceDied {
        /// The service's name.
        service: String,
        /// How the service ended.
        died: CommandStatus,
        /// How the command ended.
        status: CommandStatus,
    },
    /// Something other than the test failed.
    Infrastructure(Problem),
    /// The node is lost, with everything that ran there.
    Lost(Problem),
    /// This host cannot run it.
    Refused(Refusal),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Hand this attempt to a free worker.
    Start {
        /// Of which test.
        test: usize,
        /// Which, from 1.
        attempt: u32,
        /// On which node, from 0.
        node: usize,
    },
    /// A node is lost: nothing is started there any more, and what ran there is tried elsewhere. At most once a node.
    Lost {
        /// Which node.
        node: usize,
        /// Why.
        problem: Problem,
    },
    /// A node that was awaited does not come: nothing was started there. At most once a node.
    Missed {
        /// Which node.
        node: usize,
        /// Why.
        problem: Problem,
    },
    /// Ask a running job to end.
    Cancel {
        /// Of which test.
        test: usize,
        /// Why.
        reason: CancelReason,
    },
    /// Its worker will not come back: take another.
    Abandon {
        /// Of which test.
        test: usize,
    },
    /// An attempt met an infrastructure error, or failed and may be tried again: it will be repeated.
    Retry {
        /// Of which test.
        test: usize,
        /// The attempt that ended.
        attempt: Box<Attempt>,
        /// When it will be repeated.
        after: Duration,
    },
    /// A running test has become slow. At most once an attempt.
    Slow {
        /// Which test.
        test: usize,
        /// How long its command has run.
        after: Duration,
    },
    /// Its time is nearly up: look at what it is doing. At most once an attempt.
    Inspect {
        /// Which test.
        test: usize,
        /// Which attempt.
        attempt: u32,
        /// How long there is until its executor ends it.
        left: Duration,
    },
    /// A test is done. Comes once for each.
    Result {
        /// Which test.
        test: usize,
        /// What became of it.
        verdict: Verdict,
        /// Its attempts.
        attempts: Vec<Attempt>,
    },
    /// Nothing more will be started.
    Stopping(Stop),
    /// The user asked twice: leave at once.
    Kill,
}
