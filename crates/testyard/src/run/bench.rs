//! Everything that a run needs of a home, put together.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use testyard_model::Problem;
use testyard_probe::choose_tier;
use testyard_runner::history::History;
use testyard_runner::job::Executor;

use super::{KeptRuns, MachineExecutor, RegistryHistory, Trees, WarmMachines};
use crate::yard::Testyard;

/// What a run is given.
pub struct TestBench {
    /// Runs its tests.
    pub executor: Arc<dyn Executor>,
    /// Remembers how long they take.
    pub history: Arc<dyn History>,
    /// Where it is kept: its results and its large outputs.
    pub kept: KeptRuns,
}

impl TestBench {
    /// For suites whose names and files are these.
    ///
    /// # Errors
    /// This host could not be probed, or gives no ports.
    pub fn prepare(yard: &Testyard, suites: HashMap<String, PathBuf>) -> Result<Self, Problem> {
        let home = &yard.options().home;
        let report = yard.prober().load().map_err(|error| error.problem())?;
        let auto = choose_tier(&report).backend;
        let exclude = vec![home.state().to_path_buf(), home.runtime().to_path_buf()];
        let trees = Trees::new(home.sync_folder(), exclude);
        let machines = WarmMachines::new(yard.clone(), auto);
        let executor = MachineExecutor::new(Box::new(machines), report, trees)?;
        Ok(Self {
            executor: Arc::new(executor),
            history: Arc::new(RegistryHistory::new(home.clone(), suites)),
            kept: KeptRuns::of(home),
        })
    }
}
