//! One working tree: what it holds now, and what changed in it since.
//!
//! ```text
//! scan ─► cache file ─► look at all that is remembered ─┬─ nothing moved ──────────────────────► Scan
//!                                                        ├─ folders changed ─► walk those ─┐
//!                                                        └─ rules changed ──► walk all ────┴─► read what is new ─► Scan
//! ```

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use testyard_model::{Problem, ProblemKind};

use crate::content::{Found, file_clock_ns, in_parallel, look, look_all, read};
use crate::manifest::{Changes, Entry, EntryKind, Manifest, TreeHash};
use crate::memory::{Folder, Mark, Memory};
use crate::rules::{Ground, Repository, RuleFile};
use crate::unhashed::collapse;
use crate::walk::{Known, Walked, Walker};

/// How a tree is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeOptions {
    /// Where to remember trees between processes (a home's `sync` folder); `None` remembers nothing.
    pub cache_folder: Option<PathBuf>,
    /// Absolute paths that are as if they were not there, such as Testyard's own state. They must name real paths.
    pub exclude: Vec<PathBuf>,
    /// The user's own file of git rules for all repositories (`core.excludesFile`).
    pub global_ignore_file: Option<PathBuf>,
}

impl TreeOptions {
    /// With a cache, and the user's own rules as git's configuration names them.
    #[must_use]
    pub fn for_user(cache_folder: impl Into<PathBuf>) -> Self {
        Self {
            cache_folder: Some(cache_folder.into()),
            exclude: Vec::new(),
            global_ignore_file: ignore::gitignore::gitconfig_excludes_path(),
        }
    }
}

/// A working tree, by its root folder.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    descriptor: OwnedFd,
    options: TreeOptions,
}

/// A tree as it was at one moment (files that change during a scan are taken before or after).
#[derive(Debug, Clone)]
pub struct Scan {
    /// The hash of the whole.
    pub hash: TreeHash,
    /// What the hash does not cover: ignored, unreadable and special files, each as the top-most folder that holds
    /// nothing hashed; relative to the root and sorted.
    pub unhashed: Vec<PathBuf>,
    /// What the scan took.
    pub cost: ScanCost,
    /// Why the cache could not be written, if it could not: the next scan is slow, and right.
    pub cache_failure: Option<Arc<io::Error>>,
    memory: Arc<Memory>,
    /// What was remembered before.
    before: Option<Arc<Memory>>,
}

/// What a scan took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScanCost {
    /// Files and links in the tree.
    pub files: usize,
    /// Folders in the tree.
    pub folders: usize,
    /// Files and links whose content was read.
    pub read: usize,
    /// Folders that were listed.
    pub listed: usize,
}

/// Why a tree could not be scanned.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The root is not there, or not to be entered.
    #[error("cannot open the tree {}", path.display())]
    Root {
        /// As given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something in it could not be read for another reason than permissions.
    #[error("cannot read {}", path.display())]
    Read {
        /// Absolute.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl SyncError {
    /// The error as people see it, with what to do next.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Root { source, .. } => {
                let kind = match source.kind() {
                    io::ErrorKind::NotFound => ProblemKind::NotFound,
                    io::ErrorKind::PermissionDenied => ProblemKind::Denied,
                    _ => ProblemKind::Usage,
                };
                Problem::from_error(kind, self).hint("name the folder that holds the source: testyard run PATH")
            }
            Self::Read { .. } => Problem::from_error(ProblemKind::System, self),
        }
    }
}

impl Scan {
    /// Every hashed path.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.memory.manifest
    }

    /// What the tree was when it was looked at before this, and its hash; none where that is not known.
    #[must_use]
    pub fn before(&self) -> Option<(TreeHash, &Manifest)> {
        self.before.as_ref().map(|memory| (memory.hash, &memory.manifest))
    }

    /// How a later scan of the same tree differs.
    #[must_use]
    pub fn changes_to(&self, later: &Self) -> Changes {
        if Arc::ptr_eq(&self.memory, &later.memory) {
            return Changes::default();
        }
        let mut changes = self.manifest().diff(later.manifest());
        let mut before = self.manifest().entries().iter().zip(&self.memory.marks).peekable();
        for (entry, mark) in later.manifest().entries().iter().zip(&later.memory.marks) {
            let path = entry.path.as_os_str().as_bytes();
            while before.next_if(|(old, _)| old.path.as_os_str().as_bytes() < path).is_some() {}
            if let Some((old, old_mark)) = before.next_if(|(old, _)| old.path == entry.path)
                && old.kind == entry.kind
                && old_mark.stamp.is_rewritten(&mark.stamp)
            {
                changes.rewritten.push(entry.path.clone());
            }
        }
        changes
    }
}

impl Tree {
    /// Opens a tree by its root folder.
    ///
    /// # Errors
    /// The root is not a folder, or not to be entered.
    pub fn open(root: &Path, options: TreeOptions) -> Result<Self, SyncError> {
        let failed = |source| SyncError::Root { path: root.to_owned(), source };
        let real = fs::canonicalize(root).map_err(failed)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(&real, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        Ok(Self { root: real, descriptor, options })
    }

    /// The root's real path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Takes the tree as it is now, with the help of what the cache remembers, and remembers it.
    ///
    /// # Errors
    /// Something could not be read. What is merely forbidden to this user is in [`Scan::unhashed`].
    pub fn scan(&self) -> Result<Scan, SyncError> {
        let remembered = self.load().map(Arc::new);
        let (memory, cost) = self.survey(remembered.clone())?;
        let unchanged = remembered.as_ref().is_some_and(|old| Arc::ptr_eq(old, &memory));
        let cache_failure = if unchanged { None } else { self.save(&memory).err().map(Arc::new) };
        Ok(Scan { cache_failure, before: remembered, ..Self::described(memory, cost) })
    }

    /// Takes the tree as it is now with the help of an earlier scan; neither reads nor writes the cache.
    ///
    /// # Errors
    /// As [`Tree::scan`].
    pub fn scan_again(&self, before: &Scan) -> Result<Scan, SyncError> {
        let (memory, cost) = self.survey(Some(before.memory.clone()))?;
        if Arc::ptr_eq(&memory, &before.memory) {
            return Ok(Scan { cost, ..before.clone() });
        }
        Ok(Scan { before: Some(before.memory.clone()), ..Self::described(memory, cost) })
    }

    /// What happened to the tree since an earlier scan of it. Looks at each file and folder, reads only those that
    /// were written.
    ///
    /// # Errors
    /// As [`Tree::scan`].
    pub fn changed_since(&self, before: &Scan) -> Result<Changes, SyncError> {
        Ok(before.changes_to(&self.scan_again(before)?))
    }

    fn described(memory: Arc<Memory>, cost: ScanCost) -> Scan {
        let unhashed = collapse(&memory.manifest, &memory.unhashed);
        Scan { hash: memory.hash, unhashed, cost, cache_failure: None, memory, before: None }
    }

    /// The tree now. The same memory comes back if it still holds to the last bit.
    fn survey(&self, old: Option<Arc<Memory>>) -> Result<(Arc<Memory>, ScanCost), SyncError> {
        // What was removed can still be listed, and is empty.
        let linked = rustix::fs::fstat(&self.descriptor).is_ok_and(|facts| facts.st_nlink > 0);
        if !linked {
            return Err(SyncError::Root { path: self.root.clone(), source: io::ErrorKind::NotFound.into() });
        }
        let looked_ns = file_clock_ns();
        let (ground, outer) = Ground::of_tree(&self.root, self.options.global_ignore_file.as_deref());
        let index = ground.repository.index_mark(looked_ns);
        let Some(old) = old else {
            let walked = self.walker(looked_ns, HashMap::new()).walk(&ground)?;
            return self.gather(looked_ns, outer, walked, None, &[], index);
        };
        let files_now = look_all(self.descriptor.as_fd(), old.manifest.entries());
        let folders_now = in_parallel(&old.folders, |folder| look(self.descriptor.as_fd(), here(&folder.path)));
        let rules_hold =
            old.rule_files.starts_with(&outer) && old.rule_files[outer.len()..].iter().all(RuleFile::is_current);
        let mut known = HashMap::new();
        if rules_hold {
            for (folder, now) in old.folders.iter().zip(folders_now) {
                known.insert(folder.path.as_path(), Known { folder, now: now.unwrap_or(None) });
            }
        }
        let same_members = rules_hold
            && !old.folders.is_empty()
            && old.unreadable.is_empty()
            && known.values().all(Known::is_current)
            && self.tracks_as_before(&ground, &old, index);
        if same_members {
            return self.refresh(looked_ns, &old, &files_now, index);
        }
        let mut walked = self.walker(looked_ns, known).walk(&ground)?;
        if rules_hold && !same_set(&walked.rule_files, &old.rule_files[outer.len()..]) {
            // A rule file that came or went also rules folders that did not change themselves.
            walked = self.walker(looked_ns, HashMap::new()).walk(&ground)?;
        }
        self.gather(looked_ns, outer, walked, Some(&old), &files_now, index)
    }

    fn walker<'a>(&'a self, looked_ns: i64, known: HashMap<&'a Path, Known<'a>>) -> Walker<'a> {
        let descriptor = self.descriptor.as_fd();
        Walker { root: &self.root, descriptor, options: &self.options, known, looked_ns }
    }

    /// Whether git still tracks the same of what is ignored: `git add -f` changes that, and no folder.
    fn tracks_as_before(&self, ground: &Ground, old: &Memory, index: Mark) -> bool {
        let is_nested = |folder: &Folder| folder.repository && !folder.path.as_os_str().is_empty();
        if index.settled && index == old.index && !old.folders.iter().any(is_nested) {
            return true;
        }
        let global = self.options.global_ignore_file.as_deref();
        let mut repositories: Vec<(&Path, Arc<Repository>)> = vec![(Path::new(""), ground.repository.clone())];
        for folder in old.folders.iter() {
            if is_nested(folder)
                && let Some((nested, _)) = Ground::of_repository(&self.root.join(&folder.path), global)
            {
                repositories.push((&folder.path, nested.repository));
            }
            let mut ignored = folder.children.iter().filter(|child| child.ignored).peekable();
            if ignored.peek().is_none() {
                continue;
            }
            let innermost = repositories.iter().rev().find(|(top, _)| folder.path.starts_with(top));
            let Some((_, repository)) = innermost else { continue };
            let absolute = self.root.join(&folder.path);
            let same = |child: &crate::memory::Child| {
                let is_folder = child.sort == crate::memory::ChildSort::Folder;
                repository.tracks(&absolute.join(&child.name), is_folder) == child.tracked
            };
            if !ignored.all(same) {
                return false;
            }
        }
        true
    }

    /// The same paths as before: reads only the files whose stamps say so.
    fn refresh(
        &self,
        looked_ns: i64,
        old: &Arc<Memory>,
        files_now: &[Result<Option<Found>, Errno>],
        index: Mark,
    ) -> Result<(Arc<Memory>, ScanCost), SyncError> {
        let is_current = |(mark, now): (&Mark, &Result<Option<Found>, Errno>)| {
            mark.settled && matches!(now, Ok(Some(found)) if found.stamp == mark.stamp)
        };
        let pairs = old.marks.iter().zip(files_now).enumerate();
        let changed: Vec<usize> = pairs.filter(|(_, pair)| !is_current(*pair)).map(|(number, _)| number).collect();
        let cost = ScanCost { files: old.marks.len(), folders: old.folders.len(), read: changed.len(), listed: 0 };
        if changed.is_empty() && (index == old.index || !index.settled) {
            return Ok((old.clone(), cost));
        }
        let fresh = in_parallel(&changed, |number| -> Option<(EntryKind, Mark)> {
            let Found { stamp, sort } = files_now[*number].ok()??;
            let mark = Mark { stamp, settled: stamp.is_settled(looked_ns) };
            let kind = read(self.descriptor.as_fd(), &old.manifest.entries()[*number].path, sort).ok()??;
            Some((kind, mark))
        });
        if let Some(fresh) = fresh.into_iter().collect::<Option<Vec<_>>>() {
            let mut memory = Memory { index, ..Memory::clone(old) };
            let mut entries = std::mem::take(&mut memory.manifest).into_entries();
            for (number, (kind, mark)) in changed.into_iter().zip(fresh) {
                entries[number].kind = kind;
                memory.marks[number] = mark;
            }
            memory.manifest = Manifest::new(entries);
            memory.hash = memory.manifest.hash();
            return Ok((Arc::new(memory), cost));
        }
        // One has gone since its folder was looked at, or may not be read.
        let walked = Walked {
            folders: Vec::clone(&old.folders),
            files: old.manifest.entries().iter().map(|entry| entry.path.clone()).collect(),
            unhashed: old.unhashed.clone(),
            ..Walked::default()
        };
        self.gather(looked_ns, old.rule_files.clone(), walked, Some(old), files_now, index)
    }

    /// Puts a walk's files together: remembered hashes where they hold, else what is read now.
    fn gather(
        &self,
        looked_ns: i64,
        mut rule_files: Vec<RuleFile>,
        walked: Walked,
        old: Option<&Memory>,
        files_now: &[Result<Option<Found>, Errno>],
        index: Mark,
    ) -> Result<(Arc<Memory>, ScanCost), SyncError> {
        let known = old.map_or(&[][..], |old| old.manifest.entries());
        let marks = old.map_or(&[][..], |old| &old.marks);
        let remembered: HashMap<&Path, usize> =
            known.iter().enumerate().map(|(number, entry)| (entry.path.as_path(), number)).collect();
        let mut files = walked.files;
        files.sort_unstable_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
        let root = self.descriptor.as_fd();
        let outcomes = in_parallel(&files, |path| -> Result<Option<(EntryKind, Mark, bool)>, Errno> {
            let number = remembered.get(path.as_path()).copied();
            let now = match number.and_then(|number| files_now.get(number)) {
                Some(Ok(now)) => *now,
                _ => look(root, path)?,
            };
            let Some(Found { stamp, sort }) = now else { return Ok(None) };
            if let Some(number) = number
                && marks[number] == (Mark { stamp, settled: true })
            {
                return Ok(Some((known[number].kind.clone(), marks[number], false)));
            }
            let mark = Mark { stamp, settled: stamp.is_settled(looked_ns) };
            Ok(read(root, path, sort)?.map(|kind| (kind, mark, true)))
        });
        let (mut unhashed, mut unreadable) = (walked.unhashed, walked.unreadable);
        let mut cost = ScanCost { listed: walked.listed, folders: walked.folders.len(), ..ScanCost::default() };
        let (mut entries, mut marks) = (Vec::with_capacity(files.len()), Vec::with_capacity(files.len()));
        for (path, outcome) in files.into_iter().zip(outcomes) {
            match outcome {
                Ok(Some((kind, mark, was_read))) => {
                    cost.read += usize::from(was_read);
                    entries.push(Entry { path, kind });
                    marks.push(mark);
                }
                Ok(None) => {}
                Err(Errno::ACCESS | Errno::PERM) => {
                    unhashed.push(path.clone());
                    unreadable.push(path);
                }
                Err(errno) => return Err(SyncError::Read { path: self.root.join(path), source: errno.into() }),
            }
        }
        cost.files = entries.len();
        rule_files.extend(walked.rule_files);
        // The paths were sorted above and are each there once: the marks stay beside their entries.
        let manifest = Manifest::new(entries);
        let (hash, folders) = (manifest.hash(), Arc::new(walked.folders));
        let memory = Memory { rule_files, folders, index, manifest, hash, marks, unhashed, unreadable };
        Ok((Arc::new(memory), cost))
    }

    /// What the cache knows of this tree.
    fn load(&self) -> Option<Memory> {
        let (file, key) = self.cache_place()?;
        Memory::decode(&fs::read(file).ok()?, &key)
    }

    /// Written beside and renamed: a reader sees the old or the new file, and the sum inside shows any other.
    fn save(&self, memory: &Memory) -> io::Result<()> {
        let Some((file, key)) = self.cache_place() else { return Ok(()) };
        let fresh = file.with_extension("new");
        fs::write(&fresh, memory.encode(&key))?;
        fs::rename(&fresh, &file)
    }

    /// The cache's file for this root, and what it must have been written for.
    fn cache_place(&self) -> Option<(PathBuf, [u8; 32])> {
        let folder = self.options.cache_folder.as_deref()?;
        let root = blake3::hash(self.root.as_os_str().as_bytes());
        let mut key = blake3::Hasher::new();
        let global = self.options.global_ignore_file.iter().map(PathBuf::as_path);
        for path in [self.root.as_path(), Path::new("\0")].into_iter().chain(global) {
            key.update(path.as_os_str().as_bytes()).update(b"\0");
        }
        for path in &self.options.exclude {
            key.update(b"exclude\0").update(path.as_os_str().as_bytes()).update(b"\0");
        }
        let name = OsString::from(format!("{}.tree", &root.to_hex()[..32]));
        Some((folder.join(name), *key.finalize().as_bytes()))
    }
}

/// A folder's path for the kernel, which takes no empty one.
fn here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Whether two lists hold the same rule files.
fn same_set(a: &[RuleFile], b: &[RuleFile]) -> bool {
    let sorted = |files: &[RuleFile]| {
        let mut files: Vec<_> = files.iter().map(|file| (file.path.clone(), file.content)).collect();
        files.sort();
        files
    };
    sorted(a) == sorted(b)
}
