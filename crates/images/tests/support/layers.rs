//! Images of layers, written as `docker save` and others write them, or as wrong as an attacker's.
#![allow(dead_code, reason = "each test file uses a part")]

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Archive;

/// How layers are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn pack(bytes: &[u8], packing: Packing) -> Vec<u8> {
    use std::io::Write as _;
    match packing {
        Packing::Plain => bytes.to_vec(),
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("in memory")
        }
        Packing::Zstd => zstd::encode_all(bytes, 1).expect("in memory"),
    }
}

/// An image: its documents may be changed before it is written.
#[derive(Debug, Clone)]
pub(crate) struct Layered {
    pub(crate) config: Value,
    /// What each layer's archive is; and packed.
    pub(crate) layers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Layered {
    pub(crate) fn new(layers: &[Archive], packing: Packing) -> Self {
        let layers: Vec<(Vec<u8>, Vec<u8>)> = layers
            .iter()
            .map(|layer| layer.clone().end())
            .map(|plain| {
                let packed = pack(&plain, packing);
                (plain, packed)
            })
            .collect();
        let diffs: Vec<String> = layers.iter().map(|(plain, _)| format!("sha256:{}", hexadecimal(plain))).collect();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        Self { config, layers }
    }

    pub(crate) fn manifest(&self) -> Value {
        let config = self.config.to_string();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|(_, packed)| {
                json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": format!("sha256:{}", hexadecimal(packed)),
                    "size": packed.len(),
                })
            })
            .collect();
        json!({
            "schemaVersion": 2,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{}", hexadecimal(config.as_bytes())),
                "size": config.len(),
            },
            "layers": layers,
        })
    }

    /// The archive of an OCI layout with this manifest.
    pub(crate) fn layout_of(&self, manifest: &Value) -> Archive {
        let text = manifest.to_string();
        let index = json!({"schemaVersion": 2, "manifests": [descriptor(&text)]});
        self.blobs(&[&text]).file("index.json", &index.to_string())
    }

    pub(crate) fn layout(&self) -> Vec<u8> {
        self.layout_of(&self.manifest()).end()
    }

    /// The blobs alone, with those of further documents.
    pub(crate) fn blobs(&self, documents: &[&str]) -> Archive {
        let mut archive = Archive::default().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        let config = self.config.to_string();
        let mut written = std::collections::BTreeSet::new();
        let documents = documents.iter().map(|text| text.as_bytes()).chain([config.as_bytes()]);
        for blob in documents.chain(self.layers.iter().map(|(_, packed)| packed.as_slice())) {
            let name = format!("blobs/sha256/{}", hexadecimal(blob));
            if !written.insert(name.clone()) {
                continue;
            }
            archive = archive.entry(b'0', &name, "", blob);
        }
        archive
    }

    /// What `docker save` writes.
    pub(crate) fn saved(&self) -> Archive {
        let config = self.config.to_string();
        let config_name = format!("{}.json", hexadecimal(config.as_bytes()));
        let mut archive = Archive::default().file(&config_name, &config);
        let mut names = Vec::new();
        for (index, (_, packed)) in self.layers.iter().enumerate() {
            let name = format!("{}/layer.tar", hexadecimal(format!("{index}").as_bytes()));
            archive = archive.entry(b'0', &name, "", packed);
            names.push(name);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": ["app:1"], "Layers": names}]);
        archive.file("manifest.json", &manifest.to_string())
    }
}

pub(crate) fn descriptor(text: &str) -> Value {
    json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", hexadecimal(text.as_bytes())),
        "size": text.len(),
    })
}
