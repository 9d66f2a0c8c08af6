//! From what holds images to the one that is meant: its configuration and its layers.

use std::io::Read as _;

use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::bundle::Bundle;
use super::document::{Config, Descriptor, Document, Platform, SavedImage};
use super::error::BundleError;
use super::{Blob, DOCUMENT_LIMIT, LAYER_LIMIT};
use crate::store::Digest;

/// An image, all of it but the contents of its layers.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// The configuration, as it came.
    pub(crate) config: Vec<u8>,
    /// The manifest's digest, where there is a manifest.
    pub(crate) manifest: Option<Digest>,
    /// The layers, the lowest first: the digest of the content, and what holds it.
    pub(crate) layers: Vec<(Digest, Blob)>,
}

/// What is asked for by a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A manifest or an index.
    Manifest,
    /// A configuration.
    Config,
}

/// What an index or a manifest leads to.
enum Selection {
    /// Another document.
    Next(Descriptor),
    /// A configuration and layers.
    Image(Descriptor, Vec<Descriptor>),
}

/// How deep indexes may lie in indexes.
const DEPTH: usize = 4;
/// Where writers say what an image is called.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// A digest as documents write it.
pub(crate) fn sha256(text: &str) -> Result<Digest, BundleError> {
    let digits = text.strip_prefix("sha256:").and_then(|digits| digits.parse().ok());
    digits.ok_or_else(|| BundleError::DigestKind(text.to_owned()))
}

/// Reads a document.
pub(crate) fn parse<T: DeserializeOwned>(what: &str, text: &[u8]) -> Result<T, BundleError> {
    serde_json::from_slice(text).map_err(|source| BundleError::Document { what: what.to_owned(), source })
}

/// This host's processor, as images name it.
pub(crate) fn architecture_of_host() -> &'static str {
    architecture_name(None)
}

/// A processor, or this host's, as images name it.
pub(crate) fn architecture_name(arch: Option<&str>) -> &str {
    match arch.unwrap_or(std::env::consts::ARCH) {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "armv7l" => "arm",
        "i686" => "386",
        other => other,
    }
}

impl Descriptor {
    fn names(&self) -> impl Iterator<Item = &str> {
        let annotation = |key| self.annotations.as_ref()?.get(key).map(String::as_str);
        NAMES.into_iter().filter_map(annotation).chain([self.digest.as_str()])
    }

    fn name(&self) -> String {
        self.names().next().unwrap_or_default().to_owned()
    }
}

fn fits(platform: &Platform) -> bool {
    platform.architecture == architecture_of_host() && matches!(platform.os.as_str(), "linux" | "")
}

/// What a document leads to on this host.
fn select(what: &str, document: Document, pick: Option<&str>) -> Result<Selection, BundleError> {
    match document {
        Document { manifests: Some(manifests), .. } => among(manifests, pick).map(Selection::Next),
        Document { config: Some(config), layers: Some(layers), .. } => Ok(Selection::Image(config, layers)),
        Document { schema_version, .. } => {
            let form = format!("version {}", schema_version.unwrap_or_default());
            Err(BundleError::Form { what: what.to_owned(), form })
        }
    }
}

/// The one of an index that is asked for, or that is for this host.
fn among(mut manifests: Vec<Descriptor>, pick: Option<&str>) -> Result<Descriptor, BundleError> {
    if let Some(wanted) = pick {
        let there = manifests.iter().map(Descriptor::name).collect();
        manifests.retain(|one| one.names().any(|name| name == wanted));
        if manifests.is_empty() {
            return Err(BundleError::NotPicked { wanted: wanted.to_owned(), there });
        }
    }
    let platforms = || {
        manifests.iter().filter_map(|one| one.platform.as_ref()).map(|one| format!("{}/{}", one.os, one.architecture))
    };
    let there: Vec<String> = platforms().collect();
    let count = manifests.len();
    // One without a platform may be for any; what is for no host at all (an attestation) says so.
    manifests.retain(|one| one.platform.as_ref().is_none_or(fits));
    manifests.dedup_by(|one, other| one.digest == other.digest);
    match manifests.len() {
        1 => Ok(manifests.remove(0)),
        0 if count > 0 => Err(BundleError::Platform { wanted: format!("linux/{}", architecture_of_host()), there }),
        0 => Err(BundleError::NoImage),
        _ => Err(several(manifests.iter().map(Descriptor::name).collect())),
    }
}

/// By name: writers keep no order.
fn several(mut names: Vec<String>) -> BundleError {
    names.sort();
    BundleError::Several(names)
}

/// The layers of a manifest with their contents' digests, as the configuration tells them.
fn layers_of(layers: Vec<Blob>, config: &[u8]) -> Result<Vec<(Digest, Blob)>, BundleError> {
    let config: Config = parse("the image's configuration", config)?;
    let described = config.rootfs.diff_ids;
    if layers.len() != described.len() {
        return Err(BundleError::Layers { layers: layers.len(), described: described.len() });
    }
    match layers.len() {
        0 => return Err(BundleError::NoLayers),
        1..=LAYER_LIMIT => {}
        many => return Err(BundleError::TooManyLayers(many)),
    }
    described.iter().map(|diff| sha256(diff)).zip(layers).map(|(diff, layer)| Ok((diff?, layer))).collect()
}

/// A layer as a manifest names it.
fn blob(layer: &Descriptor, name: impl FnOnce(&Digest) -> String) -> Result<Blob, BundleError> {
    let digest = sha256(&layer.digest)?;
    if layer.media_type.contains("encrypted") {
        return Err(BundleError::Form { what: digest.to_string(), form: layer.media_type.clone() });
    }
    Ok(Blob { name: name(&digest), digest: Some(digest), size: Some(layer.size) })
}

/// The digest of a text.
pub(crate) fn digest_of(text: &[u8]) -> Digest {
    Digest::of(&Sha256::digest(text).into())
}

/// Refuses a text that is not what names it says.
fn verify(descriptor: &Descriptor, text: &[u8]) -> Result<Digest, BundleError> {
    let digest = sha256(&descriptor.digest)?;
    let blob = Blob { name: digest.to_string(), digest: Some(digest.clone()), size: Some(descriptor.size) };
    blob.check(&digest_of(text), text.len() as u64)?;
    Ok(digest)
}

/// From the first document, an index or a manifest, to the image that is meant. `digest` is that of the first, where it
/// has one; every further one is fetched by its digest.
pub(crate) fn follow<E: From<BundleError>>(
    (mut what, mut text): (String, Vec<u8>),
    digest: Option<Digest>,
    pick: Option<&str>,
    mut fetch: impl FnMut(&Descriptor, Wanted) -> Result<Vec<u8>, E>,
) -> Result<Chosen, E> {
    let mut manifest = digest;
    for depth in 0..DEPTH {
        let pick = pick.filter(|_| depth == 0);
        match select(&what, parse(&what, &text)?, pick)? {
            Selection::Next(next) => {
                // Before it is asked for: what is no digest is no path either.
                what = path_of(&sha256(&next.digest)?);
                text = fetch(&next, Wanted::Manifest)?;
                manifest = Some(verify(&next, &text)?);
            }
            Selection::Image(config, layers) => {
                sha256(&config.digest)?;
                let text = fetch(&config, Wanted::Config)?;
                verify(&config, &text)?;
                let layers = layers.iter().map(|layer| blob(layer, path_of)).collect::<Result<_, _>>()?;
                return Ok(Chosen { layers: layers_of(layers, &text)?, config: text, manifest });
            }
        }
    }
    Err(BundleError::Depth.into())
}

fn path_of(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.as_str())
}

impl Bundle {
    /// The image in it that is asked for, or the only one.
    pub(crate) fn choose(&self, pick: Option<&str>) -> Result<Chosen, BundleError> {
        if self.has("index.json") {
            self.choose_from_index(pick)
        } else if self.has("manifest.json") {
            self.choose_saved(pick)
        } else {
            Err(BundleError::NoImage)
        }
    }

    fn choose_from_index(&self, pick: Option<&str>) -> Result<Chosen, BundleError> {
        let first = "index.json".to_owned();
        let text = self.document(&first)?;
        follow((first, text), None, pick, |next, _| self.document(&path_of(&sha256(&next.digest)?)))
    }

    fn choose_saved(&self, pick: Option<&str>) -> Result<Chosen, BundleError> {
        let mut images: Vec<SavedImage> = parse("manifest.json", &self.document("manifest.json")?)?;
        let names = |image: &SavedImage| image.repo_tags.clone().unwrap_or_default();
        let there: Vec<String> =
            images.iter().map(|image| names(image).first().cloned().unwrap_or_else(|| image.config.clone())).collect();
        if let Some(wanted) = pick {
            images.retain(|image| image.config == wanted || names(image).iter().any(|name| name == wanted));
            if images.is_empty() {
                return Err(BundleError::NotPicked { wanted: wanted.to_owned(), there });
            }
        }
        let image = match images.len() {
            0 => return Err(BundleError::NoImage),
            1 => images.remove(0),
            _ => return Err(several(there)),
        };
        let config = self.document(&image.config)?;
        let stem = image.config.rsplit('/').next().unwrap_or_default();
        if let Ok(expected) = stem.strip_suffix(".json").unwrap_or(stem).parse::<Digest>() {
            let found = digest_of(&config);
            if found != expected {
                return Err(BundleError::Digest { what: image.config, expected, found });
            }
        }
        let blob = |name: String| Blob { name, digest: None, size: None };
        let layers = layers_of(image.layers.into_iter().map(blob).collect(), &config)?;
        Ok(Chosen { config, manifest: None, layers })
    }

    /// A document's text.
    fn document(&self, name: &str) -> Result<Vec<u8>, BundleError> {
        let part = self.open(name)?;
        if part.size > DOCUMENT_LIMIT {
            return Err(BundleError::TooLarge { what: name.to_owned() });
        }
        let mut text = Vec::new();
        let read = part.take(DOCUMENT_LIMIT).read_to_end(&mut text);
        read.map_err(|source| BundleError::Read { what: name.to_owned(), source })?;
        Ok(text)
    }
}
