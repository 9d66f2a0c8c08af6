//! The working tree on a machine that keeps a copy of it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::fd::BorrowedFd;
use serde::Serialize;
use testyard_engine::{CopiedTrees, Copies, Part, SentLists};
use testyard_images::host::{HostOptions, HostView, secrets_of};
use testyard_machine::client::ClientError;
use testyard_model::{Problem, ProblemKind, UserSpec};
use testyard_registry::Home;
use testyard_sync::{History, Remembered, Scan, Tree, TreeHash, TreeOptions, Watch};

use crate::machine::Machine;
use crate::run::await_events;
use crate::yard::Testyard;

/// How a tree is to be synced.
#[derive(Debug, Clone, Default)]
pub struct SyncRequest {
    /// Whom its files belong to on the machine; none means the machine's own user.
    pub user: Option<UserSpec>,
    /// Show it on the machine itself, at the tree's own path, beside keeping it for environments.
    pub present: bool,
    /// Git's objects and references, too.
    pub history: bool,
}

/// One working tree, to be synced as often as it changes.
#[derive(Debug)]
pub struct TreeSync {
    one: Arc<One>,
    copies: Copies,
    present: bool,
    /// What [`TreeSync::look_ahead`] found, and has yet to be remembered.
    ahead: Option<Option<Scan>>,
}

/// The one tree of a [`TreeSync`].
#[derive(Debug)]
struct One {
    tree: Tree,
    /// What may lie in it and never travels.
    secrets: Vec<PathBuf>,
    history: bool,
    cache: PathBuf,
    last: Mutex<Option<Scan>>,
}

impl One {
    /// Looks at the tree as it is now; what has yet to be remembered of it. Only the first look of a process is.
    fn renew(&self) -> Result<Option<Scan>, Problem> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (scan, is_first) = match &*last {
            Some(scan) => (self.tree.scan_again(scan), false),
            None => (self.tree.look(), true),
        };
        let scan = scan.map_err(|error| error.problem())?;
        *last = Some(scan.clone());
        Ok((is_first && !scan.is_remembered()).then_some(scan))
    }

    /// What is there and does not travel, relative to the top.
    fn left_out(&self, scan: &Scan) -> Vec<PathBuf> {
        let there = self.secrets.iter().filter(|secret| secret.symlink_metadata().is_ok());
        let there = there.filter_map(|secret| secret.strip_prefix(self.tree.root()).ok());
        let mut all: Vec<PathBuf> = there.map(Path::to_path_buf).chain(scan.unhashed.iter().cloned()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// What a sync did.
#[derive(Debug, Clone, Serialize)]
pub struct SyncReport {
    /// The tree, here and there.
    pub path: PathBuf,
    /// Its hash, as the machine computed it.
    pub hash: TreeHash,
    /// Files and links in it.
    pub files: usize,
    /// Files whose contents travelled.
    pub sent_files: u64,
    /// Bytes that travelled, lists included.
    pub sent_bytes: u64,
    /// Whether the machine had this very tree already.
    pub known: bool,
    /// What is there and was left out: ignored, unreadable and special files, secrets, by the top-most folders of them.
    pub left_out: Vec<PathBuf>,
}

impl Testyard {
    /// Opens the working tree at `path` for syncing: the folder itself, not the top of its repository.
    ///
    /// # Errors
    /// It is not a folder, or not to be entered.
    pub fn tree_sync(&self, path: &Path, request: SyncRequest) -> Result<TreeSync, Problem> {
        let home = &self.options().home;
        let path = path.canonicalize().map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::PermissionDenied => ProblemKind::Denied,
                _ => ProblemKind::NotFound,
            };
            Problem::new(kind, format!("cannot open the tree {}", path.display())).because(error)
        })?;
        // What is remembered of a large tree is read meanwhile.
        let (options, remembered) = thread::scope(|scope| {
            let read = || Remembered::read(&home.sync_folder(), &path);
            let reading = thread::Builder::new().spawn_scoped(scope, read).ok();
            let options = tree_options(home, &path);
            (options, reading.and_then(|reading| reading.join().ok()).flatten())
        });
        let (options, secrets) = options?;
        let mut tree = Tree::open(&path, options).map_err(|error| error.problem())?;
        if let Some(remembered) = remembered {
            tree = tree.with_remembered(remembered);
        }
        let cache = history_cache(home, &path);
        let one = Arc::new(One { tree, secrets, history: request.history, cache, last: Mutex::default() });
        let copies = Copies::new(one.clone(), sent_lists(home), request.user);
        Ok(TreeSync { one, copies, present: request.present, ahead: None })
    }
}

/// How the tree at this path is looked at for syncing, and which secrets lie in it.
fn tree_options(home: &Home, path: &Path) -> Result<(TreeOptions, Vec<PathBuf>), Problem> {
    let secrets: Vec<PathBuf> = secrets(home)?.into_iter().filter(|hidden| hidden.starts_with(path)).collect();
    let own = [home.state().to_path_buf(), home.runtime().to_path_buf()];
    let exclude = own.into_iter().chain(secrets.iter().cloned()).collect();
    Ok((TreeOptions { exclude, ..TreeOptions::for_user(home.sync_folder()) }, secrets))
}

/// Secrets of this host, and of who runs this, wherever their `HOME` is: no machine gets a copy of them.
pub(crate) fn secrets(home: &Home) -> Result<Vec<PathBuf>, Problem> {
    let own = vec![home.state().to_path_buf(), home.runtime().to_path_buf()];
    let view = HostView::load(&HostOptions { own, ..HostOptions::default() });
    let mut hidden = view.map_err(|error| error.problem())?.hidden;
    hidden.extend(std::env::var_os("HOME").iter().flat_map(|home| secrets_of(Path::new(home))));
    Ok(hidden)
}

/// What this home remembers of the trees that it sent.
pub(crate) fn sent_lists(home: &Home) -> SentLists {
    SentLists::new(home.sync_folder().join("sent"))
}

/// Where the hashes of a repository's files are remembered.
pub(crate) fn history_cache(home: &Home, top: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;

    let key = blake3::hash(top.as_os_str().as_bytes());
    home.sync_folder().join(format!("{}.history", &key.to_hex()[..32]))
}

impl CopiedTrees for One {
    fn is_always_copied(&self, _path: &Path) -> bool {
        true
    }

    fn look(&self, _path: &Path, again: bool) -> Result<Vec<Part>, Problem> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let scan = match &*last {
            Some(scan) if !again => scan.clone(),
            Some(scan) => self.tree.scan_again(scan).map_err(|error| error.problem())?,
            None => self.tree.scan().map_err(|error| error.problem())?,
        };
        *last = Some(scan.clone());
        let root = self.tree.root();
        let mut parts = vec![Part::of_tree(root, root, &scan, &[])];
        if self.history {
            let history = History::scan(root, Some(&self.cache)).map_err(|error| error.problem())?;
            parts.extend(history.map(Arc::new).map(Part::History));
        }
        Ok(parts)
    }
}

impl TreeSync {
    /// The tree's root.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.one.tree.root()
    }

    /// Looks at the tree for the sync that comes next: it may be connected to its machine meanwhile.
    ///
    /// # Errors
    /// The tree cannot be read.
    pub fn look_ahead(&mut self) -> Result<(), Problem> {
        self.ahead = Some(self.one.renew()?);
        Ok(())
    }

    /// Makes the machine's copy what the tree is now, or was when it was looked at ahead.
    ///
    /// # Errors
    /// `Unavailable` where it changes all the time or the machine went away, `Exhausted` where the machine's disk is
    /// full, `Unsupported` where the machine keeps no trees.
    pub fn sync(&mut self, machine: &mut Machine) -> Result<SyncReport, Problem> {
        let fresh = match self.ahead.take() {
            Some(fresh) => fresh,
            None => self.one.renew()?,
        };
        let present = self.present;
        let mut bring = || {
            self.copies.bring(machine.connection(), self.one.tree.root(), &mut |connection, synced| {
                if present {
                    return Ok(connection.present_synced(synced)?.then_some(()));
                }
                Ok::<_, ClientError>(connection.synced_source(synced)?.map(drop))
            })
        };
        let copied = match fresh {
            // What is not remembered is looked at again the next time.
            Some(fresh) => thread::scope(|scope| {
                let remember = || drop(self.one.tree.remember(&fresh));
                match thread::Builder::new().spawn_scoped(scope, remember) {
                    Ok(_) => {}
                    Err(_) => remember(),
                }
                bring()
            }),
            None => bring(),
        }?;
        let left_out = match copied.parts.first() {
            Some(Part::Tree { scan, .. }) => self.one.left_out(scan),
            _ => Vec::new(),
        };
        Ok(SyncReport {
            path: self.one.tree.root().to_owned(),
            hash: copied.parts[0].hash(),
            files: copied.parts[0].manifest().len(),
            sent_files: copied.sent.files,
            sent_bytes: copied.sent.bytes,
            known: copied.sent.known,
            left_out,
        })
    }

    /// Waits until the tree may have changed and has been still for a moment; false once `stop` can be read.
    ///
    /// # Errors
    /// The kernel gives no watches, or the tree cannot be read.
    pub fn await_change(&self, stop: BorrowedFd<'_>) -> Result<bool, Problem> {
        let last = self.one.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(last) = last else { return Ok(true) };
        let mut watch = Watch::new(last.clone());
        let now = watch.look(&self.one.tree).map_err(|error| error.problem())?;
        // What changed before it was watched.
        if !last.changes_to(now).is_empty() {
            return Ok(true);
        }
        await_events(std::iter::once(&watch), stop)
    }
}
