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
        }
    }
}
