//! Working trees on their way to a machine, and what the machine keeps of them.
//!
//! ```text
//!  sender (a client)                               receiver (a machine's agent)
//!  manifest ── offer: hash, base, delta ─────────►  store: which trees are there?
//!           ◄─ need: which contents ─────────────   (or: it is there already)
//!  files    ── contents, verified as they are read► layer in the making, verified as it is written
//!           ◄─ done: the hash of what is there ───   record: the tree is there, whole
//! ```
//!
//! A tree on a receiver is immutable: one full *layer*, and at most one above it that holds what differs. Trees share
//! layers, and layers share files by hard links. Both ends take the other for hostile: a receiver writes only files,
//! folders and links below its own folder, and a sender sends only what its own manifest lists.
//!
//! What this crate refuses to know: mounts, machines, and how a tree came to be listed.

pub mod list;
pub mod manifest;
pub mod receive;
pub mod send;
pub mod store;

mod chunk;
mod crew;
mod making;
mod wire;
mod work;

pub use list::{Delta, ListError};
pub use manifest::{
    Changes, ContentHash, Entry, EntryKind, EntryRef, KindRef, Manifest, PlacedKind, TreeHash, TreeHashError,
};
pub use receive::{ReceiveError, Received, receive};
pub use send::{Offer, SendError, Sent, open_below, send};
pub use store::{Owner, Record, Store};
