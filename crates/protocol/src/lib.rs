//! The one protocol from client to supervisor to agent: frames, messages and credit, without IO.
//!
//! Described for implementers in `docs/protocol.md`. A [`FrameDecoder`] turns bytes into [`Frame`]s,
//! [`frame::encode`] turns them back, and [`Credit`] keeps one stream from starving another. Descriptors
//! travel beside the bytes (SCM_RIGHTS); a frame only says how many belong to it.

pub mod changes;
pub mod credit;
pub mod frame;
pub mod message;
pub mod start;
pub mod text;

pub use credit::Credit;
pub use frame::{Frame, FrameDecoder, FrameError, FrameHeader, FrameKind};
pub use message::*;
pub use text::RawText;

/// The newest version of the protocol that this code speaks.
pub const VERSION: u16 = 5;
/// The oldest that it still serves.
pub const OLDEST_VERSION: u16 = 1;
/// From this version on environments can outlive their commands, be looked into, forked and sealed.
pub const KEEPING_VERSION: u16 = 3;
/// From this version on trees can travel in a pipe whose bytes only the kernel touches.
pub const PIPE_VERSION: u16 = 3;
/// From this version on a process that enters an environment can have a working tree shown there.
pub const ENTER_WITH_VERSION: u16 = 4;
/// From this version on a machine with a network of its own can be cut off from it.
pub const LINK_VERSION: u16 = 5;
/// From this version on trees can be synced: sent as what changed, kept by the machine, and shown by their hash.
pub const SYNC_VERSION: u16 = 5;

/// The version both sides speak, or none.
#[must_use]
pub fn agree(oldest: u16, newest: u16) -> Option<u16> {
    let version = newest.min(VERSION);
    (version >= oldest.max(OLDEST_VERSION)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_version_back_is_served() {
        assert_eq!(agree(1, 1), Some(1));
        assert_eq!(agree(1, VERSION + 5), Some(VERSION));
        assert_eq!(agree(VERSION + 1, VERSION + 5), None);
        assert_eq!(agree(0, 0), None);
    }
}
