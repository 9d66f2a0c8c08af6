//! The working tree on a machine that keeps a copy of it.

use std::path::{Path, PathBuf};

use rustix::fd::BorrowedFd;
use serde::Serialize;
use testyard_engine::{SentLists, send_tree};
use testyard_images::host::{HostOptions, HostView};
use testyard_machine::client::synced;
use testyard_model::{Problem, ProblemKind, UserSpec};
use testyard_sync::{Scan, Tree, TreeHash, TreeOptions, Watch};
use testyard_trees::Sent;

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
}

/// One working tree, to be synced as often as it changes.
#[derive(Debug)]
pub struct TreeSync {
    tree: Tree,
    lists: SentLists,
    request: SyncRequest,
    last: Option<Scan>,
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
    /// What is there and was left out: ignored, unreadable and special files, by the top-most folders of them.
    pub left_out: Vec<PathBuf>,
}

impl Testyard {
    /// Opens the working tree at `path` for syncing: the folder itself, not the top of its repository.
    ///
    /// # Errors
    /// It is not a folder, or not to be entered.
    pub fn tree_sync(&self, path: &Path, request: SyncRequest) -> Result<TreeSync, Problem> {
        let home = &self.options().home;
        let own = vec![home.state().to_path_buf(), home.runtime().to_path_buf()];
        let mut exclude = own.clone();
        let path = path.canonicalize().map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::PermissionDenied => ProblemKind::Denied,
                _ => ProblemKind::NotFound,
            };
            Problem::new(kind, format!("cannot open the tree {}", path.display())).because(error)
        })?;
        exclude.extend(secrets_below(&path, own)?);
        let options = TreeOptions { exclude, ..TreeOptions::for_user(home.sync_folder()) };
        let tree = Tree::open(&path, options).map_err(|error| error.problem())?;
        let lists = SentLists::new(home.sync_folder().join("sent"));
        Ok(TreeSync { tree, lists, request, last: None })
    }
}

/// Secrets of this host that lie in the tree: no machine gets them.
fn secrets_below(path: &Path, own: Vec<PathBuf>) -> Result<Vec<PathBuf>, Problem> {
    let view = HostView::load(&HostOptions { own, ..HostOptions::default() }).map_err(|error| error.problem())?;
    Ok(view.hidden.into_iter().filter(|hidden| hidden.starts_with(path)).collect())
}

impl TreeSync {
    /// The tree's root.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.tree.root()
    }

    /// Makes the machine's copy what the tree is now.
    ///
    /// # Errors
    /// `Unavailable` where it changes all the time or the machine went away, `Exhausted` where the machine's disk is
    /// full, `Unsupported` where the machine keeps no trees.
    pub fn sync(&mut self, machine: &mut Machine) -> Result<SyncReport, Problem> {
        let scan = match &self.last {
            None => self.tree.scan(),
            Some(last) => self.tree.scan_again(last),
        };
        let mut scan = scan.map_err(|error| error.problem())?;
        let name = machine.name().to_string();
        let told = |error: testyard_machine::client::ClientError| error.problem();
        let mut sent = Sent { known: true, ..Sent::default() };
        let user = self.request.user.clone();
        // What was sent last is likely there still, and then nothing need be said but that.
        let likely = self.lists.last_sent(&name, self.tree.root()) == Some(scan.hash);
        let mut there = likely && self.is_there(machine, scan.hash).map_err(told)?;
        if !there {
            let synced = send_tree(machine.connection(), &self.tree, scan, &self.lists, user.as_ref())?;
            (scan, sent) = (synced.scan, synced.sent);
            there = self.is_there(machine, scan.hash).map_err(told)?;
        }
        if !there {
            return Err(Problem::new(ProblemKind::Unavailable, format!("machine {name} lost the tree that it got")));
        }
        let report = SyncReport {
            path: self.tree.root().to_owned(),
            hash: scan.hash,
            files: scan.manifest().entries().len(),
            sent_files: sent.files,
            sent_bytes: sent.bytes,
            known: sent.known,
            left_out: scan.unhashed.clone(),
        };
        self.last = Some(scan);
        Ok(report)
    }

    /// Whether the machine has the tree; shows it there where that is asked for.
    fn is_there(&self, machine: &mut Machine, hash: TreeHash) -> Result<bool, testyard_machine::client::ClientError> {
        let wanted = synced(&[hash], self.tree.root(), self.request.user.as_ref());
        if self.request.present {
            return machine.connection().present_synced(wanted);
        }
        Ok(machine.connection().synced_source(wanted)?.is_some())
    }

    /// Waits until the tree may have changed and has been still for a moment; false once `stop` can be read.
    ///
    /// # Errors
    /// The kernel gives no watches, or the tree was never synced.
    pub fn await_change(&self, stop: BorrowedFd<'_>) -> Result<bool, Problem> {
        let Some(last) = &self.last else { return Ok(true) };
        let watch = Watch::start(self.tree.root(), last.manifest());
        // What changed between the scan and the watch.
        let changes = self.tree.changed_since(last).map_err(|error| error.problem())?;
        if !changes.is_empty() {
            return Ok(true);
        }
        await_events(std::iter::once(&watch), stop)
    }
}
