//! How an image on a server is named: `SERVER/PATH[:TAG][@sha256:DIGEST]`.

use std::fmt;
use std::str::FromStr;

use testyard_model::{ImageReference, ImageReferenceError};

use crate::store::Digest;

/// An image on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteImage {
    /// The server, with a port where one was written.
    pub server: String,
    /// The repository there.
    pub path: String,
    /// The tag, if one was written or nothing was.
    pub tag: Option<String>,
    /// The digest of its manifest, which then decides alone.
    pub digest: Option<Digest>,
}

/// A text names no image on a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteImageError {
    /// It is no name of an image at all.
    #[error(transparent)]
    Name(#[from] ImageReferenceError),
    /// It says not from where.
    #[error("{0:?} does not say from which server")]
    NoServer(String),
    /// What is behind the `@`.
    #[error("{0:?} does not end with `@sha256:` and 64 hexadecimal digits")]
    Digest(String),
}

impl FromStr for RemoteImage {
    type Err = RemoteImageError;

    fn from_str(text: &str) -> Result<Self, RemoteImageError> {
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => {
                let digits = digest.strip_prefix("sha256:").and_then(|digits| digits.parse().ok());
                (named, Some(digits.ok_or_else(|| RemoteImageError::Digest(text.to_owned()))?))
            }
            None => (text, None),
        };
        let reference: ImageReference = named.parse()?;
        let server = reference.server().map(str::to_owned);
        let ImageReference::Named { name, tag } = reference else {
            return Err(RemoteImageError::NoServer(text.to_owned()));
        };
        let server = server.ok_or_else(|| RemoteImageError::NoServer(text.to_owned()))?;
        let path = name[server.len() + 1..].to_owned();
        // The tag that a name gets without one says nothing beside a digest.
        let written = named.len() > name.len();
        let tag = (written || digest.is_none()).then_some(tag);
        Ok(Self { server, path, tag, digest })
    }
}

impl RemoteImage {
    /// What it is called in the store unless it is to be called otherwise: name and tag.
    #[must_use]
    pub fn local_name(&self) -> (String, String) {
        let tag = match (&self.tag, &self.digest) {
            (Some(tag), _) => tag.clone(),
            (None, Some(digest)) => format!("sha256-{}", &digest.as_str()[..12]),
            (None, None) => "latest".to_owned(),
        };
        (format!("{}/{}", self.server, self.path), tag)
    }

    /// What its manifest is asked for by.
    pub(super) fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for RemoteImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.server, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_server_path_and_tag_or_digest() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let check = |text: &str, server: &str, path: &str, wanted: &str, local: &str| {
            let image: RemoteImage = text.parse().expect(text);
            let (name, tag) = image.local_name();
            assert_eq!((image.server.as_str(), image.path.as_str()), (server, path), "{text}");
            assert_eq!((image.wanted().as_str(), format!("{name}:{tag}").as_str()), (wanted, local), "{text}");
        };
        check("localhost:5000/team/app:1", "localhost:5000", "team/app", "1", "localhost:5000/team/app:1");
        check("registry.example/app", "registry.example", "app", "latest", "registry.example/app:latest");
        let pinned = format!("registry.example/app@{digest}");
        check(&pinned, "registry.example", "app", &digest, "registry.example/app:sha256-0a0a0a0a0a0a");
        let both = format!("registry.example/app:2@{digest}");
        check(&both, "registry.example", "app", &digest, "registry.example/app:2");
        assert_eq!(both.parse::<RemoteImage>().expect("both").to_string(), both);
        for (bad, says) in [
            ("debian:12", "does not say from which server"),
            ("team/app:1", "does not say from which server"),
            ("host", "does not say from which server"),
            ("registry.example/../x", "is not an image"),
            ("registry.example/app@sha256:12", "does not end with"),
            ("registry.example/app@md5:12", "does not end with"),
        ] {
            let error = bad.parse::<RemoteImage>().expect_err(bad).to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
