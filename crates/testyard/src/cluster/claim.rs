//! Being the one who makes, changes or removes a cluster.

use std::time::{Duration, Instant};

use testyard_cluster::{ClusterName, ClusterSpec, ClusterState};
use testyard_model::{Problem, ProblemKind};
use testyard_registry::{ClusterRow, Lease, LeaseKind, LeaseRequest, NewCluster, Registry};

use super::{ending, making};
use crate::yard::{Testyard, now_ms};

/// How often a creation is tried again when a reaper was faster.
const TRIES: usize = 5;

/// So long one command waits for another that is changing the same cluster.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster's row, and the lease without which nobody changes it.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) row: ClusterRow,
    lease: Lease,
}

impl Claim {
    /// Writes down the intent to make a cluster. What a dead command left under its name is removed first.
    pub(super) fn reserve(
        yard: &Testyard,
        registry: &Registry,
        name: &ClusterName,
        spec: &ClusterSpec,
    ) -> Result<Self, Problem> {
        let new = NewCluster {
            name: name.to_string(),
            state: ClusterState::Creating.as_str().to_owned(),
            spec: json(spec)?,
            created_ms: now_ms(),
        };
        let lease = acquire(registry, "create the cluster")?;
        for _ in 0..TRIES {
            if let Some(row) = registry.reserve_cluster(&new, lease.id()).map_err(|error| error.problem())? {
                return Ok(Self { row, lease });
            }
            let Some(row) = registry.find_cluster(name.as_str()).map_err(|error| error.problem())? else { continue };
            if !ending::recover(yard, registry, &row)? {
                // A row or file of the lease that stays is swept by the reaper.
                let _ = lease.release(registry);
                return Err(taken(&row));
            }
        }
        let _ = lease.release(registry);
        Err(Problem::new(ProblemKind::Unavailable, format!("the name of cluster {name} is taken again and again")))
    }

    /// Takes a cluster that nobody is changing.
    pub(super) fn take(registry: &Registry, row: ClusterRow, purpose: &str) -> Result<Self, Problem> {
        let busy = || {
            Problem::new(
                ProblemKind::WrongState,
                format!("cluster {} is being made, changed or removed by another command", row.name),
            )
            .hint("wait for it, then see: testyard cluster list")
        };
        if is_claimed(registry, &row)? {
            return Err(busy());
        }
        let lease = acquire(registry, purpose)?;
        let taken = registry.take_cluster(&row.id, row.lease.as_ref(), lease.id()).map_err(|error| error.problem())?;
        if !taken {
            let _ = lease.release(registry);
            return Err(busy());
        }
        Ok(Self { row, lease })
    }

    /// Takes a cluster, after whoever is changing it now. `find` looks its row up.
    pub(super) fn await_turn(
        registry: &Registry,
        find: impl Fn(&Registry) -> Result<ClusterRow, Problem>,
        purpose: &str,
    ) -> Result<Self, Problem> {
        let begun = Instant::now();
        loop {
            match Self::take(registry, find(registry)?, purpose) {
                Err(problem) if problem.kind == ProblemKind::WrongState && begun.elapsed() < PATIENCE => {}
                outcome => return outcome,
            }
            making::pause();
        }
    }

    /// Writes down what the cluster is now.
    pub(super) fn record(&self, registry: &Registry, state: ClusterState, spec: &ClusterSpec) -> Result<(), Problem> {
        registry.record_cluster(&self.row.id, state.as_str(), &json(spec)?).map_err(|error| error.problem())
    }

    /// Writes down that it is going, whatever its row says beside.
    pub(super) fn begin_removal(&self, registry: &Registry) -> Result<(), Problem> {
        let state = ClusterState::Deleting.as_str();
        registry.record_cluster(&self.row.id, state, &self.row.spec).map_err(|error| error.problem())
    }

    /// Others may change it from now on.
    pub(super) fn release(self, registry: &Registry) -> Result<(), Problem> {
        self.lease.release(registry).map_err(|error| error.problem())
    }
}

/// Whether a live process is changing the cluster.
pub(super) fn is_claimed(registry: &Registry, row: &ClusterRow) -> Result<bool, Problem> {
    row.lease.as_ref().map_or(Ok(false), |lease| Lease::is_held(registry, lease).map_err(|error| error.problem()))
}

fn acquire(registry: &Registry, purpose: &str) -> Result<Lease, Problem> {
    let request =
        LeaseRequest { kind: LeaseKind::Cluster, machine: None, purpose: purpose.to_owned(), expires_ms: None };
    Lease::acquire(registry, &request).map_err(|error| error.problem())
}

fn json(spec: &ClusterSpec) -> Result<serde_json::Value, Problem> {
    serde_json::to_value(spec).map_err(|error| Problem::new(ProblemKind::Bug, "cannot write a cluster").because(error))
}

fn taken(row: &ClusterRow) -> Problem {
    Problem::new(ProblemKind::AlreadyExists, format!("cluster {} already exists and is {}", row.name, row.state))
        .hint("see it: testyard cluster list")
        .hint(format!("remove it: testyard cluster delete {}", row.name))
}
