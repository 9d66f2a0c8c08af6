//! Finishing what killed processes left undone.
//!
//! A machine is judged only when nobody holds its lock, and only on the host and in the pid namespace where the lock
//! means anything. Then its row says what is to be done:
//!
//! | row | agent | what becomes of it |
//! |---|---|---|
//! | creating, deleting | any | everything of it is removed |
//! | running | alive | a new supervisor adopts it |
//! | running | dead | failed, or stopped where the host was restarted |
//! | starting | any | failed |
//! | stopping | any | stopped |
//! | stopped, failed | none | stays, unless its time to live is over |
//!
//! A machine that belongs to a run (it has a lease of kind `run`) is removed when the run has died, whatever its state;
//! one that was held, when nobody holds it any more and no environment in it is kept.

use serde::{Deserialize, Serialize};
use testyard_images::store::Store;
use testyard_linux::identity::ProcessIdentity;
use testyard_machine::supervisor::{self, Records as _};
use testyard_model::{MachineId, MachineName, MachineState, Problem, ProblemKind};
use testyard_registry::{Lease, LeaseError, LeaseKind, LeaseStanding, MachineRow, Registry};

use crate::cluster::{self, ReapedCluster};
use crate::keeper;
use crate::kept::{self, Thoroughness};
use crate::machines::{Machines, request};
use crate::records::{RegistryRecords, agent_of};
use crate::run::{prune_frozen, recover_all};
use crate::standing::is_supervised;
use crate::yard::{Testyard, now_ms};

/// What a pass of the reaper did, or would do.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReapReport {
    /// Each cluster that nobody was making any more, or of which nothing was left.
    #[serde(default)]
    pub clusters: Vec<ReapedCluster>,
    /// Each machine that had been left in the middle of something.
    pub machines: Vec<ReapedMachine>,
    /// Leases whose holders had died.
    pub leases: usize,
    /// Kept environments whose time was over, or which had gone.
    #[serde(default)]
    pub environments: usize,
    /// Outputs and artifacts that killed runs had not finished.
    #[serde(default)]
    pub files: usize,
    /// Images that killed builds and imports had not finished.
    #[serde(default)]
    pub images: usize,
}

/// One machine that had been left in the middle of something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReapedMachine {
    /// Which.
    pub id: MachineId,
    /// Its name.
    pub name: MachineName,
    /// The state in which it was left.
    pub was: MachineState,
    /// What was done, or would be.
    pub action: ReapAction,
    /// Why that did not work; it is tried again at the next pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Problem>,
}

/// What is done to a machine that was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReapAction {
    /// It gets a new supervisor.
    Adopt,
    /// What is left of it is removed.
    Remove,
    /// It is marked as failed, and what only a running machine has is removed.
    Fail,
    /// Its stop is finished.
    Stop,
}

impl ReapReport {
    /// Whether everything that was found could be finished.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.machines.iter().all(|machine| machine.failed.is_none())
            && self.clusters.iter().all(|cluster| cluster.failed.is_none())
    }
}

pub(crate) struct Reaper<'y> {
    yard: &'y Testyard,
}

impl<'y> Reaper<'y> {
    pub(crate) fn new(yard: &'y Testyard) -> Self {
        Self { yard }
    }

    /// What every client does now and then: machines without a supervisor.
    pub(crate) fn quick_pass(&self) -> Result<(), Problem> {
        let home = &self.yard.options().home;
        if !home.registry_file().exists() {
            return Ok(());
        }
        let registry = self.yard.registry()?;
        cluster::reap(self.yard, &registry, false)?;
        self.pass_machines(&registry, false)?;
        kept::reap(self.yard, &registry, false, Thoroughness::Quick).map(drop)
    }

    /// Machines, then leases.
    pub(crate) fn pass(&self, dry_run: bool) -> Result<ReapReport, Problem> {
        let registry = self.yard.registry()?;
        let clusters = cluster::reap(self.yard, &registry, dry_run)?;
        let machines = self.pass_machines(&registry, dry_run)?;
        let environments = kept::reap(self.yard, &registry, dry_run, Thoroughness::Full)?;
        let home = &self.yard.options().home;
        let files = if dry_run { 0 } else { recover_all(home) };
        if !dry_run {
            let kept = registry.list_kept().map_err(|error| error.problem())?;
            prune_frozen(&home.frozen_folder(), !kept.is_empty());
        }
        let leases = if dry_run {
            let rows = registry.list_leases(None).map_err(|error| error.problem())?;
            let abandoned = rows
                .iter()
                .filter(|row| !row.goes_with_its_machine())
                .filter(|row| registry.judge(row).is_ok_and(|standing| standing == LeaseStanding::Abandoned));
            abandoned.count()
        } else {
            registry.forget_abandoned_leases().map_err(|error| error.problem())?.len()
        };
        let swept = if dry_run { Ok(0) } else { Store::sweep(&home.images_folder()) };
        let images = swept.map_err(|error| error.problem())?;
        Ok(ReapReport { clusters, machines, leases, environments, files, images })
    }

    fn pass_machines(&self, registry: &Registry, dry_run: bool) -> Result<Vec<ReapedMachine>, Problem> {
        let mut found = Vec::new();
        for row in registry.list().map_err(|error| error.problem())? {
            let machines = Machines { yard: self.yard };
            let (action, failed) = if self.lost_its_holders(registry, &row.id, dry_run)? {
                (ReapAction::Remove, if dry_run { None } else { machines.delete_id(&row.id).err() })
            } else if lost_its_run(registry, &row)? {
                (ReapAction::Remove, if dry_run { None } else { machines.delete(&row.name, true).err() })
            } else {
                let Some(action) = self.judge(registry, &row)? else { continue };
                (action, if dry_run { None } else { self.recover(registry, &row).err() })
            };
            found.push(ReapedMachine { id: row.id, name: row.name, was: row.state, action, failed });
        }
        Ok(found)
    }

    /// Whether a machine was held, and is to go because nobody does any more; writes that down.
    fn lost_its_holders(&self, registry: &Registry, id: &MachineId, dry_run: bool) -> Result<bool, Problem> {
        let lost = registry.lost_its_holders(id).map_err(|error| error.problem())?;
        if !lost || kept::is_any_in(registry, id)? {
            return Ok(false);
        }
        if dry_run { Ok(true) } else { registry.end_unheld(id).map_err(|error| error.problem()) }
    }

    /// What is to be done about a machine; none when it is held, whole, or not ours to judge.
    fn judge(&self, registry: &Registry, row: &MachineRow) -> Result<Option<ReapAction>, Problem> {
        let Some(action) = needed(row, now_ms()) else { return Ok(None) };
        let here = registry.host().map_err(|error| error.problem())?;
        if !row.host.is_judged_by(here) || is_supervised(registry, row)? {
            return Ok(None);
        }
        match action {
            ReapAction::Adopt if !self.agent_lives(row)? => Ok(Some(self.without_agent(registry, row)?)),
            action => Ok(Some(action)),
        }
    }

    fn agent_lives(&self, row: &MachineRow) -> Result<bool, Problem> {
        match agent_of(row) {
            Some(agent) => agent.process().is_alive().map_err(|error| error.problem()),
            None => Ok(false),
        }
    }

    /// A machine whose host was restarted has not failed.
    fn without_agent(&self, registry: &Registry, row: &MachineRow) -> Result<ReapAction, Problem> {
        let here = registry.host().map_err(|error| error.problem())?;
        Ok(if row.host.boot_id == here.boot_id { ReapAction::Fail } else { ReapAction::Stop })
    }

    /// Finishes what was left undone of one machine; false when somebody holds it, or it is not ours to judge.
    pub(crate) fn recover(&self, registry: &Registry, row: &MachineRow) -> Result<bool, Problem> {
        let lease = match Lease::acquire(registry, &request(&row.id, "finish what was left undone")) {
            Ok(lease) => lease,
            Err(LeaseError::Held { .. } | LeaseError::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error.problem()),
        };
        // Read again under the lock: whoever held it before may have finished.
        let Some(row) = registry.load(&row.id).map_err(|error| error.problem())? else {
            return Ok(true);
        };
        let action = self.judge_held(registry, &row)?;
        match action {
            None => {
                lease.release(registry).map_err(|error| error.problem())?;
                Ok(false)
            }
            Some(ReapAction::Adopt) => {
                let place = self.yard.place_of(&row);
                let Err(problem) = keeper::start(self.yard, &place, lease, None, true) else { return Ok(true) };
                // An agent that was just dying: that is written down, and its machine has been put in order.
                let now = registry.load(&row.id).map_err(|error| error.problem())?;
                if now.is_some_and(|now| needed(&now, now_ms()).is_some()) { Err(problem) } else { Ok(true) }
            }
            Some(ReapAction::Remove) => {
                Machines { yard: self.yard }.remove(&row)?;
                drop(lease);
                Ok(true)
            }
            Some(action) => {
                self.end(&row, action)?;
                lease.release(registry).map_err(|error| error.problem())?;
                Ok(true)
            }
        }
    }

    /// As [`Reaper::judge`], by whoever holds the lock.
    fn judge_held(&self, registry: &Registry, row: &MachineRow) -> Result<Option<ReapAction>, Problem> {
        let here = registry.host().map_err(|error| error.problem())?;
        match needed(row, now_ms()) {
            _ if !row.host.is_judged_by(here) => Ok(None),
            Some(ReapAction::Adopt) if !self.agent_lives(row)? => Ok(Some(self.without_agent(registry, row)?)),
            action => Ok(action),
        }
    }

    /// Ends what is left of a machine that stays, and writes down what became of it.
    fn end(&self, row: &MachineRow, action: ReapAction) -> Result<(), Problem> {
        let home = &self.yard.options().home;
        let place = self.yard.place_of(row);
        let backend = self.yard.backend(&row.spec.backend)?;
        let mut records = RegistryRecords::open(home).map_err(|error| error.problem())?;
        let agent: Option<ProcessIdentity> = agent_of(row).map(|agent| agent.process());
        supervisor::end_agent(&place, agent.as_ref()).map_err(|error| error.problem())?;
        supervisor::clear(&place, home.runtime(), &*backend, &mut records).map_err(|error| error.problem())?;
        records.record_supervisor(&row.id, None).map_err(|error| error.problem())?;
        match action {
            ReapAction::Stop => records.transition(&row.id, row.state, MachineState::Stopped),
            _ => {
                let cause = Problem::new(ProblemKind::Unavailable, "the machine's supervisor died")
                    .because(format!("it was {} then", row.state))
                    .hint(format!("testyard logs {}", row.name))
                    .hint(format!("testyard start {}", row.name));
                records.record_failure(&row.id, row.state, &cause)
            }
        }
        .map_err(|error| error.problem())
    }
}

/// Whether a machine was made for a run that has died.
fn lost_its_run(registry: &Registry, row: &MachineRow) -> Result<bool, Problem> {
    let leases = registry.list_leases(Some(&row.id)).map_err(|error| error.problem())?;
    let mut abandoned = false;
    for lease in leases.iter().filter(|lease| lease.kind == LeaseKind::Run) {
        match registry.judge(lease).map_err(|error| error.problem())? {
            LeaseStanding::Abandoned => abandoned = true,
            LeaseStanding::Held | LeaseStanding::Foreign => return Ok(false),
        }
    }
    Ok(abandoned)
}

/// What a machine's row asks for when nobody holds it; pure.
fn needed(row: &MachineRow, now_ms: i64) -> Option<ReapAction> {
    let expired = row.expires_ms.is_some_and(|at| at <= now_ms);
    match row.state {
        MachineState::Creating | MachineState::Deleting => Some(ReapAction::Remove),
        _ if expired => Some(ReapAction::Remove),
        MachineState::Running => Some(ReapAction::Adopt),
        MachineState::Starting => Some(ReapAction::Fail),
        MachineState::Stopping => Some(ReapAction::Stop),
        MachineState::Stopped | MachineState::Failed => None,
    }
}

#[cfg(test)]
mod tests {
    use testyard_model::{BackendName, MachineSpec};
    use testyard_registry::HostIdentity;

    use super::*;

    fn row(state: MachineState, expires_ms: Option<i64>) -> MachineRow {
        MachineRow {
            id: MachineId::from_bits(1),
            name: "web".parse().expect("a name"),
            state,
            spec: MachineSpec::new(BackendName::host()),
            backend_reason: None,
            created_ms: 0,
            expires_ms,
            cause: None,
            host: HostIdentity { host_id: String::new(), boot_id: String::new(), pid_namespace: 0 },
            supervisor: None,
            agent: None,
            generation: 0,
        }
    }

    #[test]
    fn a_machine_that_nobody_holds_is_finished_in_the_direction_it_was_going() {
        for (state, action) in [
            (MachineState::Creating, Some(ReapAction::Remove)),
            (MachineState::Deleting, Some(ReapAction::Remove)),
            (MachineState::Running, Some(ReapAction::Adopt)),
            (MachineState::Starting, Some(ReapAction::Fail)),
            (MachineState::Stopping, Some(ReapAction::Stop)),
            (MachineState::Stopped, None),
            (MachineState::Failed, None),
        ] {
            assert_eq!(needed(&row(state, None), 5), action, "{state}");
            assert_eq!(needed(&row(state, Some(9)), 5), action, "{state}, whose time is not over");
            assert_eq!(needed(&row(state, Some(5)), 5), Some(ReapAction::Remove), "{state}, whose time is over");
        }
    }
}
