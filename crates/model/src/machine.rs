//! What a machine is asked to be, and how it is described to others.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::environment::Isolation;
use crate::names::{MachineId, MachineName};
use crate::network::MachineNetwork;
use crate::problem::Problem;
use crate::remote::Remote;
use crate::state::MachineState;
use crate::units::{ByteSize, Span, as_text};

/// The version of the JSON that `list`, `info` and `run` print; raised when a reader could break.
pub const JSON_VERSION: u32 = 1;

/// A backend's name, or `auto`: 1–32 lower-case letters, digits and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendName(String);

impl BackendName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Plain processes on this host.
    #[must_use]
    pub fn host() -> Self {
        Self("host".to_owned())
    }

    /// Testyard's own container.
    #[must_use]
    pub fn namespace() -> Self {
        Self("namespace".to_owned())
    }

    /// A host that is reached by SSH.
    #[must_use]
    pub fn ssh() -> Self {
        Self("ssh".to_owned())
    }

    /// An allocation of a Slurm cluster.
    #[must_use]
    pub fn slurm_allocation() -> Self {
        Self("slurm-allocation".to_owned())
    }

    /// A host that is reached through a command's standard streams.
    #[must_use]
    pub fn command() -> Self {
        Self("command".to_owned())
    }

    /// How far its machines can keep environments apart at the most.
    #[must_use]
    pub fn most_isolation(&self) -> Isolation {
        if *self == Self::host() { Isolation::Workspace } else { Isolation::Namespace }
    }
}

/// A backend's name was malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a backend's name: use lower-case letters, digits and `-`")]
pub struct BackendNameError(String);

impl FromStr for BackendName {
    type Err = BackendNameError;

    fn from_str(text: &str) -> Result<Self, BackendNameError> {
        let valid = (1..=32).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if valid { Ok(Self(text.to_owned())) } else { Err(BackendNameError(text.to_owned())) }
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a machine starts from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageReference {
    /// A live view of this host's own root.
    Host,
    /// A stored image by name and tag: `debian:12`, `mine:latest`, `registry.example:5000/team/app:1`.
    Named {
        /// Words of letters, digits, `.`, `_`, `-`, separated by `/`; the first of several may end with `:` and a port.
        name: String,
        /// One such word; `latest` where none was written.
        tag: String,
    },
    /// A stored image by the first 8–64 hexadecimal digits of its digest, written `sha256:…`.
    Digest(String),
}

/// An image reference was malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an image: write `host`, `name:tag` (such as debian:12 or localhost:5000/team/app:1) or `sha256:` and \
     at least 8 hexadecimal digits"
)]
pub struct ImageReferenceError(String);

impl FromStr for ImageReference {
    type Err = ImageReferenceError;

    fn from_str(text: &str) -> Result<Self, ImageReferenceError> {
        let bad = || ImageReferenceError(text.to_owned());
        if text == "host" {
            return Ok(Self::Host);
        }
        if let Some(digits) = text.strip_prefix("sha256:") {
            let valid = (8..=64).contains(&digits.len())
                && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            return if valid { Ok(Self::Digest(digits.to_owned())) } else { Err(bad()) };
        }
        // A colon before the last slash is a port's.
        let last = text.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match text[last..].split_once(':') {
            Some((word, tag)) => (&text[..last + word.len()], tag),
            None => (text, "latest"),
        };
        let valid = name.len() + tag.len() < Self::MAX && is_word(tag) && is_image_name(name);
        if valid { Ok(Self::Named { name: name.to_owned(), tag: tag.to_owned() }) } else { Err(bad()) }
    }
}

impl ImageReference {
    /// The longest name with its tag: that of a file.
    pub const MAX: usize = 255;

    /// The server that a name begins with: `localhost:5000`, `registry.example`. None for a name without one.
    #[must_use]
    pub fn server(&self) -> Option<&str> {
        let Self::Named { name, .. } = self else { return None };
        let (first, _) = name.split_once('/')?;
        (first == "localhost" || first.contains(['.', ':'])).then_some(first)
    }
}

fn is_word(word: &str) -> bool {
    (1..=128).contains(&word.len())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && word.as_bytes()[0].is_ascii_alphanumeric()
}

fn is_image_name(name: &str) -> bool {
    let Some((first, rest)) = name.split_once('/') else { return is_word(name) };
    let host = match first.split_once(':') {
        Some((host, port)) => is_word(host) && port.parse::<u16>().is_ok_and(|port| port > 0),
        None => is_word(first),
    };
    host && rest.split('/').all(is_word)
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Named { name, tag } => write!(f, "{name}:{tag}"),
            Self::Digest(digits) => write!(f, "sha256:{digits}"),
        }
    }
}

/// How a path of the host is shown to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Copy-on-write as the file system that it lies in, and read-only where that is not seen. What the host changes
    /// there may be seen late, or not at all.
    CopyOnWrite,
    /// The host's own files, read-only: what the host changes there is seen at once.
    ReadOnly,
    /// The host's own files: what is written there is written on the host.
    Writable,
}

impl Access {
    const ALL: [Self; 3] = [Self::CopyOnWrite, Self::ReadOnly, Self::Writable];

    /// What stands behind the path.
    fn ending(self) -> &'static str {
        match self {
            Self::CopyOnWrite => ":cow",
            Self::ReadOnly => ":ro",
            Self::Writable => ":rw",
        }
    }
}

/// A path of the host that a machine is shown: `/srv/data`, `/srv/data:ro` for the host's own files, read-only, or
/// `/srv/data:rw` to write to them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Exposure {
    /// Where it is on the host and in the machine.
    pub path: PathBuf,
    /// How it is shown.
    pub access: Access,
}

/// No path was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a path to show: write an absolute path, and `:ro` or `:rw` behind it for the host's own files")]
pub struct ExposureError(String);

impl FromStr for Exposure {
    type Err = ExposureError;

    fn from_str(text: &str) -> Result<Self, ExposureError> {
        let ended = |access: Access| Some((text.strip_suffix(access.ending())?, access));
        let (path, access) = Access::ALL.into_iter().find_map(ended).unwrap_or((text, Access::CopyOnWrite));
        if path.starts_with('/') { Ok(Self { path: path.into(), access }) } else { Err(ExposureError(text.to_owned())) }
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.path.display();
        // A path whose own name ends like that is told from it by what follows.
        let bytes = self.path.as_os_str().as_encoded_bytes();
        let ends = Access::ALL.iter().any(|access| bytes.ends_with(access.ending().as_bytes()));
        match self.access {
            Access::CopyOnWrite if !ends => write!(f, "{shown}"),
            access => write!(f, "{shown}{}", access.ending()),
        }
    }
}

as_text!(BackendName, Exposure, ImageReference);

/// What a machine is to be. Backends refuse what they cannot give; nothing is silently dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Which backend makes it; already chosen, never `auto`.
    pub backend: BackendName,
    /// What it starts from.
    pub image: ImageReference,
    /// The digest that `image` had when the machine was made; none for `host`. The machine stands on that one, whatever
    /// the name means later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Default user of commands; none means the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Processor time, in cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Memory of everything in it, environments included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// What may be written over its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
    /// `x86_64`, `aarch64`; none means this host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Root inside is this host's root (needs root; no user namespace).
    #[serde(default)]
    pub privileged: bool,
    /// Masked or skipped paths of the host to show after all.
    #[serde(default)]
    pub expose: Vec<Exposure>,
    /// Stopped after so long without client streams, environments or leases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Span>,
    /// Deleted so long after its creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Span>,
    /// Environment variables of the client that commands also get, beside the fixed allow-list.
    #[serde(default)]
    pub pass_env: Vec<String>,
    /// Folders that the machine keeps apart from its root: its environments see them copy-on-write as everything else,
    /// or as they are where they ask for that ([`crate::EnvironmentSpec::shared`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub share: Vec<PathBuf>,
    /// Give it a command `docker`, whose containers are made in the machine itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub docker: bool,
    /// What it is connected to.
    #[serde(default, skip_serializing_if = "MachineNetwork::is_host")]
    pub network: MachineNetwork,
    /// How it is reached, where it is on another host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
}

impl MachineSpec {
    /// The image that it stands on, by digest where that is known.
    #[must_use]
    pub fn stands_on(&self) -> ImageReference {
        self.image_digest.clone().map_or_else(|| self.image.clone(), ImageReference::Digest)
    }

    /// A machine of this backend over the live view of the host, everything else default.
    #[must_use]
    pub fn new(backend: BackendName) -> Self {
        Self {
            backend,
            image: ImageReference::Host,
            image_digest: None,
            user: None,
            cpus: None,
            memory: None,
            disk: None,
            arch: None,
            privileged: false,
            expose: Vec::new(),
            idle: None,
            ttl: None,
            pass_env: Vec::new(),
            share: Vec::new(),
            docker: false,
            network: MachineNetwork::Host,
            remote: None,
        }
    }
}

/// A machine as `list` and `info` show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// Its stable id.
    pub id: MachineId,
    /// Its name.
    pub name: MachineName,
    /// Where it is in its life.
    pub state: MachineState,
    /// What it was asked to be.
    pub spec: MachineSpec,
    /// Why this backend, when it was chosen by `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_reason: Option<String>,
    /// When it was created, in milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// Why it is `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Problem>,
    /// The supervisor's process id on the host, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervisor_pid: Option<i32>,
    /// What this machine cannot isolate or limit, in plain sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references_round_trip() {
        for (text, shown) in [
            ("host", "host"),
            ("debian:12", "debian:12"),
            ("debian", "debian:latest"),
            ("sha256:0123abcd", "sha256:0123abcd"),
            ("team/app", "team/app:latest"),
            ("localhost:5000/team/app:1", "localhost:5000/team/app:1"),
            ("registry.example/app", "registry.example/app:latest"),
        ] {
            assert_eq!(text.parse::<ImageReference>().expect(text).to_string(), shown);
        }
        for bad in [
            "",
            ":",
            "a:",
            ":b",
            "../x:1",
            "a/../b:1",
            "/a",
            "a/",
            "a//b",
            "sha256:xyz",
            "a:b:c",
            "-a:1",
            "a/b:c/d",
            "h:0/a",
            "h:x/a",
            "h:99999/a",
            "h:1/a:b:c",
            "a+b:1",
            &"x".repeat(300),
        ] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_server_is_told_from_a_folder() {
        let server = |text: &str| text.parse::<ImageReference>().expect(text).server().map(str::to_owned);
        assert_eq!(server("localhost:5000/app:1").as_deref(), Some("localhost:5000"));
        assert_eq!(server("localhost/app").as_deref(), Some("localhost"));
        assert_eq!(server("registry.example/a/b").as_deref(), Some("registry.example"));
        assert_eq!(server("team/app:1"), None);
        assert_eq!(server("debian:12"), None);
    }

    #[test]
    fn what_is_exposed_is_written_only_where_asked() {
        for (text, path, access, shown) in [
            ("/srv", "/srv", Access::CopyOnWrite, "/srv"),
            ("/srv:cow", "/srv", Access::CopyOnWrite, "/srv"),
            ("/srv:ro", "/srv", Access::ReadOnly, "/srv:ro"),
            ("/srv:rw", "/srv", Access::Writable, "/srv:rw"),
            ("/a:rw:ro", "/a:rw", Access::ReadOnly, "/a:rw:ro"),
            ("/a:rw:rw", "/a:rw", Access::Writable, "/a:rw:rw"),
            ("/a:ro:cow", "/a:ro", Access::CopyOnWrite, "/a:ro:cow"),
        ] {
            let read: Exposure = text.parse().expect(text);
            assert_eq!((read.path.as_path(), read.access), (std::path::Path::new(path), access), "{text}");
            assert_eq!(read.to_string(), shown);
        }
        for bad in ["", ":rw", "srv", "srv:rw", ":ro"] {
            assert!(bad.parse::<Exposure>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_spec_survives_json() {
        let mut spec = MachineSpec::new(BackendName::namespace());
        spec.memory = Some(ByteSize::mebibytes(512));
        spec.idle = "5m".parse().ok();
        let json = serde_json::to_string(&spec).expect("a spec is plain data");
        assert_eq!(serde_json::from_str::<MachineSpec>(&json).expect("its own output"), spec);
        assert!(serde_json::from_str::<MachineSpec>(r#"{"backend":"host","image":"host","memmory":1}"#).is_err());
    }
}
