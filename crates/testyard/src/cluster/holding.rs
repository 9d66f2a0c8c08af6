//! Clusters that end with those who hold them. What is held of a cluster is its first node: whoever lets that go last
//! removes the cluster, and so does a reaper that finds it let go of.

use testyard_cluster::{ClusterInfo, ClusterName, ClusterSpec, ClusterState};
use testyard_model::{MachineId, MachineName, Problem, ProblemKind};
use testyard_registry::{ClusterRow, Lease, Registry};

use super::ending::machines_of;
use super::{Clusters, Layout};
use crate::machines::holding;
use crate::yard::Testyard;

impl Clusters<'_> {
    /// As [`Clusters::create`], and holds the cluster from the moment at which it is ready; until then it goes with
    /// whoever makes it.
    pub(crate) fn create_held(
        &self,
        name: &ClusterName,
        spec: &ClusterSpec,
        purpose: &str,
    ) -> Result<(ClusterInfo, MachineId, Lease), Problem> {
        spec.check().map_err(|error| Problem::from_error(ProblemKind::Usage, &error))?;
        let registry = self.yard.registry()?;
        let controller = Layout::new(name, spec).controller().name.clone();
        let mut held = None;
        let info = self.create_by(&registry, name, spec, |row| {
            self.make(row, name, spec)?;
            held = Some(self.hold_node(&controller, purpose)?);
            Ok(())
        })?;
        let (id, lease) = held.ok_or_else(|| Problem::new(ProblemKind::Bug, "a cluster was made and not held"))?;
        Ok((info, id, lease))
    }

    /// Holds a cluster that is there.
    ///
    /// # Errors
    /// There is none of this name, it is not ready, or its last holder has let it go.
    pub(crate) fn hold(&self, name: &ClusterName, purpose: &str) -> Result<(ClusterInfo, MachineId, Lease), Problem> {
        let registry = self.yard.registry()?;
        let row = self.row(&registry, name)?;
        let info = self.describe(&row, &self.yard.machines().list()?)?;
        if info.state != ClusterState::Running {
            let message = format!("cluster {name} is {}", info.state.as_str());
            return Err(Problem::new(ProblemKind::WrongState, message).hint("wait a moment, then try again"));
        }
        let (id, lease) = self.hold_node(&info.controller, purpose)?;
        Ok((info, id, lease))
    }

    fn hold_node(&self, node: &MachineName, purpose: &str) -> Result<(MachineId, Lease), Problem> {
        let registry = self.yard.registry()?;
        let id = self.yard.machines().info(node)?.id;
        let lease = Lease::acquire(&registry, &holding(&id, purpose)).map_err(|error| error.problem())?;
        Ok((id, lease))
    }
}

/// Whether a cluster was held and nobody holds it any more.
pub(super) fn lost_its_holders(registry: &Registry, machines: &[MachineId]) -> Result<bool, Problem> {
    for id in machines {
        if registry.lost_its_holders(id).map_err(|error| error.problem())? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes down that a cluster which nobody holds ends. False where somebody holds it after all; true as well for one
/// that nobody ever held.
pub(super) fn end_unheld(yard: &Testyard, registry: &Registry, row: &ClusterRow) -> Result<bool, Problem> {
    for id in machines_of(yard, &row.id)? {
        if registry.lost_its_holders(&id).map_err(|error| error.problem())? {
            return registry.end_unheld(&id).map_err(|error| error.problem());
        }
    }
    Ok(true)
}
