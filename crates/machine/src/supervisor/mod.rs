//! One machine's keeper: one process, one thread, one poll loop.
//!
//! ```text
//!              ┌──────── supervise ────────────────────────────┐
//!  creator ◄───┤ bring up: records, backend, agent, socket     │  failed: undone, and said why
//!              ├───────────────────────────────────────────────┤
//!  clients ───►│ serve: greet, hand over to the agent, answer  │◄── agent: ready, activity, slots
//!              │        idle and absolute time to live, SIGTERM│
//!              ├───────────────────────────────────────────────┤
//!              │ finish: agent gone → stopped, failed, deleted │
//!              └───────────────────────────────────────────────┘
//! ```
//!
//! It holds the machine's lock for as long as it lives, opens the records only for a transition, and never waits
//! for a client or for the agent. It does not know how a machine is made ([`Backend`]), where records are kept
//! ([`Records`]), or what commands are run: a client that wants the agent is handed over with its socket.

mod announce;
mod begin;
mod life;
mod link;
mod names;
mod records;
mod serve;
mod teardown;
#[cfg(test)]
mod tests;
mod visitor;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use testyard_linux::signal::SignalFd;
use testyard_linux::step::{Step, reach};
use testyard_model::{MachineInfo, Problem, ProblemKind};

pub use announce::{Announcement, Creator, CreatorGone, await_announcement};
pub use names::{name_folder, socket_of};
pub use records::{AgentRecord, OpenRecords, Records};
pub use teardown::{TeardownError, clear, delete, end_agent, prove_folder};

use crate::backend::{Backend, BackendError, MachinePlace, RecordError};
use crate::wire::WireError;

/// What a supervisor begins with.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// The machine is new.
    Create,
    /// The machine is new, with the files of this one.
    Copy(Box<MachinePlace>),
    /// Its files are there.
    Start,
    /// Its agent is still there; its supervisor died.
    Adopt,
}

impl Task {
    /// Whether nobody has a use for the machine unless this succeeds.
    fn is_creation(&self) -> bool {
        matches!(self, Self::Create | Self::Copy(_))
    }
}

/// What a supervisor is given.
pub struct Setup {
    /// The machine.
    pub place: MachinePlace,
    /// As it is written down now.
    pub info: MachineInfo,
    /// The home's folder for sockets, above the machine's own.
    pub runtime: PathBuf,
    /// Who makes and ends it.
    pub backend: Box<dyn Backend>,
    /// Where it is written down.
    pub open_records: OpenRecords,
    /// What to begin with.
    pub task: Task,
    /// The machine's lock, held for as long as this lives.
    pub lock: OwnedFd,
    /// Who waits for it.
    pub creator: Creator,
    /// TERM, INT and CHLD, blocked in this thread.
    pub signals: SignalFd,
    /// This process does nothing else: every descendant is the machine's and ends with it.
    pub own_process: bool,
}

/// Why a machine came to its end, or could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Its backend could not.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// It could not be written down.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Nothing could be removed.
    #[error(transparent)]
    Teardown(#[from] TeardownError),
    /// The kernel refused.
    #[error("the supervisor cannot do its work")]
    System(#[source] testyard_linux::Error),
    /// The link broke.
    #[error("the link to the agent broke")]
    Link(#[source] testyard_linux::Error),
    /// What came over the link is no frame.
    #[error("the agent sent what the protocol does not allow")]
    Wire(#[source] WireError),
    /// What came over the link is no report.
    #[error("the agent sent a report that cannot be read")]
    Report(#[source] serde_json::Error),
    /// The agent closed its end of the link.
    #[error("the agent left")]
    AgentGone,
    /// The agent takes no orders.
    #[error("the agent takes no orders any more")]
    AgentHangs,
    /// The agent ended.
    #[error("the machine's agent ended: {how}")]
    AgentEnded {
        /// By which code or signal.
        how: String,
        /// The end of what it wrote.
        log: Vec<String>,
    },
    /// The agent could not start, and says why.
    #[error("{}", .0.message)]
    AgentBroken(Box<Problem>),
    /// The agent did not answer.
    #[error("the machine's agent did not answer within {seconds} s")]
    AgentSilent {
        /// How long it was given.
        seconds: u64,
    },
    /// Nobody is left of the agent that was to be adopted.
    #[error("the machine's supervisor and its agent died")]
    NothingToAdopt,
    /// A signal came before the machine was up.
    #[error("interrupted while the machine was brought up")]
    Interrupted,
    /// Whoever wanted the machine is gone.
    #[error("whoever asked for the machine is gone, so it was removed again")]
    CreatorGone,
}

impl SupervisorError {
    /// For people. `place` names the machine.
    #[must_use]
    pub fn problem(&self, place: &MachinePlace) -> Problem {
        let kind = match self {
            Self::Backend(error) => return error.problem(),
            Self::Record(error) => return error.problem(),
            Self::Teardown(error) => return error.problem(),
            Self::AgentBroken(problem) => return (**problem).clone(),
            Self::System(_) | Self::Link(_) => ProblemKind::System,
            Self::Wire(_) | Self::Report(_) => ProblemKind::Protocol,
            Self::AgentSilent { .. } => ProblemKind::TimedOut,
            Self::Interrupted | Self::CreatorGone => ProblemKind::Interrupted,
            Self::AgentGone | Self::AgentHangs | Self::AgentEnded { .. } | Self::NothingToAdopt => {
                ProblemKind::Unavailable
            }
        };
        let mut problem = Problem::from_error(kind, self);
        if let Self::AgentEnded { log, .. } = self {
            problem.causes.extend(log.iter().cloned());
        }
        problem.hint(format!("testyard logs {}", place.name))
    }
}

/// Brings the machine up, serves it, and returns when it is stopped, deleted or failed.
///
/// Whoever waits for it is told; the error is for the log.
pub fn supervise(mut setup: Setup) -> Result<(), SupervisorError> {
    reach(Step::SupervisorLocked);
    let mut agent = None;
    let brought_up = begin::bring_up(&mut setup, &mut agent);
    match brought_up {
        Ok(running) => serve::Supervisor::new(setup, running).run(),
        Err(error) => {
            let problem = error.problem(&setup.place);
            let undone = begin::undo(&mut setup, agent, &problem);
            let problem = match undone {
                Ok(()) => problem,
                Err(left) => problem.because(left).hint("testyard reap"),
            };
            // When nobody listens any more there is nobody to tell.
            let _ = setup.creator.tell(&Announcement::Failed(problem));
            Err(error)
        }
    }
}
