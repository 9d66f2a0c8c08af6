//! The JSON documents of an image, as far as they matter here. Fields that are not named are skipped.

use std::collections::BTreeMap;

use serde::Deserialize;

/// An index or a manifest: what is not there tells which.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    #[serde(default)]
    pub(crate) schema_version: Option<u64>,
    /// Of an index.
    #[serde(default)]
    pub(crate) manifests: Option<Vec<Descriptor>>,
    /// Of a manifest.
    #[serde(default)]
    pub(crate) config: Option<Descriptor>,
    /// Of a manifest.
    #[serde(default)]
    pub(crate) layers: Option<Vec<Descriptor>>,
}

/// Something by its digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// For which host something is.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
}

/// An image's configuration.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) config: Option<Defaults>,
    pub(crate) rootfs: RootFileSystem,
}

/// What commands get unless they say otherwise.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Defaults {
    #[serde(default)]
    pub(crate) env: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) user: Option<String>,
    #[serde(default)]
    pub(crate) working_dir: Option<String>,
    #[serde(default)]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) cmd: Option<Vec<String>>,
}

/// The contents of the layers, the lowest first.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RootFileSystem {
    #[serde(default)]
    pub(crate) diff_ids: Vec<String>,
}

/// One image in `manifest.json` of `docker save`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SavedImage {
    pub(crate) config: String,
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) layers: Vec<String>,
}
