//! Services: what a test's executor starts beside it, and what became of that.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use testyard_model::CommandStatus;

use crate::capture::Captured;

/// A service that a job needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name, unique in the suite.
    pub name: String,
    /// The program and its arguments, verbatim.
    pub argv: Vec<String>,
    /// Where it runs, absolute.
    pub cwd: PathBuf,
    /// Variables beside the executor's own base.
    pub env: BTreeMap<String, String>,
    /// Whom it runs as.
    pub user: ServiceUser,
    /// When it counts as ready.
    pub ready: Readiness,
    /// How long it may take until then.
    pub patience: Duration,
    /// Whose it is.
    pub scope: ServiceScope,
    /// The number of the signal by which it is asked to end.
    pub stop_signal: i32,
    /// How long it may take to end after that.
    pub stop_patience: Duration,
    /// It may end before the test does.
    pub may_end: bool,
}

/// Whom a service runs as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ServiceUser {
    /// The user who runs Testyard, without capabilities.
    #[default]
    Caller,
    /// Root inside the environment.
    Root,
    /// A user of the image, by name.
    Named(String),
}

/// When a service counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Readiness {
    /// Once it runs.
    #[default]
    Started,
    /// Once something accepts connections on this port of the environment's loopback.
    Port(u16),
    /// Once it has written a line that matches this pattern, which is a valid one.
    Log(String),
    /// Once this command, run over and over beside it, exits with 0.
    Command(Vec<String>),
}

/// Whose a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceScope {
    /// Each test's own, in its environment.
    #[default]
    Environment,
    /// The suite's: started once, in an environment of its own, whose network the tests that use it share.
    Suite,
}

/// The services of a job, each list in the order of their start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Services {
    /// Those of its own environment.
    pub own: Vec<Arc<Service>>,
    /// Those of the suite, where the job uses one of them: all that some test of the run uses.
    pub shared: Vec<Arc<Service>>,
}

impl Services {
    /// Whether the job has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.shared.is_empty()
    }
}

/// What became of a service beside one test.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServiceResult {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub scope: ServiceScope,
    /// How long it took to be ready, in microseconds; none where it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_us: Option<u64>,
    /// How it ended, where it did so before the test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub died: Option<CommandStatus>,
    /// Bytes it wrote, both streams together; the suite's: since it was started.
    pub bytes: u64,
    /// For a test that did not pass, in JSON only: the end of what it wrote, made safe to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The end of what it wrote.
    #[serde(skip)]
    pub log: Captured,
}

impl ServiceResult {
    /// `died: signal 9`, `was not ready`, `ready after 12ms`.
    #[must_use]
    pub fn state(&self) -> String {
        match (self.died, self.ready_us) {
            (Some(status), _) => format!("died: {}", shown(status)),
            (None, None) => "not ready".to_owned(),
            (None, Some(micros)) => format!("ready after {}ms", micros / 1_000),
        }
    }
}

/// How something ended, in words.
#[must_use]
pub fn shown(status: CommandStatus) -> String {
    match status {
        CommandStatus::Exited(code) => format!("exit code {code}"),
        CommandStatus::Signalled(signal) => format!("signal {}", crate::result::SignalName(signal)),
        CommandStatus::TimedOut => "its time was up".to_owned(),
    }
}

/// The first service that died although it may not.
#[must_use]
pub fn died<'a>(services: &Services, results: &'a [ServiceResult]) -> Option<(&'a str, CommandStatus)> {
    let may_end = |name: &str| services.own.iter().chain(&services.shared).any(|one| one.name == name && one.may_end);
    results.iter().filter(|one| !may_end(&one.name)).find_map(|one| Some((one.name.as_str(), one.died?)))
}
