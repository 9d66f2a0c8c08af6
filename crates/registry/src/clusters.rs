//! Clusters: machines that were made together, and are to go together.
//!
//! The row comes before the first machine of a cluster, and goes after the last. It names the lease of whoever is making,
//! changing or removing the cluster: while that is held, nobody else does. Which machines are a cluster's is said by
//! their own rows.

use rusqlite::{OptionalExtension as _, Row, params};
use serde_json::Value;
use testyard_model::MachineId;

use crate::error::RegistryError;
use crate::lease_names::LeaseId;
use crate::registry::Registry;

/// A cluster as it is written down. What its texts mean is its owner's knowledge.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterRow {
    /// Its id, formed as a machine's.
    pub id: String,
    /// Its name, which no other cluster of this home has.
    pub name: String,
    /// The word for its state.
    pub state: String,
    /// What it was asked to be.
    pub spec: Value,
    /// When it was created, in milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// The lease of whoever changed it last, held or not.
    pub lease: Option<LeaseId>,
}

/// A cluster that is to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewCluster {
    /// Its name.
    pub name: String,
    /// The word for the state that it begins in.
    pub state: String,
    /// What it is to be.
    pub spec: Value,
    /// Now, in milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
}

impl Registry {
    /// Writes down the intent to make a cluster, by the holder of this lease. None where the name is taken.
    ///
    /// # Errors
    /// The registry failed.
    pub fn reserve_cluster(&self, new: &NewCluster, lease: &LeaseId) -> Result<Option<ClusterRow>, RegistryError> {
        let id = MachineId::from_bits(crate::leases::random_bits()).to_string();
        let inserted = self.write("reserve a cluster's name", |transaction| {
            transaction
                .prepare_cached(
                    "INSERT OR IGNORE INTO cluster (id, name, state, spec, created_ms, lease)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![id, new.name, new.state, new.spec.to_string(), new.created_ms, lease.as_str()])
        })?;
        let NewCluster { name, state, spec, created_ms } = new.clone();
        Ok((inserted == 1).then(|| ClusterRow { id, name, state, spec, created_ms, lease: Some(lease.clone()) }))
    }

    /// Makes this lease the one of whoever changes a cluster, if its row still names `before`. False where somebody
    /// else was faster, or it is gone. The caller knows that nobody holds `before`.
    ///
    /// # Errors
    /// The registry failed.
    pub fn take_cluster(&self, id: &str, before: Option<&LeaseId>, lease: &LeaseId) -> Result<bool, RegistryError> {
        let changed =
            self.write_end("take a cluster over", |transaction| {
                transaction
                    .prepare_cached("UPDATE cluster SET lease = ?3 WHERE id = ?1 AND lease IS ?2")?
                    .execute(params![id, before.map(LeaseId::as_str), lease.as_str()])
            })?;
        Ok(changed == 1)
    }

    /// Writes down a cluster's state and specification.
    ///
    /// # Errors
    /// The registry failed.
    pub fn record_cluster(&self, id: &str, state: &str, spec: &Value) -> Result<(), RegistryError> {
        self.write_end("record a cluster's state", |transaction| {
            transaction.prepare_cached("UPDATE cluster SET state = ?2, spec = ?3 WHERE id = ?1")?.execute(params![
                id,
                state,
                spec.to_string()
            ])
        })?;
        Ok(())
    }

    /// Removes the row of a cluster of which nothing is left. No row is no error.
    ///
    /// # Errors
    /// The registry failed.
    pub fn forget_cluster(&self, id: &str) -> Result<(), RegistryError> {
        self.write_end("forget a cluster", |transaction| {
            transaction.prepare_cached("DELETE FROM cluster WHERE id = ?1")?.execute([id])
        })?;
        Ok(())
    }

    /// Every cluster in the home, by name.
    ///
    /// # Errors
    /// The registry failed, or a row cannot be read.
    pub fn list_clusters(&self) -> Result<Vec<ClusterRow>, RegistryError> {
        let raw = self.read("list the clusters", |connection| {
            connection
                .prepare_cached("SELECT id, name, state, spec, created_ms, lease FROM cluster ORDER BY name")?
                .query_map([], read_row)?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        raw.into_iter().map(|raw| self.decode_cluster(raw)).collect()
    }

    /// The cluster of this name.
    ///
    /// # Errors
    /// The registry failed, or the row cannot be read.
    pub fn find_cluster(&self, name: &str) -> Result<Option<ClusterRow>, RegistryError> {
        let raw = self.read("find a cluster", |connection| {
            connection
                .prepare_cached("SELECT id, name, state, spec, created_ms, lease FROM cluster WHERE name = ?1")?
                .query_row([name], read_row)
                .optional()
        })?;
        raw.map(|raw| self.decode_cluster(raw)).transpose()
    }

    fn decode_cluster(&self, raw: RawCluster) -> Result<ClusterRow, RegistryError> {
        let row = || format!("cluster {}", raw.id);
        let spec = serde_json::from_str(&raw.spec).map_err(|_| self.unreadable(row(), "spec", raw.spec.as_str()))?;
        let lease = raw.lease.as_deref().map(str::parse::<LeaseId>).transpose();
        let lease = lease.map_err(|error| self.unreadable(row(), "lease", error.to_string()))?;
        Ok(ClusterRow { id: raw.id, name: raw.name, state: raw.state, spec, created_ms: raw.created_ms, lease })
    }
}

struct RawCluster {
    id: String,
    name: String,
    state: String,
    spec: String,
    created_ms: i64,
    lease: Option<String>,
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<RawCluster> {
    Ok(RawCluster {
        id: row.get(0)?,
        name: row.get(1)?,
        state: row.get(2)?,
        spec: row.get(3)?,
        created_ms: row.get(4)?,
        lease: row.get(5)?,
    })
}
