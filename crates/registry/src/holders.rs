//! Machines that end with their holders.
//!
//! ```text
//! hold ──► holder ──► let go, others hold it ──► (no row)
//!             │
//!             └─────► let go, nobody else does ──► ending ──► (the machine is deleted, its rows with it)
//! ```
//!
//! Whether somebody was the last is decided in the transaction that writes it down, and so is whether a machine can
//! still be held: of the last to let go and the next to hold, one comes first, and the other is told. A holder that was
//! killed leaves its row: the machine was held, and ends when nobody holds it any more.

use rusqlite::Connection;
use testyard_model::{MachineId, MachineState};

use crate::lease_names::LeaseKind;
use crate::leases::{Lease, LeaseError, LeaseStanding, RawLease, raw_leases, remove_file};
use crate::registry::Registry;

/// What letting go came to.
#[derive(Debug)]
#[must_use = "the last holder deletes the machine"]
pub enum Released {
    /// Others hold the machine, or it is gone: nothing is to be done.
    Shared,
    /// Nobody else does: it is written down that the machine ends, and whoever asked is to delete it. Keep the lease
    /// meanwhile: abandoned, it tells the reaper to do that.
    Last(Lease),
}

impl Registry {
    /// Lets a machine go that is held by a lease of kind [`LeaseKind::Holder`].
    ///
    /// # Errors
    /// The registry or a lock file failed; the lease is then abandoned, which says the same to the reaper.
    pub fn let_go(&self, machine: &MachineId, lease: Lease) -> Result<Released, LeaseError> {
        let last = self.decide(machine, Some(&lease))?;
        if last {
            return Ok(Released::Last(lease));
        }
        remove_file(&self.leases_folder().join(lease.id().as_str()))?;
        Ok(Released::Shared)
    }

    /// Whether a machine was held and nobody holds it any more.
    ///
    /// # Errors
    /// The registry or a lock file failed.
    pub fn lost_its_holders(&self, machine: &MachineId) -> Result<bool, LeaseError> {
        let rows = self.list_leases(Some(machine))?;
        let mut held_once = false;
        for row in rows.iter().filter(|row| row.kind.ends_its_machine()) {
            if self.judge(row)? != LeaseStanding::Abandoned {
                return Ok(false);
            }
            held_once = true;
        }
        Ok(held_once)
    }

    /// Writes down that a machine ends, if it was held and nobody holds it any more. True: delete it.
    ///
    /// # Errors
    /// As [`Registry::lost_its_holders`].
    pub fn end_unheld(&self, machine: &MachineId) -> Result<bool, LeaseError> {
        self.decide(machine, None)
    }

    /// In one transaction: whether nobody but `own` holds the machine; if so that it ends, else `own`'s row goes.
    fn decide(&self, machine: &MachineId, own: Option<&Lease>) -> Result<bool, LeaseError> {
        self.write_end("let a machine go", |transaction| {
            let rows = raw_leases(transaction, Some(machine))?;
            let held = match self.others(rows, own) {
                Ok(held) => held,
                Err(error) => return Ok(Err(error)),
            };
            let last = match held {
                Held::BySomebody => false,
                Held::ByNobody => true,
                Held::Never => own.is_some(),
            };
            if last {
                let (ending, holder) = (LeaseKind::Ending.as_str(), LeaseKind::Holder.as_str());
                let changed = transaction
                    .prepare_cached("UPDATE lease SET kind = ?2 WHERE machine = ?1 AND kind IN (?2, ?3)")?
                    .execute([machine.as_str(), ending, holder])?;
                // Where there is no row, the machine is gone, and all its rows with it.
                return Ok(Ok(changed > 0));
            }
            if let Some(own) = own {
                transaction.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([own.id().as_str()])?;
            }
            Ok(Ok(false))
        })?
    }

    fn others(&self, rows: Vec<RawLease>, own: Option<&Lease>) -> Result<Held, LeaseError> {
        let mut found = Held::Never;
        for row in rows {
            let row = row.decode(self)?;
            if !row.kind.ends_its_machine() || own.is_some_and(|own| *own.id() == row.id) {
                continue;
            }
            match self.judge(&row)? {
                LeaseStanding::Abandoned => found = Held::ByNobody,
                LeaseStanding::Held | LeaseStanding::Foreign => return Ok(Held::BySomebody),
            }
        }
        Ok(found)
    }
}

/// Whether anybody holds a machine.
#[derive(Clone, Copy)]
enum Held {
    Never,
    ByNobody,
    BySomebody,
}

/// Whether a machine can be held no more.
pub(crate) fn is_ending(connection: &Connection, machine: &str) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM machine WHERE id = ?1 AND state = ?2
             UNION ALL SELECT 1 FROM lease WHERE machine = ?1 AND kind = ?3",
        )?
        .exists([machine, MachineState::Deleting.as_str(), LeaseKind::Ending.as_str()])
}
