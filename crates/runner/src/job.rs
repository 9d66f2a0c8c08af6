//! What the runner asks of whatever runs tests: one attempt of one test.
//!
//! The runner decides which test runs when and what its end means; an [`Executor`] does the work on machines.
//! The engine is one; [`crate::process::ProcessExecutor`] is the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use testyard_model::{
    BackendName, CommandStatus, EnvironmentLimits, ImageReference, Isolation, Network, Problem, Usage,
};

use crate::cancel::Cancel;
use crate::capture::{Capture, CaptureOptions, Captured, Stream};
use crate::cluster::SuiteCluster;
use crate::result::Aftermath;
use crate::schedule::Room;
use crate::service::{ServiceResult, Services};
use crate::suite::{SyncSettings, TestUser};

/// One attempt of one test.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The suite's name.
    pub suite: String,
    /// The test's name, unique in the suite.
    pub test: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Which of [`Executor::nodes`] it is for; 0 where there are none.
    pub node: usize,
    /// The suite's folder, absolute; it lies in the working tree that the test is about.
    pub root: PathBuf,
    /// The program and its arguments, verbatim.
    pub argv: Vec<String>,
    /// Where it runs, absolute.
    pub cwd: PathBuf,
    /// Variables beside the executor's own base: the suite's, and `TESTYARD_SUITE`, `TESTYARD_TEST`,
    /// `TESTYARD_ATTEMPT` and, where there is one, `TESTYARD_FILE`.
    pub env: BTreeMap<String, String>,
    /// The machine's backend; none means that the executor chooses.
    pub backend: Option<BackendName>,
    /// The machine's image; none means this host.
    pub image: Option<ImageReference>,
    /// Abilities that were found to be there.
    pub needs: Vec<String>,
    /// The least isolation; more may be given, never less.
    pub isolation: Isolation,
    /// Its network.
    pub network: Network,
    /// Its limits.
    pub limits: EnvironmentLimits,
    /// Whom it runs as.
    pub user: TestUser,
    /// How long the command may take once it is started; then its whole tree is ended.
    pub timeout: Duration,
    /// The run's id.
    pub run: String,
    /// Files to bring back to the working tree, as patterns below [`Job::root`].
    pub outputs: Vec<String>,
    /// Files to keep with the result, likewise.
    pub artifacts: Vec<String>,
    /// What is done before the suite's first test and after its last, where it says so.
    pub preparation: Option<Arc<Preparation>>,
    /// What its machine has of the working tree.
    pub sync: SyncSettings,
    /// How long the environment of a failed test is kept; none ends it.
    pub keep_failed: Option<Duration>,
    /// What runs beside it.
    pub services: Services,
    /// The suite's cluster, where it uses that: it is made by the first job that does, and goes with the run. The
    /// executor adds `TESTYARD_CLUSTER` and its kind to the variables.
    pub cluster: Option<Arc<SuiteCluster>>,
    /// Where output goes that is too much to hold.
    pub capture: CaptureOptions,
}

impl Job {
    /// Where to write what comes from one of the command's streams.
    #[must_use]
    pub fn capture(&self, stream: Stream) -> Capture {
        Capture::new(&self.capture, stream)
    }
}

/// What a suite has done for all of its tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preparation {
    /// Run once; what it changes of the files lies under every test's environment. None where there is only a
    /// `restore`.
    pub prepare: Option<Vec<String>>,
    /// Run after the suite's tests.
    pub restore: Option<Vec<String>>,
    /// Files that decide whether `prepare` must be run again, as patterns below the suite's folder.
    pub inputs: Vec<String>,
    /// Variables of the suite's defaults.
    pub env: BTreeMap<String, String>,
    /// Whom both run as.
    pub user: TestUser,
    /// The network of both.
    pub network: Network,
    /// How long each may take.
    pub timeout: Duration,
}

/// News of a job while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// It waits for something, in a few words: `machine`, `image debian:12`.
    Preparing(String),
    /// The command runs, in this environment. Its time counts from here.
    Started {
        /// The environment, as people would name it.
        environment: String,
    },
    /// The command has ended; the environment is being read or put away.
    Ending,
}

/// How a job ended. Each job gives exactly one.
#[derive(Debug)]
pub enum JobOutcome {
    /// The command ran and ended, by itself or by a deadline or cancellation.
    Finished(Finished),
    /// Something other than the test failed. Tried again by itself where
    /// [`testyard_model::ProblemKind::is_transient`]; a problem of kind `Command` (no such program, not
    /// executable) is the test's own failure.
    Infrastructure(Problem),
    /// The node is lost, with everything that ran there: tried again on another.
    Lost(Problem),
    /// A service that it needs did not get ready, or was dead already.
    Unserved {
        /// Which, and why.
        problem: Problem,
        /// What is known of its services.
        services: Vec<ServiceResult>,
    },
    /// It was not run, because this host cannot give what it asks for.
    Skipped(Refusal),
}

/// Why this host cannot run a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is missing, in few words: `isolation namespace`.
    pub missing: String,
    /// Why.
    pub reason: String,
    /// The command or change that would provide it.
    pub hint: Option<String>,
}

/// A command that ran.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: CommandStatus,
    /// What it used.
    pub usage: Usage,
    /// What it wrote to its standard output.
    pub stdout: Captured,
    /// What it wrote to its standard error.
    pub stderr: Captured,
    /// Where it really ran.
    pub environment: EnvironmentUsed,
    /// What became of its files.
    pub aftermath: Box<Aftermath>,
    /// What became of its services.
    pub services: Vec<ServiceResult>,
}

/// Where a command really ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentUsed {
    /// As people would name it: `namespace/m1/e17`, `this host`.
    pub label: String,
    /// The isolation that it really had.
    pub isolation: Isolation,
}

/// Whether this host can do one of the things that tests need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ability {
    /// It can.
    Available,
    /// It cannot.
    Missing {
        /// Why not.
        reason: String,
        /// The command that would provide it.
        hint: Option<String>,
    },
    /// Nobody knows such an ability; these are known.
    Unknown(Vec<String>),
}

/// The source that tests run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceTree {
    /// The hash of the working tree, when one could be taken.
    pub hash: Option<String>,
    /// Ignored files that tests can see, for which nothing is claimed; relative to the tree, perhaps cut short.
    pub unhashed: Vec<String>,
    /// Tests see an immutable copy of it.
    pub frozen: bool,
}

/// One of several machines over which a run's tests are spread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// As people name it.
    pub name: String,
    /// What it gives to tests; a guess while it is awaited.
    pub room: Room,
    /// It is not there yet: [`Executor::await_node`] says when it is.
    pub awaited: bool,
}

/// Runs jobs. Called from many threads at once.
pub trait Executor: Send + Sync {
    /// The nodes over which tests are spread, with their own room; none where all run in one place, with the room that
    /// [`crate::run::RunOptions`] gives. Called once for a run, before anything is started.
    fn nodes(&self) -> Vec<Node> {
        Vec::new()
    }

    /// Waits until a node is there that was awaited when the run began, or until `over` is requested; what it gives to
    /// tests. Called once for each such node in a run, in a thread of its own.
    ///
    /// # Errors
    /// It cannot be had; nobody needs it any more.
    fn await_node(&self, node: usize, over: &Cancel) -> Result<Room, Problem> {
        let _ = over;
        Err(Problem::new(testyard_model::ProblemKind::Bug, format!("nobody awaits node {node}")))
    }

    /// Whether this host can do each of these, in their order. Called once for a run, before anything is started.
    fn abilities(&self, needs: &[String]) -> Vec<Ability>;

    /// The working tree around this suite's folder. Called once for each suite, before anything is started.
    ///
    /// # Errors
    /// Where the tree cannot be read; the run then ends as an infrastructure error.
    fn source_tree(&self, root: &Path) -> Result<SourceTree, Problem>;

    /// Whether that working tree has changed since [`Executor::source_tree`] looked at it. Called after each test.
    fn source_changed(&self, root: &Path) -> bool;

    /// Called once after the last test: runs what suites want done then, and tells what went wrong.
    fn finish(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// Runs one job to its end. It ends the command's whole tree at [`Job::timeout`] (status `TimedOut`), and
    /// soon after `cancel` is requested; what it returns then says only what was found out until then.
    fn run(&self, job: &Job, cancel: &Cancel, events: &dyn Fn(JobEvent)) -> JobOutcome;
}
