//! Why something about a machine's row was refused, and what to do next.

use testyard_model::{MachineId, MachineName, MachineState, Problem, ProblemKind};

use crate::error::RegistryError;

/// Why a name could not be reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// Another machine has it.
    #[error("machine `{name}` already exists and is {state}")]
    AlreadyExists {
        /// The name.
        name: MachineName,
        /// The machine that has it.
        id: MachineId,
        /// Where that one is in its life.
        state: MachineState,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Why a machine did not change its state (or another column that needs the row).
#[derive(Debug, thiserror::Error)]
pub enum TransitionError {
    /// There is no such machine; it may just have been deleted.
    #[error("machine {id} does not exist")]
    NotFound {
        /// The id.
        id: MachineId,
    },
    /// Somebody else changed its state first.
    #[error("machine `{name}` is {found}, not {expected}")]
    WrongState {
        /// Its name.
        name: MachineName,
        /// The state that the caller believed in.
        expected: MachineState,
        /// Its state.
        found: MachineState,
    },
    /// No machine ever goes this way.
    #[error("a machine that is {from} cannot become {to}")]
    Forbidden {
        /// From here.
        from: MachineState,
        /// To there.
        to: MachineState,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Why a machine was not renamed.
#[derive(Debug, thiserror::Error)]
pub enum RenameError {
    /// There is no machine of the old name.
    #[error("machine `{name}` does not exist")]
    NotFound {
        /// The old name.
        name: MachineName,
    },
    /// The new name is taken.
    #[error("machine `{name}` already exists and is {state}")]
    AlreadyExists {
        /// The new name.
        name: MachineName,
        /// Where the machine that has it is in its life.
        state: MachineState,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Why a row was kept.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// It is not being deleted.
    #[error("machine `{name}` is {state}, not deleting")]
    NotDeleting {
        /// Its name.
        name: MachineName,
        /// Its state.
        state: MachineState,
    },
    /// Things of its are still written down; they must be removed and forgotten first.
    #[error("machine `{name}` still owns {count} recorded resources, the first is {first}")]
    StillOwns {
        /// Its name.
        name: MachineName,
        /// How many.
        count: u64,
        /// Kind and place of one.
        first: String,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl ReserveError {
    /// The error as people see it, with what to do next.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Registry(error) => error.problem(),
            Self::AlreadyExists { name, state, .. } => taken(self, name, *state),
        }
    }
}

impl TransitionError {
    /// The error as people see it, with what to do next.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Registry(error) => error.problem(),
            Self::NotFound { .. } => Problem::from_error(ProblemKind::NotFound, self).hint("testyard list"),
            Self::WrongState { name, .. } => {
                Problem::from_error(ProblemKind::WrongState, self).hint(format!("testyard info {name}"))
            }
            Self::Forbidden { .. } => Problem::from_error(ProblemKind::WrongState, self),
        }
    }
}

impl RenameError {
    /// The error as people see it, with what to do next.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Registry(error) => error.problem(),
            Self::NotFound { .. } => Problem::from_error(ProblemKind::NotFound, self).hint("testyard list"),
            Self::AlreadyExists { name, state } => taken(self, name, *state),
        }
    }
}

impl DestroyError {
    /// The error as people see it, with what to do next.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Registry(error) => error.problem(),
            Self::NotDeleting { name, .. } => {
                Problem::from_error(ProblemKind::WrongState, self).hint(format!("testyard delete {name}"))
            }
            Self::StillOwns { .. } => Problem::from_error(ProblemKind::WrongState, self).hint("testyard reap"),
        }
    }
}

/// The problem of a name that another machine has.
fn taken(error: &dyn std::error::Error, name: &MachineName, state: MachineState) -> Problem {
    let problem = Problem::from_error(ProblemKind::AlreadyExists, error);
    match state {
        MachineState::Running => problem.hint(format!("use it: testyard exec {name} -- true")),
        MachineState::Stopped | MachineState::Stopping => problem.hint(format!("use it: testyard start {name}")),
        MachineState::Creating | MachineState::Starting => {
            problem.hint("wait for the other create to end; if its process is gone: testyard reap")
        }
        MachineState::Failed => problem.hint(format!("see why: testyard info {name}")),
        MachineState::Deleting => return problem.hint("finish its deletion: testyard reap"),
    }
    .hint(format!("or remove it: testyard delete {name}"))
}
