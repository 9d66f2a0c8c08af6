//! Removing clusters, and what the reaper does about those that nobody is making any more.

use serde::{Deserialize, Serialize};
use testyard_cluster::ClusterState;
use testyard_linux::step::{self, Step};
use testyard_model::{MachineId, MachineInfo, Problem};
use testyard_registry::{ClusterRow, Registry};

use super::claim::{Claim, is_claimed};
use super::holding::{end_unheld, lost_its_holders};
use super::secrets::Folder;
use super::{is_of, layout_of, making};
use crate::yard::Testyard;

/// A cluster that the reaper removed, or would.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReapedCluster {
    /// Its name.
    pub name: String,
    /// The word for the state in which it was left.
    pub was: String,
    /// Why it could not be removed; it is tried again at the next pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Problem>,
}

/// Removes everything of a cluster. Its row goes last; until then a reaper finishes.
pub(super) fn remove(yard: &Testyard, registry: &Registry, claim: Claim) -> Result<(), Problem> {
    claim.begin_removal(registry)?;
    step::reach(Step::ClusterDeleting);
    making::at_once(&machines_of(yard, &claim.row.id)?, |id| yard.machines().delete_id(id))?;
    step::reach(Step::ClusterNodesGone);
    let home = &yard.options().home;
    Folder::new(home.clusters_folder(), &claim.row.id).remove()?;
    // Of a fork that had homes before it had a machine; else it went with the last of the machines.
    Folder::new(home.networks_folder(), &claim.row.id).remove()?;
    registry.forget_cluster(&claim.row.id).map_err(|error| error.problem())?;
    claim.release(registry)
}

pub(super) fn machines_of(yard: &Testyard, cluster: &str) -> Result<Vec<MachineId>, Problem> {
    let machines = yard.machines().list()?;
    Ok(machines.into_iter().filter(|machine| is_of(machine, cluster)).map(|machine| machine.id).collect())
}

/// Removes what a dead command left of a cluster; false where there is nothing to do.
pub(super) fn recover(yard: &Testyard, registry: &Registry, row: &ClusterRow) -> Result<bool, Problem> {
    if !is_left(yard, registry, row)? || !end_unheld(yard, registry, row)? {
        return Ok(false);
    }
    let claim = Claim::take(registry, row.clone(), "remove what was left of the cluster")?;
    remove(yard, registry, claim).map(|()| true)
}

/// Whether a cluster is one that nobody will finish, or of which nothing is left.
fn is_left(yard: &Testyard, registry: &Registry, row: &ClusterRow) -> Result<bool, Problem> {
    if is_claimed(registry, row)? {
        return Ok(false);
    }
    Ok(match ClusterState::from_word(&row.state) {
        Some(ClusterState::Creating | ClusterState::Deleting) => true,
        Some(ClusterState::Running | ClusterState::Stopped) => {
            let machines = machines_of(yard, &row.id)?;
            machines.is_empty() || lost_its_holders(registry, &machines)?
        }
        // Of a newer version: not ours to judge.
        None => false,
    })
}

/// Removes every cluster that was left; before its machines are looked at one by one.
pub(crate) fn reap(yard: &Testyard, registry: &Registry, dry_run: bool) -> Result<Vec<ReapedCluster>, Problem> {
    let mut reaped = Vec::new();
    for row in registry.list_clusters().map_err(|error| error.problem())? {
        // One that cannot be judged is in nobody else's way.
        let failed = match is_left(yard, registry, &row) {
            Ok(true) if dry_run => None,
            Ok(true) => recover(yard, registry, &row).err(),
            Ok(false) if dry_run || ClusterState::from_word(&row.state).is_none() => continue,
            Ok(false) => match remove_strays(yard, registry, &row) {
                Ok(()) => continue,
                Err(problem) => Some(problem),
            },
            Err(problem) => Some(problem),
        };
        reaped.push(ReapedCluster { name: row.name, was: row.state, failed });
    }
    Ok(reaped)
}

/// Removes the machines of a cluster that are none of its nodes: whoever was adding or removing them was killed.
fn remove_strays(yard: &Testyard, registry: &Registry, row: &ClusterRow) -> Result<(), Problem> {
    let layout = layout_of(row)?;
    let strays =
        |machine: &MachineInfo| is_of(machine, &row.id) && !layout.nodes.iter().any(|node| node.name == machine.name);
    if !yard.machines().list()?.iter().any(strays) || is_claimed(registry, row)? {
        return Ok(());
    }
    let Ok(claim) = Claim::take(registry, row.clone(), "remove nodes that were left") else { return Ok(()) };
    let left: Vec<_> = yard.machines().list()?.into_iter().filter(strays).map(|machine| machine.id).collect();
    making::at_once(&left, |id| yard.machines().delete_id(id))?;
    let clusters = yard.clusters();
    if clusters.is_up(layout.controller()) {
        // The others were told of those that never came, or that are gone now.
        clusters.reconfigure(&layout, &layout.nodes, &clusters.folder(&row.id).load()?)?;
    }
    claim.release(registry)
}
