//! Why an archive is not imported.

use std::path::PathBuf;

use testyard_model::{ByteSize, Problem, ProblemKind};

use super::ImportOptions;
use super::measured::Overblown;
use crate::archive::{ArchiveError, shown};
use crate::oci::BundleError;
use crate::store::StoreError;
use testyard_linux::Error as SystemError;

/// Why one entry cannot be part of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It begins with a slash.
    #[error("its path is absolute")]
    Absolute,
    /// It has a `..`.
    #[error("its path contains `..`")]
    Parent,
    /// A link among its parents leads out of the tree.
    #[error("its path goes through a link that leads out of the image")]
    LinkOut,
    /// Links among its parents lead in a circle.
    #[error("its path goes through too many links")]
    LinkLoop,
    /// One of its parents is a file.
    #[error("its path goes through a file")]
    BelowFile,
    /// A component is too long.
    #[error("its name is {0} bytes long; at most 255 are allowed")]
    NameTooLong(usize),
    /// The whole is too long.
    #[error("its path is {0} bytes long; at most 4095 are allowed")]
    PathTooLong(usize),
    /// It is a NUL-carrying name or target.
    #[error("its name or target contains a NUL character")]
    Nul,
    /// Something else stands where a directory is.
    #[error("it would replace a directory by something else")]
    ReplacesDirectory,
    /// A hard link to what is not there (before it).
    #[error("it is a hard link to {}, which is not a file before it in the archive", shown(.0))]
    HardLink(Vec<u8>),
    /// A hard link whose target lies outside.
    #[error("it is a hard link to {}, which is not inside the image", shown(.0))]
    HardLinkOut(Vec<u8>),
    /// A symbolic link's target that no kernel takes.
    #[error("its target is {0} bytes long; at most 4095 are allowed")]
    TargetTooLong(usize),
    /// An overlay whiteout: an image is a whole tree, not a layer of one.
    #[error("it is a whiteout: this is a layer of an image, not a root file system")]
    Whiteout,
    /// A layer's whiteout in overlay's own form, which archives do not have.
    #[error("it is a whiteout as only a mounted overlay has them")]
    WhiteoutDevice,
    /// A layer's mark that means nothing.
    #[error("{} is no whiteout that means anything", shown(.0))]
    WhiteoutName(Vec<u8>),
    /// Something in what the same layer says is gone.
    #[error("its path goes through what a whiteout of the same layer says is gone")]
    BelowWhiteout,
    /// A device node outside `/dev`.
    #[error("it is a device node outside of `dev`")]
    Device,
    /// An attribute by which overlayfs could be steered.
    #[error("it carries the attribute {}, which steers overlay file systems", shown(.0))]
    OverlayAttribute(Vec<u8>),
}

/// Why an archive was not imported. Nothing of it is in the store.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive's file cannot be opened.
    #[error("cannot open the archive {}", .path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An entry is refused.
    #[error("the archive's entry {} is refused: {reason}", shown(.entry))]
    Refused {
        /// Its name as written.
        entry: Vec<u8>,
        /// Why.
        reason: Refusal,
    },
    /// Nothing in it.
    #[error("the archive holds no files")]
    Empty,
    /// More bytes than allowed.
    #[error("the archive unpacks to more than {limit}, at the entry {}", shown(.entry))]
    TooLarge {
        /// Where the limit was passed.
        entry: Vec<u8>,
        /// The limit.
        limit: ByteSize,
    },
    /// More entries than allowed.
    #[error("the archive holds more than {limit} entries")]
    TooMany {
        /// The limit.
        limit: u64,
    },
    /// More names and attributes than memory should hold.
    #[error("the archive's names and attributes exceed {limit} at the entry {}", shown(.entry))]
    IndexTooLarge {
        /// Where the limit was passed.
        entry: Vec<u8>,
        /// The limit.
        limit: ByteSize,
    },
    /// The disk is (nearly) full.
    #[error("the disk that holds {} is too full: {free} free at the entry {}, {reserve} are kept free", .path.display(), shown(.entry))]
    NoSpace {
        /// The store.
        path: PathBuf,
        /// Where it was noticed.
        entry: Vec<u8>,
        /// What is left.
        free: ByteSize,
        /// What must be left.
        reserve: ByteSize,
    },
    /// The kernel refused an entry.
    #[error("cannot unpack the entry {}", shown(.entry))]
    Write {
        /// Its name as written.
        entry: Vec<u8>,
        /// The cause.
        source: std::io::Error,
    },
    /// It grows beyond all bounds while it is uncompressed.
    #[error("the archive is refused at the entry {}: {reason}", shown(.entry))]
    Overblown {
        /// Where that was noticed.
        entry: Vec<u8>,
        /// Which bound.
        reason: String,
    },
    /// What holds an image's layers is not as it should be.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A layer is refused.
    #[error("in the layer {layer}: {error}")]
    Layer {
        /// Its digest or its name in the archive.
        layer: String,
        /// Why.
        error: Box<ImportError>,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<SystemError> for ImportError {
    fn from(error: SystemError) -> Self {
        Self::Store(error.into())
    }
}

impl ImportError {
    /// A reader's error, met in or after this entry.
    pub(crate) fn at(error: ArchiveError, entry: &[u8]) -> Self {
        match error {
            ArchiveError::Read { source, .. } if Overblown::of(&source).is_some() => {
                let reason = Overblown::of(&source).map(ToString::to_string).unwrap_or_default();
                Self::Overblown { entry: entry.to_vec(), reason }
            }
            error => Self::Archive(error),
        }
    }

    /// [`ImportError::at`] for what an entry's content met.
    pub(super) fn named(self, entry: &[u8]) -> Self {
        match self {
            Self::Archive(error) => Self::at(error, entry),
            error => error,
        }
    }

    /// A layer's error, told with the bounds of the whole image.
    pub(crate) fn of_whole(self, bounds: &ImportOptions) -> Self {
        match self {
            Self::Layer { layer, error } => Self::Layer { layer, error: Box::new(error.of_whole(bounds)) },
            Self::TooLarge { entry, .. } => Self::TooLarge { entry, limit: bounds.limit },
            Self::TooMany { .. } => Self::TooMany { limit: bounds.entry_limit },
            error => error,
        }
    }

    /// As people and programs see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let full = |source: &std::io::Error| source.kind() == std::io::ErrorKind::StorageFull;
        let kind = match self {
            Self::Store(error) => return error.problem(),
            Self::Bundle(error) => return error.problem(),
            Self::Layer { error, .. } => {
                let inner = error.problem();
                return Problem { message: self.to_string(), ..inner };
            }
            Self::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ProblemKind::NotFound,
            Self::Open { source, .. } if source.kind() == std::io::ErrorKind::IsADirectory => ProblemKind::Usage,
            Self::Open { .. } => ProblemKind::Denied,
            Self::Write { source, .. } if full(source) => ProblemKind::Exhausted,
            Self::Archive(ArchiveError::Read { .. }) | Self::Write { .. } => ProblemKind::System,
            Self::NoSpace { .. } => ProblemKind::Exhausted,
            Self::Archive(_)
            | Self::Refused { .. }
            | Self::Empty
            | Self::TooLarge { .. }
            | Self::Overblown { .. }
            | Self::TooMany { .. }
            | Self::IndexTooLarge { .. } => ProblemKind::Usage,
        };
        let problem = Problem::from_error(kind, self);
        match self {
            Self::Archive(ArchiveError::Compression(name)) => {
                problem.hint(format!("uncompress it first, for example with: {name} -d ARCHIVE"))
            }
            Self::Open { path, source } if source.kind() == std::io::ErrorKind::IsADirectory => {
                problem.hint(format!("make an archive of it first: tar -C {} -cf rootfs.tar .", path.display()))
            }
            Self::Open { .. } => problem.hint("give an archive that is there and that you may read"),
            Self::Archive(ArchiveError::NotAnArchive)
            | Self::Empty
            | Self::Refused { reason: Refusal::Absolute | Refusal::Parent | Refusal::LinkOut, .. } => {
                problem.hint("make it of a root file system: tar -C ROOTFS -cf rootfs.tar .")
            }
            Self::Archive(ArchiveError::Truncated { .. }) => problem.hint("fetch or write the archive again"),
            Self::TooLarge { .. } | Self::Overblown { .. } => {
                problem.hint("allow more if you trust the archive: --limit 200G")
            }
            Self::NoSpace { .. } => problem.hint("remove images that nothing uses: testyard image prune"),
            Self::Write { source, .. } if full(source) => {
                problem.hint("remove images that nothing uses: testyard image prune")
            }
            Self::Refused { reason: Refusal::Whiteout, .. } => {
                problem.hint("export a whole root file system instead, as `podman export` does")
            }
            _ => problem,
        }
    }
}
