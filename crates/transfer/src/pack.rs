//! Reading a file or a tree into a stream.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;

use crate::Summary;
use crate::error::TransferError;
use crate::format::{MAX_DEPTH, Time, leads_outward};
use crate::local::LocalEnd;
use crate::oversight::Oversight;
use crate::sender::{Content, Outlet, Sender};
use crate::target;

/// Reading from a pipe or device that took a file's place must not hang or claim a terminal.
const OPEN_FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
/// How folders are opened, here and while unpacking: never through a link.
pub(crate) const OPEN_FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Room for one call's worth of a folder's names.
const NAMES: usize = 32 * 1024;

/// Writes the file or tree at `path`, resolved within `root`, to `out`.
///
/// `path` may be absolute (from `root`) and may pass through links, but not leave `root`. A file that
/// grows meanwhile is sent as long as it was; one that shrinks is sent as far as it goes.
///
/// # Errors
/// The first file that cannot be read ends the transfer; the stream is then incomplete.
pub fn pack<W: Write>(root: BorrowedFd<'_>, path: &Path, out: &mut W) -> Result<Summary, TransferError> {
    send(root, path, Outlet::Checked(out), Oversight::default())
}

/// As [`pack`], into a pipe whose other end a process of this host reads with [`crate::unpack_from`]: large files
/// are moved by the kernel alone, and nothing is summed. The pipe becomes non-blocking.
///
/// # Errors
/// As [`pack`]; and [`TransferError::Stopped`].
pub fn pack_into(
    root: BorrowedFd<'_>,
    path: &Path,
    pipe: BorrowedFd<'_>,
    oversight: Oversight<'_>,
) -> Result<Summary, TransferError> {
    let end = LocalEnd::new(pipe, oversight).map_err(|error| TransferError::stream("write", error))?;
    send(root, path, Outlet::Local(end), oversight)
}

fn send<'a>(
    root: BorrowedFd<'_>,
    path: &Path,
    out: Outlet<'a>,
    oversight: Oversight<'a>,
) -> Result<Summary, TransferError> {
    let source = target::open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
        .map_err(|errno| TransferError::file("open", path, errno))?;
    let stat = rustix::fs::fstat(&source).map_err(|errno| TransferError::file("look at", path, errno))?;
    let mut packer = Packer::new(out, oversight, path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => packer.folder(&source, target::own_name(path), &stat, 0)?,
        FileType::RegularFile => packer.file(&source, target::own_name(path), &stat)?,
        _ => return Err(TransferError::Special { path: path.to_owned() }),
    }
    packer.finish()
}

/// Writes only these files of an open folder (paths below it), with the folders on their way. It arrives as the
/// contents of a folder; what is not there is left out.
///
/// # Errors
/// As [`pack`].
pub fn pack_chosen<W: Write>(
    folder: &OwnedFd,
    chosen: &BTreeSet<PathBuf>,
    out: &mut W,
) -> Result<Summary, TransferError> {
    let stat = rustix::fs::fstat(folder).map_err(|errno| TransferError::file("look at", Path::new("."), errno))?;
    let mut packer =
        Packer { chosen: Some(chosen), ..Packer::new(Outlet::Checked(out), Oversight::default(), Path::new(""))? };
    packer.folder(folder, b"", &stat, 0)?;
    packer.finish()
}

struct Packer<'a> {
    out: Sender<'a>,
    /// The file or folder being sent, for messages.
    shown: PathBuf,
    /// Files with several names: device and inode, and the number they were sent under.
    sent: HashMap<(u64, u64), u32>,
    skipped: Vec<PathBuf>,
    skipped_count: u64,
    outward_links: u64,
    /// Only these are sent, and the folders on their way; none means all.
    chosen: Option<&'a BTreeSet<PathBuf>>,
}

impl<'a> Packer<'a> {
    fn new(out: Outlet<'a>, oversight: Oversight<'a>, shown: &Path) -> Result<Self, TransferError> {
        Ok(Self {
            out: Sender::new(out, oversight)?,
            shown: shown.to_owned(),
            sent: HashMap::new(),
            skipped: Vec::new(),
            skipped_count: 0,
            outward_links: 0,
            chosen: None,
        })
    }

    fn finish(mut self) -> Result<Summary, TransferError> {
        self.out.end()?;
        Ok(Summary {
            entries: self.out.entries,
            bytes: self.out.moved,
            outward_links: self.outward_links,
            skipped: self.skipped,
            skipped_count: self.skipped_count,
        })
    }

    /// Whether the entry at hand, or something below it, is to be sent.
    fn is_chosen(&self) -> bool {
        // Paths are ordered by their components: what is below an entry comes right after it.
        self.chosen.is_none_or(|chosen| {
            chosen.range(self.shown.clone()..).next().is_some_and(|next| next.starts_with(&self.shown))
        })
    }

    fn folder(&mut self, folder: &OwnedFd, name: &[u8], stat: &Stat, depth: usize) -> Result<(), TransferError> {
        if depth >= MAX_DEPTH {
            return Err(TransferError::TooDeep { path: self.shown.clone() });
        }
        self.out.directory(name, stat.st_mode & 0o7777, Time::modified(stat))?;
        for (name, kind) in names(folder).map_err(|errno| self.failed("list", errno))? {
            self.shown.push(OsStr::from_bytes(&name));
            if self.is_chosen() {
                self.entry(folder.as_fd(), &name, kind, depth)?;
            }
            self.shown.pop();
        }
        self.out.leave()
    }

    /// Sends one entry of a folder. One that has vanished since the folder was listed was never there.
    fn entry(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        kind: FileType,
        depth: usize,
    ) -> Result<(), TransferError> {
        let outcome = match kind {
            FileType::Directory => match rustix::fs::openat(folder, name, OPEN_FOLDER, Mode::empty()) {
                Ok(inner) => {
                    let stat = rustix::fs::fstat(&inner).map_err(|errno| self.failed("look at", errno))?;
                    return self.folder(&inner, name, &stat, depth + 1);
                }
                Err(errno) => Err(errno),
            },
            FileType::RegularFile => {
                match rustix::fs::openat(folder, name, OPEN_FILE | OFlags::CLOEXEC, Mode::empty()) {
                    Ok(file) => {
                        let stat = rustix::fs::fstat(&file).map_err(|errno| self.failed("look at", errno))?;
                        return self.file(&file, name, &stat);
                    }
                    Err(errno) => Err(errno),
                }
            }
            FileType::Symlink => return self.link(folder, name, depth),
            FileType::Unknown => match rustix::fs::statat(folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    let kind = FileType::from_raw_mode(stat.st_mode);
                    if kind != FileType::Unknown {
                        return self.entry(folder, name, kind, depth);
                    }
                    self.skip();
                    Ok(())
                }
                Err(errno) => Err(errno),
            },
            _ => {
                self.skip();
                Ok(())
            }
        };
        match outcome {
            Err(Errno::NOENT) | Ok(()) => Ok(()),
            Err(errno) => Err(self.failed("open", errno)),
        }
    }

    fn file(&mut self, file: &OwnedFd, name: &[u8], stat: &Stat) -> Result<(), TransferError> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.skip();
            return Ok(());
        }
        let mut number = 0;
        if stat.st_nlink > 1 {
            let next = self.sent.len() as u32 + 1;
            match self.sent.entry((stat.st_dev, stat.st_ino)) {
                std::collections::hash_map::Entry::Occupied(sent) => return self.out.hard_link(name, *sent.get()),
                std::collections::hash_map::Entry::Vacant(place) => number = *place.insert(next),
            }
        }
        self.out.file(name, stat.st_mode & 0o7777, Time::modified(stat), number)?;
        let mut content = self.out.content();
        let size = stat.st_size as u64;
        if (stat.st_blocks as u64).saturating_mul(512) < size {
            self.sparse_data(file, size, &mut content)?;
        } else {
            // The files of /proc have no size, and are read to their end.
            self.data(file, if size == 0 { u64::MAX } else { size }, &mut content)?;
        }
        self.out.end_file(&content)
    }

    /// Sends so much from the file's position; whether there was so much.
    fn data(&mut self, file: &OwnedFd, mut left: u64, content: &mut Content) -> Result<bool, TransferError> {
        if left != u64::MAX && self.out.takes_runs(left) {
            let count = self.out.run(file.as_fd(), left)?.map_err(|errno| self.failed("read", errno))?;
            return Ok(count == left);
        }
        while left > 0 {
            match self.out.data(file.as_fd(), left, content)? {
                Ok(0) => break,
                Ok(read) => left -= read,
                Err(errno) => return Err(self.failed("read", errno)),
            }
        }
        Ok(left == 0)
    }

    fn sparse_data(&mut self, file: &OwnedFd, size: u64, content: &mut Content) -> Result<(), TransferError> {
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(data) => data.min(size),
                Err(Errno::NXIO) => size,
                Err(_) => at,
            };
            if data > at {
                self.out.hole(data - at, content)?;
            }
            let end = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap_or(size).min(size);
            if end > data {
                rustix::fs::seek(file, SeekFrom::Start(data)).map_err(|errno| self.failed("read", errno))?;
                if !self.data(file, end - data, content)? {
                    break;
                }
            }
            if end <= at {
                break;
            }
            at = end;
        }
        Ok(())
    }

    fn link(&mut self, folder: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<(), TransferError> {
        let read = rustix::fs::statat(folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|stat| Ok((stat, rustix::fs::readlinkat(folder, name, Vec::new())?)));
        let (stat, target) = match read {
            Ok(read) => read,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(self.failed("read the link", errno)),
        };
        self.outward_links += u64::from(leads_outward(target.as_bytes(), depth));
        self.out.link(name, Time::modified(&stat), target.as_bytes())
    }

    fn skip(&mut self) {
        self.skipped_count += 1;
        if self.skipped.len() < Summary::NAMED {
            self.skipped.push(self.shown.clone());
        }
    }

    fn failed(&self, operation: &'static str, errno: Errno) -> TransferError {
        TransferError::file(operation, &self.shown, errno)
    }
}

/// A folder's names in ascending order.
fn names(folder: &OwnedFd) -> Result<Vec<(Vec<u8>, FileType)>, Errno> {
    let mut buffer = Vec::with_capacity(NAMES);
    let mut entries = RawDir::new(folder, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    names.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    Ok(names)
}
