//! Fetching images from servers that speak the OCI distribution protocol.
//!
//! A layer that is in the store is not fetched. What was fetched of one before a failure is kept, and continued by the
//! next try; `prune` removes what nobody continues. Nothing is believed that is not what its digest says.

mod ahead;
mod challenge;
mod client;
mod docker;
mod download;
mod error;
mod remote;

use std::path::PathBuf;
use std::time::Duration;

use crate::import::ImportOptions;
use crate::oci::{self, Blob, Part, Wanted};
use crate::store::{Image, Origin, Store};
use client::Client;
pub use error::PullError;
pub use remote::{RemoteImage, RemoteImageError};

/// Whether a server is spoken to in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Encrypted, with a certificate that this host trusts.
    Https,
}

/// How to fetch an image.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// None means in the clear on this host itself, and encrypted elsewhere.
    pub scheme: Option<Scheme>,
    /// A name and a password for the server.
    pub credentials: Option<(String, String)>,
    /// Where `docker login` writes them: for servers that ask, where none are given.
    pub docker_config: Option<PathBuf>,
    /// How long all of it may take.
    pub timeout: Duration,
    /// Bounds, name and time; without a name it is called as on the server.
    pub import: ImportOptions,
}

impl PullOptions {
    /// The defaults: an hour for all.
    #[must_use]
    pub fn new(import: ImportOptions) -> Self {
        Self { scheme: None, credentials: None, docker_config: None, timeout: Duration::from_secs(3600), import }
    }
}

/// What a pull tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullProgress {
    /// How many layers there are.
    Layers(usize),
    /// This one begins to be fetched; others may be under way.
    Fetching {
        /// Its digest.
        layer: String,
        /// Its bytes.
        size: u64,
    },
}

impl Store {
    /// Fetches an image.
    ///
    /// # Errors
    /// Any [`PullError`]; then nothing of it can be seen, and the next try continues.
    pub fn pull(
        &self,
        image: &RemoteImage,
        options: &PullOptions,
        progress: &mut dyn FnMut(PullProgress),
    ) -> Result<Image, PullError> {
        let mut import = options.import.clone();
        import.name.get_or_insert_with(|| image.local_name());
        let mut client = Client::new(image, options)?;
        let wanted = image.wanted();
        let (text, said) = client.manifest(&wanted)?;
        let expected = image.digest.as_ref().map(ToString::to_string).or(said);
        let digest = oci::digest_of(&text);
        if let Some(expected) = expected {
            let named = Blob { name: format!("manifest {wanted}"), digest: Some(oci::sha256(&expected)?), size: None };
            named.check(&digest, text.len() as u64)?;
        }
        let (what, pick) = (format!("manifest {wanted}"), import.pick.clone());
        let chosen = oci::follow((what, text), Some(digest), pick.as_deref(), |next, wanted| match wanted {
            Wanted::Manifest => Ok::<_, PullError>(client.manifest(&next.digest)?.0),
            Wanted::Config => client.document(&next.digest),
        })?;
        progress(PullProgress::Layers(chosen.layers.len()));
        let mut assembly = self.assembly(chosen.config, &import)?;
        let mut wanted: Vec<&Blob> = Vec::new();
        for (diff, layer) in &chosen.layers {
            if !self.has_layer(diff)? && wanted.iter().all(|one| one.digest != layer.digest) {
                wanted.push(layer);
            }
        }
        let ahead = client.clone();
        self.while_fetching(&ahead, &wanted, &import, |ahead| {
            for (diff, layer) in &chosen.layers {
                // Held until the layer is in the store, so that two pulls do not fetch the same.
                let mut fetched = None;
                let added = assembly.add(diff, layer, || {
                    ahead.wait(layer, progress)?;
                    let download = self.download(&mut client, layer, &import)?;
                    let part = Part::whole(download.file.try_clone().map_err(|error| download.failed(error))?)?;
                    fetched = Some(download);
                    Ok::<_, PullError>(part)
                });
                if let Some(download) = fetched {
                    // It is in the store now, or is not worth to be continued.
                    self.forget_download(&download.path)?;
                }
                added?;
            }
            Ok::<_, PullError>(())
        })?;
        let manifest = chosen.manifest.unwrap_or_else(|| oci::digest_of(b""));
        Ok(assembly.finish(|config| Origin::Pulled { reference: image.to_string(), manifest, config })?)
    }
}
