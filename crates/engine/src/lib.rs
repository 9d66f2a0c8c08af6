//! The engine: commands in environments of warm machines, for many callers at once.
//!
//! A [`WarmMachine`] keeps connections to one running machine and runs each command in an environment of its own:
//! lease → environment → execute → result → release, in one request. It starts no thread and owns no process;
//! who makes machines, and which, is for the crates above it.

mod lingering;
mod outcome;
mod services;
mod source;
mod synced;
mod warm;

pub use outcome::{Ended, Output};
pub use services::{LogEnd, Readiness, Served, Service, ServiceFailure, ServiceRecord, SharedServices};
pub use synced::{Ask, Copied, CopiedTrees, Copies, Part, SentLists};
pub use warm::{Attendance, EnvironmentRun, WarmMachine};
