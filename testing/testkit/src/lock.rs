//! Tests with a home share the host; a test that compares the whole host has it alone.
//!
//! One file per user, locked with flock(2): shared by each [`crate::TestHome`], exclusive for those made with
//! [`crate::TestHome::alone`]. The kernel drops a lock with its holder.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, OFlags, flock};

/// How the host is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// With other tests.
    Shared,
    /// With no other test.
    Alone,
}

/// A held host; let go on drop.
#[derive(Debug)]
pub struct HostLock {
    _file: File,
}

impl HostLock {
    /// Waits until the host can be held so.
    ///
    /// # Panics
    ///
    /// Where the lock file cannot be opened or locked.
    #[must_use]
    pub fn acquire(hold: Hold) -> Self {
        let path = path();
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        // In a folder that everybody may write to: never through somebody's link.
        options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let operation = match hold {
            Hold::Shared => FlockOperation::LockShared,
            Hold::Alone => FlockOperation::LockExclusive,
        };
        while let Err(error) = flock(&file, operation) {
            assert!(error == rustix::io::Errno::INTR, "{}: {error}", path.display());
        }
        Self { _file: file }
    }
}

/// The lock file of this user.
pub(crate) fn path() -> PathBuf {
    PathBuf::from(format!("/tmp/testyard-testkit-{}.lock", rustix::process::geteuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharing_excludes_being_alone() {
        let _held = HostLock::acquire(Hold::Shared);
        let other = File::open(path()).expect("it was made by the line above");
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        assert!(flock(&other, FlockOperation::NonBlockingLockShared).is_ok());
    }
}
