//! What this surface knows beyond the registry: settings, and notes on machines. One small file in the state folder,
//! read whole, replaced whole.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use testyard::Testyard;
use testyard_linux::lock::{FileLock, Mode, Patience};
use testyard_model::{MachineId, MachineInfo, Problem, ProblemKind};

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Book {
    /// Settings that were set.
    pub(super) settings: BTreeMap<String, String>,
    /// By the machine's id, which stays when its name changes.
    pub(super) notes: BTreeMap<String, Note>,
}

/// What is remembered of one machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Note {
    /// It was asked to be isolated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) isolated: bool,
    /// Whom its commands run as, where that was changed after it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) username: Option<String>,
    /// What it was made from, where its image's name does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) made_from: Option<MadeFrom>,
    /// Its place in the network of addresses.
    pub(super) address: u32,
}

/// A distribution and its release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MadeFrom {
    /// Such as `debian`.
    pub(super) distro: String,
    /// Such as `12`.
    pub(super) version: String,
    /// What was asked for, where another image stands in for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stands_in_for: Option<String>,
}

impl Book {
    /// As it is now; empty where nothing was written yet.
    pub(super) fn load(yard: &Testyard) -> Result<Self, Problem> {
        let path = path(yard);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                Problem::new(ProblemKind::System, format!("{} is damaged", path.display()))
                    .because(error)
                    .hint("remove it: settings and the list's details are lost with it, nothing else")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(unusable(&path, error)),
        }
    }

    /// Changes it, while nobody else does.
    pub(super) fn change<T>(
        yard: &Testyard,
        change: impl FnOnce(&mut Self) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let path = path(yard);
        let lock = FileLock::acquire(&path.with_extension("lock"), Mode::Exclusive, Patience::Wait);
        let _lock = lock.map_err(|error| error.problem())?;
        let before = Self::load(yard)?;
        let mut book = before.clone();
        let outcome = change(&mut book)?;
        if book != before {
            book.save(&path).map_err(|error| unusable(&path, error))?;
        }
        Ok(outcome)
    }

    fn save(&self, path: &std::path::Path) -> std::io::Result<()> {
        let beside = path.with_extension("new");
        let mut options = std::fs::File::options();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        std::fs::rename(&beside, path)
    }

    /// The note on a machine, empty where there is none.
    pub(super) fn note(&mut self, id: &MachineId) -> &mut Note {
        self.notes.entry(id.as_str().to_owned()).or_default()
    }

    /// What is known of a machine.
    pub(super) fn about(&self, id: &MachineId) -> Option<&Note> {
        self.notes.get(id.as_str())
    }

    /// Gives a machine the lowest address that none of those alive has, and forgets those that are gone.
    pub(super) fn give_address(&mut self, id: &MachineId, alive: &[MachineInfo]) {
        self.notes.retain(|noted, _| noted == id.as_str() || alive.iter().any(|one| one.id.as_str() == noted));
        let taken: Vec<u32> = self.notes.values().map(|note| note.address).collect();
        let free = (1..).find(|number| !taken.contains(number)).unwrap_or(1);
        self.note(id).address = free;
    }
}

fn path(yard: &Testyard) -> PathBuf {
    yard.options().home.state().join("orbctl.json")
}

fn unusable(path: &std::path::Path, error: std::io::Error) -> Problem {
    Problem::new(ProblemKind::System, format!("cannot use {}", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_again_after_their_machine_is_gone() {
        let ids: Vec<_> = (1..=3).map(MachineId::from_bits).collect();
        let mut book = Book::default();
        let alive = |ids: &[&MachineId]| -> Vec<MachineInfo> {
            let spec = testyard_model::MachineSpec::new(testyard_model::BackendName::host());
            ids.iter()
                .map(|id| MachineInfo {
                    id: (*id).clone(),
                    name: "m".parse().expect("a name"),
                    state: testyard_model::MachineState::Running,
                    spec: spec.clone(),
                    backend_reason: None,
                    created_ms: 0,
                    cause: None,
                    supervisor_pid: None,
                    limits: Vec::new(),
                })
                .collect()
        };
        book.give_address(&ids[0], &alive(&[]));
        book.give_address(&ids[1], &alive(&[&ids[0]]));
        assert_eq!((book.note(&ids[0]).address, book.note(&ids[1]).address), (1, 2));
        book.give_address(&ids[2], &alive(&[&ids[1]]));
        assert_eq!(book.about(&ids[0]), None);
        assert_eq!(book.note(&ids[2]).address, 1);
    }
}
