//! One way to run a suite's tests: an image, a backend, and variables.

use std::collections::BTreeMap;
use std::fmt;

use testyard_model::{BackendName, ImageReference};

/// One variant of a suite's matrix. What it leaves open is as the suite says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Variant {
    /// The image its machine starts from.
    pub image: Option<ImageReference>,
    /// Its machine's backend.
    pub backend: Option<BackendName>,
    /// Variables, over the tests' own.
    pub env: BTreeMap<String, String>,
}

impl Variant {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.image.is_none() && self.backend.is_none() && self.env.is_empty()
    }

    /// Whether this variant has everything that the other says.
    #[must_use]
    pub fn has(&self, other: &Self) -> bool {
        (other.image.is_none() || other.image == self.image)
            && (other.backend.is_none() || other.backend == self.backend)
            && other.env.iter().all(|(name, value)| self.env.get(name) == Some(value))
    }
}

/// As it stands in brackets after a test's name: `image=debian:12,DB=redis`.
impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        parts.extend(self.image.iter().map(|image| format!("image={image}")));
        parts.extend(self.backend.iter().map(|backend| format!("backend={backend}")));
        parts.extend(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        f.write_str(&parts.join(","))
    }
}
