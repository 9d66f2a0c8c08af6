//! File trees as a stream of bytes, for `push` and `pull`.
//!
//! [`pack`] writes a file or a tree to any writer, [`unpack`] makes it again below a folder. Both ends of
//! a transfer use this crate: the client, and the agent's forked file worker. It knows no protocol, no
//! machine and no user; it is handed a root folder, a path in it and a stream.
//!
//! ```text
//! stream   = "TYFILES" version root-entry end
//! entry    = directory entry… leave | file | link | hard-link
//! ```
//!
//! Records carry one *name*, never a path: a folder's entries follow its record, in strictly ascending
//! order of their bytes, until a leave record. So a stream cannot name anything outside of its root, and
//! cannot name anything twice. `format` has the layout of each record.
//!
//! Kept: names, contents, holes, permission bits, modification times, symbolic links (verbatim) and hard
//! links within the tree. Not kept: owners, extended attributes (so no file capabilities) and special
//! files; devices, pipes and sockets are passed over and named in [`Summary::skipped`].
//!
//! # Where a tree arrives
//!
//! As with `cp -r`: onto a path that is an existing folder, the source goes *into* it under its own name;
//! onto anything else, it is made *as* that path, whose parent must exist. A source that ends in `/.` or is
//! `/` has no name of its own: its contents go into the folder. An existing file or link is replaced by a
//! file; an existing folder is merged into and keeps its own mode; a file never replaces a folder, nor a
//! folder a file. Links are followed in the two paths that the user gave, and never below them.
//!
//! # When it fails
//!
//! What is new is made under a temporary name (`.testyard-…`) and renamed when it is whole and its checksum
//! was right, a new folder with all that is in it. A failed transfer removes what it had not finished.

mod content;
mod crew;
mod error;
mod failure;
mod format;
mod local;
mod making;
mod oversight;
mod pack;
mod receiver;
mod removal;
mod sender;
mod single;
mod target;
mod unpack;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

pub use error::{Refusal, TransferError};
pub use format::{HEAD, MAX_DEPTH, name_length};
pub use oversight::Oversight;
pub use pack::{pack, pack_chosen, pack_into};
pub use single::{pack_bytes, unpack_bytes};
pub use unpack::{unpack, unpack_from};

/// What was packed or unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Files, folders and links; the root counts as one.
    pub entries: u64,
    /// Bytes of the files' contents, without holes.
    pub bytes: u64,
    /// Symbolic links that are absolute or lead out of the tree. They are kept as they are.
    pub outward_links: u64,
    /// Devices, pipes and sockets passed over; at most [`Summary::NAMED`] of them are named.
    pub skipped: Vec<PathBuf>,
    /// How many were passed over in all.
    pub skipped_count: u64,
}

impl Summary {
    /// How many skipped files are named.
    pub const NAMED: usize = 16;
}

/// What to do with the setuid, setgid and sticky bits of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpecialBits {
    /// Clear them.
    #[default]
    Strip,
    /// Set them.
    Keep,
}

/// How a stream becomes files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnpackOptions {
    /// User and group ids that everything made belongs to; none means whoever runs this.
    pub owner: Option<(u32, u32)>,
    /// What to do with setuid, setgid and sticky bits.
    pub special_bits: SpecialBits,
    /// The sender is not trusted: special bits are stripped whatever the options say.
    pub hostile: bool,
    /// Refuse more bytes of content than this.
    pub limit: Option<u64>,
    /// Refuse a stream without checksums.
    pub checked: bool,
    /// This process's file mode creation mask, where it is known: it saves a system call for most files.
    pub mask: Option<u32>,
}

/// Gives a pipe or socket the largest buffer it may have. Best effort: a small one is only slower.
pub fn widen(stream: BorrowedFd<'_>) {
    const WANTED: usize = 1 << 20;
    if rustix::pipe::fcntl_setpipe_size(stream, WANTED).is_ok() {
        return;
    }
    // Beyond the limit needs CAP_NET_ADMIN; without it the kernel clamps the plain request.
    if rustix::net::sockopt::set_socket_send_buffer_size(stream, WANTED).is_ok() {
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(stream, WANTED);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(stream, WANTED);
    }
}
