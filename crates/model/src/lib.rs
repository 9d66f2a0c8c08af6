//! The words of Testyard as types: names, sizes, states, specs, outcomes and errors.
//!
//! This crate decides and describes; it does no IO, reads no clock and knows no operating system.
//! Everything here may travel: the same types are the JSON of `list`, `info` and `run`
//! (see `docs/json.md`), the registry's columns, and the bodies of protocol messages.

pub mod environment;
pub mod exit;
pub mod machine;
pub mod names;
pub mod network;
pub mod problem;
pub mod remote;
pub mod slurm;
pub mod state;
pub mod step;
pub mod units;
pub mod user;

pub use environment::{EnvironmentLimits, EnvironmentSpec, Isolation, Network, Usage};
pub use exit::{CommandStatus, ExitCode};
pub use machine::{Access, BackendName, Exposure, ImageReference, ImageReferenceError, MachineInfo, MachineSpec};
pub use names::{EnvironmentId, MachineId, MachineName, NameError};
pub use network::{HostEntry, InterfaceAddress, MachineNetwork, NetworkName, PrivateNetwork, Publish};
pub use problem::{Problem, ProblemKind};
pub use remote::{AgentUse, HostKeys, Inside, PasswordSource, Remote, SshTransport, Transport};
pub use slurm::SlurmJob;
pub use state::MachineState;
pub use units::{ByteSize, Span, UnitError, microseconds, milliseconds};
pub use user::UserSpec;
