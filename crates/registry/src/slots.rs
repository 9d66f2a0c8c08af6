//! Environment numbers, reserved in blocks, so that no commit is on an environment's own path.

use rusqlite::{OptionalExtension, params};
use testyard_model::MachineId;

use crate::machine_errors::TransitionError;
use crate::registry::Registry;

impl Registry {
    /// Reserves the next `count` environment numbers of a machine; the first of them. None is ever reserved again.
    ///
    /// # Errors
    /// There is no such machine, or the registry failed.
    pub fn reserve_slots(&self, machine: &MachineId, count: u32) -> Result<u64, TransitionError> {
        let first: Option<i64> = self.write("reserve environment numbers", |transaction| {
            transaction
                .prepare_cached("UPDATE machine SET next_slot = next_slot + ?2 WHERE id = ?1 RETURNING next_slot - ?2")?
                .query_row(params![machine.as_str(), count], |row| row.get(0))
                .optional()
        })?;
        Ok(first.ok_or_else(|| TransitionError::NotFound { id: machine.clone() })?.cast_unsigned())
    }
}
