//! Everything that a run needs of a home, put together.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use testyard_engine::{CopiedTrees, Copies};
use testyard_machine::client::caller;
use testyard_model::{Problem, ProblemKind};
use testyard_probe::choose_tier;
use testyard_runner::history::History;
use testyard_runner::job::Executor;

use super::aftermath::Care;
use super::allocation::Allocations;
use super::clusters::Clusters;
use super::files::{Journal, recover_all};
use super::frozen::prune as prune_frozen;
use super::keeper::Keeper;
use super::spread::{Footing, Spread, Where};
use super::{KeptRuns, MachineExecutor, RegistryHistory, SourceMode, Trees, WarmMachines};
use crate::sync::{secrets, sent_lists};
use crate::yard::Testyard;

/// What a run is given.
pub struct TestBench {
    /// Runs its tests.
    pub executor: Arc<dyn Executor>,
    /// Remembers how long they take.
    pub history: Arc<dyn History>,
    /// Where it is kept: its results and its large outputs.
    pub kept: KeptRuns,
    /// The working trees, to wait for changes of them.
    pub trees: Arc<Trees>,
}

impl TestBench {
    /// Of this home. `suite` is a folder whose tree will be asked for; while anything is waited for, it is looked at. Where
    /// `stop` becomes readable meanwhile, what is waited for is called off.
    ///
    /// # Errors
    /// This host could not be probed, or gives no ports, or a machine does not run over which tests are to be spread.
    pub fn prepare(
        yard: &Testyard,
        source: SourceMode,
        place: &Where,
        suite: Option<&Path>,
        stop: Option<BorrowedFd<'_>>,
    ) -> Result<Self, Problem> {
        // While Slurm looks for nodes, everything else is made ready.
        let allocations = match place {
            Where::Slurm(nodes) => Some(Allocations::begin(yard, nodes)?),
            _ => None,
        };
        let home = &yard.options().home;
        let report = yard.prober().load().map_err(|error| error.problem())?;
        let auto = choose_tier(&report).backend;
        let exclude = vec![home.state().to_path_buf(), home.runtime().to_path_buf()];
        let mut trees = Trees::new(home.sync_folder(), exclude);
        if source == SourceMode::Frozen {
            let kept = yard.registry()?.list_kept().map_err(|error| error.problem())?;
            // The environments that are kept may show one of the copies.
            prune_frozen(&home.frozen_folder(), !kept.is_empty());
            trees = trees.frozen_in(home.frozen_folder(), secrets(home)?);
        }
        let trees = Arc::new(trees.copied_in(home, source == SourceMode::Synced));
        let copied: Arc<dyn CopiedTrees> = trees.clone();
        let copies = Arc::new(Copies::new(copied, sent_lists(home), Some(caller())));
        recover_all(home);
        let care = Care { journal: Journal::of(home), runs: home.runs_folder(), keeper: Keeper::new(yard.clone()) };
        let care = Arc::new(care);
        // What is wrong with it is told when it is needed.
        let _ = suite.map(|suite| trees.look(suite));
        let footing = Footing { yard: yard.clone(), report, trees: Arc::clone(&trees), copies, care };
        let executor: Arc<dyn Executor> = match place {
            Where::Here => {
                let Footing { yard, report, trees, copies, care } = footing;
                let machines = WarmMachines::new(yard.clone(), auto, copies);
                let executor = MachineExecutor::new(Box::new(machines), report, trees, care)?;
                Arc::new(executor.with_clusters(Clusters::new(yard)))
            }
            Where::Machines(names) => Arc::new(Spread::over(footing, names)?),
            Where::Slurm(_) => {
                let mut allocations =
                    allocations.ok_or_else(|| Problem::new(ProblemKind::Bug, "allocations were not asked for"))?;
                let first = allocations.wait_for_first(stop)?;
                Arc::new(Spread::over_allocations(footing, allocations, first)?)
            }
        };
        Ok(Self { executor, history: Arc::new(RegistryHistory::new(home)), kept: KeptRuns::of(home), trees })
    }
}
