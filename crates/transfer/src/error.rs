//! What can go wrong with a transfer.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use testyard_model::{Problem, ProblemKind};

use crate::format::{CHECKED, LOCAL, MAX_DEPTH};

/// A transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The operating system refused something on a file or folder.
    #[error("cannot {operation} {path:?}")]
    File {
        /// What was tried, such as `open`.
        operation: &'static str,
        /// The file: as given for the two ends of the transfer, below the root for the rest.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The stream itself broke.
    #[error("cannot {operation} the stream of files")]
    Stream {
        /// `read` or `write`.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The caller asked for it.
    #[error("the transfer was stopped before its end")]
    Stopped,
    /// What is no file on our side could not be read or written.
    #[error("cannot {operation} the bytes of the file")]
    Bytes {
        /// `read` or `write`.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A folder where only one file can be.
    #[error("it is a folder; only the bytes of a single file can be passed on")]
    Single,
    /// The stream ended too early: the other side gave up or died.
    #[error("the stream of files ended in the middle of {entry:?}")]
    Truncated {
        /// The entry that was being received.
        entry: PathBuf,
    },
    /// The stream holds something that is not made into a file.
    #[error("{entry:?} in the stream of files is refused")]
    Refused {
        /// The entry.
        entry: PathBuf,
        /// Why.
        #[source]
        reason: Refusal,
    },
    /// A folder is to go where something else is.
    #[error("cannot put a folder at {path:?}: something that is not a folder is there")]
    NotAFolder {
        /// Where.
        path: PathBuf,
    },
    /// A file is to go where a device, pipe or socket is.
    #[error("cannot put a file at {path:?}: a device, pipe or socket is there")]
    NotAFile {
        /// Where.
        path: PathBuf,
    },
    /// A file is to go where a folder is.
    #[error("cannot put a file at {path:?}: a folder is there")]
    Folder {
        /// Where.
        path: PathBuf,
    },
    /// The source is a device, pipe or socket.
    #[error("{path:?} is neither a file nor a folder")]
    Special {
        /// The source.
        path: PathBuf,
    },
    /// A tree deeper than the limit.
    #[error("{path:?} is more than {MAX_DEPTH} folders deep")]
    TooDeep {
        /// The folder.
        path: PathBuf,
    },
}

/// Why an entry of a stream was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It does not begin like one of our streams.
    #[error("this is not a stream of files")]
    NotAStream,
    /// A newer stream.
    #[error("the stream is in version {0}; versions {CHECKED} and, within one host, {LOCAL} are understood")]
    Version(u8),
    /// Neither file, folder nor link.
    #[error("it is of the unknown kind {0}; only files, folders and links are accepted")]
    Kind(u8),
    /// Not a single name.
    #[error("its name is empty, `.`, `..`, too long, or contains `/` or a zero byte")]
    Name,
    /// Entries must ascend, so this is a duplicate or disorder.
    #[error("it comes twice or out of order")]
    Order,
    /// Folders in folders.
    #[error("it is more than {MAX_DEPTH} folders deep")]
    TooDeep,
    /// Larger than any file system holds.
    #[error("it claims an absurd size")]
    TooLarge,
    /// More than the caller accepts.
    #[error("the transfer is over its limit of {0} bytes")]
    OverLimit(u64),
    /// A link's target.
    #[error("its target is empty, too long, or contains a zero byte")]
    LinkTarget,
    /// A hard link to what was not sent.
    #[error("it is a hard link to a file that was not sent before")]
    HardLink,
    /// Times no clock shows.
    #[error("its modification time is not a time")]
    Time,
    /// The content is not what was sent.
    #[error("its checksum is wrong: the content changed on the way")]
    Checksum,
    /// The whole stream is not what was sent.
    #[error("the stream's closing checksum or count is wrong")]
    Closing,
}

impl TransferError {
    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::File { operation, path: path.into(), source: source.into() }
    }

    /// The stream itself broke, or was given up.
    pub(crate) fn stream(operation: &'static str, source: io::Error) -> Self {
        if Errno::from_io_error(&source) == Some(Errno::CANCELED) {
            Self::Stopped
        } else {
            Self::Stream { operation, source }
        }
    }

    /// As it is told to people and other processes.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let problem = Problem::from_error(self.kind(), self);
        match self {
            Self::File { source, path, .. } if source.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                problem.hint(format!("make {path:?} first, or check how it is spelled"))
            }
            Self::Truncated { .. } => problem.hint("the other side reports its own error, if it could"),
            _ => problem,
        }
    }

    fn kind(&self) -> ProblemKind {
        match self {
            Self::File { source, .. } | Self::Bytes { source, .. } => kind_of(source),
            Self::Stream { .. } | Self::Truncated { .. } => ProblemKind::Unavailable,
            Self::Stopped => ProblemKind::Interrupted,
            Self::Refused { reason: Refusal::OverLimit(_), .. } => ProblemKind::Exhausted,
            Self::Refused { .. } => ProblemKind::Protocol,
            Self::NotAFolder { .. } | Self::NotAFile { .. } | Self::Folder { .. } => ProblemKind::AlreadyExists,
            Self::Single | Self::Special { .. } | Self::TooDeep { .. } => ProblemKind::Usage,
        }
    }
}

fn kind_of(error: &io::Error) -> ProblemKind {
    let Some(errno) = Errno::from_io_error(error) else { return ProblemKind::System };
    match errno {
        Errno::NOENT | Errno::NOTDIR => ProblemKind::NotFound,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => ProblemKind::Denied,
        Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE => ProblemKind::Exhausted,
        Errno::EXIST | Errno::ISDIR | Errno::NOTEMPTY => ProblemKind::AlreadyExists,
        _ => ProblemKind::System,
    }
}
