//! What comes of a command in an environment.

use testyard_model::{CommandStatus, EnvironmentId, Usage};

/// Which of a command's streams some bytes are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// Standard output.
    Standard,
    /// Error output.
    Error,
}

/// A command that ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// How.
    pub status: CommandStatus,
    /// What it used.
    pub usage: Usage,
    /// Where it ran; none for a plain command on the machine.
    pub environment: Option<EnvironmentId>,
    /// That environment, where it outlived the command: to be kept or released.
    pub lingering: Option<EnvironmentId>,
}
