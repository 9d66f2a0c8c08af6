//! What becomes of a test's files: outputs come back to the working tree, artifacts are kept with the result.
//!
//! ```text
//! patterns     which of the changed files are meant, and which must not come (pure)
//! journal      what is under way, written down first; finished or undone by whoever comes after a kill
//! direct       looked for in the tree itself, where nothing recorded what changed
//! placing      moving fetched files to where they belong, never through a link
//! ```

mod direct;
mod journal;
mod patterns;
mod placing;

pub(super) use direct::{copy_chosen, written_since};
pub(crate) use journal::recover_all;
pub(super) use journal::{Journal, Staged, is_staging};
pub(super) use patterns::{Chosen, Patterns};
