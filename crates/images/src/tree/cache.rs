//! Trees kept between machines of one user, by the host's state.
//!
//! ```text
//! <folder>/              0700, verified
//!   <host>-<view>/tree/, report.json
//!   locks/<host>-<view>    shared while a machine stands on it
//!   temporary/…             as in the store: provably dead once unlocked
//! ```

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{AtFlags, Mode as FileMode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, XattrFlags};
use rustix::io::Errno;
use testyard_linux::Error as SystemError;
use testyard_linux::files::verified_private_directory;
use testyard_linux::lock::{FileLock, Mode, Patience};
use testyard_linux::mount::mount_table;
use testyard_model::milliseconds;

use super::layers::{LAYER_LIMIT, Roles};
use super::{HostTree, TreeError, TreeOptions, TreeReport, build, fingerprint};
use crate::host::{HostView, MaskEntry};
use crate::store::{Pruned, Staged, Staging, names_in, open_directory, random_name, read_file, write_file};

const LOCKS: &str = "locks";
const TEMPORARY: &str = "temporary";
/// How many trees of one host's state are kept: views differ by what they expose.
const KEPT: usize = 3;
const TREE: &str = "tree";
const REPORT: &str = "report.json";
/// Inodes that a folder must have left for a tree to be tried there: a large desktop's root, and its attributes.
const INODES_WANTED: u64 = 400_000;
/// Memory that a tmpfs must leave to others, in KiB.
const MEMORY_WANTED: u64 = 1 << 20;

/// Folders that may hold trees, the preferred one first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeCache {
    folders: Vec<PathBuf>,
}

/// What [`TreeCache::prune`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreesPruned {
    /// Trees.
    pub trees: usize,
    /// What builds and removals that died had left.
    pub temporary: usize,
}

impl TreeCache {
    /// In these folders, tried in order; a missing one is made (its parent must exist).
    #[must_use]
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    /// The usual folders: the runtime folder where it is a tmpfs, the shared memory file system, else on disk.
    #[must_use]
    pub fn usual(runtime: &Path, state: &Path) -> Self {
        let mut folders = Vec::new();
        if is_tmpfs(runtime) {
            folders.push(runtime.join("trees"));
        }
        if is_tmpfs(Path::new("/dev/shm")) {
            folders.push(shared_memory());
        }
        folders.push(state.join("trees"));
        Self { folders }
    }

    /// The tree for this view of the host, built if it is not there; others who want it wait meanwhile.
    ///
    /// # Errors
    /// No folder can hold it, or the host does not allow one.
    pub fn find_or_build(&self, view: &HostView, options: &TreeOptions) -> Result<HostTree, TreeError> {
        let table = mount_table(None)?;
        let roles = Roles::find(view, &table);
        if roles.layers.len() > LAYER_LIMIT {
            return Err(TreeError::TooManyLayers(roles.layers.len()));
        }
        let masks: Vec<&MaskEntry> = view.masks().collect();
        let host = fingerprint::of_host()?;
        let key = format!("{host}-{}", fingerprint::of_view(view, &roles.layers));
        let mut reasons = Vec::new();
        for path in &self.folders {
            let folder = match Folder::open(path) {
                Ok(folder) => folder,
                Err(error) => {
                    reasons.push(full_text(&error));
                    continue;
                }
            };
            if let Some(tree) = folder.find(&key)? {
                return Ok(tree);
            }
            if let Err(reason) = folder.has_room() {
                reasons.push(format!("{}: {reason}", path.display()));
                continue;
            }
            match folder.build(&key, &roles, &masks, options) {
                Ok(tree) => {
                    let kept = folder.newest(KEPT, &host)?;
                    folder.prune(|other| !kept.iter().any(|kept| kept == other))?;
                    return Ok(tree);
                }
                Err(TreeError::System(error)) => reasons.push(full_text(&error)),
                Err(error) => return Err(error),
            }
        }
        Err(TreeError::NoRoom(reasons))
    }

    /// Removes the trees that no machine stands on, and what dead builds left.
    ///
    /// # Errors
    /// The first thing that could not be removed.
    pub fn prune(&self) -> Result<TreesPruned, TreeError> {
        let mut total = TreesPruned::default();
        for path in self.folders.iter().filter(|path| path.is_dir()) {
            let folder = Folder::open(path)?;
            let pruned = folder.prune(|_| true)?;
            total.trees += pruned.trees;
            total.temporary += pruned.temporary;
            folder.vanish();
        }
        Ok(total)
    }
}

struct Folder {
    path: PathBuf,
}

impl Folder {
    fn open(path: &Path) -> Result<Self, SystemError> {
        let directory = verified_private_directory(path)?;
        for name in [LOCKS, TEMPORARY] {
            match rustix::fs::mkdirat(&directory, name, FileMode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(SystemError::new("make", path.join(name).display(), errno)),
            }
        }
        Ok(Self { path: path.to_owned() })
    }

    fn staging(&self) -> Staging {
        Staging::new(self.path.join(TEMPORARY))
    }

    fn lock_path(&self, key: &str) -> PathBuf {
        self.path.join(LOCKS).join(key)
    }

    /// A tree that is there, with a shared lock on it.
    fn find(&self, key: &str) -> Result<Option<HostTree>, TreeError> {
        let folder = self.path.join(key);
        if !folder.is_dir() {
            return Ok(None);
        }
        // Taken by somebody only while it is removed.
        let lock = FileLock::acquire(&self.lock_path(key), Mode::Shared, Patience::Wait)?;
        let lease = lock.expect("a patient lock is always given");
        let Ok(text) = read_file(&folder.join(REPORT)) else { return Ok(None) };
        let Ok(report) = serde_json::from_slice::<TreeReport>(&text) else { return Ok(None) };
        let data_layers = report.data_layers.clone();
        // The time of the last use, by which old ones are told; a courtesy.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let now = Timestamps { last_access: now, last_modification: now };
        let _ = rustix::fs::utimensat(rustix::fs::CWD, &folder, &now, AtFlags::empty());
        Ok(Some(HostTree { path: folder.join(TREE), data_layers, report, built: false, key: key.to_owned(), lease }))
    }

    /// Why no tree should be tried here.
    fn has_room(&self) -> Result<(), String> {
        let space = rustix::fs::statvfs(&self.path).map_err(|errno| errno.to_string())?;
        // File systems that make inodes as they go say 0 of 0.
        if space.f_files > 0 && space.f_favail < INODES_WANTED {
            return Err(format!("only {} more files fit", space.f_favail));
        }
        if is_tmpfs(&self.path) && available_memory() < MEMORY_WANTED {
            return Err("too little memory is free".to_owned());
        }
        // Named so that prune takes it for a lock that nobody holds, should we die here.
        let path = self.path.join(TEMPORARY).join(format!("{}.lock", random_name()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file =
            rustix::fs::open(&path, flags, FileMode::RUSR | FileMode::WUSR).map_err(|errno| errno.to_string())?;
        let set = rustix::fs::fsetxattr(&file, c"user.overlay.metacopy", b"", XattrFlags::empty());
        rustix::fs::unlink(&path).map_err(|errno| errno.to_string())?;
        set.map_err(|_| "its file system holds no user attributes".to_owned())
    }

    fn build(
        &self,
        key: &str,
        roles: &Roles,
        masks: &[&MaskEntry],
        options: &TreeOptions,
    ) -> Result<HostTree, TreeError> {
        let building = self.lock_path(&format!("build-{key}"));
        let lock = FileLock::acquire(&building, Mode::Exclusive, Patience::Wait)?;
        if let Some(tree) = self.find(key)? {
            return Ok(tree);
        }
        let staged = self.staging().create()?;
        let built = self.build_in(&staged, roles, masks, options);
        if let Err(error) = built {
            // The build's own error matters more than one of the removal, which prune repeats.
            let _ = staged.discard();
            return Err(error);
        }
        let target = self.path.join(key);
        rustix::fs::renameat_with(rustix::fs::CWD, staged.path(), rustix::fs::CWD, &target, RenameFlags::NOREPLACE)
            .map_err(|errno| SystemError::new("move a metadata tree to", target.display(), errno))?;
        staged.moved_away()?;
        rustix::fs::unlink(&building).map_err(|errno| SystemError::new("remove", building.display(), errno))?;
        drop(lock);
        let tree = self.find(key)?;
        let tree = tree.ok_or_else(|| SystemError::new("find again", target.display(), Errno::NOENT))?;
        Ok(HostTree { built: true, ..tree })
    }

    fn build_in(
        &self,
        staged: &Staged,
        roles: &Roles,
        masks: &[&MaskEntry],
        options: &TreeOptions,
    ) -> Result<(), TreeError> {
        let path = staged.path().join(TREE);
        rustix::fs::mkdir(&path, FileMode::RWXU).map_err(|errno| SystemError::new("make", path.display(), errno))?;
        let root = open_directory(&path)?;
        let begin = Instant::now();
        let before = used(&path);
        let mut report = build::build(root.as_fd(), roles, masks, options)?;
        report.bytes = used(&path).saturating_sub(before);
        report.milliseconds = milliseconds(begin.elapsed());
        let text = serde_json::to_vec_pretty(&report).expect("a report is plain data");
        Ok(write_file(staged.directory(), REPORT, &text)?)
    }

    /// The trees of this host's state that were used last.
    fn newest(&self, count: usize, host: &str) -> Result<Vec<String>, SystemError> {
        let directory = open_directory(&self.path)?;
        let mut trees: Vec<_> = names_in(directory.as_fd(), &self.path)?
            .into_iter()
            .filter(|name| is_key(name) && name.starts_with(host))
            .filter_map(|name| Some((fs::metadata(self.path.join(&name)).ok()?.modified().ok()?, name)))
            .collect();
        trees.sort();
        Ok(trees.into_iter().rev().take(count).map(|(_, name)| name).collect())
    }

    /// Removes the trees that are unwanted and that nobody stands on.
    fn prune(&self, unwanted: impl Fn(&str) -> bool) -> Result<TreesPruned, TreeError> {
        let mut pruned = TreesPruned::default();
        let mut dead = Pruned::default();
        self.staging().prune(&mut dead)?;
        pruned.temporary = dead.temporary;
        let directory = open_directory(&self.path)?;
        for key in names_in(directory.as_fd(), &self.path)? {
            if matches!(key.as_str(), LOCKS | TEMPORARY) || !unwanted(&key) || !is_key(&key) {
                continue;
            }
            let path = self.lock_path(&key);
            let Some(lock) = FileLock::acquire(&path, Mode::Exclusive, Patience::Try)? else { continue };
            self.staging().remove(&self.path.join(&key))?;
            rustix::fs::unlink(&path).map_err(|errno| SystemError::new("remove", path.display(), errno))?;
            drop(lock);
            pruned.trees += 1;
        }
        let locks = self.path.join(LOCKS);
        for name in names_in(open_directory(&locks)?.as_fd(), &locks)? {
            let key = name.strip_prefix("build-").unwrap_or(&name);
            if self.path.join(key).exists() {
                continue;
            }
            // Left by a build that died; whoever waits for it makes a new one.
            if let Some(lock) = FileLock::acquire(&locks.join(&name), Mode::Exclusive, Patience::Try)? {
                let path = locks.join(&name);
                rustix::fs::unlink(&path).map_err(|errno| SystemError::new("remove", path.display(), errno))?;
                drop(lock);
            }
        }
        Ok(pruned)
    }

    /// Removes the folder itself where nothing is in it. Somebody who comes at this moment takes the next folder.
    fn vanish(&self) {
        for path in [self.path.join(TEMPORARY), self.path.join(LOCKS), self.path.clone()] {
            let _ = rustix::fs::rmdir(path);
        }
    }
}

/// Verified to be ours alone before each use, so that nobody gains by making it first.
fn shared_memory() -> PathBuf {
    PathBuf::from(format!("/dev/shm/testyard-{}", rustix::process::geteuid().as_raw()))
}

fn is_key(name: &str) -> bool {
    name.len() == 41
        && name.bytes().enumerate().all(|(at, byte)| if at == 20 { byte == b'-' } else { byte.is_ascii_hexdigit() })
}

fn full_text(error: &SystemError) -> String {
    format!("{error}: {}", error.source)
}

fn is_tmpfs(path: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|facts| facts.f_type == TMPFS_MAGIC)
}

/// In KiB; more than enough where it cannot be told.
pub(crate) fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(u64::MAX)
}

/// Bytes used in a file system. A tmpfs counts each inode, and attributes, as KiB of its inode limit.
fn used(path: &Path) -> u64 {
    let Ok(space) = rustix::fs::statvfs(path) else { return 0 };
    let blocks = (space.f_blocks - space.f_bfree) * space.f_frsize;
    let inodes = if is_tmpfs(path) { space.f_files.saturating_sub(space.f_ffree) * 1024 } else { 0 };
    blocks + inodes
}
