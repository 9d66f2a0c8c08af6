//! A sender's credit that threads can wait for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use testyard_protocol::Credit;

/// One channel's allowance, and whether anybody still reads it.
#[derive(Debug, Default)]
pub(super) struct CreditGate {
    state: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    credit: Credit,
    closed: bool,
}

impl CreditGate {
    /// Waits until some of `wanted` bytes may be sent, and takes the allowance; none once closed.
    pub(super) fn take(&self, wanted: usize) -> Option<usize> {
        let mut gate = self.lock();
        loop {
            if gate.closed {
                return None;
            }
            match gate.credit.take(wanted as u64) {
                0 => gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner),
                taken => return Some(taken as usize),
            }
        }
    }

    /// The reader gave credit back. A mad grant closes the gate.
    pub(super) fn grant(&self, bytes: u64) {
        let mut gate = self.lock();
        if gate.credit.grant(bytes).is_err() {
            gate.closed = true;
        }
        self.changed.notify_all();
    }

    /// Nobody reads any more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    // Each change of the gate is one assignment, so a panic elsewhere leaves it sound.
    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_sender_waits_for_credit_and_ends_when_closed() {
        let gate = Arc::new(CreditGate::default());
        assert_eq!(gate.take(usize::MAX), Some(Credit::INITIAL as usize));
        let waiting = Arc::clone(&gate);
        let sender = std::thread::spawn(move || (waiting.take(100), waiting.take(100)));
        gate.grant(7);
        gate.close();
        // Either it was woken by the grant first, or it met the gate closed.
        let (first, second) = sender.join().expect("it ends");
        assert!(matches!(first, Some(7) | None));
        assert_eq!(second, None);
    }
}
