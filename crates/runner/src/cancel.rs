//! Asking a running job to end, with a reason, from another thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

/// Why a job is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// The user asked: end the test gently, then clean up.
    Interrupted,
    /// The executor let the test run past its deadline.
    TimedOut,
    /// The user asked twice, or the gentle way took too long: end it now.
    Killed,
}

/// A request to end one job. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    reason: Mutex<Option<CancelReason>>,
    changed: Condvar,
    descriptor: OnceLock<OwnedFd>,
}

impl Cancel {
    /// Not requested.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the end. [`CancelReason::Killed`] replaces an earlier reason; nothing replaces it.
    pub fn request(&self, reason: CancelReason) {
        let mut current = self.lock();
        if current.is_none() || (reason == CancelReason::Killed && *current != Some(reason)) {
            *current = Some(reason);
            self.0.changed.notify_all();
            self.wake();
        }
    }

    /// Why, once it was requested.
    #[must_use]
    pub fn reason(&self) -> Option<CancelReason> {
        *self.lock()
    }

    /// Waits until it is requested, at most so long.
    #[must_use]
    pub fn wait(&self, longest: Duration) -> Option<CancelReason> {
        let waited = self.0.changed.wait_timeout_while(self.lock(), longest, |reason| reason.is_none());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// An event descriptor that becomes readable at each request. Read its 8 bytes, then look at the reason again:
    /// a later, stronger request makes it readable once more.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        let reason = self.lock();
        if self.0.descriptor.get().is_none() {
            // The lock is held, so nobody else sets it in between.
            let _ = self.0.descriptor.set(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
            if reason.is_some() {
                self.wake();
            }
        }
        Ok(self.0.descriptor.get().expect("it was set above").as_fd())
    }

    fn wake(&self) {
        if let Some(descriptor) = self.0.descriptor.get() {
            // It fails only when it is full, and then it is readable already.
            let _ = rustix::io::write(descriptor, &1_u64.to_ne_bytes());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<CancelReason>> {
        self.0.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(cancel: &Cancel) -> bool {
        let mut bytes = [0_u8; 8];
        rustix::io::read(cancel.descriptor().expect("descriptors are left"), &mut bytes).is_ok()
    }

    #[test]
    fn the_descriptor_tells_of_each_request_once() {
        let cancel = Cancel::new();
        cancel.request(CancelReason::Interrupted);
        assert!(readable(&cancel), "a request before the descriptor existed");
        assert!(!readable(&cancel));
        cancel.request(CancelReason::Interrupted);
        assert!(!readable(&cancel), "the same again is no news");
        cancel.request(CancelReason::Killed);
        assert!(readable(&cancel));
        cancel.request(CancelReason::Interrupted);
        assert_eq!(cancel.reason(), Some(CancelReason::Killed));
    }
}
