//! Import of a root file system archive: plain, gzip or zstd, from anybody.
//!
//! ```text
//! bytes ─► compression ─► entries ─► layout (decides, pure) ─► unpack (writes) ─► manifest ─► store
//! ```
//!
//! One bad entry refuses the whole archive, by the entry's name, and nothing of it stays.
//!
//! As root the ids of the archive are kept. An ordinary user owns every file (`single-owner`): keeping other
//! ids would need a subordinate range, which single-id machines could not show anyway.

mod layout;
mod unpack;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use testyard_model::{ByteSize, Problem, ProblemKind};

pub(crate) use layout::{Layout, Node, NodeKind};

use crate::archive::{self, ArchiveError, ArchiveReader, Compression, shown};
use crate::manifest;
use crate::store::{Image, ImageRecord, Origin, Ownership, Store, StoreError};
use testyard_linux::Error as SystemError;

/// Bounds and names of an import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The name and tag to give it; it is then found as `name:tag`.
    pub name: Option<(String, String)>,
    /// The most bytes of all files together, holes included.
    pub limit: ByteSize,
    /// The most files, folders and links.
    pub entry_limit: u64,
    /// Bytes of disk to leave free.
    pub reserve: ByteSize,
    /// Wait until the disk has it, so that it survives a power cut. Slow on a busy disk.
    pub flush: bool,
    /// The time to write into `image.json`, in milliseconds since 1970.
    pub created_ms: i64,
}

impl ImportOptions {
    /// What is more than any root file system of today needs.
    pub const DEFAULT_LIMIT: ByteSize = ByteSize::mebibytes(64 << 10);

    /// The defaults at this time.
    #[must_use]
    pub fn new(created_ms: i64) -> Self {
        Self {
            name: None,
            limit: Self::DEFAULT_LIMIT,
            entry_limit: 4_000_000,
            reserve: ByteSize::mebibytes(256),
            flush: true,
            created_ms,
        }
    }
}

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
    /// As people and programs see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let full = |source: &std::io::Error| source.kind() == std::io::ErrorKind::StorageFull;
        let kind = match self {
            Self::Store(error) => return error.problem(),
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
            Self::TooLarge { .. } => problem.hint("allow more if you trust the archive: --limit 200G"),
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

impl Store {
    /// Imports the archive in a file.
    ///
    /// # Errors
    /// Any [`ImportError`]; then nothing of the archive stays.
    pub fn import_file(&self, path: &Path, options: &ImportOptions) -> Result<Image, ImportError> {
        let failed = |source| ImportError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(failed(std::io::ErrorKind::IsADirectory.into()));
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        self.import(file, name, options)
    }

    /// Imports an archive from any reader. `file` is its file name for the record.
    ///
    /// # Errors
    /// Any [`ImportError`]; then nothing of the archive stays.
    pub fn import(
        &self,
        source: impl Read,
        file: Option<String>,
        options: &ImportOptions,
    ) -> Result<Image, ImportError> {
        self.import_as(source, options, |compression| Origin::Imported { compression, file })
    }

    pub(crate) fn import_as(
        &self,
        source: impl Read,
        options: &ImportOptions,
        origin: impl FnOnce(Compression) -> Origin,
    ) -> Result<Image, ImportError> {
        if options.name.as_ref().is_some_and(|(name, _)| name == "host") {
            return Err(StoreError::Host.into());
        }
        let staged = self.staging().create()?;
        let unpacked = archive::open(source).map_err(ImportError::from).and_then(|(compression, source)| {
            let reader = ArchiveReader::new(source);
            Ok((compression, unpack::unpack(reader, &staged, options)?))
        });
        let (compression, unpacked) = match unpacked {
            Ok(unpacked) => unpacked,
            Err(error) => {
                // The archive's own error matters more than one of the removal, which prune repeats.
                let _ = staged.discard();
                return Err(error);
            }
        };
        let record = record(&unpacked, origin(compression), options.created_ms);
        let (image, _hold) = self.admit(staged, &record)?;
        if let Some((name, tag)) = &options.name {
            self.name(name, tag, &image.record.digest)?;
            return Ok(self.find(&testyard_model::ImageReference::Digest(image.record.digest.as_str().to_owned()))?);
        }
        Ok(image)
    }
}

fn record(unpacked: &unpack::Unpacked, origin: Origin, created_ms: i64) -> ImageRecord {
    let layout = &unpacked.layout;
    let usable = [b"bin".as_slice(), b"usr", b"bin/sh"].into_iter().any(|path| layout.get(path).is_some());
    let mut warnings = unpacked.warnings.clone();
    if !usable {
        warnings.push(
            "there is no /bin/sh, /bin or /usr in it: only programs that bring all they need run there".to_owned(),
        );
    }
    ImageRecord {
        version: ImageRecord::VERSION,
        digest: manifest::digest(&manifest::text(layout, unpacked.ownership)),
        origin,
        ownership: unpacked.ownership,
        minimal: !usable,
        arch: unpacked.arch.clone(),
        entries: layout.len() as u64 - 1,
        bytes: unpacked.bytes,
        created_ms,
        warnings,
    }
}

/// Whether files can be given to anybody: only in the first user namespace is every id there.
pub(crate) fn ownership_of_caller() -> Ownership {
    if rustix::process::geteuid().is_root() && testyard_linux::namespace::knows_every_id() {
        Ownership::Kept
    } else {
        Ownership::SingleOwner
    }
}
