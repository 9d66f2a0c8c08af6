//! The marks by which an overlay knows what a layer hides, as they are written to disk and read from it.
//!
//! A whiteout is character device 0:0, which needs no privilege since Linux 5.8. Where a file system refuses the
//! device (an overlay does, so every machine's own root), it is an empty file with the attribute `overlay.whiteout`
//! in a folder marked `x`, which Linux 6.8 and later understand.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode as FileMode, OFlags, XattrFlags};
use rustix::io::Errno;

/// The attribute of a folder that hides what lower layers have in it: as an overlay mounted with `userxattr` reads it,
/// and as any other does.
pub const OPAQUE: [&str; 2] = ["user.overlay.opaque", "trusted.overlay.opaque"];
const WHITEOUT: [&str; 2] = ["user.overlay.whiteout", "trusted.overlay.whiteout"];
/// The first Linux whose overlays read whiteouts from attributes in every folder.
const READS_ATTRIBUTES: (u32, u32) = (6, 8);

/// How a whiteout was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhiteoutForm {
    /// Character device 0:0.
    Device,
    /// An empty file with an attribute. It shows as a file where its folder is opaque.
    Attribute,
}

/// Writes a whiteout into `parent`, a folder opened in whatever way.
///
/// # Errors
/// The kernel's answer: neither form can be written there.
pub fn make_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<WhiteoutForm> {
    match rustix::fs::mknodat(parent, name, FileType::CharacterDevice, FileMode::empty(), 0) {
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) if reads_attributes() => {}
        answer => return answer.map(|()| WhiteoutForm::Device),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, FileMode::RUSR | FileMode::WUSR)?;
    mark(file.as_fd(), &WHITEOUT, b"y")?;
    // Attributes are refused to a descriptor that only names its folder.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent: OwnedFd = rustix::fs::openat(parent, c".", flags, FileMode::empty())?;
    mark(parent.as_fd(), &OPAQUE, b"x")?;
    Ok(WhiteoutForm::Attribute)
}

/// Hides what lower layers have in a folder.
///
/// # Errors
/// The kernel's answer: no attribute can be written there.
pub fn make_opaque(folder: BorrowedFd<'_>) -> rustix::io::Result<()> {
    mark(folder, &OPAQUE, b"y")
}

/// Whether an empty file hides a name of the layers below.
#[must_use]
pub fn is_whiteout_file(file: BorrowedFd<'_>) -> bool {
    WHITEOUT.iter().any(|name| rustix::fs::fgetxattr(file, *name, &mut [0; 1][..]).is_ok())
}

/// Whether a folder hides what lower layers have in it.
#[must_use]
pub fn is_opaque(folder: BorrowedFd<'_>) -> bool {
    let hides = |name: &&str| {
        let mut value = [0; 1];
        rustix::fs::fgetxattr(folder, *name, &mut value[..]) == Ok(1) && value == *b"y"
    };
    OPAQUE.iter().any(hides)
}

/// Sets the first attribute; the second, which only root may set, as well as it can be.
fn mark(file: BorrowedFd<'_>, names: &[&str; 2], value: &[u8]) -> rustix::io::Result<()> {
    let trusted = rustix::fs::fsetxattr(file, names[1], value, XattrFlags::empty());
    match rustix::fs::fsetxattr(file, names[0], value, XattrFlags::empty()) {
        // Older tmpfs holds no user attributes, but root's overlays read the other kind.
        Err(Errno::OPNOTSUPP) => trusted,
        answer => answer,
    }
}

/// A kernel that does not know the attribute would show the empty file.
fn reads_attributes() -> bool {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= READS_ATTRIBUTES)
}
