//! Looking at files and reading them, always below the tree's root and never through its links' last step.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::num::NonZero;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::time::ClockId;

use crate::manifest::{ContentHash, EntryKind};
use crate::memory::{Mark, Memory};
use crate::stamp::Stamp;

/// What is at a path right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) stamp: Stamp,
    pub(crate) sort: Sort,
}

/// Which sort of thing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    File { executable: bool },
    Link,
    Folder,
    Other,
}

impl Found {
    pub(crate) fn from_stat(stat: &Stat) -> Self {
        let nanoseconds = |seconds: i64, part: u64| seconds.saturating_mul(1_000_000_000).saturating_add(part as i64);
        Self {
            stamp: Stamp {
                size: stat.st_size as u64,
                modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
                changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
                inode: stat.st_ino,
            },
            sort: match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => Sort::File { executable: stat.st_mode & 0o100 != 0 },
                FileType::Symlink => Sort::Link,
                FileType::Directory => Sort::Folder,
                _ => Sort::Other,
            },
        }
    }
}

/// Whether an error means that the path is no longer there (or no longer what it was).
pub(crate) fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::STALE)
}

/// Looks at a path; `None` if nothing is there.
pub(crate) fn look(root: BorrowedFd<'_>, path: &Path) -> Result<Option<Found>, Errno> {
    match rustix::fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Found::from_stat(&stat))),
        Err(errno) if is_gone(errno) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What is no longer as it was marked (or was marked too soon to tell), by its number, with what is there now; rising.
type Looked = Vec<(usize, Result<Option<Found>, Errno>)>;

/// What is no longer as it was remembered.
pub(crate) struct Moved {
    pub(crate) files: Looked,
    pub(crate) folders: Looked,
}

/// Whether a look shows that nothing happened since the mark was made.
fn holds(mark: &Mark, now: &Result<Option<Found>, Errno>) -> bool {
    mark.settled && matches!(now, Ok(Some(found)) if found.stamp == mark.stamp)
}

/// Looks at all that is remembered, on all processors, while the caller's thread does `beside` first. Files are looked at
/// from their own folders: that is a shorter way for the kernel than from the root.
pub(crate) fn moved<B>(root: BorrowedFd<'_>, known: &Memory, beside: impl FnOnce() -> B) -> (Moved, B) {
    // Long enough that most folders are opened once.
    const BLOCK: usize = 256;
    let (files, folders) = (known.manifest.len(), known.folders.len());
    let starts = |count| (0..count).step_by(BLOCK);
    let blocks: Vec<_> = starts(files).map(|at| (at, true)).chain(starts(folders).map(|at| (at, false))).collect();
    let work = |(start, are_files): &(usize, bool)| {
        let numbers = *start..;
        if *are_files {
            let mut near = Near { root, folder: None };
            let marked = known.manifest.part(*start, start + BLOCK).zip(&known.marks[*start..]).zip(numbers);
            let looked = marked.map(|((entry, mark), number)| (number, mark, near.look(entry.path)));
            return unsettled(looked);
        }
        let part = known.folders[*start..].iter().take(BLOCK).zip(numbers);
        unsettled(part.map(|(folder, number)| {
            // The kernel takes no empty path.
            let path = if folder.path.as_os_str().is_empty() { Path::new(".") } else { folder.path.as_path() };
            (number, &folder.mark, look(root, path))
        }))
    };
    // A thread costs more than a look at a small tree.
    let size = if blocks.len() > 2 { 1 } else { 2 };
    let (mut of_files, beside) = in_blocks(&blocks, size, work, beside);
    let of_folders = of_files.split_off(files.div_ceil(BLOCK));
    let together = |blocks: Vec<Looked>| blocks.into_iter().flatten().collect();
    (Moved { files: together(of_files), folders: together(of_folders) }, beside)
}

/// Those whose marks do not hold.
fn unsettled<'m>(looked: impl Iterator<Item = (usize, &'m Mark, Result<Option<Found>, Errno>)>) -> Looked {
    looked.filter(|(_, mark, now)| !holds(mark, now)).map(|(number, _, now)| (number, now)).collect()
}

/// The folder that was looked into last, opened.
struct Near<'a> {
    root: BorrowedFd<'a>,
    folder: Option<(&'a Path, OwnedFd)>,
}

impl<'a> Near<'a> {
    fn look(&mut self, path: &'a Path) -> Result<Option<Found>, Errno> {
        let bytes = path.as_os_str().as_bytes();
        let Some(slash) = bytes.iter().rposition(|byte| *byte == b'/') else { return look(self.root, path) };
        let (folder, name) = (Path::new(OsStr::from_bytes(&bytes[..slash])), OsStr::from_bytes(&bytes[slash + 1..]));
        if self.folder.as_ref().is_none_or(|(near, _)| near.as_os_str() != folder.as_os_str()) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match rustix::fs::openat(self.root, folder, flags, Mode::empty()) {
                Ok(opened) => self.folder = Some((folder, opened)),
                Err(errno) if is_gone(errno) => return Ok(None),
                // What cannot be kept open can still be looked at.
                Err(_) => return look(self.root, path),
            }
        }
        match &self.folder {
            Some((_, folder)) => look(folder.as_fd(), Path::new(name)),
            None => look(self.root, path),
        }
    }
}

/// Reads what was found; `None` if it has gone meanwhile, or is neither file nor link.
pub(crate) fn read(root: BorrowedFd<'_>, path: &Path, sort: Sort) -> Result<Option<EntryKind>, Errno> {
    let outcome = match sort {
        Sort::File { executable } => hash_file(root, path).map(|content| Some(EntryKind::File { executable, content })),
        Sort::Link => rustix::fs::readlinkat(root, path, Vec::new())
            .map(|target| Some(EntryKind::Link { target: PathBuf::from(OsString::from_vec(target.into_bytes())) })),
        Sort::Folder | Sort::Other => Ok(None),
    };
    match outcome {
        // INVAL: no longer a link.
        Err(errno) if is_gone(errno) || sort == Sort::Link && errno == Errno::INVAL => Ok(None),
        outcome => outcome,
    }
}

fn hash_file(root: BorrowedFd<'_>, path: &Path) -> Result<ContentHash, Errno> {
    const BUFFER: usize = 128 << 10;
    thread_local! {
        static SPACE: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
    }
    // NONBLOCK: what was a file may have become a pipe, and opening one waits for its writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(root, path, flags, Mode::empty())?;
    SPACE.with_borrow_mut(|space| {
        let mut hasher = blake3::Hasher::new();
        loop {
            match rustix::io::read(&file, space.as_mut_slice()) {
                Ok(0) => return Ok(ContentHash(*hasher.finalize().as_bytes())),
                Ok(count) => {
                    hasher.update(&space[..count]);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    })
}

/// Does `work` for each item on as many threads as there are processors (two at least, eight at most); results in
/// the items' order.
pub(crate) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    in_blocks(items, 64, work, || ()).0
}

/// As [`in_parallel`], so many items at a time; this thread does `beside` before it takes its part.
fn in_blocks<T: Sync, R: Send, B>(
    items: &[T],
    size: usize,
    work: impl Fn(&T) -> R + Sync,
    beside: impl FnOnce() -> B,
) -> (Vec<R>, B) {
    if items.len() <= size {
        let beside = beside();
        return (items.iter().map(work).collect(), beside);
    }
    let threads = threads();
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done: Vec<(usize, Vec<R>)> = Vec::new();
        loop {
            let start = next.fetch_add(size, Ordering::Relaxed);
            let Some(rest) = items.get(start..).filter(|rest| !rest.is_empty()) else { return done };
            done.push((start, rest.iter().take(size).map(&work).collect()));
        }
    };
    let (mut blocks, beside) = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let beside = beside();
        let mut blocks = run();
        for other in others {
            match other.join() {
                Ok(done) => blocks.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        (blocks, beside)
    });
    blocks.sort_unstable_by_key(|(start, _)| *start);
    (blocks.into_iter().flat_map(|(_, results)| results).collect(), beside)
}

/// Two at least, eight at most. Asked once: the answer takes a look at the control groups.
fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| thread::available_parallelism().map_or(2, NonZero::get).clamp(2, 8))
}

/// Now, by the clock that stamps files: the coarse one, never ahead of it.
pub(crate) fn file_clock_ns() -> i64 {
    let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
    (now.tv_sec as i64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as i64)
}
