//! When a remembered hash still describes a file that was not read again.

/// What `lstat` says of a file or folder, as far as a change would show in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Stamp {
    pub(crate) size: u64,
    pub(crate) modified_ns: i64,
    pub(crate) changed_ns: i64,
    pub(crate) inode: u64,
}

impl Stamp {
    /// Whether any later change is certain to alter this stamp, given that the file was looked at no earlier than
    /// `looked_ns` by the clock that stamps files.
    ///
    /// This is git's racy-file rule, but by the change time: it moves with every write, and no program can set it, so
    /// that a modification time set into the past or future misleads nobody. A write within the same tick of that
    /// clock as the last one leaves the stamp as it was; such a file is read again next time.
    pub(crate) fn is_settled(&self, looked_ns: i64) -> bool {
        const SECOND: i64 = 1_000_000_000;
        // The kernel's tick is 10 ms at most. Whole seconds mean a file system that keeps no fractions; FAT has
        // steps of two seconds.
        let step = if self.changed_ns % SECOND == 0 { 2 * SECOND } else { 20_000_000 };
        self.changed_ns.saturating_add(step) < looked_ns
    }

    /// Whether the file was written or replaced between these two; a new owner, mode or link count alone is not that.
    pub(crate) fn is_rewritten(&self, later: &Self) -> bool {
        (self.size, self.modified_ns, self.inode) != (later.size, later.modified_ns, later.inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_from_the_same_tick_is_not_trusted() {
        let stamp = |changed_ns| Stamp { changed_ns, ..Stamp::default() };
        let looked = 5_000_000_001;
        assert!(!stamp(looked).is_settled(looked));
        assert!(!stamp(looked - 10_000_000).is_settled(looked));
        assert!(stamp(looked - 30_000_000).is_settled(looked));
        // A file system of whole seconds.
        assert!(!stamp(4_000_000_000).is_settled(looked));
        assert!(stamp(2_000_000_000).is_settled(looked));
        // From the future.
        assert!(!stamp(i64::MAX).is_settled(looked));
    }
}
