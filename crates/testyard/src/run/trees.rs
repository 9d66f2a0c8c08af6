//! The working trees of a run: hashed once, watched, and looked at again only when something stirred.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::files::is_staging;
use super::frozen::{self, Frozen};
use globset::GlobBuilder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use testyard_engine::{CopiedTrees, Part};
use testyard_model::{Problem, ProblemKind};
use testyard_registry::Home;
use testyard_runner::job::SourceTree;
use testyard_runner::suite::SyncSettings;
use testyard_sync::{Changes, History, Manifest, Scan, Tree, TreeOptions, Watch};

use crate::sync::{history_cache, secrets};

/// A tree in which nothing happened for so long is taken as saved.
const STILL: Duration = Duration::from_millis(8);
/// One in which something always happens is looked at after so long.
const STILL_AT_MOST: Duration = Duration::from_millis(500);
/// At most so many unhashed paths are named in a result.
const NAMED_UNHASHED: usize = 20;

/// What of a working tree tests see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SourceMode {
    /// The tree itself, as it is at each test's start; a change is reported.
    #[default]
    Live,
    /// An immutable copy of what the tree's hash covers.
    Frozen,
    /// A copy of the same that each machine keeps, wherever it is.
    Synced,
}

/// The trees that a run's suites lie in.
#[derive(Debug)]
pub struct Trees {
    options: TreeOptions,
    /// Where frozen trees are, if they are to be.
    frozen: Option<PathBuf>,
    /// Absolute paths of secrets, which stay out of them.
    hidden: Vec<PathBuf>,
    /// Whether every machine keeps a copy.
    synced: bool,
    /// Where hashes of repositories are remembered, by their tops; none without a home.
    home: Option<Home>,
    wanted: Mutex<HashMap<PathBuf, SyncSettings>>,
    known: Mutex<HashMap<PathBuf, Known>>,
}

/// Waits for the first event, then for a moment without any; false when stopped.
pub(crate) fn await_events<'w>(
    watches: impl Iterator<Item = &'w Watch>,
    stop: BorrowedFd<'_>,
) -> Result<bool, Problem> {
    let unwatched = || {
        Problem::new(ProblemKind::Exhausted, "the kernel gives no more watches for files")
            .hint("raise fs.inotify.max_user_watches, or leave out --watch")
    };
    let watches: Vec<&Watch> = watches.collect();
    let descriptors: Option<Vec<BorrowedFd<'_>>> = watches.iter().map(|watch| watch.descriptor()).collect();
    let mut polled: Vec<PollFd<'_>> = descriptors
        .ok_or_else(unwatched)?
        .into_iter()
        .chain([stop])
        .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
        .collect();
    loop {
        match poll(&mut polled, None) {
            Ok(_) if polled.last().is_some_and(|stop| !stop.revents().is_empty()) => return Ok(false),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Problem::new(ProblemKind::System, "cannot wait for changes").because(errno)),
        }
    }
    // Editors save in several steps: each postpones the run a little, up to a bound.
    let until = Instant::now() + STILL_AT_MOST;
    let mut seen = 0;
    while Instant::now() < until {
        let now: u64 = watches.iter().map(|watch| watch.pending()).sum();
        if seen == now {
            break;
        }
        seen = now;
        let still = Timespec { tv_sec: 0, tv_nsec: STILL.subsec_nanos().into() };
        if let Ok(1..) = poll(&mut [PollFd::from_borrowed_fd(stop, PollFlags::IN)], Some(&still)) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[derive(Debug)]
struct Known {
    tree: Tree,
    scan: Scan,
    /// What machines are sent of it, once they were.
    parts: Option<Vec<Part>>,
    watch: Watch,
    changed: bool,
    /// The immutable copy that tests see.
    frozen: Option<Frozen>,
    /// What this run itself brought back, relative to the top.
    written: HashSet<PathBuf>,
}

/// What somebody else changed: neither what this run brought back, nor what is staged to come back.
fn others<'c>(changes: &'c Changes, written: &'c HashSet<PathBuf>) -> impl Iterator<Item = &'c PathBuf> {
    let all = [&changes.added, &changes.removed, &changes.modified, &changes.rewritten];
    all.into_iter().flatten().filter(|path| !written.contains(*path) && !is_staging(path))
}

/// The working tree around a folder: the top of its git repository, else the folder itself.
#[must_use]
pub fn top_of(folder: &Path) -> PathBuf {
    let top = folder.ancestors().find(|ancestor| ancestor.join(".git").exists());
    top.unwrap_or(folder).to_path_buf()
}

impl Trees {
    /// None yet; `cache` remembers them between runs, `exclude` are folders of Testyard's own.
    #[must_use]
    pub fn new(cache: PathBuf, exclude: Vec<PathBuf>) -> Self {
        let options = TreeOptions { exclude, ..TreeOptions::for_user(cache) };
        Self {
            options,
            frozen: None,
            hidden: Vec::new(),
            synced: false,
            home: None,
            wanted: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// Shows tests immutable copies, kept in `folder`, without what is `hidden`: absolute paths of secrets.
    #[must_use]
    pub fn frozen_in(self, folder: PathBuf, hidden: Vec<PathBuf>) -> Self {
        Self { frozen: Some(folder), hidden, ..self }
    }

    /// Copied to machines of this home: those that are elsewhere, or every one.
    #[must_use]
    pub fn copied_in(self, home: &Home, always: bool) -> Self {
        Self { home: Some(home.clone()), synced: always, ..self }
    }

    /// What machines are to have of the tree at `top`, as a suite in it says.
    pub(super) fn want(&self, top: &Path, settings: SyncSettings) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let all = wanted.entry(top.to_owned()).or_default();
        all.always |= settings.always;
        all.history |= settings.history;
    }

    fn wanted(&self, top: &Path) -> SyncSettings {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.get(top).copied().unwrap_or_default()
    }

    /// Looks at the tree around `folder`.
    ///
    /// # Errors
    /// The tree cannot be read.
    pub fn look(&self, folder: &Path) -> Result<SourceTree, Problem> {
        let top = top_of(folder);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains_key(&top) {
            let tree = Tree::open(&top, self.options.clone()).map_err(|error| error.problem())?;
            let mut watch = Watch::new(tree.scan().map_err(|error| error.problem())?);
            let scan = watch.look(&tree).map_err(|error| error.problem())?.clone();
            let (frozen, scan) = match &self.frozen {
                Some(folder) => {
                    let (frozen, scan) = frozen::freeze(folder, &self.hidden, &tree, scan)?;
                    (Some(frozen), scan)
                }
                None => (None, scan),
            };
            let written = HashSet::new();
            let one = Known { tree, scan, parts: None, watch, changed: false, frozen, written };
            known.insert(top.clone(), one);
        }
        let Known { scan, frozen, .. } = &known[&top];
        let frozen = frozen.is_some() || self.synced;
        // What the hash does not cover is not in the copy.
        let named = if frozen { 0 } else { NAMED_UNHASHED };
        let unhashed = scan.unhashed.iter().take(named).map(|path| path.display().to_string()).collect();
        Ok(SourceTree { hash: Some(scan.hash.to_string()), unhashed, frozen })
    }

    /// Whether tests see copies.
    pub(super) fn are_frozen(&self) -> bool {
        self.frozen.is_some() || self.synced
    }

    /// Waits until one of the trees that were looked at has changed and has been still for a moment, or `stop` can be
    /// read; the paths that changed, absolute, or none when stopped. The next run looks at the trees as they are then.
    ///
    /// # Errors
    /// A tree cannot be watched or read.
    pub fn await_change(&self, stop: BorrowedFd<'_>) -> Result<Option<Vec<PathBuf>>, Problem> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // What was found to have changed while tests ran is not told again.
            let found = known.values().any(|known| known.changed);
            if !found && !await_events(known.values().map(|known| &known.watch), stop)? {
                return Ok(None);
            }
            let mut changed = Vec::new();
            for known in known.values_mut() {
                if !known.watch.is_disturbed() && !known.changed {
                    continue;
                }
                let scan = known.watch.look(&known.tree).map_err(|error| error.problem())?;
                let changes = known.scan.changes_to(scan);
                changed.extend(others(&changes, &known.written).map(|path| known.tree.root().join(path)));
                known.scan = scan.clone();
                known.parts = None;
                known.changed = false;
            }
            if !changed.is_empty() {
                known.retain(|_, known| known.frozen.is_none());
                return Ok(Some(changed));
            }
        }
    }

    /// Where the tree at `top` is taken from: itself, or its frozen copy.
    pub(super) fn shown(&self, top: &Path) -> PathBuf {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(top).and_then(|known| Some(known.frozen.as_ref()?.path.clone())).unwrap_or_else(|| top.to_owned())
    }

    /// One hash of the files of the tree that match patterns below `folder`.
    ///
    /// # Errors
    /// The tree cannot be read.
    pub(super) fn hash_of(&self, folder: &Path, patterns: &[String]) -> Result<String, Problem> {
        self.look(folder)?;
        let top = top_of(folder);
        let base = folder.strip_prefix(&top).unwrap_or(Path::new(""));
        let globs = patterns.iter().filter_map(|text| GlobBuilder::new(text).literal_separator(true).build().ok());
        let globs: Vec<_> = globs.map(|glob| glob.compile_matcher()).collect();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_meant =
            |path: &Path| path.strip_prefix(base).is_ok_and(|own| globs.iter().any(|glob| glob.is_match(own)));
        let mut meant = Manifest::default();
        for entry in known.get(&top).iter().flat_map(|known| known.scan.manifest().entries()) {
            if is_meant(entry.path) {
                meant.push(entry.path, entry.kind);
            }
        }
        Ok(meant.hash().to_string())
    }

    /// Remembers files that this run itself writes to the tree at `top`: they do not make it another.
    pub(super) fn note_written(&self, top: &Path, paths: &BTreeSet<PathBuf>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get_mut(top) {
            known.written.extend(paths.iter().cloned());
        }
    }

    /// Whether the tree around `folder` is another than when it was looked at.
    #[must_use]
    pub fn has_changed(&self, folder: &Path) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = known.get_mut(&top_of(folder)).filter(|known| known.frozen.is_none()) else { return false };
        // Tests that see a copy see no change of the tree.
        if !known.changed && !self.is_always_copied(known.tree.root()) && known.watch.is_disturbed() {
            known.changed = match known.watch.look(&known.tree) {
                Ok(now) => others(&known.scan.changes_to(now), &known.written).next().is_some(),
                // A tree that cannot be read any more is not the one that was hashed.
                Err(_) => true,
            };
        }
        known.changed
    }
}

impl CopiedTrees for Trees {
    fn is_always_copied(&self, path: &Path) -> bool {
        self.home.is_some() && (self.synced || self.wanted(path).always)
    }

    fn look(&self, path: &Path, again: bool) -> Result<Vec<Part>, Problem> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let shows = |known: &&mut Known| {
            known.tree.root() == path || known.frozen.as_ref().is_some_and(|frozen| frozen.path == path)
        };
        let missing = || Problem::new(ProblemKind::Bug, format!("{} was never looked at", path.display()));
        let known = known.values_mut().find(shows).ok_or_else(missing)?;
        if again {
            let scan = known.tree.scan_again(&known.scan).map_err(|error| error.problem())?;
            // What is sent now is another tree than the one that results name.
            known.changed |= scan.hash != known.scan.hash;
            known.scan = scan;
            known.parts = None;
        }
        if let Some(parts) = &known.parts {
            return Ok(parts.clone());
        }
        let top = known.tree.root();
        let hidden = self.home.as_ref().map(secrets).transpose()?.unwrap_or_default();
        let mut parts = vec![Part::of_tree(path, top, &known.scan, &hidden)];
        if self.wanted(top).history {
            let cache = self.home.as_ref().map(|home| history_cache(home, top));
            let history = History::scan(top, cache.as_deref()).map_err(|error| error.problem())?;
            parts.extend(history.map(Arc::new).map(Part::History));
        }
        known.parts = Some(parts.clone());
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_was_saved_while_tests_ran_is_not_waited_for() {
        let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let file = folder.path().join("file");
        std::fs::write(&file, "one").expect("a file");
        let trees = Trees::new(cache.path().to_owned(), Vec::new());
        trees.look(folder.path()).expect("a tree");
        std::fs::write(&file, "two").expect("a file");
        assert!(trees.has_changed(folder.path()));
        // Whoever waits for more is told to stop at once.
        let (stop, told) = rustix::pipe::pipe().expect("a pipe");
        drop(told);
        assert_eq!(trees.await_change(stop.as_fd()).expect("looked"), Some(vec![file]));
        assert_eq!(trees.await_change(stop.as_fd()).expect("looked"), None, "it is told once");
    }

    #[test]
    fn what_a_run_brings_back_is_nobody_elses_doing() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let changes = Changes {
            added: paths(&[".testyard-returning-0/files/cov/a.xml", "cov/a.xml", "new"]),
            modified: paths(&["snap"]),
            ..Changes::default()
        };
        let written = HashSet::from([PathBuf::from("cov/a.xml"), PathBuf::from("snap")]);
        assert_eq!(others(&changes, &written).collect::<Vec<_>>(), [Path::new("new")]);
    }
}
