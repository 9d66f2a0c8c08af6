//! Why what holds an image's layers is refused.

use testyard_model::{ByteSize, Problem, ProblemKind};

use super::{DOCUMENT_LIMIT, IMPLIED_LIMIT, LAYER_LIMIT};
use crate::archive::shown;
use crate::store::Digest;

/// Why one member of a bundle cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemberRefusal {
    /// It begins with a slash.
    #[error("its path is absolute")]
    Absolute,
    /// It has a `..`, or a link leads out.
    #[error("its path leads out of the archive")]
    Out,
    /// It is there twice.
    #[error("it is there twice")]
    Twice,
    /// A device or the like, or a file with holes.
    #[error("it is neither a plain file nor a link nor a folder")]
    Kind,
    /// Links lead in a circle.
    #[error("its links lead in a circle")]
    Loop,
}

/// Why an image of layers is refused. Nothing of it is in the store.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Neither of the two forms.
    #[error("it holds neither an `index.json` nor a `manifest.json`")]
    NoImage,
    /// A member may not be as it is.
    #[error("the archive's entry {} is refused: {reason}", shown(.member))]
    Refused {
        /// Its name as written.
        member: Vec<u8>,
        /// Why.
        reason: MemberRefusal,
    },
    /// More members than any image has.
    #[error("the archive holds more than {0} entries beside its layers")]
    TooMany(usize),
    /// Something is named and not there.
    #[error("{} is named by the image's manifest and is not there", shown(.0.as_bytes()))]
    NotThere(String),
    /// A member cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// Which.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// A document is larger than any honest one.
    #[error("{what} is larger than {limit}", limit = ByteSize(DOCUMENT_LIMIT))]
    TooLarge {
        /// Which.
        what: String,
    },
    /// A document says what it may not.
    #[error("{what} is not what an image's documents look like")]
    Document {
        /// Which.
        what: String,
        /// What is wrong in it.
        source: serde_json::Error,
    },
    /// Something is not what its digest says.
    #[error("{what} is damaged or forged: its digest should be {expected} and is {found}")]
    Digest {
        /// What.
        what: String,
        /// By whom names it.
        expected: Digest,
        /// As it is.
        found: Digest,
    },
    /// Something has not the size that its manifest says.
    #[error("{what} is damaged or truncated: it should be {expected} bytes long and is {found}")]
    Size {
        /// What.
        what: String,
        /// By its manifest.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// A digest of another kind, or a name that only looks like one.
    #[error("{} is not a digest that Testyard reads: `sha256:` and 64 hexadecimal digits", shown(.0.as_bytes()))]
    DigestKind(String),
    /// A form that is not read.
    #[error("{what} has the form {}, which Testyard does not read", shown(.form.as_bytes()))]
    Form {
        /// What.
        what: String,
        /// Its media type or version.
        form: String,
    },
    /// Manifest and configuration do not agree.
    #[error("the image's manifest has {layers} layers and its configuration {described}")]
    Layers {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        described: usize,
    },
    /// Nothing to start from.
    #[error("the image has no layers")]
    NoLayers,
    /// More than an overlay should be made of.
    #[error("the image has {0} layers; at most {LAYER_LIMIT} are read")]
    TooManyLayers(usize),
    /// So many unnamed folders that nobody wrote them by accident.
    #[error("the image's layers have {0} folders that they do not name; at most {IMPLIED_LIMIT} are looked after")]
    TooManyImplied(usize),
    /// What it says of commands is larger than any kernel takes.
    #[error("the image's configuration of its commands is larger than 256 KiB")]
    ConfigTooLarge,
    /// Several, and nothing says which.
    #[error("it holds several images: {}", .0.join(", "))]
    Several(Vec<String>),
    /// None of that name.
    #[error("it holds no image {}; there is {}", shown(.wanted.as_bytes()), .there.join(", "))]
    NotPicked {
        /// As asked for.
        wanted: String,
        /// What there is.
        there: Vec<String>,
    },
    /// None for this host.
    #[error("it has nothing for {wanted}; there is {}", .there.join(", "))]
    Platform {
        /// This host's.
        wanted: String,
        /// What there is.
        there: Vec<String>,
    },
    /// Indexes in indexes.
    #[error("its indexes lead from one to another without end")]
    Depth,
}

impl BundleError {
    /// As people and programs see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::Read { .. } => ProblemKind::System,
            Self::Platform { .. } => ProblemKind::Unsupported,
            Self::NotPicked { .. } => ProblemKind::NotFound,
            _ => ProblemKind::Usage,
        };
        let problem = Problem::from_error(kind, self);
        match self {
            Self::Several(names) | Self::NotPicked { there: names, .. } => match names.first() {
                Some(name) => problem.hint(format!("say which: --pick {name}")),
                None => problem,
            },
            Self::Digest { .. } | Self::Size { .. } | Self::NotThere(_) => {
                problem.hint("fetch or write it again: docker save -o app.tar IMAGE")
            }
            Self::NoImage => problem.hint("give what `docker save` or `skopeo copy` wrote, or a root file system"),
            _ => problem,
        }
    }
}
