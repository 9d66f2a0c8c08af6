//! The layout of a stream. Integers are little-endian.
//!
//! ```text
//! stream      "TYFILES" u8 form, one entry, end
//! directory   1  name  u32 mode  time               entries…  leave
//! file        2  name  u32 mode  time  u32 number   chunks…   32 bytes blake3
//! link        3  name  time  u16 length  target  sum
//! hard link   4  name  u32 number  sum              the same file as that number
//! leave       5
//! end         6  u64 entries  u64 bytes  32 bytes blake3 of all records, without chunks
//! sum         32 bytes blake3 of all records up to here: nothing is made of a damaged name or target
//! name        u16 length, bytes
//! time        i64 seconds, u32 nanoseconds
//! chunk       u32 length, bytes · 0 ends the file · 0xffff_ffff u64 length: a hole
//!             0xffff_fffe u64 length, so many bytes, u64 count: a run (local form only)
//! ```
//!
//! There are two forms. The checked one (4) goes anywhere. The local one (3) never leaves the kernel's memory: it has
//! none of the blake3 sums, and a run's bytes can be moved without being looked at. Of a run only the first `count`
//! bytes are the file's; where it became shorter while it was sent, zeros fill the rest, and no chunk follows.
//!
//! A file's number is 0 unless later hard links refer to it. A file's blake3 is over the blake3 of all records
//! up to its own (its name and place among them), its data and, where a hole is, the eight bytes of its length.

/// The first bytes of a stream.
pub(crate) const MAGIC: [u8; 7] = *b"TYFILES";
/// The form after them with checksums.
pub(crate) const CHECKED: u8 = 4;
/// The form after them between two processes of one host.
pub(crate) const LOCAL: u8 = 3;
/// Folders in folders; each costs both sides an open descriptor.
pub const MAX_DEPTH: usize = 400;
/// The longest name that Linux file systems hold.
pub(crate) const MAX_NAME: usize = 255;
/// The longest target of a symbolic link.
pub(crate) const MAX_TARGET: usize = 4095;
/// The most data in one chunk.
pub(crate) const MAX_CHUNK: u32 = 1 << 20;
/// Larger files are absurd: 16 TiB, what ext4 holds.
pub(crate) const MAX_FILE: u64 = 1 << 44;
/// A chunk's length that says: a hole.
pub(crate) const HOLE: u32 = u32::MAX;
/// A chunk's length that says: a run.
pub(crate) const RUN: u32 = u32::MAX - 1;
/// Bytes of a checksum.
pub(crate) const CHECKSUM: usize = 32;

pub(crate) const DIRECTORY: u8 = 1;
pub(crate) const FILE: u8 = 2;
pub(crate) const LINK: u8 = 3;
pub(crate) const HARD_LINK: u8 = 4;
pub(crate) const LEAVE: u8 = 5;
pub(crate) const END: u8 = 6;

/// How many bytes of a stream come before the name that its root entry brings along.
pub const HEAD: usize = MAGIC.len() + 1 + 1 + 2;

/// How long that name is; 0 where these are no stream's first bytes, which whoever unpacks them is told.
#[must_use]
pub fn name_length(head: &[u8; HEAD]) -> usize {
    let length = usize::from(u16::from_le_bytes([head[HEAD - 2], head[HEAD - 1]]));
    if head.starts_with(&MAGIC) && length <= MAX_NAME { length } else { 0 }
}

/// A modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl Time {
    /// From what `stat` says.
    pub(crate) fn modified(stat: &rustix::fs::Stat) -> Self {
        Self { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 }
    }

    /// For `utimensat`: only the modification time is set.
    pub(crate) fn timestamps(self) -> rustix::fs::Timestamps {
        let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let modified = rustix::fs::Timespec { tv_sec: self.seconds, tv_nsec: self.nanoseconds.into() };
        rustix::fs::Timestamps { last_access: omit, last_modification: modified }
    }
}

/// Whether a name is one component that can exist in a folder.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && name.len() <= MAX_NAME && !name.contains(&b'/') && !name.contains(&0)
}

/// Whether a link at this depth (0: directly in the root) leads out of the tree.
pub(crate) fn leads_outward(target: &[u8], depth: usize) -> bool {
    if target.first() == Some(&b'/') {
        return true;
    }
    let mut level = depth as i64;
    target.split(|byte| *byte == b'/').any(|part| {
        level += match part {
            b"" | b"." => 0,
            b".." => -1,
            _ => 1,
        };
        level < 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'x'; 256]] {
            assert!(!is_name(bad), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b".hidden", b"\xff\n", &[b'x'; 255]] {
            assert!(is_name(good), "{good:?}");
        }
    }

    #[test]
    fn outward_is_what_leaves_the_root() {
        assert!(leads_outward(b"/etc", 3));
        assert!(leads_outward(b"..", 0));
        assert!(leads_outward(b"a/../../b", 0));
        assert!(!leads_outward(b"../b", 1));
        assert!(!leads_outward(b"a/..", 0));
    }
}
