//! Exit codes: Testyard's own, and how a command ended.

use serde::{Deserialize, Serialize};

use crate::problem::ProblemKind;

/// Testyard's own exit codes. `exec` and `env run` return the command's code instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ExitCode {
    /// Everything asked for was done; every test passed.
    Passed = 0,
    /// At least one test failed or timed out.
    TestsFailed = 1,
    /// Wrong usage or configuration, or nothing selected.
    Usage = 2,
    /// The infrastructure failed, not the test.
    Infrastructure = 69,
    /// A bug in Testyard.
    Bug = 70,
    /// Everything was skipped.
    Skipped = 77,
    /// Interrupted, after cleanup.
    Interrupted = 130,
}

impl ExitCode {
    /// From most to least telling: where several hold, the first wins.
    pub const PRECEDENCE: [Self; 7] = [
        Self::Interrupted,
        Self::Bug,
        Self::Infrastructure,
        Self::TestsFailed,
        Self::Usage,
        Self::Skipped,
        Self::Passed,
    ];

    /// The number given to the operating system.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The code of an error of this kind.
    #[must_use]
    pub fn of_problem(kind: ProblemKind) -> Self {
        match kind {
            ProblemKind::Usage | ProblemKind::NotFound | ProblemKind::AlreadyExists | ProblemKind::WrongState => {
                Self::Usage
            }
            ProblemKind::Interrupted => Self::Interrupted,
            ProblemKind::Bug => Self::Bug,
            _ => Self::Infrastructure,
        }
    }

    /// The more telling of two codes.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        Self::PRECEDENCE.into_iter().find(|code| *code == self || *code == other).unwrap_or(self)
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommandStatus {
    /// It exited with this code, 0–255.
    Exited(u8),
    /// This signal ended it.
    Signalled(i32),
    /// Its deadline passed and its whole tree was ended.
    TimedOut,
}

impl CommandStatus {
    /// From the value that `waitpid` gives.
    #[must_use]
    pub fn from_wait_status(status: i32) -> Self {
        let signal = status & 0x7f;
        if signal == 0 { Self::Exited(((status >> 8) & 0xff) as u8) } else { Self::Signalled(signal) }
    }

    /// As a shell reports it: the code, 128+n for signal n, 124 for a deadline (as timeout(1) does).
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => (128 + signal).clamp(0, 255) as u8,
            Self::TimedOut => 124,
        }
    }

    /// Whether it exited with 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_is_the_documented_one() {
        assert_eq!(ExitCode::TestsFailed.worse(ExitCode::Infrastructure), ExitCode::Infrastructure);
        assert_eq!(ExitCode::Passed.worse(ExitCode::Skipped), ExitCode::Skipped);
        assert_eq!(ExitCode::Bug.worse(ExitCode::Interrupted), ExitCode::Interrupted);
    }

    #[test]
    fn wait_statuses_become_shell_codes() {
        assert_eq!(CommandStatus::from_wait_status(3 << 8).shell_code(), 3);
        assert_eq!(CommandStatus::from_wait_status(9).shell_code(), 137);
        assert_eq!(CommandStatus::TimedOut.shell_code(), 124);
    }
}
