//! A moment of waiting for something of which the kernel tells nobody.

use std::time::Duration;

use rustix::event::{Timespec, poll};

/// Waits so long, or until a signal comes.
///
/// It belongs between two looks at a thing that has no event. What can be polled is polled, with a deadline.
pub fn pause(span: Duration) {
    let span = Timespec { tv_sec: span.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: span.subsec_nanos().into() };
    // Nothing is polled: an error only shortens the wait.
    let _ = poll(&mut [], Some(&span));
}
