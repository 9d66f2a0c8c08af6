//! Why an image is not fetched.

use std::path::PathBuf;
use std::time::Duration;

use testyard_model::{Problem, ProblemKind};

use crate::archive::shown;
use crate::import::ImportError;
use crate::oci::BundleError;
use crate::store::StoreError;
use testyard_linux::Error as SystemError;

/// Why an image is not fetched. Nothing of it is in the store but what the next try continues.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No answer, or half of one.
    #[error("{server} does not answer as it should")]
    Connection {
        /// As it was named.
        server: String,
        /// What happened.
        source: Box<ureq::Error>,
    },
    /// What should be an answer is not one.
    #[error("{server} answers {what} with {}", shown(.said.as_bytes()))]
    Answer {
        /// As it was named.
        server: String,
        /// What was asked for.
        what: String,
        /// What came.
        said: String,
    },
    /// It has no such thing.
    #[error("{server} has no {what}")]
    NotFound {
        /// As it was named.
        server: String,
        /// What was asked for.
        what: String,
    },
    /// It wants to know who asks, or knows and refuses.
    #[error("{server} gives {what} not to everybody")]
    Denied {
        /// As it was named.
        server: String,
        /// What was asked for.
        what: String,
        /// Whether a name and a password were given.
        known: bool,
    },
    /// It sends a password somewhere that everybody can read it.
    #[error("{server} wants its password sent to {}, which is not encrypted", shown(.realm.as_bytes()))]
    Realm {
        /// As it was named.
        server: String,
        /// Where to.
        realm: String,
    },
    /// What `docker login` wrote down is of no use.
    #[error("{} does not say who you are: {why}", .file.display())]
    Credentials {
        /// The file.
        file: PathBuf,
        /// Why not.
        why: String,
    },
    /// More time than there is.
    #[error("it was not fetched within {} minutes", .0.as_secs().div_ceil(60))]
    Late(Duration),
    /// This host trusts nobody.
    #[error("this host has no certificates by which servers are known")]
    NoCertificates,
    /// What came is not an image.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A layer cannot be stored.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<SystemError> for PullError {
    fn from(error: SystemError) -> Self {
        Self::Store(error.into())
    }
}

impl PullError {
    /// As people and programs see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::Bundle(error) => return error.problem(),
            Self::Import(error) => return error.problem(),
            Self::Store(error) => return error.problem(),
            Self::NotFound { .. } => ProblemKind::NotFound,
            Self::Denied { .. } | Self::Realm { .. } => ProblemKind::Denied,
            Self::Connection { .. } | Self::Answer { .. } | Self::Late(_) => ProblemKind::Unavailable,
            Self::NoCertificates => ProblemKind::Unsupported,
            Self::Credentials { .. } => ProblemKind::Usage,
        };
        let problem = Problem::from_error(kind, self);
        match self {
            Self::Connection { server, .. } => problem
                .hint(format!("see whether it answers: curl -i {server}/v2/"))
                .hint("for a server without encryption: --scheme http"),
            Self::NotFound { .. } => problem.hint("check the name and the tag"),
            Self::Denied { known: false, .. } => {
                problem.hint("say who you are: TESTYARD_REGISTRY_PASSWORD=… testyard image pull --user NAME …")
            }
            Self::Credentials { .. } => {
                problem.hint("say it here: TESTYARD_REGISTRY_PASSWORD=… testyard image pull --user NAME …")
            }
            Self::Denied { known: true, .. } => problem.hint("check the name and the password"),
            Self::Late(_) => problem.hint("call it again: it goes on where it was, or allow more: --timeout 4h"),
            Self::NoCertificates => problem.hint("install them: apt-get install ca-certificates"),
            _ => problem,
        }
    }
}
