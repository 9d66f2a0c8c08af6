//! Running suites on machines: what the runner asks for, answered by the engine, the probes, the tree and the registry.

mod aftermath;
mod allocation;
mod bench;
mod clusters;
mod executor;
mod files;
mod frozen;
mod history;
mod keeper;
mod kept;
mod pace;
mod preparing;
mod services;
mod spread;
mod trees;
mod warm;

pub use allocation::SlurmNodes;
pub use bench::TestBench;
pub use executor::{MachineExecutor, MachineSource};
pub(crate) use files::recover_all;
pub(crate) use frozen::prune as prune_frozen;
pub use history::RegistryHistory;
pub use kept::{KeptRun, KeptRuns, Limits, local_time};
pub use spread::Where;
pub(crate) use trees::await_events;
pub use trees::{SourceMode, Trees, top_of};
pub use warm::WarmMachines;
