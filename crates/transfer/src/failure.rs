//! Errors of the receiving end that do not yet know their entry's path.

use std::path::PathBuf;

use rustix::io::Errno;

use crate::error::{Refusal, TransferError};
use crate::receiver::Fault;

/// What went wrong with an entry.
pub(crate) enum Failure {
    Fault(Fault),
    System(&'static str, Errno),
    /// A folder is where a file is to go.
    Folder,
    /// Something else is where a folder is to go.
    NotAFolder,
    /// Making a small file failed: the crew knows which, and why.
    Crew,
    Told(TransferError),
}

impl Failure {
    /// With the path of the entry.
    pub(crate) fn at(self, entry: PathBuf) -> TransferError {
        match self {
            Self::Fault(Fault::Stream(source)) => TransferError::stream("read", source),
            Self::Fault(Fault::Truncated) => TransferError::Truncated { entry },
            Self::Fault(Fault::Refused(reason)) => TransferError::Refused { entry, reason },
            Self::System(operation, errno) => TransferError::file(operation, entry, errno),
            Self::Folder => TransferError::Folder { path: entry },
            Self::NotAFolder => TransferError::NotAFolder { path: entry },
            Self::Crew => TransferError::Stopped,
            Self::Told(error) => error,
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Fault(Fault::Refused(refusal))
    }
}
