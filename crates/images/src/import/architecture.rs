//! What processor a tree's programs are for.

use std::os::fd::BorrowedFd;

use rustix::fs::{Mode as FileMode, OFlags, ResolveFlags};

/// The processor that the tree's shell was built for, as `uname -m` says it.
pub(super) fn architecture(root: BorrowedFd<'_>) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let shell = rustix::fs::openat2(root, "bin/sh", flags, FileMode::empty(), resolve).ok()?;
    let mut header = [0; 20];
    let read = rustix::io::pread(&shell, &mut header, 0).ok()?;
    if read < header.len() || !header.starts_with(b"\x7fELF") {
        return None;
    }
    let machine = if header[5] == 2 {
        u16::from_be_bytes([header[18], header[19]])
    } else {
        u16::from_le_bytes([header[18], header[19]])
    };
    let name = match machine {
        3 => "i686",
        21 => "ppc64le",
        22 => "s390x",
        40 => "armv7l",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        _ => return None,
    };
    Some(name.to_owned())
}
