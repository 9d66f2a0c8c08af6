//! The agent with each built-in backend, without a supervisor: real machines, as whoever runs the tests.
//!
//! `cargo xtask test` runs them as root and as an ordinary user.

mod commands;
mod contract;
mod environments;
mod escapes;
mod files;
mod fixture;
mod holding;
mod ids;
mod keeping;
mod limits;
mod network;
mod presents;
mod services;
mod sources;
mod transfers;
mod workspaces;
