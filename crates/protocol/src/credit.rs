//! How much one side of a stream may still send: a slow reader blocks its own stream and no other.

use std::fmt;

/// A sender's allowance on one channel of one stream, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    left: u64,
}

/// The other side granted more than any honest reader would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stream was granted more than {} bytes of credit", Credit::MAXIMUM)]
pub struct CreditError;

impl Credit {
    /// What each channel begins with.
    pub const INITIAL: u64 = 256 * 1024;
    /// A reader gives credit back once it has consumed this much.
    pub const STEP: u64 = 64 * 1024;
    /// More than this outstanding is a protocol error.
    pub const MAXIMUM: u64 = 1 << 32;

    /// A fresh channel's allowance.
    #[must_use]
    pub fn new() -> Self {
        Self { left: Self::INITIAL }
    }

    /// Bytes that may be sent now.
    #[must_use]
    pub fn available(self) -> u64 {
        self.left
    }

    /// Takes at most `wanted` bytes of allowance and says how many were there.
    pub fn take(&mut self, wanted: u64) -> u64 {
        let taken = wanted.min(self.left);
        self.left -= taken;
        taken
    }

    /// Adds what the reader gave back.
    pub fn grant(&mut self, bytes: u64) -> Result<(), CreditError> {
        self.left = self.left.checked_add(bytes).filter(|left| *left <= Self::MAXIMUM).ok_or(CreditError)?;
        Ok(())
    }
}

impl Default for Credit {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Credit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.left)
    }
}

/// A reader's side: counts what was consumed and says when to give credit back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Consumed {
    since_grant: u64,
}

impl Consumed {
    /// Counts `bytes` as consumed; the credit to give back, once it is worth a frame.
    pub fn add(&mut self, bytes: u64) -> Option<u64> {
        self.since_grant += bytes;
        (self.since_grant >= Credit::STEP).then(|| std::mem::take(&mut self.since_grant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_never_exceeds_what_was_granted() {
        let mut credit = Credit::new();
        assert_eq!(credit.take(Credit::INITIAL + 1), Credit::INITIAL);
        assert_eq!(credit.take(1), 0);
        credit.grant(10).expect("little");
        assert_eq!(credit.take(100), 10);
        assert_eq!(credit.grant(u64::MAX), Err(CreditError));
    }

    #[test]
    fn a_reader_gives_back_in_steps() {
        let mut consumed = Consumed::default();
        assert_eq!(consumed.add(Credit::STEP - 1), None);
        assert_eq!(consumed.add(5), Some(Credit::STEP + 4));
        assert_eq!(consumed.add(1), None);
    }
}
