//! What a cluster is, as plain data: its specification, the files that its daemons read, and the order in which they
//! are started.
//!
//! ```text
//! ClusterSpec ── Layout ──┬── files: slurm.conf, cgroup.conf, gres.conf, slurmdbd.conf, sshd_config …
//!   (checked)    (nodes)  ├── setup: what a node's first command does
//!                         ├── stages: which daemon starts when, and what says that it is ready
//!                         └── revive: which daemons have ended
//! ```
//!
//! **No IO, no clock, no randomness:** keys are given by the caller, and what is decided here is done by the
//! `testyard` crate.

pub mod files;
pub mod key;
pub mod layout;
pub mod names;
pub mod password;
pub mod revive;
pub mod setup;
pub mod spec;
pub mod start;
pub mod state;
pub mod text;

pub use layout::{Layout, Node};
pub use names::{ClusterName, NameError, UserName};
pub use spec::{ClusterKind, ClusterSpec, NodeRange, Partition, SpecError, User};
pub use start::{Daemon, Readiness, Stage};
pub use state::{ClusterInfo, ClusterState, NodeInfo, NodeState, SshAccess};
