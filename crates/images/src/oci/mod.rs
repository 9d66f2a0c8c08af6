//! Images of layers: what `docker save` writes, OCI image layouts, and what servers give out.
//!
//! ```text
//! folder, archive ─► bundle (any member by its name) ─► choose (index → manifest → config) ─┐
//! server          ─► crate::pull                      ─► choose                             ─┴► assembly ─► store
//! ```
//!
//! Nothing is believed but digests: a manifest, a configuration and a blob are taken only if they are what the one who
//! names them says, and a layer's content only if it is what the configuration says.

mod assembly;
mod bundle;
mod choose;
mod document;
mod error;
mod parents;

pub(crate) use bundle::{Bundle, Part, is_member};
pub(crate) use choose::{Chosen, Wanted, architecture_name, digest_of, follow, sha256};
pub use error::{BundleError, MemberRefusal};

use crate::store::Digest;

/// The most bytes of an index, a manifest or a configuration.
pub(crate) const DOCUMENT_LIMIT: u64 = 4 << 20;
/// The most layers of an image: an overlay takes 500, and others of ours go on top.
pub(crate) const LAYER_LIMIT: usize = 128;

/// The most folders that all layers but the lowest may have without naming them.
pub(crate) const IMPLIED_LIMIT: usize = 100_000;

/// A layer as somebody keeps it, mostly compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    /// What to call it.
    pub(crate) name: String,
    /// Its digest, where its manifest says it.
    pub(crate) digest: Option<Digest>,
    /// Its size, likewise.
    pub(crate) size: Option<u64>,
}

impl Blob {
    /// Whether it is what its manifest says.
    pub(crate) fn check(&self, found: &Digest, size: u64) -> Result<(), BundleError> {
        if let Some(expected) = self.size.filter(|expected| *expected != size) {
            return Err(BundleError::Size { what: self.name.clone(), expected, found: size });
        }
        match &self.digest {
            Some(expected) if expected != found => {
                Err(BundleError::Digest { what: self.name.clone(), expected: expected.clone(), found: found.clone() })
            }
            _ => Ok(()),
        }
    }
}
