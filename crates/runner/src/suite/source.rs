//! The text of a suite file, shared by everything that points into it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{ConfigError, ConfigFault};

/// A suite file's path and text. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct SuiteSource {
    path: Arc<PathBuf>,
    text: Arc<str>,
}

impl SuiteSource {
    pub(crate) fn new(path: &Path, text: &str) -> Self {
        Self { path: Arc::new(path.to_owned()), text: Arc::from(text) }
    }

    /// Where the file is, as it was named.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column of a byte, both from 1, the column in characters.
    #[must_use]
    pub fn place(&self, byte: usize) -> (usize, usize) {
        let before = &self.text[..self.floor(byte)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// Refuses what was written at these bytes.
    pub(crate) fn fault(&self, span: Range<usize>, fault: ConfigFault) -> ConfigError {
        let start = self.floor(span.start);
        let end = self.floor(span.end.max(span.start)).max(start);
        ConfigError::new(self.clone(), start..end, fault)
    }

    /// The nearest character boundary at or before this byte.
    fn floor(&self, byte: usize) -> usize {
        let mut at = byte.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

impl fmt::Debug for SuiteSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SuiteSource({:?}, {} bytes)", self.path, self.text.len())
    }
}
