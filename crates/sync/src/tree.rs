//! One working tree: what it holds now, and what changed in it since.
//!
//! ```text
//! scan ─► cache file ─► look at all that is remembered ─┬─ nothing moved ──────────────────────► Scan
//!                                                        ├─ folders changed ─► walk those ─┐
//!                                                        └─ rules changed ──► walk all ────┴─► read what is new ─► Scan
//! ```

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use testyard_model::{Problem, ProblemKind};

use crate::content::{Found, Moved, Sort, file_clock_ns, in_parallel, moved, read};
use crate::gather::Gathering;
use crate::manifest::{Changes, EntryKind, Manifest, TreeHash};
use crate::memory::{Child, ChildSort, Folder, Loaded, Mark, Memory};
use crate::rules::{Ground, Repository, RuleFile};
use crate::step::End;
use crate::unhashed::collapse;
use crate::walk::{Walked, Walker};

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
    /// For the first look.
    ahead: Mutex<Option<Remembered>>,
}

/// What the cache remembers of a tree, read before it is known how the tree is to be looked at.
#[derive(Debug)]
pub struct Remembered(Loaded);

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
    /// Where the cache's file ended that this was read from.
    end: Option<End>,
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

    /// The folders of the tree, relative to its root, with their inodes; the root's own path is empty.
    pub(crate) fn folders(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.memory.folders.iter().map(|folder| (folder.path.as_path(), folder.mark.stamp.inode))
    }

    /// What the tree was when it was looked at before this, and its hash; none where that is not known.
    #[must_use]
    pub fn before(&self) -> Option<(TreeHash, &Manifest)> {
        self.before.as_ref().map(|memory| (memory.hash, memory.manifest.as_ref()))
    }

    /// Whether all of it was known before.
    #[must_use]
    pub fn is_remembered(&self) -> bool {
        self.before.as_ref().is_some_and(|before| Arc::ptr_eq(before, &self.memory))
    }

    /// How a later scan of the same tree differs.
    #[must_use]
    pub fn changes_to(&self, later: &Self) -> Changes {
        if Arc::ptr_eq(&self.memory, &later.memory) {
            return Changes::default();
        }
        let (before, after) = (&self.memory.marks, &later.memory.marks);
        let is_rewritten = |old: usize, new: usize| before[old].stamp.is_rewritten(&after[new].stamp);
        self.manifest().diff(later.manifest(), is_rewritten)
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
        Ok(Self { root: real, descriptor, options, ahead: Mutex::default() })
    }

    /// Spares the first look the reading of the cache; what was remembered of another tree, or with other options, is as
    /// if it were not there.
    #[must_use]
    pub fn with_remembered(self, remembered: Remembered) -> Self {
        Self { ahead: Mutex::new(Some(remembered)), ..self }
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
        let scan = self.look()?;
        Ok(Scan { cache_failure: self.remember(&scan).err().map(Arc::new), ..scan })
    }

    /// As [`Tree::scan`], and leaves it to [`Tree::remember`] to write the cache: that can be done beside other work.
    ///
    /// # Errors
    /// As [`Tree::scan`].
    pub fn look(&self) -> Result<Scan, SyncError> {
        let (remembered, end) = self.load().map(|loaded| (Arc::new(loaded.memory), loaded.end)).unzip();
        let (memory, cost) = self.survey(remembered.clone())?;
        Ok(Scan { before: remembered, end, ..Self::described(memory, cost) })
    }

    /// Writes to the cache what a scan of this tree knows, unless that is where it knows all of it from.
    ///
    /// # Errors
    /// The cache cannot be written: the next scan is slow, and right.
    pub fn remember(&self, scan: &Scan) -> io::Result<()> {
        if scan.is_remembered() {
            return Ok(());
        }
        let added = scan.before.as_ref().zip(scan.end).and_then(|(before, end)| {
            let step = end.added(before, &scan.memory)?;
            if step.is_empty() { Some(()) } else { self.add(&step, end.length).ok() }
        });
        added.map_or_else(|| self.save(&scan.memory), Ok)
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

    fn described(memory: Arc<Memory>, cost: ScanCost) -> Scan {
        let unhashed = collapse(&memory.manifest, &memory.unhashed);
        Scan { hash: memory.hash, unhashed, cost, cache_failure: None, memory, before: None, end: None }
    }

    /// The tree now. The same memory comes back if it still holds to the last bit.
    fn survey(&self, old: Option<Arc<Memory>>) -> Result<(Arc<Memory>, ScanCost), SyncError> {
        // What was removed can still be listed, and is empty.
        let linked = rustix::fs::fstat(&self.descriptor).is_ok_and(|facts| facts.st_nlink > 0);
        if !linked {
            return Err(SyncError::Root { path: self.root.clone(), source: io::ErrorKind::NotFound.into() });
        }
        let looked_ns = file_clock_ns();
        let rules = || {
            let (ground, outer) = Ground::of_tree(&self.root, self.options.global_ignore_file.as_deref());
            let index = ground.repository.index_mark(looked_ns);
            (ground, outer, index)
        };
        let Some(old) = old else {
            let (ground, outer, index) = rules();
            let walked = self.walker(looked_ns, HashMap::new()).walk(&ground)?;
            return self.gathering(looked_ns, None).gather(outer, walked, index);
        };
        let (moved, (ground, outer, index)) = moved(self.descriptor.as_fd(), &old, rules);
        let rules_hold =
            old.rule_files.starts_with(&outer) && old.rule_files[outer.len()..].iter().all(RuleFile::is_current);
        if rules_hold
            && !old.folders.is_empty()
            && old.unreadable.is_empty()
            && self.tracks_as_before(&ground, &old, index)
            && let Some(listed) = self.listed_as_before(looked_ns, &old, &moved)
        {
            return self.refresh(looked_ns, &old, &moved, &listed, index);
        }
        let mut known = HashMap::new();
        if rules_hold {
            let mut gone = moved.folders.iter().map(|(number, _)| *number).peekable();
            for (number, folder) in old.folders.iter().enumerate() {
                if gone.next_if_eq(&number).is_none() {
                    known.insert(folder.path.as_path(), folder);
                }
            }
        }
        let mut walked = self.walker(looked_ns, known).walk(&ground)?;
        if rules_hold && !same_set(&walked.rule_files, &old.rule_files[outer.len()..]) {
            // A rule file that came or went also rules folders that did not change themselves.
            walked = self.walker(looked_ns, HashMap::new()).walk(&ground)?;
        }
        self.gathering(looked_ns, Some((&*old, &moved))).gather(outer, walked, index)
    }

    fn walker<'a>(&'a self, looked_ns: i64, known: HashMap<&'a Path, &'a Folder>) -> Walker<'a> {
        let descriptor = self.descriptor.as_fd();
        Walker { root: &self.root, descriptor, options: &self.options, known, looked_ns }
    }

    fn gathering<'a>(&'a self, looked_ns: i64, old: Option<(&'a Memory, &'a Moved)>) -> Gathering<'a> {
        Gathering { root: self.descriptor.as_fd(), path: &self.root, looked_ns, old }
    }

    /// The folders that moved and hold the same names as before, with their new marks: where a file was saved under
    /// another name and took its old one, or a cache came. None where any holds others.
    fn listed_as_before(&self, looked_ns: i64, old: &Memory, moved: &Moved) -> Option<Vec<(usize, Mark)>> {
        let walker = self.walker(looked_ns, HashMap::new());
        let listed = in_parallel(&moved.folders, |(number, now)| {
            let (before, now) = (&old.folders[*number], now.ok()??);
            let after = (now.sort == Sort::Folder).then(|| walker.list(&before.path).ok()?).flatten()?;
            let same = after.repository == before.repository && after.children.are_same(&before.children);
            same.then_some((*number, after.mark))
        });
        listed.into_iter().collect()
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
            let same = |child: Child<'_>| {
                repository.tracks(&absolute.join(child.name), child.sort == ChildSort::Folder) == child.tracked
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
        moved: &Moved,
        listed: &[(usize, Mark)],
        index: Mark,
    ) -> Result<(Arc<Memory>, ScanCost), SyncError> {
        let (files, folders) = (old.marks.len(), old.folders.len());
        let cost = ScanCost { files, folders, read: moved.files.len(), listed: listed.len() };
        if moved.files.is_empty() && listed.is_empty() && (index == old.index || !index.settled) {
            return Ok((old.clone(), cost));
        }
        let fresh = in_parallel(&moved.files, |(number, now)| -> Option<(usize, EntryKind, Mark)> {
            let Found { stamp, sort } = now.ok()??;
            let mark = Mark { stamp, settled: stamp.is_settled(looked_ns) };
            let kind = read(self.descriptor.as_fd(), old.manifest.get(*number)?.path, sort).ok()??;
            Some((*number, kind, mark))
        });
        let mut folders = old.folders.clone();
        if !listed.is_empty() {
            let folders = Arc::make_mut(&mut folders);
            listed.iter().for_each(|(number, mark)| folders[*number].mark = *mark);
        }
        let Some(fresh) = fresh.into_iter().collect::<Option<Vec<_>>>() else {
            // One has gone since its folder was looked at, or may not be read.
            let walked = Walked {
                folders: Arc::unwrap_or_clone(folders),
                files: old.manifest.entries().map(|entry| entry.path.to_owned()).collect(),
                unhashed: old.unhashed.clone(),
                ..Walked::default()
            };
            return self.gathering(looked_ns, Some((&**old, moved))).gather(old.rule_files.clone(), walked, index);
        };
        let mut memory = Memory { index, folders, ..Memory::clone(old) };
        let mut changed = Vec::new();
        for (number, kind, mark) in fresh {
            memory.marks[number] = mark;
            if old.manifest.get(number).is_none_or(|before| before.kind != kind.borrowed()) {
                changed.push((number, kind));
            }
        }
        if !changed.is_empty() {
            let mut manifest = Manifest::clone(&old.manifest);
            manifest.change(&changed);
            memory.hash = manifest.hash();
            memory.manifest = Arc::new(manifest);
        }
        Ok((Arc::new(memory), cost))
    }

    /// What the cache knows of this tree.
    fn load(&self) -> Option<Loaded> {
        let (file, key) = self.cache_place()?;
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).take();
        ahead.map(|remembered| remembered.0).or_else(|| Loaded::from_file(&file)).filter(|loaded| loaded.key == key)
    }

    /// Written beside and renamed: a reader sees the old or the new file, and the sum inside shows any other.
    fn save(&self, memory: &Memory) -> io::Result<()> {
        let Some((file, key)) = self.cache_place() else { return Ok(()) };
        let fresh = file.with_extension("new");
        fs::write(&fresh, memory.encode(&key))?;
        fs::rename(&fresh, &file)
    }

    /// Behind what is in the cache's file, which has this length. Where somebody else was faster nevertheless, what this
    /// is a step from is another, and it is not read.
    fn add(&self, step: &[u8], length: u64) -> io::Result<()> {
        let Some((path, _)) = self.cache_place() else { return Ok(()) };
        let mut file = fs::File::options().append(true).open(path)?;
        if file.metadata()?.len() != length {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        file.write_all(step)
    }

    /// The cache's file for this root, and what it must have been written for.
    fn cache_place(&self) -> Option<(PathBuf, [u8; 32])> {
        let folder = self.options.cache_folder.as_deref()?;
        let mut key = blake3::Hasher::new();
        let global = self.options.global_ignore_file.iter().map(PathBuf::as_path);
        for path in [self.root.as_path(), Path::new("\0")].into_iter().chain(global) {
            key.update(path.as_os_str().as_bytes()).update(b"\0");
        }
        for path in &self.options.exclude {
            key.update(b"exclude\0").update(path.as_os_str().as_bytes()).update(b"\0");
        }
        Some((cache_file(folder, &self.root), *key.finalize().as_bytes()))
    }
}

impl Remembered {
    /// What the cache in this folder has of the tree at this (real) path; none where there is nothing of use.
    #[must_use]
    pub fn read(cache_folder: &Path, root: &Path) -> Option<Self> {
        Loaded::from_file(&cache_file(cache_folder, root)).map(Self)
    }
}

/// The cache's file for a root, which is a real path.
fn cache_file(folder: &Path, root: &Path) -> PathBuf {
    let key = blake3::hash(root.as_os_str().as_bytes());
    folder.join(format!("{}.tree", &key.to_hex()[..32]))
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
