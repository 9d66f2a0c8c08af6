//! One layer in the making: files, links, folders and the marks of what is removed, all below one open folder.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::manifest::ContentHash;
use crate::store::Owner;

/// A layer's folder.
#[derive(Debug)]
pub(crate) struct Layer {
    folder: OwnedFd,
    owner: Option<Owner>,
    made: HashSet<PathBuf>,
}

/// A file that is being written.
#[derive(Debug)]
pub(crate) struct Fresh {
    file: File,
    hasher: blake3::Hasher,
    time: i64,
    mode: u32,
}

impl Layer {
    /// The layer at `path`, an empty folder; files are given to `owner` unless they are that already.
    pub(crate) fn open(path: &Path, owner: Owner) -> io::Result<Self> {
        let folder = open_folder(path)?;
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let owner = (own != (owner.uid, owner.gid)).then_some(owner);
        let layer = Self { folder, owner, made: HashSet::new() };
        layer.give(layer.folder.as_fd())?;
        Ok(layer)
    }

    fn give(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let Some(owner) = self.owner else { return Ok(()) };
        Ok(rustix::fs::fchown(file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?)
    }

    fn give_name(&self, path: &Path) -> io::Result<()> {
        let Some(Owner { uid, gid }) = self.owner else { return Ok(()) };
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::chownat(&self.folder, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)?)
    }

    /// Makes the folders above `path`.
    pub(crate) fn make_way(&mut self, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent().filter(|parent| *parent != Path::new("")) else { return Ok(()) };
        if self.made.contains(parent) {
            return Ok(());
        }
        self.make_way(parent)?;
        match rustix::fs::mkdirat(&self.folder, parent, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                rustix::fs::chmodat(&self.folder, parent, Mode::from_raw_mode(0o755), AtFlags::empty())?;
                self.give_name(parent)?;
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.made.insert(parent.to_owned());
        Ok(())
    }

    /// Makes a link.
    pub(crate) fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.make_way(path)?;
        rustix::fs::symlinkat(target, &self.folder, path)?;
        self.give_name(path)
    }

    /// Gives a file of another layer a name here too; false where that is not there or has too many names.
    pub(crate) fn share(&mut self, from: BorrowedFd<'_>, path: &Path) -> io::Result<bool> {
        self.make_way(path)?;
        match rustix::fs::linkat(from, path, &self.folder, path, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::MLINK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Marks a path of the layer below as gone.
    pub(crate) fn hide(&mut self, path: &Path) -> io::Result<()> {
        self.make_way(path)?;
        Ok(rustix::fs::mknodat(&self.folder, path, FileType::CharacterDevice, Mode::empty(), 0)?)
    }

    /// Begins a file.
    pub(crate) fn begin(&mut self, path: &Path, executable: bool, time: i64) -> io::Result<Fresh> {
        self.make_way(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = if executable { 0o755 } else { 0o644 };
        let file = rustix::fs::openat(&self.folder, path, flags, Mode::from_raw_mode(mode))?;
        Ok(Fresh { file: File::from(file), hasher: blake3::Hasher::new(), time, mode })
    }

    /// Ends a file; false where it does not hold what it should.
    pub(crate) fn finish(&self, fresh: Fresh, content: &ContentHash) -> io::Result<bool> {
        if *fresh.hasher.finalize().as_bytes() != content.0 {
            return Ok(false);
        }
        self.give(fresh.file.as_fd())?;
        // Whatever the mask took away.
        rustix::fs::fchmod(&fresh.file, Mode::from_raw_mode(fresh.mode))?;
        let time = Timespec {
            tv_sec: fresh.time.div_euclid(1_000_000_000),
            tv_nsec: fresh.time.rem_euclid(1_000_000_000) as _,
        };
        rustix::fs::futimens(&fresh.file, &Timestamps { last_access: time, last_modification: time })?;
        Ok(true)
    }

    /// Copies a file from another folder, where it is there and holds what it should.
    pub(crate) fn copy(
        &mut self,
        from: BorrowedFd<'_>,
        path: &Path,
        executable: bool,
        content: &ContentHash,
    ) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut source = match rustix::fs::openat(from, path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(_) => return Ok(false),
        };
        let facts = rustix::fs::fstat(&source)?;
        if FileType::from_raw_mode(facts.st_mode) != FileType::RegularFile {
            return Ok(false);
        }
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut source, &mut hasher)?;
        if *hasher.finalize().as_bytes() != content.0 {
            return Ok(false);
        }
        io::Seek::rewind(&mut source)?;
        let time = (facts.st_mtime as i64).saturating_mul(1_000_000_000).saturating_add(facts.st_mtime_nsec as i64);
        let mut fresh = self.begin(path, executable, time)?;
        let mut space = vec![0; 128 << 10];
        loop {
            match source.read(&mut space)? {
                0 => break,
                count => fresh.write(&space[..count])?,
            }
        }
        self.finish(fresh, content)
    }

    /// Removes a file that turned out wrong.
    pub(crate) fn discard(&self, path: &Path) {
        let _ = rustix::fs::unlinkat(&self.folder, path, AtFlags::empty());
    }
}

impl Fresh {
    /// Writes more of it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }
}

/// Opens a folder to work below it.
pub(crate) fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
