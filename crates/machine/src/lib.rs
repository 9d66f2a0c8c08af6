//! Machines from the host's side: what a backend is, the supervisor that keeps one machine, the client
//! that talks to its agent, and the contract that every backend passes.
//!
//! This crate knows no backend by name and no database: a backend is a [`Backend`], what must be written
//! down goes through [`Records`](supervisor::Records) and [`Recorder`]. Commands, files and environments
//! are the agent's work; the supervisor only introduces a client to it, by handing over the client's socket.

pub mod backend;
pub mod client;
pub mod contract;
mod memory;
pub mod supervisor;
#[cfg(test)]
mod trial;
pub mod wire;

pub use backend::{
    AgentLink, Backend, BackendError, BackendTable, KernelIdentity, MachinePlace, RecordedResource, Recorder,
    ResourceId, ResourceKind,
};
pub use client::{ClientError, Connection, Session};
pub use memory::MemoryRecorder;
