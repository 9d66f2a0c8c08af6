//! The backends: each makes, starts, stops and removes machines of one kind, and yields a link to the agent inside.
//!
//! They never know each other. What is the same for all (names, sockets, expiry, commands, files) is the
//! supervisor's and the agent's.

mod agent_process;
pub mod host;
pub mod namespace;
pub mod remote;
pub mod slurm;

pub use host::Host;
pub use namespace::Namespace;
pub use remote::Elsewhere;
pub use slurm::SlurmAllocation;

use testyard_machine::backend::BackendTable;
use testyard_model::BackendName;

/// The backends that Testyard comes with.
#[must_use]
pub fn built_in() -> BackendTable {
    BackendTable::new()
        .with(&BackendName::host(), || Box::new(Host))
        .with(&BackendName::namespace(), || Box::new(Namespace))
        .with(&BackendName::ssh(), || Box::new(Elsewhere::ssh()))
        .with(&BackendName::command(), || Box::new(Elsewhere::command()))
        .with(&BackendName::slurm_allocation(), || Box::new(SlurmAllocation))
}
