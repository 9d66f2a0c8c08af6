//! What a lease is called, and what it is for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use testyard_model::MachineId;

/// A lease's id, and the name of its lock file: 10 lower-case base-32 characters, or for an exclusive lease the
/// machine's id and the kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(String);

impl LeaseId {
    /// Of a lease that any number may have at once.
    pub(crate) fn shared(bits: u64) -> Self {
        Self(MachineId::from_bits(bits).as_str().to_owned())
    }

    /// Of the one lease of this kind.
    pub(crate) fn exclusive(machine: &MachineId, kind: LeaseKind) -> Self {
        Self(format!("{machine}.{}", kind.as_str()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is not the id of a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a lease's id")]
pub struct LeaseIdError(String);

impl FromStr for LeaseId {
    type Err = LeaseIdError;

    fn from_str(text: &str) -> Result<Self, LeaseIdError> {
        let (id, kind) = text.split_once('.').unwrap_or((text, ""));
        let known = kind.is_empty() || LeaseKind::from_word(kind).is_some_and(LeaseKind::is_exclusive);
        let valid = known && id.parse::<MachineId>().is_ok();
        if valid { Ok(Self(text.to_owned())) } else { Err(LeaseIdError(text.to_owned())) }
    }
}

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseKind {
    /// Being the one supervisor of a machine.
    Supervisor,
    /// Using a machine: it is neither idle nor to be reaped. Any number at once.
    Machine,
    /// A run in progress. Any number at once.
    Run,
    /// Holding a machine: it ends when nobody does any more. Any number at once.
    Holder,
    /// Having held it last: it is to be deleted, and nobody can hold it again. Whoever finds it abandoned deletes.
    Ending,
    /// Making, changing or removing a cluster, which names this lease in its row. About no machine.
    Cluster,
}

impl LeaseKind {
    const ALL: [Self; 6] = [Self::Supervisor, Self::Machine, Self::Run, Self::Holder, Self::Ending, Self::Cluster];

    /// Whether only one of this kind can be held for a machine.
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        self == Self::Supervisor
    }

    /// The word for it, as in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Machine => "machine",
            Self::Run => "run",
            Self::Holder => "holder",
            Self::Ending => "ending",
            Self::Cluster => "cluster",
        }
    }

    /// Whether the machine ends when the last of these is let go.
    #[must_use]
    pub fn ends_its_machine(self) -> bool {
        matches!(self, Self::Holder | Self::Ending)
    }

    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}
