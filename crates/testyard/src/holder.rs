//! Holding machines and clusters for another process: they end when everybody who holds them is gone, however that came.
//!
//! A holder is a process of its own, `testyard hold`, so that it can still delete when the process it holds for was
//! killed. What it holds is a lease each; when it is killed too, the abandoned leases tell the reaper.

use std::collections::BTreeMap;
use std::time::Duration;

use testyard_cluster::{ClusterInfo, ClusterName, ClusterSpec};
use testyard_model::{MachineId, MachineInfo, MachineName, MachineSpec, Problem, ProblemKind};
use testyard_registry::{Lease, Registry, Released};

use crate::kept::{self, KeptName, Thoroughness};
use crate::machines::holding;
use crate::yard::Testyard;

/// How often a machine is looked at that lives on for environments which are kept.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The machines and clusters that one process holds.
#[derive(Debug)]
pub struct Holder<'y> {
    yard: &'y Testyard,
    purpose: String,
    held: BTreeMap<MachineName, (MachineId, Lease)>,
    /// By their first nodes, which are what is held of them.
    clusters: BTreeMap<ClusterName, (MachineId, Lease)>,
    /// Let go by the last who held them, while environments in them are kept.
    waiting: Vec<(MachineId, Lease)>,
}

impl<'y> Holder<'y> {
    /// Holds nothing yet. `purpose` is for people: who it holds for.
    #[must_use]
    pub fn new(yard: &'y Testyard, purpose: &str) -> Self {
        Self {
            yard,
            purpose: purpose.to_owned(),
            held: BTreeMap::new(),
            clusters: BTreeMap::new(),
            waiting: Vec::new(),
        }
    }

    /// Holds a machine that is there; one that is held already is no error.
    ///
    /// # Errors
    /// There is no such machine, or its last holder has let it go and it is ending (`WrongState`).
    pub fn hold(&mut self, name: &MachineName) -> Result<MachineInfo, Problem> {
        let registry = self.yard.registry()?;
        // Before its lease: a machine that is named anew meanwhile is then not another one.
        let info = self.yard.machines().info(name)?;
        if self.held.get(name).is_some_and(|(id, _)| *id == info.id) {
            return Ok(info);
        }
        let lease = Lease::acquire(&registry, &holding(&info.id, &self.purpose))
            .map_err(|error| named(error.problem(), name))?;
        self.held.insert(name.clone(), (info.id.clone(), lease));
        Ok(info)
    }

    /// Creates a machine and holds it from before any of it is made, so that none is ever left.
    ///
    /// # Errors
    /// As [`crate::Machines::create`]; nothing is held then.
    pub fn create(&mut self, name: &MachineName, spec: &MachineSpec) -> Result<MachineInfo, Problem> {
        let (info, lease) = self.yard.machines().create_held(name, spec, &self.purpose)?;
        self.held.insert(name.clone(), (info.id.clone(), lease));
        Ok(info)
    }

    /// Lets a machine go; deletes it where nobody else holds it, and says so. One in which environments are kept is
    /// deleted by [`Holder::finish`].
    ///
    /// # Errors
    /// It is not held here, or could not be deleted: the reaper tries again.
    pub fn release(&mut self, name: &MachineName) -> Result<bool, Problem> {
        let Some((id, lease)) = self.held.remove(name) else {
            return Err(Problem::new(ProblemKind::WrongState, format!("machine {name} is not held here"))
                .hint(format!("hold it first: hold {name}")));
        };
        let registry = self.yard.registry()?;
        match registry.let_go(&id, lease).map_err(|error| error.problem())? {
            Released::Shared => Ok(false),
            Released::Last(lease) if kept::is_any_in(&registry, &id)? => {
                self.waiting.push((id, lease));
                Ok(false)
            }
            Released::Last(lease) => self.delete(&registry, &id, lease).map(|()| true),
        }
    }

    /// Holds a cluster that is there and ready; one that is held already is no error.
    ///
    /// # Errors
    /// There is no such cluster, it is not ready, or its last holder has let it go (`WrongState`).
    pub fn hold_cluster(&mut self, name: &ClusterName) -> Result<ClusterInfo, Problem> {
        let (info, id, lease) = self.yard.clusters().hold(name, &self.purpose)?;
        if self.clusters.get(name).is_some_and(|(held, _)| *held == id) {
            lease.release(&self.yard.registry()?).map_err(|error| error.problem())?;
        } else {
            self.clusters.insert(name.clone(), (id, lease));
        }
        Ok(info)
    }

    /// Creates a cluster and holds it, so that none is ever left.
    ///
    /// # Errors
    /// As [`crate::Clusters::create`]; nothing is held then.
    pub fn create_cluster(&mut self, name: &ClusterName, spec: &ClusterSpec) -> Result<ClusterInfo, Problem> {
        let (info, id, lease) = self.yard.clusters().create_held(name, spec, &self.purpose)?;
        self.clusters.insert(name.clone(), (id, lease));
        Ok(info)
    }

    /// Lets a cluster go; deletes it where nobody else holds it, and says so.
    ///
    /// # Errors
    /// It is not held here, or could not be deleted: the reaper tries again.
    pub fn release_cluster(&mut self, name: &ClusterName) -> Result<bool, Problem> {
        let Some((id, lease)) = self.clusters.remove(name) else {
            return Err(Problem::new(ProblemKind::WrongState, format!("cluster {name} is not held here"))
                .hint(format!("hold it first: hold-cluster {name}")));
        };
        let registry = self.yard.registry()?;
        match registry.let_go(&id, lease).map_err(|error| error.problem())? {
            Released::Shared => Ok(false),
            Released::Last(lease) => {
                self.yard.clusters().delete(name)?;
                lease.release(&registry).map_err(|error| error.problem())?;
                registry.forget_abandoned_leases().map_err(|error| error.problem())?;
                Ok(true)
            }
        }
    }

    /// Writes down that an environment of a machine is about to be kept: the machine lives as long.
    ///
    /// # Errors
    /// There is no such machine, or the registry failed.
    pub fn keep(&self, name: &KeptName, test: &str, duration: Duration) -> Result<(), Problem> {
        self.yard.record_kept(name, &self.purpose, test, duration)
    }

    /// Lets everything go. Returns what could not be deleted; the reaper tries again.
    pub fn release_all(&mut self) -> Vec<Problem> {
        let clusters: Vec<ClusterName> = self.clusters.keys().cloned().collect();
        let mut problems: Vec<Problem> = clusters.iter().filter_map(|name| self.release_cluster(name).err()).collect();
        let names: Vec<MachineName> = self.held.keys().cloned().collect();
        problems.extend(names.iter().filter_map(|name| self.release(name).err()));
        problems
    }

    /// Whether machines wait for environments that are kept in them.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Deletes the machines that waited once nothing in them is kept any more, which may take as long as it was kept for.
    pub fn finish(mut self) -> Vec<Problem> {
        let mut problems = Vec::new();
        while !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            for (id, lease) in waiting {
                match self.finish_one(&id, lease) {
                    Ok(None) => {}
                    Ok(Some(lease)) => self.waiting.push((id, lease)),
                    Err(problem) => problems.push(problem),
                }
            }
            if !self.waiting.is_empty() {
                testyard_linux::pause(LOOK_EVERY);
            }
        }
        problems
    }

    /// The lease again, where something in the machine is still kept.
    fn finish_one(&self, id: &MachineId, lease: Lease) -> Result<Option<Lease>, Problem> {
        let registry = self.yard.registry()?;
        // Of environments that were ended before their time, nobody else would take notice.
        kept::reap(self.yard, &registry, false, Thoroughness::Full)?;
        if kept::is_any_in(&registry, id)? {
            return Ok(Some(lease));
        }
        self.delete(&registry, id, lease).map(|()| None)
    }

    fn delete(&self, registry: &Registry, id: &MachineId, lease: Lease) -> Result<(), Problem> {
        self.yard.machines().delete_id(id)?;
        // Its row went with the machine, and those of holders who were killed: their files are swept.
        lease.release(registry).map_err(|error| error.problem())?;
        registry.forget_abandoned_leases().map(drop).map_err(|error| error.problem())
    }
}

/// Leases know machines by their ids, people by their names.
fn named(mut problem: Problem, name: &MachineName) -> Problem {
    if problem.kind == ProblemKind::WrongState {
        problem.message = format!("machine {name} is ending: whoever held it last has let it go");
    }
    problem
}
