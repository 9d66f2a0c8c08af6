//! What source was tested: one hash of a working tree, cheap to take again when little has changed.
//!
//! ```text
//!  pure                                             touches the disk
//!  stamp      when a remembered hash still holds     tree     one working tree: scan, scan_again
//!                                                    walk     folders: who is in the tree
//!  memory     what is kept between scans, its codec  content  files: what they hold
//!  step       what a later look adds to it
//!  git_index  which paths git tracks                 gather   the whole, of what is known and what is read
//!  unhashed   what the hash does not cover           rules    which files say what is ignored
//!                                                    history  git's objects and references
//! ```
//!
//! In a git working tree the hash covers tracked files and untracked ones that are not ignored, as `git status` would
//! see them, submodules and nested repositories by their own rules; elsewhere every file that no `.gitignore` or
//! `.ignore` ignores. A file counts with its path, its executable bit and its content, a link with its target; empty
//! folders, owners and times do not count. Ignored files that are there are named as [`Scan::unhashed`].
//!
//! Entries, tree hashes and differences are those of the `trees` crate.
//!
//! What this crate refuses to know: machines, mounts, and when a scan is due.

pub use testyard_trees::manifest;

mod history;
pub mod tree;
pub mod watch;

mod content;
mod gather;
mod git_index;
mod memory;
mod rules;
mod stamp;
mod step;
mod unhashed;
mod walk;

pub use history::History;
pub use manifest::{Changes, ContentHash, Entry, EntryKind, EntryRef, KindRef, Manifest, TreeHash, TreeHashError};
pub use tree::{Remembered, Scan, ScanCost, SyncError, Tree, TreeOptions};
pub use watch::Watch;
