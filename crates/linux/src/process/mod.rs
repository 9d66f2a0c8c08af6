//! Processes: making them, changing what they are, waiting for them, and ending whole trees of them.
//!
//! A process is named by a [`Pid`] only where the kernel leaves no choice; what is kept is its pidfd, or a
//! [`crate::identity::ProcessIdentity`], because a pid may name another process a moment later.

mod attributes;
mod borrowed;
mod clone;
mod credentials;
mod descriptors;
mod execute;
#[cfg(test)]
mod tests;
mod tree;
mod wait;

pub use attributes::{
    OpenFiles, close_range_from, exit_immediately, set_dumpable, set_no_new_privileges, set_parent_death_signal,
    set_resource_limit, set_session, set_subreaper,
};
pub use borrowed::run_borrowed;
pub use clone::{Child, CloneFlags, CloneOptions, Forked, SingleThreaded, clone3};
pub use credentials::{CapabilitySet, Credentials, become_user, drop_all_capabilities, limit_bounding_set};
pub use descriptors::{
    execute_with_descriptors, inherited_descriptors, install_standard_streams, lifted, spawn_with_descriptors,
    with_default_signals,
};
pub use execute::{execute, execute_first, resolve_program};
pub use rustix::process::{Pid, Resource};
pub(crate) use tree::await_end;
pub use tree::{
    KillReport, descendants, environment_marked, environment_marked_any, kill_descendants, kill_tree, kill_trees,
};
pub use wait::{ResourceUsage, pidfd_open, pidfd_signal, pidfd_wait, wait_any_nohang};
