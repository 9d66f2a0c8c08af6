//! Why a machine could not be talked to.

use testyard_model::{Problem, ProblemKind};

use crate::wire::WireError;

/// Why a request to a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the machine is stopped, or its supervisor died.
    #[error("machine {machine} does not answer")]
    NotThere {
        /// Which.
        machine: String,
        /// The kernel's answer.
        #[source]
        source: testyard_linux::Error,
    },
    /// It went away in the middle.
    #[error("machine {machine} went away while {during}")]
    Lost {
        /// Which.
        machine: String,
        /// What was being done.
        during: &'static str,
    },
    /// It did not answer in time.
    #[error("machine {machine} did not answer within {seconds} s")]
    Silent {
        /// Which.
        machine: String,
        /// How long it was given.
        seconds: u64,
    },
    /// What it sent makes no sense.
    #[error("machine {machine} sent what the protocol does not allow")]
    Wire {
        /// Which.
        machine: String,
        /// What exactly.
        #[source]
        source: WireError,
    },
    /// A message that could not be read.
    #[error("machine {machine} sent a message that cannot be read")]
    Message {
        /// Which.
        machine: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A message that does not belong here.
    #[error("machine {machine} answered with `{event}`, which does not answer the request")]
    Unexpected {
        /// Which.
        machine: String,
        /// The event's word.
        event: &'static str,
    },
    /// It speaks only versions that we do not.
    #[error("machine {machine} speaks protocol version {version}, which this testyard does not")]
    Version {
        /// Which.
        machine: String,
        /// The version it chose.
        version: u16,
    },
    /// The request is longer than a frame.
    #[error("the request is too long: {bytes} bytes where {max} are allowed", max = testyard_protocol::frame::MAX_MESSAGE)]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Our own side could not do its part (a pipe, a thread).
    #[error("cannot {operation}")]
    Local {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The machine refused, and says why.
    #[error("{}", .0.message)]
    Refused(Box<Problem>),
}

impl ClientError {
    /// For people.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::Refused(problem) => return (**problem).clone(),
            Self::NotThere { source, .. } if source.source.raw_os_error() == Some(libc::EACCES) => ProblemKind::Denied,
            Self::NotThere { .. } | Self::Lost { .. } => ProblemKind::Unavailable,
            Self::Silent { .. } => ProblemKind::TimedOut,
            Self::Wire { .. } | Self::Message { .. } | Self::Unexpected { .. } => ProblemKind::Protocol,
            Self::Version { .. } => ProblemKind::Unsupported,
            Self::TooLong { .. } => ProblemKind::Usage,
            Self::Local { .. } => ProblemKind::System,
        };
        let problem = Problem::from_error(kind, self);
        match self {
            Self::NotThere { machine, .. } | Self::Lost { machine, .. } | Self::Silent { machine, .. } => {
                problem.hint(format!("testyard info {machine}")).hint(format!("testyard start {machine}"))
            }
            Self::Version { machine, .. } => problem.hint(format!("testyard restart {machine}")),
            Self::TooLong { .. } => problem.hint("pass long data on standard input or in a file"),
            _ => problem,
        }
    }

    /// A broken connection to `machine`, noticed while doing something.
    pub(crate) fn wire(machine: &str, during: &'static str, source: WireError) -> Self {
        match source {
            WireError::TooLong(bytes) => Self::TooLong { bytes },
            source if source.is_gone() => Self::Lost { machine: machine.to_owned(), during },
            source => Self::Wire { machine: machine.to_owned(), source },
        }
    }

    pub(crate) fn local(operation: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::Local { operation, source: source.into() }
    }
}
