//! The kernel, as safe functions: processes, namespaces, mounts, cgroups, seccomp, sockets, files, and what goes
//! with them.
//!
//! This is the only crate of the workspace in which `unsafe` may be written, so that everything above it can be
//! reviewed without thinking of memory. It knows the kernel and nothing of Testyard's machines: no paths of ours,
//! no protocol, no policy beyond what a function's name says. It starts no thread and keeps no global state but
//! the failpoint log of [`step`].
//!
//! Everything is synchronous. Most callers are single-threaded programs or children between fork and exec, which
//! is why the functions here take descriptors and do one thing each.

#![allow(unsafe_code, reason = "system calls that rustix does not wrap are made here and nowhere else")]

pub mod cgroup;
mod error;
pub mod files;
pub mod identity;
pub mod interfaces;
pub mod kvm;
pub mod lock;
pub mod mount;
pub mod namespace;
mod pause;
pub mod process;
mod random;
pub mod seccomp;
pub mod signal;
pub mod socket;
pub mod step;
pub mod terminal;
#[cfg(test)]
mod trial;
pub mod user;

pub use error::{Error, Result};
pub use pause::pause;
pub use random::random;
