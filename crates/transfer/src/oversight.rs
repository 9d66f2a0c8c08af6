//! What a caller keeps hold of while files move: how much has, and a way to stop it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// How a transfer over a descriptor is watched and stopped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Oversight<'a> {
    /// Once this can be read, or is at its end, the transfer gives up, and removes what it had not finished.
    pub stop: Option<BorrowedFd<'a>>,
    /// Counts the bytes of contents as they are moved.
    pub moved: Option<&'a AtomicU64>,
}

impl Oversight<'_> {
    /// So many bytes more were moved.
    pub(crate) fn count(&self, bytes: u64) {
        if let Some(moved) = self.moved {
            moved.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Waits until `end` is ready for `what`.
    ///
    /// # Errors
    /// `ECANCELED` once the transfer is to stop.
    pub(crate) fn wait(&self, end: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
        let stop = self.stop.unwrap_or(end);
        let mut watched =
            [PollFd::from_borrowed_fd(end, what), PollFd::from_borrowed_fd(stop, PollFlags::IN | PollFlags::RDHUP)];
        let watched = if self.stop.is_some() { &mut watched[..] } else { &mut watched[..1] };
        loop {
            match poll(watched, None) {
                Ok(_) if watched.get(1).is_some_and(|stop| !stop.revents().is_empty()) => {
                    return Err(Errno::CANCELED.into());
                }
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
