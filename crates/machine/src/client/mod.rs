//! Talking to a machine: blocking connections, commands, files and environments.
//!
//! ```text
//! Connection   one request at a time, no thread: the fast path
//! Session      many streams at once over one connection: a reader thread sorts what arrives
//! ```
//!
//! On the same host a command's standard streams are descriptors that the agent gets with the request, so
//! no byte of them passes through here. Where there is nothing to pass (a terminal, a remote machine), bytes
//! travel as data frames, each stream with its own credit.

mod caller;
mod connection;
mod error;
mod gate;
mod keeping;
mod running;
mod session;
mod source;
mod streams;
mod sync;
#[cfg(test)]
mod tests;
mod transfer;

pub use caller::caller;
pub use connection::{Connection, Greeting, PortWait, Reply};
pub use error::ClientError;
pub use keeping::ChangeList;
pub use running::{Awaited, Captured, Finished, RunningCommand};
pub use session::{CommandHandle, Session, SessionCommand};
pub use streams::{StreamReader, StreamWriter};
pub use sync::synced;
pub use transfer::{TransferError, TreeError};
