//! One layer in the making: files, links, folders and the marks of what is removed, all below one open folder.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::crew::Small;
use crate::manifest::ContentHash;
use crate::receive::ReceiveError;
use crate::store::Owner;

/// A layer's folder.
#[derive(Debug)]
pub(crate) struct Layer {
    folder: OwnedFd,
    owner: Option<Owner>,
    /// Whether a file gets the mode with which it is opened: no mask takes any of it away.
    exact: bool,
}

/// The folders that were made below it.
#[derive(Debug, Default)]
pub(crate) struct Ways(HashSet<PathBuf>);

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
        let layer = Self { exact: is_exact(&folder), folder, owner };
        if let Some(Owner { uid, gid }) = layer.owner {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(&layer.folder, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
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
    pub(crate) fn make_way(&self, ways: &mut Ways, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent().filter(|parent| *parent != Path::new("")) else { return Ok(()) };
        if ways.0.contains(parent) {
            return Ok(());
        }
        self.make_way(ways, parent)?;
        match rustix::fs::mkdirat(&self.folder, parent, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                rustix::fs::chmodat(&self.folder, parent, Mode::from_raw_mode(0o755), AtFlags::empty())?;
                self.give_name(parent)?;
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        ways.0.insert(parent.to_owned());
        Ok(())
    }

    /// Makes a link.
    pub(crate) fn link(&self, path: &Path, target: &Path) -> io::Result<()> {
        rustix::fs::symlinkat(target, &self.folder, path)?;
        self.give_name(path)
    }

    /// Gives a file of another layer a name here too; false where that is not there or has too many names.
    pub(crate) fn share(&self, from: BorrowedFd<'_>, path: &Path) -> io::Result<bool> {
        match rustix::fs::linkat(from, path, &self.folder, path, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::MLINK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Marks a path of the layer below as gone.
    pub(crate) fn hide(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::mknodat(&self.folder, path, FileType::CharacterDevice, Mode::empty(), 0)?)
    }

    /// Begins a file; the way to it was made.
    pub(crate) fn begin(&self, path: &Path, executable: bool, time: i64) -> io::Result<Fresh> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = if executable { 0o755 } else { 0o644 };
        let file = rustix::fs::openat(&self.folder, path, flags, Mode::from_raw_mode(mode))?;
        Ok(Fresh { file: File::from(file), hasher: blake3::Hasher::new(), time, mode })
    }

    /// Ends a file; false where it does not hold what it should.
    pub(crate) fn finish(&self, mut fresh: Fresh, content: ContentHash) -> io::Result<bool> {
        if *fresh.hasher.finalize().as_bytes() != content.0 {
            return Ok(false);
        }
        // A file that ends with a hole.
        let length = io::Seek::stream_position(&mut fresh.file)?;
        fresh.file.set_len(length)?;
        self.settle(&fresh).map(|()| true)
    }

    /// Gives a file its owner, mode and time.
    fn settle(&self, fresh: &Fresh) -> io::Result<()> {
        self.give(fresh.file.as_fd())?;
        if !self.exact {
            rustix::fs::fchmod(&fresh.file, Mode::from_raw_mode(fresh.mode))?;
        }
        let time = Timespec {
            tv_sec: fresh.time.div_euclid(1_000_000_000),
            tv_nsec: fresh.time.rem_euclid(1_000_000_000) as _,
        };
        Ok(rustix::fs::futimens(&fresh.file, &Timestamps { last_access: time, last_modification: time })?)
    }

    /// Copies a file from another folder, where it is there and holds what it should.
    pub(crate) fn copy(
        &self,
        from: BorrowedFd<'_>,
        path: &Path,
        executable: bool,
        content: ContentHash,
    ) -> io::Result<bool> {
        let Some(mut source) = open_file(from, path) else { return Ok(false) };
        let facts = rustix::fs::fstat(&source)?;
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

    /// Makes a whole file.
    pub(crate) fn make(&self, small: &Small<'_>) -> Result<(), ReceiveError> {
        let failed = |source| ReceiveError::Write { path: small.path.to_owned(), source };
        if *blake3::hash(&small.bytes).as_bytes() != small.content.0 {
            return Err(ReceiveError::Content(small.path.to_owned()));
        }
        let mut fresh = self.begin(small.path, small.executable, small.time).map_err(failed)?;
        fresh.file.write_all(&small.bytes).and_then(|()| self.settle(&fresh)).map_err(failed)
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

    /// Leaves a hole, which reads as zeros.
    pub(crate) fn skip(&mut self, length: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut left = length;
        while left > 0 {
            let count = left.min(ZEROS.len() as u64);
            self.hasher.update(&ZEROS[..count as usize]);
            left -= count;
        }
        let length = i64::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
        io::Seek::seek(&mut self.file, io::SeekFrom::Current(length)).map(drop)
    }
}

/// Whether a file gets all of the mode that it is opened with: tried out, as a folder can have a mask of its own.
fn is_exact(folder: &OwnedFd) -> bool {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // No tree has such a path.
    let name = Path::new(".testyard\n.mode");
    let Ok(file) = rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o755)) else { return false };
    let is_exact = rustix::fs::fstat(&file).is_ok_and(|facts| facts.st_mode & 0o7777 == 0o755);
    // One that stays would be in the tree.
    is_exact && rustix::fs::unlinkat(folder, name, AtFlags::empty()).is_ok()
}

/// Opens a regular file below a folder, if it is one.
pub(crate) fn open_file(folder: BorrowedFd<'_>, path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, path, flags, Mode::empty()).ok()?;
    let facts = rustix::fs::fstat(&file).ok()?;
    (FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile).then(|| File::from(file))
}

/// Opens a folder to work below it.
pub(crate) fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
