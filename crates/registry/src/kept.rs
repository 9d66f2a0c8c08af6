//! Environments that are kept for a look: written down before they are, so that none lives on unknown.
//!
//! The environment itself lives in its machine's agent and ends with it, or when its time is over; a row without one is
//! removed by the reaper.

use rusqlite::{Row, params};
use testyard_model::{EnvironmentId, MachineId};

use crate::error::RegistryError;
use crate::registry::Registry;

/// A kept environment as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRow {
    /// In which machine.
    pub machine: MachineId,
    /// Its number there.
    pub environment: EnvironmentId,
    /// The run that left it.
    pub run: String,
    /// The suite of its test.
    pub suite: String,
    /// The test that ran in it.
    pub test: String,
    /// Since when, in milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// Until when, likewise.
    pub expires_ms: i64,
}

impl Registry {
    /// Writes down that an environment is to be kept; one that is written down already gets the new time.
    ///
    /// # Errors
    /// The registry failed.
    pub fn record_kept(&self, row: &KeptRow) -> Result<(), RegistryError> {
        self.read("record a kept environment", |connection| {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO kept_environment
                       (machine, environment, run, suite, test, created_ms, expires_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    row.machine.as_str(),
                    row.environment.0.cast_signed(),
                    row.run,
                    row.suite,
                    row.test,
                    row.created_ms,
                    row.expires_ms,
                ])
        })?;
        Ok(())
    }

    /// Every kept environment, oldest first.
    ///
    /// # Errors
    /// The registry failed, or a row cannot be read.
    pub fn list_kept(&self) -> Result<Vec<KeptRow>, RegistryError> {
        let raw = self.read("list the kept environments", |connection| {
            connection
                .prepare_cached(
                    "SELECT machine, environment, run, suite, test, created_ms, expires_ms FROM kept_environment
                     ORDER BY created_ms, machine, environment",
                )?
                .query_map([], read_row)?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let decoded = raw.into_iter().map(|(machine, row)| {
            let id = machine.parse::<MachineId>();
            let id = id.map_err(|_| self.unreadable("a kept environment".to_owned(), "machine", machine))?;
            Ok(KeptRow { machine: id, ..row })
        });
        decoded.collect()
    }

    /// Removes the row of an environment that is gone, or about to go.
    ///
    /// # Errors
    /// The registry failed.
    pub fn forget_kept(&self, machine: &MachineId, environment: EnvironmentId) -> Result<(), RegistryError> {
        self.read("forget a kept environment", |connection| {
            connection
                .prepare_cached("DELETE FROM kept_environment WHERE machine = ?1 AND environment = ?2")?
                .execute(params![machine.as_str(), environment.0.cast_signed()])
        })?;
        Ok(())
    }
}

/// The machine's id as text, and the rest.
fn read_row(row: &Row<'_>) -> rusqlite::Result<(String, KeptRow)> {
    let kept = KeptRow {
        machine: MachineId::from_bits(0),
        environment: EnvironmentId(row.get::<_, i64>(1)?.cast_unsigned()),
        run: row.get(2)?,
        suite: row.get(3)?,
        test: row.get(4)?,
        created_ms: row.get(5)?,
        expires_ms: row.get(6)?,
    };
    Ok((row.get(0)?, kept))
}
