//! Testyard's public Rust API: a home, its machines, and what can be done in them.
//!
//! This is the one place that knows all parts by name: it gives the supervisor its backend, its records the
//! registry, and the client its sockets. Errors are [`Problem`]s, ready for people.
//!
//! ```no_run
//! use testyard::{BackendName, MachineSpec, Testyard};
//!
//! let yard = Testyard::from_process()?;
//! let name = "web".parse().expect("a name");
//! yard.machines().create(&name, &MachineSpec::new(BackendName::namespace()))?;
//! let output = yard.connect(&name)?.run(&["uname", "-a"])?;
//! assert!(output.finished.status.success());
//! # Ok::<(), testyard::Problem>(())
//! ```

mod archive;
mod cloning;
pub mod cluster;
mod far;
mod furnished;
mod holder;
mod keeper;
mod kept;
mod machine;
mod machines;
mod networks;
mod options;
mod reap;
mod records;
pub mod run;
mod standing;
mod sync;
mod yard;

pub use testyard_link::answer_ssh;
pub use testyard_link::asking::{Answer, Question};
pub use testyard_model::{
    BackendName, EnvironmentSpec, HostEntry, InterfaceAddress, MachineId, MachineInfo, MachineName, MachineNetwork,
    MachineSpec, MachineState, NetworkName, PrivateNetwork, Problem, ProblemKind, Publish,
};

pub use archive::ArchivedMachine;
pub use cluster::Clusters;
pub use far::{far_command, keep_command};
pub use holder::Holder;
pub use keeper::{supervise_command, supervise_main};
pub use kept::{KeptEnvironment, KeptName};
pub use machine::Machine;
pub use machines::Machines;
pub use options::Options;
pub use reap::{ReapAction, ReapReport, ReapedMachine};
pub use sync::{SyncReport, SyncRequest, TreeSync};
pub use testyard_link::near::run as near_command;
pub use testyard_link::plain::run as plain_command;
pub use yard::{Connecting, Testyard};
