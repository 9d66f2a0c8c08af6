//! Attempts to get out: each is really made, as an environment's root and as its user, and must fail.

mod attempt;
mod kernel;
mod limits;
mod neighbours;
mod reaper;
mod remains;
mod secrets;
mod sockets;
mod source;
