//! A machine on another host, reached over any command's standard streams.
//!
//! ```text
//! client ── machine.sock ── supervisor            other host: far ── machine.sock ── supervisor ── agent
//!    └────── its socket ──► near ══ frames over ssh, srun … ══► far ──┘ a socket for each client
//! ```
//!
//! [`near`] plays the agent here: clients see an ordinary machine. [`far`] plays the client there. Between them one
//! [`hub`] on each side carries clients' connections and the descriptors that clients attach; [`numbered`] frames
//! survive a connection that breaks. This crate knows no backend and no registry.

pub mod asking;
mod attach;
pub mod bootstrap;
pub mod breach;
mod bringer;
mod channel;
mod connect;
mod cutter;
pub mod far;
mod held;
pub mod hub;
pub mod message;
pub mod near;
pub mod numbered;
pub mod plain;
mod promptly;
pub mod shell;
mod ssh;
mod sums;
mod transport;
pub mod wire;

pub use bootstrap::Programs;
pub use near::NearStart;
pub use plain::PlainStart;
pub use ssh::{ASK_VARIABLE, answer_ssh, command_line as ssh_command_line, password, problem as ssh_problem};

/// How the folder is called in which a user's sessions are on the far side; the user's number may follow.
pub const SESSIONS: &str = "testyard-far";
