//! A machine's states and the ways between them.
//!
//! ```text
//!            ┌──────── failed ◄──────┐
//!            ▼           │           │
//! creating ─► running ⇄ stopping/starting ⇄ stopped
//!     │          │           │
//!     └──────────┴─► deleting ─► (gone)
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// Written down, not yet reachable. Seen by others as "not there".
    Creating,
    /// Its agent answers.
    Running,
    /// Its processes are being ended.
    Stopping,
    /// Its files stay, its processes do not.
    Stopped,
    /// Coming up again from its files.
    Starting,
    /// It broke; the cause is kept with it. Its files stay.
    Failed,
    /// Being removed. A reaper finishes what was begun.
    Deleting,
}

impl MachineState {
    /// Every state.
    pub const ALL: [Self; 7] =
        [Self::Creating, Self::Running, Self::Stopping, Self::Stopped, Self::Starting, Self::Failed, Self::Deleting];

    /// Whether a machine may go from here to there.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use MachineState::{Creating, Deleting, Failed, Running, Starting, Stopped, Stopping};
        match (self, next) {
            (Deleting, _) | (_, Creating) => false,
            (_, Deleting) => true,
            (Creating | Starting, Running | Failed)
            | (Running, Stopping | Failed | Stopped)
            | (Stopping, Stopped | Failed)
            | (Stopped | Failed, Starting)
            | (Failed, Stopped) => true,
            _ => false,
        }
    }

    /// The word for it, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }

    /// From the word for it.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleting_is_final_and_always_reachable() {
        for state in MachineState::ALL {
            assert!(!MachineState::Deleting.may_become(state));
            assert!(state == MachineState::Deleting || state.may_become(MachineState::Deleting));
            assert_eq!(MachineState::from_word(state.as_str()), Some(state));
        }
    }

    #[test]
    fn every_live_state_can_reach_running() {
        for start in MachineState::ALL.into_iter().filter(|s| *s != MachineState::Deleting) {
            let mut seen = vec![start];
            let mut index = 0;
            while index < seen.len() {
                let from = seen[index];
                seen.extend(MachineState::ALL.into_iter().filter(|to| from.may_become(*to)));
                seen.dedup();
                index += 1;
                assert!(index < 500);
                if seen.contains(&MachineState::Running) {
                    break;
                }
            }
            assert!(seen.contains(&MachineState::Running), "{start}");
        }
    }
}
