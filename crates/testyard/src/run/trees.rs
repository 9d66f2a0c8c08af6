//! The working trees of a run: hashed once, watched, and looked at again only when something stirred.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use testyard_model::Problem;
use testyard_runner::job::SourceTree;
use testyard_sync::{Scan, Tree, TreeOptions, Watch};

/// At most so many unhashed paths are named in a result.
const NAMED_UNHASHED: usize = 20;

/// The trees that a run's suites lie in.
#[derive(Debug)]
pub struct Trees {
    options: TreeOptions,
    known: Mutex<HashMap<PathBuf, Known>>,
}

#[derive(Debug)]
struct Known {
    tree: Tree,
    scan: Scan,
    watch: Watch,
    changed: bool,
}

/// The working tree around a folder: the top of its git repository, else the folder itself.
#[must_use]
pub(super) fn top_of(folder: &Path) -> PathBuf {
    let top = folder.ancestors().find(|ancestor| ancestor.join(".git").exists());
    top.unwrap_or(folder).to_path_buf()
}

impl Trees {
    /// None yet; `cache` remembers them between runs, `exclude` are folders of Testyard's own.
    #[must_use]
    pub fn new(cache: PathBuf, exclude: Vec<PathBuf>) -> Self {
        let options = TreeOptions { exclude, ..TreeOptions::for_user(cache) };
        Self { options, known: Mutex::new(HashMap::new()) }
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
            let first = tree.scan().map_err(|error| error.problem())?;
            let watch = Watch::start(tree.root(), first.manifest());
            // Whatever changed between the scan and the watch is in the second scan, which costs little.
            let scan = tree.scan_again(&first).map_err(|error| error.problem())?;
            known.insert(top.clone(), Known { tree, scan, watch, changed: false });
        }
        let scan = &known[&top].scan;
        let unhashed = scan.unhashed.iter().take(NAMED_UNHASHED).map(|path| path.display().to_string()).collect();
        Ok(SourceTree { hash: Some(scan.hash.to_string()), unhashed })
    }

    /// Whether the tree around `folder` is another than when it was looked at.
    #[must_use]
    pub fn has_changed(&self, folder: &Path) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = known.get_mut(&top_of(folder)) else { return false };
        if !known.changed && known.watch.is_disturbed() {
            // A tree that cannot be read any more is not the one that was hashed.
            known.changed = known.tree.changed_since(&known.scan).map_or(true, |changes| !changes.is_empty());
        }
        known.changed
    }
}
