//! The process that brought a connection to a session's keeper, and waits.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use testyard_linux::socket;

/// Its socket. It is told when its connection is let go; one whose keeper was killed hears nothing, and tells the two apart.
pub(crate) struct Bringer(pub(crate) OwnedFd);

impl AsFd for Bringer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Bringer {
    fn drop(&mut self) {
        // One that has ended needs to hear nothing.
        let _ = socket::try_send(&self.0, &[IoSlice::new(&[0])], &[]);
    }
}
