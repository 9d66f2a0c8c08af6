//! Results, as values and as the JSON of `run` (see `docs/json.md`).

mod aftermath;
mod signal_name;
mod summary;

use serde::{Deserialize, Serialize};
use testyard_model::{CommandStatus, ExitCode, Isolation, Problem, ProblemKind, Usage};

pub use aftermath::{Aftermath, Artifact, ChangedFile, FileChanges, KeptEnvironment};

use crate::capture::Captured;
use crate::inspect::Inspection;
use crate::report::safe_ends;
use crate::service::{ServiceResult, shown};

pub use signal_name::SignalName;
pub use summary::{ExpiredQuarantine, RunSummary, TreeInfo};

/// Bytes of a stream of which the text goes into a result's JSON.
const TEXT: usize = 64 << 10;

/// The same for an attempt before the last.
const EARLIER_TEXT: usize = 16 << 10;

/// The version of the JSON of `run`; raised when a reader could break.
pub const JSON_VERSION: u32 = testyard_model::machine::JSON_VERSION;

/// What became of a test. Each test of a run has exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Verdict {
    /// It exited with 0.
    Passed,
    /// It failed, and passed when it was tried again.
    Flaky {
        /// Attempts that failed.
        failed_attempts: u32,
    },
    /// It did not.
    Failed(Failure),
    /// Its deadline passed.
    TimedOut {
        /// The deadline, in milliseconds.
        limit_ms: u64,
    },
    /// It was not run, or not to its end.
    Skipped(SkipReason),
    /// Something other than the test failed, also when tried again.
    InfrastructureError {
        /// What.
        problem: Problem,
    },
}

/// How a test failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum Failure {
    /// It exited with another code than 0.
    Exit {
        /// The code, 1–255.
        code: u8,
    },
    /// A signal ended it.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// A service that it uses died before it ended, which says more than how the test itself ended.
    ServiceDied {
        /// The service's name.
        service: String,
        /// How the service ended.
        died: CommandStatus,
        /// How the test's own command ended.
        status: CommandStatus,
    },
    /// Its command could not be started.
    NotStarted {
        /// Why.
        problem: Problem,
    },
    /// It would have been skipped, which `--no-skip` forbids.
    Skipped {
        /// What is missing.
        missing: String,
        /// Why.
        detail: String,
        /// The command that would provide it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}

/// Why a test has no result of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum SkipReason {
    /// This host cannot give what it needs.
    Missing {
        /// What is missing.
        missing: String,
        /// Why.
        detail: String,
        /// The command that would provide it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    /// The run was stopped before it was started.
    NotStarted {
        /// What stopped the run.
        stop: Stop,
    },
    /// The run was stopped while it ran.
    Cancelled {
        /// What stopped the run.
        stop: Stop,
    },
}

/// What stops a run early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// The user.
    Interrupted,
    /// The first failure, with `--fail-fast`.
    FailFast,
    /// All machines over which it was spread are lost.
    NoMachineLeft,
}

impl Stop {
    /// In a few words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interrupted => "interrupted",
            Self::FailFast => "--fail-fast after a failure",
            Self::NoMachineLeft => "no machine is left",
        }
    }
}

impl Verdict {
    /// The word for it, as in JSON.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Flaky { .. } => "flaky",
            Self::Failed(_) => "failed",
            Self::TimedOut { .. } => "timed-out",
            Self::Skipped(_) => "skipped",
            Self::InfrastructureError { .. } => "infrastructure-error",
        }
    }

    /// Whether the test itself was found wanting.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::TimedOut { .. })
    }

    /// Whether something other than the test failed.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(self, Self::InfrastructureError { .. })
    }

    /// Whether it ended as it should, at the first or at a later attempt.
    #[must_use]
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Passed | Self::Flaky { .. })
    }

    /// What this result alone makes of a run.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Passed | Self::Flaky { .. } => ExitCode::Passed,
            Self::Failed(_) | Self::TimedOut { .. } => ExitCode::TestsFailed,
            Self::Skipped(SkipReason::NotStarted { stop: Stop::NoMachineLeft }) => ExitCode::Infrastructure,
            Self::Skipped(_) => ExitCode::Skipped,
            Self::InfrastructureError { problem } if problem.kind == ProblemKind::Bug => ExitCode::Bug,
            Self::InfrastructureError { .. } => ExitCode::Infrastructure,
        }
    }

    /// What there is to know beside the word: `exit code 3`, `after 2s`, or nothing.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        Some(match self {
            Self::Passed => return None,
            Self::Flaky { failed_attempts: 1 } => "failed once, then passed".to_owned(),
            Self::Flaky { failed_attempts } => format!("failed {failed_attempts} times, then passed"),
            Self::Failed(Failure::Exit { code }) => format!("exit code {code}"),
            Self::Failed(Failure::Signal { signal }) => format!("signal {}", SignalName(*signal)),
            Self::Failed(Failure::ServiceDied { service, died, status }) => {
                format!("service `{service}` died: {}; the test itself: {}", shown(*died), shown(*status))
            }
            Self::Failed(Failure::NotStarted { problem }) => format!("not started: {}", whole(problem)),
            Self::Failed(Failure::Skipped { missing, detail, .. }) => {
                format!("needs {missing}: {detail}; --no-skip makes this a failure")
            }
            Self::TimedOut { limit_ms } => {
                format!("after {}", testyard_model::Span(std::time::Duration::from_millis(*limit_ms)))
            }
            Self::Skipped(SkipReason::Missing { missing, detail, .. }) => format!("needs {missing}: {detail}"),
            Self::Skipped(SkipReason::NotStarted { stop }) => format!("not started: {}", stop.as_str()),
            Self::Skipped(SkipReason::Cancelled { stop }) => format!("ended while running: {}", stop.as_str()),
            Self::InfrastructureError { problem } => whole(problem),
        })
    }

    /// What to do about it.
    #[must_use]
    pub fn hints(&self) -> &[String] {
        match self {
            Self::Failed(Failure::NotStarted { problem }) | Self::InfrastructureError { problem } => &problem.hints,
            Self::Skipped(SkipReason::Missing { hint, .. }) | Self::Failed(Failure::Skipped { hint, .. }) => {
                hint.as_slice()
            }
            _ => &[],
        }
    }
}

/// A problem in one line, with its causes.
pub(crate) fn whole(problem: &Problem) -> String {
    let mut text = problem.message.clone();
    for cause in &problem.causes {
        text.push_str(": ");
        text.push_str(cause);
    }
    text
}

/// One try of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which, from 1.
    pub number: u32,
    /// When it was handed to a worker, in milliseconds since 1970-01-01 UTC.
    pub started_ms: i64,
    /// From there to its end, preparation included, in microseconds.
    pub duration_us: u64,
    /// Which worker ran it, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
    /// Which machine, of a run that is spread over several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Standard output, of an attempt before the last; the last one's is the result's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<OutputInfo>,
    /// Standard error, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<OutputInfo>,
    /// What its processes were doing when its time was nearly up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inspection: Option<Inspection>,
}

/// Why a test's failures do not fail the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineMark {
    /// Who cares about it.
    pub owner: String,
    /// Why its failures are borne.
    pub reason: String,
    /// The last day on which they are: `2027-03-31`.
    pub until: String,
}

/// How much a stream gave, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputInfo {
    /// Bytes written by the test.
    pub bytes: u64,
    /// Bytes that could not be kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// The file with the raw bytes, where they were too many to hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// For a test that did not pass, in JSON only: the text, made safe to show; its middle is left out above 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A test's captured output. Kept for tests that did not pass.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Standard output.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
}

/// The result of one test.
#[derive(Debug, Serialize, Deserialize)]
pub struct TestResult {
    /// Its place in the plan, from 0.
    #[serde(default)]
    pub index: usize,
    /// Its suite.
    pub suite: String,
    /// Its name.
    pub name: String,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How long the command ran, in microseconds; of the last attempt. 0 where it never did.
    pub duration_us: u64,
    /// Every attempt, in order; none where it was never started.
    pub attempts: Vec<Attempt>,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The isolation that it really had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Where it ran, as people would name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The hash of the working tree that it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
    /// The working tree had changed when it ended: `tree` may not be what it ran.
    pub source_changed: bool,
    /// The file that it is, absolute, where a glob found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Its tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Whom to ask about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<OutputInfo>,
    /// Standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<OutputInfo>,
    /// What became of its files.
    #[serde(flatten)]
    pub aftermath: Aftermath,
    /// The variant of its suite's matrix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Which of several runs of the same test in this run it is, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition: Option<u32>,
    /// It took longer than its `slow-after`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub slow: bool,
    /// It is quarantined: where it failed, that does not fail the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<QuarantineMark>,
    /// What became of the services that it uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceResult>,
    /// The output itself.
    #[serde(skip)]
    pub outputs: Outputs,
    /// The output of each attempt before the last that has some, with the attempt's number.
    #[serde(skip)]
    pub earlier: Vec<(u32, Outputs)>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

impl TestResult {
    /// Its JSON, with the text of its output where it did not pass. The text is read only now: the results of a
    /// run are held all together, and their output would be too much.
    ///
    /// # Errors
    /// Where memory cannot hold the text; plain data is always JSON.
    pub fn to_json(&self) -> serde_json::Result<serde_json::Value> {
        self.to_json_within(TEXT)
    }

    /// [`Self::to_json`], with at most so many bytes of each stream.
    ///
    /// # Errors
    /// As there.
    pub fn to_json_within(&self, most: usize) -> serde_json::Result<serde_json::Value> {
        let mut json = serde_json::to_value(self)?;
        if self.verdict != Verdict::Passed {
            add_text(&mut json, &self.outputs, most.min(TEXT));
            for attempt in json["attempts"].as_array_mut().into_iter().flatten() {
                let earlier = self.earlier.iter().find(|(number, _)| attempt["number"] == *number);
                if let Some((_, outputs)) = earlier {
                    add_text(attempt, outputs, most.min(EARLIER_TEXT));
                }
            }
            for (place, service) in self.services.iter().enumerate() {
                if let Ok(text) = safe_ends(&service.log, TEXT) {
                    json["services"][place]["text"] = text.into();
                }
            }
        }
        Ok(json)
    }

    /// Whether it failed and that is borne.
    #[must_use]
    pub fn is_excused(&self) -> bool {
        self.quarantine.is_some() && self.verdict.is_failure()
    }

    /// What an attempt wrote, by its number.
    #[must_use]
    pub fn outputs_of(&self, attempt: u32) -> Option<&Outputs> {
        if self.attempts.last().is_some_and(|last| last.number == attempt) {
            return Some(&self.outputs);
        }
        self.earlier.iter().find(|(number, _)| *number == attempt).map(|(_, outputs)| outputs)
    }

    /// How often it was tried again.
    #[must_use]
    pub fn retried(&self) -> usize {
        self.attempts.len().saturating_sub(1)
    }
}

/// The text of outputs, beside what is said of their streams.
fn add_text(json: &mut serde_json::Value, outputs: &Outputs, most: usize) {
    for (stream, captured) in [("stdout", &outputs.stdout), ("stderr", &outputs.stderr)] {
        if let (Some(info), Ok(text)) = (json.get_mut(stream), safe_ends(captured, most)) {
            info["text"] = text.into();
        }
    }
}
