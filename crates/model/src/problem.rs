//! One shape for every error that crosses a boundary: to a person, a log, a socket or a report.
//!
//! Libraries keep their own typed errors; where one leaves its process it becomes a [`Problem`].

use serde::{Deserialize, Serialize};

/// What a [`Problem`] is about; decides the exit code and whether a retry makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// Wrong usage or configuration: exit 2, never retried.
    Usage,
    /// The named thing does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The thing exists, but its state forbids this (a stopped machine, a lease held by another).
    WrongState,
    /// This host cannot do it; the hint names what would provide the ability.
    Unsupported,
    /// Not permitted to this user.
    Denied,
    /// A limit was reached: disk, memory, processes, ports.
    Exhausted,
    /// The other side went away or did not answer in time; may be retried.
    Unavailable,
    /// A deadline passed.
    TimedOut,
    /// Asked to stop.
    Interrupted,
    /// The other side sent what the protocol does not allow.
    Protocol,
    /// The command to run could not be started (no such program, not executable).
    Command,
    /// A service of a test did not get ready, or ended before the test did.
    Service,
    /// The operating system refused something that should have worked.
    System,
    /// A bug in Testyard: exit 70.
    Bug,
}

impl ProblemKind {
    /// Whether the same request may succeed a moment later.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::TimedOut)
    }
}

/// An error as people and programs see it: what, why, and what to type next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// What sort of failure it is.
    pub kind: ProblemKind,
    /// A lower-case fragment that names the thing.
    pub message: String,
    /// Why, outermost first; each a lower-case fragment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// Next commands or changes, one a line, in the order to try.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

impl Problem {
    /// A problem without causes or hints.
    pub fn new(kind: ProblemKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new(), hints: Vec::new() }
    }

    /// From any error: its message, with the chain of its sources as causes.
    pub fn from_error(kind: ProblemKind, error: &dyn std::error::Error) -> Self {
        let mut problem = Self::new(kind, error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            problem.causes.push(cause.to_string());
            source = cause.source();
        }
        problem
    }

    /// Adds a cause below those there are.
    #[must_use]
    pub fn because(mut self, cause: impl std::fmt::Display) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}
