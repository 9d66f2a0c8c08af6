//! Environment numbers, reserved in blocks, so that no commit is on an environment's own path.

use rusqlite::{OptionalExtension, params};
use testyard_model::{EnvironmentId, MachineId};

use crate::error::RegistryError;
use crate::lease_names::LeaseId;
use crate::machine_errors::TransitionError;
use crate::registry::Registry;

/// A run of environment numbers of one machine that one holder may give out; never reserved again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotBlock {
    /// Whose numbers.
    pub machine: MachineId,
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// Who holds them; `None` is the machine's supervisor.
    pub lease: Option<LeaseId>,
}

impl SlotBlock {
    /// The numbers in it.
    pub fn numbers(&self) -> impl Iterator<Item = EnvironmentId> + use<> {
        (self.first..self.first + u64::from(self.count)).map(EnvironmentId)
    }
}

impl Registry {
    /// Reserves the next `count` environment numbers of a machine.
    ///
    /// # Errors
    /// There is no such machine, or the registry failed.
    pub fn reserve_slots(
        &self,
        machine: &MachineId,
        count: u32,
        lease: Option<&LeaseId>,
    ) -> Result<SlotBlock, TransitionError> {
        let first: Option<i64> = self.write("reserve environment numbers", |transaction| {
            let first = transaction
                .prepare_cached("UPDATE machine SET next_slot = next_slot + ?2 WHERE id = ?1 RETURNING next_slot - ?2")?
                .query_row(params![machine.as_str(), count], |row| row.get(0))
                .optional()?;
            if let Some(first) = first {
                transaction
                    .prepare_cached("INSERT INTO slot_block (machine, first, count, lease) VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![machine.as_str(), first, count, lease.map(LeaseId::as_str)])?;
            }
            Ok(first)
        })?;
        let first = first.ok_or_else(|| TransitionError::NotFound { id: machine.clone() })?.cast_unsigned();
        Ok(SlotBlock { machine: machine.clone(), first, count, lease: lease.cloned() })
    }

    /// Gives a block back once none of its environments exist. Its numbers are not used again.
    ///
    /// # Errors
    /// The registry failed.
    pub fn release_slots(&self, block: &SlotBlock) -> Result<(), RegistryError> {
        self.read("release environment numbers", |connection| {
            connection
                .prepare_cached("DELETE FROM slot_block WHERE machine = ?1 AND first = ?2")?
                .execute(params![block.machine.as_str(), block.first.cast_signed()])
        })?;
        Ok(())
    }

    /// The blocks of a machine that were not released, by first number.
    ///
    /// # Errors
    /// The registry failed, or a row cannot be read.
    pub fn load_slots(&self, machine: &MachineId) -> Result<Vec<SlotBlock>, RegistryError> {
        let raw = self.read("list a machine's environment numbers", |connection| {
            connection
                .prepare_cached("SELECT first, count, lease FROM slot_block WHERE machine = ?1 ORDER BY first")?
                .query_map([machine.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect::<rusqlite::Result<Vec<(i64, u32, Option<String>)>>>()
        })?;
        raw.into_iter()
            .map(|(first, count, lease)| {
                let lease = lease
                    .map(|text| {
                        text.parse().map_err(|_| self.unreadable(format!("slots {first} of {machine}"), "lease", text))
                    })
                    .transpose()?;
                Ok(SlotBlock { machine: machine.clone(), first: first.cast_unsigned(), count, lease })
            })
            .collect()
    }
}
