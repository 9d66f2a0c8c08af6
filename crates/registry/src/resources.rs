//! What a machine owns in the kernel and on disk: intended first, then made with proof, then forgotten.
//!
//! ```text
//! record_intents ─► intended ─► record_made ─► made ─► forget_resource ─► (gone)
//!                      └──────────────────────────────────┘
//! ```
//!
//! A reaper that finds `made` compares the kernel's identity before it removes anything. One that finds `intended`
//! knows that the thing may or may not exist, and removes it only where the place itself proves whose it is (a path
//! with the machine's id inside Testyard's own folders).

use std::path::PathBuf;

use rusqlite::params;
use serde::{Deserialize, Serialize};
use testyard_model::MachineId;

use crate::error::RegistryError;
use crate::identity::KernelIdentity;
use crate::machine_errors::TransitionError;
use crate::machines::json;
use crate::registry::Registry;

/// The number of a recorded resource; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceId(pub i64);

/// What sort of thing a machine can own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResourceKind {
    /// A control group; its place is its folder.
    Cgroup,
    /// A folder with all that is in it.
    Folder,
    /// A pinned network namespace; its place is the file it is bound to.
    NetworkNamespace,
    /// A network interface; its place is its name.
    Interface,
    /// A process; its place is its role (`supervisor`, `agent`, `pasta`).
    Process,
    /// A mount on the host; its place is the mount point.
    Mount,
    /// A file or socket.
    File,
}

impl ResourceKind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Cgroup, Self::Folder, Self::NetworkNamespace, Self::Interface, Self::Process, Self::Mount, Self::File];

    /// The word for it, as in JSON and in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Folder => "folder",
            Self::NetworkNamespace => "network-namespace",
            Self::Interface => "interface",
            Self::Process => "process",
            Self::Mount => "mount",
            Self::File => "file",
        }
    }

    /// From the word for it.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// How far a resource has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResourceState {
    /// It was about to be made; it may exist or not.
    Intended,
    /// It was made, and this is what the kernel called it.
    Made(KernelIdentity),
}

/// One thing that a machine owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Its number.
    pub id: ResourceId,
    /// Whose it is.
    pub machine: MachineId,
    /// What it is.
    pub kind: ResourceKind,
    /// Where it is: a path, a name or a role, as [`ResourceKind`] says.
    pub place: PathBuf,
    /// Intended, or made and proven.
    pub state: ResourceState,
}

impl Registry {
    /// Writes down what is about to be made, in one commit; the ids are in the order given.
    ///
    /// Places are kept as text; bytes that are not UTF-8 cannot occur, as a [`Home`](crate::Home) refuses them.
    ///
    /// # Errors
    /// There is no such machine, or the registry failed.
    pub fn record_intents(
        &self,
        machine: &MachineId,
        resources: &[(ResourceKind, PathBuf)],
    ) -> Result<Vec<ResourceId>, TransitionError> {
        let ids = self.write("record what is to be made", |transaction| {
            let exists =
                transaction.prepare_cached("SELECT 1 FROM machine WHERE id = ?1")?.exists([machine.as_str()])?;
            if !exists {
                return Ok(None);
            }
            let mut insert =
                transaction.prepare_cached("INSERT INTO resource (machine, kind, place) VALUES (?1, ?2, ?3)")?;
            let mut ids = Vec::with_capacity(resources.len());
            for (kind, place) in resources {
                ids.push(ResourceId(insert.insert(params![
                    machine.as_str(),
                    kind.as_str(),
                    place.to_string_lossy()
                ])?));
            }
            Ok(Some(ids))
        })?;
        ids.ok_or_else(|| TransitionError::NotFound { id: machine.clone() })
    }

    /// Writes down one thing that is about to be made.
    ///
    /// # Errors
    /// As [`Registry::record_intents`].
    pub fn record_intent(
        &self,
        machine: &MachineId,
        kind: ResourceKind,
        place: impl Into<PathBuf>,
    ) -> Result<ResourceId, TransitionError> {
        let ids = self.record_intents(machine, &[(kind, place.into())])?;
        Ok(*ids.first().expect("one id for each resource given"))
    }

    /// Writes down what the kernel calls things that now exist, in one commit. Forgotten ids are passed over.
    ///
    /// # Errors
    /// The registry failed.
    pub fn record_made(&self, made: &[(ResourceId, KernelIdentity)]) -> Result<(), RegistryError> {
        self.write("record what was made", |transaction| {
            let mut update = transaction.prepare_cached("UPDATE resource SET identity = ?2 WHERE id = ?1")?;
            for (id, identity) in made {
                update.execute(params![id.0, json(identity)?])?;
            }
            Ok(())
        })
    }

    /// Forgets things that are gone, in one commit. Forgetting twice is no error.
    ///
    /// # Errors
    /// The registry failed.
    pub fn forget_resources(&self, gone: &[ResourceId]) -> Result<(), RegistryError> {
        self.write_end("forget what is gone", |transaction| {
            let mut delete = transaction.prepare_cached("DELETE FROM resource WHERE id = ?1")?;
            for id in gone {
                delete.execute([id.0])?;
            }
            Ok(())
        })
    }

    /// What a machine owns, oldest first; removed in the opposite order.
    ///
    /// # Errors
    /// The registry failed, or a row cannot be read.
    pub fn load_resources(&self, machine: &MachineId) -> Result<Vec<Resource>, RegistryError> {
        let raw = self.read("list a machine's resources", |connection| {
            connection
                .prepare_cached("SELECT id, kind, place, identity FROM resource WHERE machine = ?1 ORDER BY id")?
                .query_map([machine.as_str()], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, Option<String>>(3)?))
                })?
                .collect::<rusqlite::Result<Vec<(i64, String, String, Option<String>)>>>()
        })?;
        let decode = |(id, kind, place, identity): (i64, String, String, Option<String>)| {
            let row = || format!("resource {id}");
            let state = match identity {
                None => ResourceState::Intended,
                Some(text) => ResourceState::Made(
                    serde_json::from_str(&text).map_err(|_| self.unreadable(row(), "identity", text.as_str()))?,
                ),
            };
            Ok(Resource {
                id: ResourceId(id),
                machine: machine.clone(),
                kind: ResourceKind::from_word(&kind).ok_or_else(|| self.unreadable(row(), "kind", kind.as_str()))?,
                place: PathBuf::from(place),
                state,
            })
        };
        raw.into_iter().map(decode).collect()
    }
}
