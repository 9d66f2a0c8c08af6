//! Files and folders as they are made: under which name, and what they get when they are whole.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::format::Time;
use crate::{SpecialBits, UnpackOptions};

/// An open folder that entries are made in, by whoever makes them.
pub(crate) struct Place {
    pub(crate) descriptor: OwnedFd,
    /// As the user would write it.
    pub(crate) shown: PathBuf,
    /// Whether what is made here has the mode that it was made with, but for the mask.
    plain: bool,
    /// Files that are yet to be made here; one more until the stream has left the folder.
    outstanding: AtomicUsize,
    /// Mode and time to give it then, if it was made here.
    made: OnceLock<(u32, Time)>,
}

impl Place {
    /// One that was there.
    pub(crate) fn existing(descriptor: OwnedFd, shown: PathBuf) -> Self {
        let mut buffer = [0_u8; 0];
        // Access control lists for what is made inside change the modes that are asked for.
        let inherited = rustix::fs::fgetxattr(&descriptor, c"system.posix_acl_default", &mut buffer);
        let plain = matches!(inherited, Err(Errno::NODATA | Errno::OPNOTSUPP));
        Self::with(descriptor, shown, plain)
    }

    /// One that was made in this one.
    pub(crate) fn made_in(&self, descriptor: OwnedFd, name: &[u8]) -> Self {
        Self::with(descriptor, self.shown.join(OsStr::from_bytes(name)), self.plain)
    }

    fn with(descriptor: OwnedFd, shown: PathBuf, plain: bool) -> Self {
        Self { descriptor, shown, plain, outstanding: AtomicUsize::new(1), made: OnceLock::new() }
    }

    /// One more file is to be made here.
    pub(crate) fn expect_one(&self) {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
    }

    /// The stream has left it: mode and time to give it once all that was expected is made.
    pub(crate) fn leave(&self, made: Option<(u32, Time)>, options: &UnpackOptions) -> Result<(), Failure> {
        if let Some(made) = made {
            self.made.get_or_init(|| made);
        }
        self.done_with_one(options)
    }

    /// A file that was expected is made, or the stream has left. The last one settles the folder.
    pub(crate) fn done_with_one(&self, options: &UnpackOptions) -> Result<(), Failure> {
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some((mode, time)) = self.made.get()
        {
            return settle(self.descriptor.as_fd(), Some(*mode), *time, options);
        }
        Ok(())
    }
}

/// How a file begins: under which name, and what it is to become.
pub(crate) struct Made {
    pub(crate) made_as: Vec<u8>,
    /// The name it gets when it is whole, where it is made under another.
    pub(crate) becomes: Option<Vec<u8>>,
    pub(crate) mode: u32,
    pub(crate) time: Time,
}

impl Made {
    /// Makes an empty one, which nobody else can open; whether it has its mode already.
    pub(crate) fn open(&self, place: &Place, options: &UnpackOptions) -> Result<(OwnedFd, bool), Failure> {
        let mode = allowed(self.mode, options);
        let masked = options.mask.is_none_or(|mask| mode & (mask | 0o7000) != 0);
        let final_mode = self.becomes.is_none() && place.plain && !masked && options.owner.is_none();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = if final_mode { Mode::from_raw_mode(mode) } else { Mode::RUSR | Mode::WUSR };
        let file = rustix::fs::openat(&place.descriptor, &*self.made_as, flags, mode)
            .map_err(|errno| Failure::System("make", errno))?;
        Ok((file, final_mode))
    }

    /// Gives it its mode and time.
    pub(crate) fn settle(&self, file: &OwnedFd, has_mode: bool, options: &UnpackOptions) -> Result<(), Failure> {
        settle(file.as_fd(), (!has_mode).then_some(self.mode), self.time, options)
    }

    /// Makes the whole of it. What fails is not left behind under a temporary name.
    pub(crate) fn make(&self, place: &Place, content: &[u8], options: &UnpackOptions) -> Result<(), Failure> {
        let (file, has_mode) = self.open(place, options)?;
        let made = write_at(&file, content, 0)
            .map_err(|errno| Failure::System("write", errno))
            .and_then(|()| self.settle(&file, has_mode, options))
            .and_then(|()| match &self.becomes {
                Some(name) => replace(&place.descriptor, &self.made_as, name),
                None => Ok(()),
            });
        if made.is_err() && self.becomes.is_some() {
            // What cannot be removed keeps its telling name.
            let _ = rustix::fs::unlinkat(&place.descriptor, &*self.made_as, AtFlags::empty());
        }
        made
    }
}

/// Gives a file or link its name, in place of any other that had it.
pub(crate) fn replace(folder: &OwnedFd, from: &[u8], to: &[u8]) -> Result<(), Failure> {
    match rustix::fs::renameat(folder, from, folder, to) {
        Ok(()) => Ok(()),
        Err(Errno::ISDIR) => Err(Failure::Folder),
        Err(errno) => Err(Failure::System("replace", errno)),
    }
}

/// Renames a folder to a name that nothing has yet.
pub(crate) fn rename_new(folder: &OwnedFd, from: &[u8], to: &[u8]) -> Result<(), Errno> {
    match rustix::fs::renameat_with(folder, from, folder, to, rustix::fs::RenameFlags::NOREPLACE) {
        // Some file systems cannot; there an empty folder made meanwhile is replaced.
        Err(Errno::INVAL) => rustix::fs::renameat(folder, from, folder, to),
        outcome => outcome,
    }
}

/// Whom it is to belong to.
pub(crate) fn owner(options: &UnpackOptions) -> Option<(Option<Uid>, Option<Gid>)> {
    options.owner.map(|(uid, gid)| (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
}

fn settle(made: BorrowedFd<'_>, mode: Option<u32>, time: Time, options: &UnpackOptions) -> Result<(), Failure> {
    if let Some((uid, gid)) = owner(options) {
        rustix::fs::fchown(made, uid, gid).map_err(|errno| Failure::System("give away", errno))?;
    }
    if let Some(mode) = mode {
        let mode = Mode::from_raw_mode(allowed(mode, options));
        rustix::fs::fchmod(made, mode).map_err(|errno| Failure::System("set the mode of", errno))?;
    }
    rustix::fs::futimens(made, &time.timestamps()).map_err(|errno| Failure::System("set the time of", errno))
}

fn allowed(mode: u32, options: &UnpackOptions) -> u32 {
    let keep = !options.hostile && options.special_bits == SpecialBits::Keep;
    mode & if keep { 0o7777 } else { 0o777 }
}

/// Writes all of it.
pub(crate) fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(written) => {
                bytes = &bytes[written..];
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
