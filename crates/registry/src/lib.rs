//! The durable record of everything Testyard made, and the locks that say who still holds it.
//!
//! ```text
//!  Home ──── where: the state folder (durable) and the runtime folder (sockets, locks)
//!    │
//!  Registry ─ what: one SQLite file of machines, their resources, and leases
//!    │    └── HistoryFile: another, of what became of each test, which may be lost
//!  Lease ──── who: a kernel-held lock on a file, and the row that says what it is for
//!
//!  PortLeases  the same for ports, host-wide, without a file
//! ```
//!
//! Promise 1 rests here: a resource is written down as intended before it is made, as made with the kernel's
//! own identity for it afterwards, and forgotten once it is gone; a machine's row cannot go before them.
//!
//! What this crate refuses to know: how anything is made or removed, which machine should be reaped and when, what
//! time it is (callers pass it), and any backend.

pub mod clusters;
pub mod error;
pub mod history;
pub mod home;
pub mod identity;
pub mod leases;
pub mod machine_errors;
pub mod machines;
pub mod ports;
pub mod registry;
mod reserve;
pub mod resources;
mod slots;

mod file_systems;
mod holders;
mod kept;
mod lease_names;
mod schema;
mod stable_hash;

pub use clusters::{ClusterRow, NewCluster};
pub use error::RegistryError;
pub use history::{Flakes, HistoryError, HistoryFile, LastOutcome, NewOutcome, PastOutcome, TestOutcome, TestRecord};
pub use holders::Released;
pub use home::{Home, HomeEnvironment, HomeError};
pub use identity::{HostIdentity, KernelIdentity, ProcessIdentity};
pub use kept::KeptRow;
pub use lease_names::{LeaseId, LeaseIdError, LeaseKind};
pub use leases::{Lease, LeaseError, LeaseRequest, LeaseRow, LeaseStanding};
pub use machine_errors::{DestroyError, RenameError, ReserveError, TransitionError};
pub use machines::{MachineRow, NewMachine};
pub use ports::{PortError, PortLease, PortLeases};
pub use registry::Registry;
pub use resources::{Resource, ResourceId, ResourceKind, ResourceState};
