//! `image.json`: what an image is and where it came from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::archive::Compression;

/// The SHA-256 of an image's canonical manifest: 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// A text was no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest of 64 hexadecimal digits")]
pub struct DigestError(String);

impl Digest {
    /// The 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn of(bytes: &[u8; 32]) -> Self {
        Self(hexadecimal(bytes))
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let valid = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if valid { Ok(Self(text.to_owned())) } else { Err(DigestError(text.to_owned())) }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// Whose the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ownership {
    /// The ids of the archive; machines see them through an idmapped mount.
    Kept,
    /// All of the importing user, who had one id only; machines map it to root.
    SingleOwner,
}

/// Where an image came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Origin {
    /// From a root file system archive.
    Imported {
        /// How it was compressed.
        compression: Compression,
        /// The archive's file name, where it had one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<String>,
    },
    /// From a distribution's archive.
    Built {
        /// The release's code name.
        release: String,
        /// The key under which an equal build finds it.
        key: String,
    },
    /// From an archive or a folder of layers: `docker save`, an OCI image layout.
    Layered {
        /// Its name, where it had one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<String>,
        /// The digest of the manifest, where there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        manifest: Option<Digest>,
        /// The digest of the image's configuration, by which other tools know it.
        config: Digest,
    },
    /// From a server that speaks the OCI distribution protocol.
    Pulled {
        /// As it was asked for.
        reference: String,
        /// The digest of the manifest.
        manifest: Digest,
        /// The digest of the image's configuration, by which other tools know it.
        config: Digest,
    },
    /// From this host's own root.
    Frozen {
        /// The identity of the view that was frozen.
        view: String,
        /// Files and folders that its maker was not allowed to read: they are not in it.
        unread: u64,
    },
    /// Its record could not be read.
    Unknown,
}

/// What an image says of the commands that run in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Variables, as `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Whom they run as: a name, a number, or two with a colon between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The folder that they start in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// What other tools start; Testyard does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The arguments of that, or the whole of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
}

/// What a layer is. `layer.json` holds this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Of this format: 1.
    pub version: u32,
    /// The SHA-256 of its uncompressed archive.
    pub diff: Digest,
    /// Whose its files are.
    pub ownership: Ownership,
    /// Nothing of the layers below shows through it.
    #[serde(default)]
    pub opaque: bool,
    /// It holds `/bin/sh`, `/usr` or `/bin`.
    #[serde(default)]
    pub usable: bool,
    /// The processor its shell is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Files, folders, links and whiteouts in it.
    pub entries: u64,
    /// Bytes of its files' contents.
    pub bytes: u64,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// What was left out or is unusual, in plain sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl LayerRecord {
    /// The version of `layer.json` that is written.
    pub const VERSION: u32 = 1;
}

/// What an image is. `image.json` holds this; a reader of a later version refuses what it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Of this format: 1.
    pub version: u32,
    /// What it is called by.
    pub digest: Digest,
    /// Where it came from.
    pub origin: Origin,
    /// Whose its files are.
    pub ownership: Ownership,
    /// It holds neither `/bin/sh` nor `/usr` nor `/bin`: only what brings its own programs runs in it.
    #[serde(default)]
    pub minimal: bool,
    /// The processor its shell is for, as `uname -m` says it; none where that cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Files, folders and links in it.
    pub entries: u64,
    /// Bytes of its files' contents.
    pub bytes: u64,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// What was left out or is unusual, in plain sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The layers that it consists of, the lowest first, by the digests of their uncompressed archives. None where it has
    /// a tree of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Digest>,
    /// Folders that its layers have without naming them: a topmost layer of its own keeps their attributes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restored: u64,
    /// What it says of the commands that run in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
}

impl ImageRecord {
    /// The version of `image.json` that is written.
    pub const VERSION: u32 = 1;

    pub(super) fn damaged(digest: Digest) -> Self {
        Self {
            version: 0,
            digest,
            origin: Origin::Unknown,
            ownership: Ownership::SingleOwner,
            minimal: false,
            arch: None,
            entries: 0,
            bytes: 0,
            created_ms: 0,
            warnings: Vec::new(),
            layers: Vec::new(),
            restored: 0,
            config: None,
        }
    }
}
