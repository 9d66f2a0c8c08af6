//! Running suites on machines: what the runner asks for, answered by the engine, the probes, the tree and the registry.

mod bench;
mod executor;
mod history;
mod kept;
mod trees;
mod warm;

pub use bench::TestBench;
pub use executor::{MachineExecutor, MachineSource};
pub use history::RegistryHistory;
pub use kept::{KeptRun, KeptRuns, Limits, local_time};
pub use trees::Trees;
pub use warm::WarmMachines;
