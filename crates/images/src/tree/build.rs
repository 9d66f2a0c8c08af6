//! Building a metadata tree: folders are jobs, threads take them from one stack.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Mode as FileMode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use testyard_linux::Error as SystemError;

use super::layers::{Role, Roles};
use super::{TreeError, TreeOptions, TreeReport};
use crate::host::{MaskEffect, MaskEntry};

/// A folder to fill: it exists in the tree, empty.
struct Job {
    /// On the host, and, without its slash, in the tree.
    path: PathBuf,
    /// The data layer it is in; none above the layers.
    layer: Option<InLayer>,
    /// Set when all is in it.
    facts: Stat,
}

#[derive(Clone)]
struct InLayer {
    number: usize,
    /// Bytes of the layer's own path, to be cut from redirects.
    cut: usize,
    /// Earlier layers that have the same relative folder, where names may collide.
    rivals: Vec<usize>,
}

struct Builder<'a> {
    root: BorrowedFd<'a>,
    roles: &'a Roles,
    masks: HashMap<&'a Path, &'a MaskEffect>,
    /// Folders that have masks directly in them: elsewhere no name needs to be looked up.
    masked_parents: HashSet<&'a Path>,
    options: &'a TreeOptions,
    reader: Reader,
    umask: u32,
    work: Mutex<Work>,
    wake: Condvar,
    /// Where a file with several names was made first.
    links: Mutex<HashMap<(u64, u64), PathBuf>>,
    /// How many redirects lead into each data layer.
    used: Vec<AtomicU64>,
    counts: Counts,
    left_out: Mutex<Vec<PathBuf>>,
}

#[derive(Default)]
struct Work {
    jobs: Vec<Job>,
    active: usize,
    failed: Option<TreeError>,
}

#[derive(Default)]
struct Counts {
    entries: AtomicU64,
    redirected: AtomicU64,
    copied: AtomicU64,
    copied_bytes: AtomicU64,
    unreadable: AtomicU64,
    special: AtomicU64,
    masked: AtomicU64,
}

/// Builds the tree in an empty folder.
pub(super) fn build(
    root: BorrowedFd<'_>,
    roles: &Roles,
    masks: &[&MaskEntry],
    options: &TreeOptions,
) -> Result<TreeReport, TreeError> {
    let masks: Vec<_> = masks.iter().filter(|mask| mask.effect != MaskEffect::MountPoint).collect();
    let builder = Builder {
        root,
        roles,
        masks: masks.iter().map(|mask| (mask.path.as_path(), &mask.effect)).collect(),
        masked_parents: masks.iter().filter_map(|mask| mask.path.parent()).collect(),
        options,
        reader: Reader::of_caller(),
        umask: umask(),
        work: Mutex::default(),
        wake: Condvar::new(),
        links: Mutex::default(),
        used: roles.layers.iter().map(|_| AtomicU64::new(0)).collect(),
        counts: Counts::default(),
        left_out: Mutex::default(),
    };
    let facts = rustix::fs::stat("/").map_err(|errno| SystemError::new("look at", "/", errno))?;
    lock(&builder.work).jobs.push(Job { path: "/".into(), layer: None, facts });
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, 16) {
            scope.spawn(|| builder.run());
        }
        builder.run();
    });
    builder.report()
}

/// One name in a folder that is filled.
struct Entry<'a> {
    job: &'a Job,
    /// The folder that it is in.
    source: BorrowedFd<'a>,
    /// Where it is to be.
    target: BorrowedFd<'a>,
    name: &'a CStr,
    facts: &'a Stat,
}

impl Entry<'_> {
    /// Where it is on the host.
    fn path(&self) -> PathBuf {
        self.job.path.join(std::ffi::OsStr::from_bytes(self.name.to_bytes()))
    }
}

impl Builder<'_> {
    /// Takes jobs until none is left and none is in work, or one failed.
    fn run(&self) {
        loop {
            let mut work = lock(&self.work);
            let job = loop {
                if work.failed.is_some() {
                    return;
                }
                if let Some(job) = work.jobs.pop() {
                    work.active += 1;
                    break job;
                }
                if work.active == 0 {
                    return;
                }
                work = self.wake.wait(work).unwrap_or_else(PoisonError::into_inner);
            };
            drop(work);
            let mut further = Vec::new();
            let done = self.fill(&job, &mut further).map_err(|errno| match errno {
                // The only way in which a job itself says so.
                Errno::TOOBIG => TreeError::TooLarge(self.options.entry_limit),
                errno => SystemError::new("build the metadata of", job.path.display(), errno).into(),
            });
            let mut work = lock(&self.work);
            work.active -= 1;
            work.jobs.append(&mut further);
            if let Err(error) = done {
                work.failed.get_or_insert(error);
            }
            self.wake.notify_all();
        }
    }

    fn fill(&self, job: &Job, further: &mut Vec<Job>) -> rustix::io::Result<()> {
        let target = self.open_target(&job.path)?;
        match open_source(&job.path) {
            Ok(source) => {
                for entry in Dir::read_from(&source)? {
                    let entry = entry?;
                    let name = entry.file_name();
                    if name != c"." && name != c".." {
                        self.entry(job, source.as_fd(), target.as_fd(), name, further)?;
                    }
                }
            }
            Err(Errno::ACCESS | Errno::PERM) => count(&self.counts.unreadable),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(errno),
        }
        let folder =
            rustix::fs::openat(&target, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, FileMode::empty())?;
        // The builder itself must still get in to fill what is below; for anybody else the mode is kept.
        rustix::fs::fchmod(&folder, FileMode::from_raw_mode(mode_of(&job.facts) | 0o700))?;
        rustix::fs::futimens(&folder, &times(&job.facts))
    }

    fn entry(
        &self,
        job: &Job,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        further: &mut Vec<Job>,
    ) -> rustix::io::Result<()> {
        let facts = match rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(facts) => facts,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ACCESS | Errno::PERM) => {
                count(&self.counts.unreadable);
                return Ok(());
            }
            Err(errno) => return Err(errno),
        };
        let entry = Entry { job, source, target, name, facts: &facts };
        if self.masked_parents.contains(job.path.as_path())
            && let Some(effect) = self.masks.get(entry.path().as_path())
        {
            count(&self.counts.masked);
            return self.masked(effect, target, name, &facts);
        }
        if job.layer.is_none()
            && self.roles.get(&job.path) == Some(Role::Way)
            && self.roles.get(&entry.path()).is_none()
        {
            return Ok(());
        }
        if self.counts.entries.fetch_add(1, Ordering::Relaxed) >= self.options.entry_limit {
            return Err(Errno::TOOBIG);
        }
        match FileType::from_raw_mode(facts.st_mode) {
            FileType::Directory => self.folder(&entry, further),
            FileType::RegularFile => self.file(&entry),
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(&*link, target, name)?;
                rustix::fs::utimensat(target, name, &times(&facts), AtFlags::SYMLINK_NOFOLLOW)
            }
            FileType::Fifo => {
                rustix::fs::mknodat(target, name, FileType::Fifo, FileMode::from_raw_mode(mode_of(&facts)), 0)
            }
            _ => {
                count(&self.counts.special);
                Ok(())
            }
        }
    }

    fn masked(&self, effect: &MaskEffect, target: BorrowedFd<'_>, name: &CStr, facts: &Stat) -> rustix::io::Result<()> {
        match effect {
            MaskEffect::Hidden | MaskEffect::MountPoint => Ok(()),
            MaskEffect::Empty { mode } => {
                rustix::fs::mkdirat(target, name, FileMode::RWXU)?;
                rustix::fs::chmodat(target, name, FileMode::from_raw_mode(*mode), AtFlags::empty())?;
                rustix::fs::utimensat(target, name, &times(facts), AtFlags::SYMLINK_NOFOLLOW)
            }
            MaskEffect::Replaced { content, mode } => {
                let file = create(target, name, 0o600)?;
                write_all(file.as_fd(), content)?;
                rustix::fs::fchmod(&file, FileMode::from_raw_mode(*mode))?;
                rustix::fs::futimens(&file, &times(facts))
            }
        }
    }

    fn folder(&self, entry: &Entry<'_>, further: &mut Vec<Job>) -> rustix::io::Result<()> {
        let Entry { job, target, name, facts, .. } = *entry;
        rustix::fs::mkdirat(target, name, FileMode::RWXU)?;
        let path = entry.path();
        let layer = match &job.layer {
            Some(layer) => {
                let relative = Path::new(std::ffi::OsStr::from_bytes(&path.as_os_str().as_bytes()[layer.cut + 1..]));
                let rivals = layer.rivals.iter().copied();
                let rivals = rivals.filter(|rival| self.roles.layers[*rival].join(relative).is_dir()).collect();
                Some(InLayer { number: layer.number, cut: layer.cut, rivals })
            }
            None => match self.roles.get(&path) {
                Some(Role::Layer(number)) => {
                    let cut = path.as_os_str().len();
                    Some(InLayer { number, cut, rivals: (0..number).collect() })
                }
                Some(Role::Split | Role::Way) => None,
                Some(Role::Empty) | None => {
                    rustix::fs::chmodat(target, name, FileMode::from_raw_mode(mode_of(facts)), AtFlags::empty())?;
                    return Ok(());
                }
            },
        };
        further.push(Job { path, layer, facts: *facts });
        Ok(())
    }

    fn file(&self, entry: &Entry<'_>) -> rustix::io::Result<()> {
        let Entry { job, target, name, facts, .. } = *entry;
        if !self.reader.may_read(facts) {
            count(&self.counts.unreadable);
            return Ok(());
        }
        let size = u64::try_from(facts.st_size).unwrap_or(0);
        let redirect = job.layer.as_ref().filter(|layer| !self.collides(job, layer, name));
        if size > 0 && redirect.is_none() {
            return self.copy(entry);
        }
        // Names of one file are linked in the tree, too; the map is locked until the first name exists.
        let mut links = (facts.st_nlink > 1).then(|| lock(&self.links));
        if let Some(links) = &mut links
            && let Some(first) = links.get(&(facts.st_dev, facts.st_ino))
        {
            let linked = rustix::fs::linkat(self.root, relative(first), target, name, AtFlags::empty());
            if linked.is_ok() {
                return Ok(());
            }
        }
        let mode = mode_of(facts);
        // Attributes can be set only while the owner may write.
        let first_mode = (mode & 0o777) | 0o600;
        let file = create(target, name, first_mode)?;
        if size > 0
            && let Some(layer) = redirect
        {
            rustix::fs::ftruncate(&file, size)?;
            let folder = &job.path.as_os_str().as_bytes()[layer.cut..];
            let path = [folder, b"/", name.to_bytes()].concat();
            rustix::fs::fsetxattr(&file, c"user.overlay.metacopy", b"", XattrFlags::empty())?;
            rustix::fs::fsetxattr(&file, c"user.overlay.redirect", &path, XattrFlags::empty())?;
            count(&self.counts.redirected);
            count(&self.used[layer.number]);
        }
        if mode & self.umask != 0 || mode != first_mode {
            rustix::fs::fchmod(&file, FileMode::from_raw_mode(mode))?;
        }
        rustix::fs::futimens(&file, &times(facts))?;
        if let Some(links) = &mut links {
            links.insert((facts.st_dev, facts.st_ino), entry.path());
        }
        Ok(())
    }

    /// Whether an earlier layer has a regular file at the same relative path, which the kernel would take instead.
    fn collides(&self, job: &Job, layer: &InLayer, name: &CStr) -> bool {
        if layer.rivals.is_empty() {
            return false;
        }
        let folder = job.path.as_os_str().as_bytes().get(layer.cut + 1..).unwrap_or_default();
        let relative = PathBuf::from(std::ffi::OsString::from_vec(folder.to_vec()))
            .join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        layer.rivals.iter().any(|rival| {
            rustix::fs::lstat(self.roles.layers[*rival].join(&relative))
                .is_ok_and(|facts| FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile)
        })
    }

    fn copy(&self, entry: &Entry<'_>) -> rustix::io::Result<()> {
        let Entry { source, target, name, facts, .. } = *entry;
        let size = u64::try_from(facts.st_size).unwrap_or(0);
        if size > self.options.copy_limit.0 {
            let mut left_out = lock(&self.left_out);
            if left_out.len() < 100 {
                left_out.push(entry.path());
            }
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(from) = rustix::fs::openat(source, name, flags, FileMode::empty()) else {
            count(&self.counts.unreadable);
            return Ok(());
        };
        let file = create(target, name, 0o600)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match rustix::io::read(&from, &mut buffer[..])? {
                0 => break,
                read => write_all(file.as_fd(), &buffer[..read])?,
            }
        }
        count(&self.counts.copied);
        self.counts.copied_bytes.fetch_add(size, Ordering::Relaxed);
        rustix::fs::fchmod(&file, FileMode::from_raw_mode(mode_of(facts)))?;
        rustix::fs::futimens(&file, &times(facts))
    }

    fn open_target(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self.root, relative(path), flags, FileMode::empty())
    }

    fn report(self) -> Result<TreeReport, TreeError> {
        let work = self.work.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = work.failed {
            return Err(error);
        }
        let counts = self.counts;
        Ok(TreeReport {
            entries: counts.entries.into_inner(),
            redirected: counts.redirected.into_inner(),
            copied: counts.copied.into_inner(),
            copied_bytes: counts.copied_bytes.into_inner(),
            unreadable: counts.unreadable.into_inner(),
            special: counts.special.into_inner(),
            masked: counts.masked.into_inner(),
            left_out: self.left_out.into_inner().unwrap_or_else(PoisonError::into_inner),
            milliseconds: 0,
            bytes: 0,
            // Each open tries the layers in order, so those that nothing leads to are left out.
            data_layers: self
                .roles
                .layers
                .iter()
                .zip(&self.used)
                .filter(|(_, used)| used.load(Ordering::Relaxed) > 0)
                .map(|(layer, _)| layer.clone())
                .collect(),
        })
    }
}

/// Whom the kernel will ask as when a machine opens a file: this user, without capabilities.
struct Reader {
    uid: u32,
    groups: Vec<u32>,
}

impl Reader {
    fn of_caller() -> Self {
        let mut groups: Vec<u32> =
            rustix::process::getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect();
        groups.push(rustix::process::getegid().as_raw());
        Self { uid: rustix::process::geteuid().as_raw(), groups }
    }

    /// By the mode alone: a file that only an access list opens is left out.
    fn may_read(&self, facts: &Stat) -> bool {
        let bit = if self.uid == 0 {
            return true;
        } else if facts.st_uid == self.uid {
            0o400
        } else if self.groups.contains(&facts.st_gid) {
            0o040
        } else {
            0o004
        };
        facts.st_mode & bit != 0
    }
}

fn open_source(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, FileMode::empty())
}

fn create(target: BorrowedFd<'_>, name: &CStr, mode: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(target, name, flags, FileMode::from_raw_mode(mode))
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// A host path as a path below the tree's root.
fn relative(path: &Path) -> CString {
    let bytes = path.as_os_str().as_bytes();
    let below = bytes.strip_prefix(b"/").unwrap_or(bytes);
    CString::new(if below.is_empty() { b"." } else { below }).expect("paths from the kernel hold no NUL")
}

fn mode_of(facts: &Stat) -> u32 {
    facts.st_mode & 0o7777
}

fn times(facts: &Stat) -> Timestamps {
    let time = Timespec { tv_sec: facts.st_mtime, tv_nsec: facts.st_mtime_nsec as _ };
    Timestamps { last_access: time, last_modification: time }
}

/// Read instead of changed: the mask is the whole process's.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    // Where it cannot be told, every mode is set explicitly.
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o7777)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
