//! Runs: when, where, and what came out.

use std::path::{Path, PathBuf};

use rusqlite::params;
use serde_json::Value;
use uuid::Uuid;

use crate::error::RegistryError;
use crate::registry::Registry;

/// One run of a suite.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// Its id.
    pub id: Uuid,
    /// When it began, in milliseconds since 1970-01-01 UTC.
    pub started_ms: i64,
    /// The folder that was run.
    pub root: PathBuf,
    /// What came out; `None` while it runs, or if it was killed.
    pub summary: Option<Value>,
}

impl Registry {
    /// Writes down that a run begins.
    ///
    /// # Errors
    /// The registry failed.
    pub fn record_run(&self, id: Uuid, started_ms: i64, root: &Path) -> Result<(), RegistryError> {
        self.read("record a run", |connection| {
            connection.prepare_cached("INSERT INTO run (id, started_ms, root) VALUES (?1, ?2, ?3)")?.execute(params![
                id.to_string(),
                started_ms,
                root.to_string_lossy()
            ])
        })?;
        Ok(())
    }

    /// Writes down what came out of a run; without a row (it was pruned) nothing happens.
    ///
    /// # Errors
    /// The registry failed.
    pub fn finish_run(&self, id: Uuid, summary: &Value) -> Result<(), RegistryError> {
        self.read("record a run's result", |connection| {
            connection
                .prepare_cached("UPDATE run SET summary = ?2 WHERE id = ?1")?
                .execute(params![id.to_string(), summary.to_string()])
        })?;
        Ok(())
    }

    /// The last runs, newest first.
    ///
    /// # Errors
    /// The registry failed, or a row cannot be read.
    pub fn list_runs(&self, limit: u32) -> Result<Vec<RunRow>, RegistryError> {
        let raw = self.read("list the runs", |connection| {
            connection
                .prepare_cached(
                    "SELECT id, started_ms, root, summary FROM run ORDER BY started_ms DESC, id DESC LIMIT ?1",
                )?
                .query_map([limit], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
                .collect::<rusqlite::Result<Vec<(String, i64, String, Option<String>)>>>()
        })?;
        let decode = |(id, started_ms, root, summary): (String, i64, String, Option<String>)| {
            let row = || format!("run {id}");
            Ok(RunRow {
                id: id.parse().map_err(|_| self.unreadable(row(), "id", id.as_str()))?,
                started_ms,
                root: PathBuf::from(root),
                summary: summary
                    .map(|text| serde_json::from_str(&text).map_err(|_| self.unreadable(row(), "summary", text)))
                    .transpose()?,
            })
        };
        raw.into_iter().map(decode).collect()
    }

    /// Forgets runs that began before this time; gives how many rows went.
    ///
    /// # Errors
    /// The registry failed.
    pub fn forget_runs_before(&self, time_ms: i64) -> Result<usize, RegistryError> {
        self.read("forget old runs", |connection| {
            connection.execute("DELETE FROM run WHERE started_ms < ?1", [time_ms])
        })
    }
}
