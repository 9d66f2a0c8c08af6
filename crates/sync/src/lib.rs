//! What source was tested: one hash of a working tree, cheap to take again when little has changed.
//!
//! ```text
//!  pure                                             touches the disk
//!  manifest   entries, tree hash, differences       tree     one working tree: scan, changed_since
//!  stamp      when a remembered hash still holds     walk     folders: who is in the tree
//!  memory     what is kept between scans, its codec  content  files: what they hold
//!  git_index  which paths git tracks                 rules    which files say what is ignored
//!  unhashed   what the hash does not cover
//! ```
//!
//! In a git working tree the hash covers tracked files and untracked ones that are not ignored, as `git status` would
//! see them, submodules and nested repositories by their own rules; elsewhere every file that no `.gitignore` or
//! `.ignore` ignores. A file counts with its path, its executable bit and its content, a link with its target; empty
//! folders, owners and times do not count. Ignored files that are there are named as [`Scan::unhashed`].
//!
//! What this crate refuses to know: machines, mounts, and when a scan is due.

pub mod manifest;
pub mod tree;
pub mod watch;

mod content;
mod git_index;
mod memory;
mod rules;
mod stamp;
mod unhashed;
mod walk;

pub use manifest::{Changes, ContentHash, Entry, EntryKind, Manifest, TreeHash, TreeHashError};
pub use tree::{Scan, ScanCost, SyncError, Tree, TreeOptions};
pub use watch::Watch;
