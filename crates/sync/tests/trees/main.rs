//! Scans of real folders and repositories.

mod against_git;
mod change;
mod properties;
mod support;
