//! Keeping a machine's copy of a working tree the same as the tree.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use testyard_machine::client::{Connection, TransferError};
use testyard_model::{Problem, ProblemKind, UserSpec};
use testyard_sync::{Scan, Tree};
use testyard_trees::{Delta, Manifest, Offer, SendError, Sent, TreeHash};

/// How often a tree that changes while it is sent is looked at again.
const TRIES: usize = 4;
/// So many lists are kept.
const KEPT: usize = 8;

/// The lists of trees that machines were sent, so that the next one is sent as what changed.
#[derive(Debug, Clone)]
pub struct SentLists {
    folder: PathBuf,
}

/// A tree that a machine has now.
#[derive(Debug)]
pub struct SyncedTree {
    /// As it was when it was sent.
    pub scan: Scan,
    /// What travelled; none where the machine had it, and was not even asked.
    pub sent: Sent,
}

impl SentLists {
    /// In a folder of a home, which need not be there yet.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn last(&self, machine: &str, root: &Path) -> PathBuf {
        let mut key = blake3::Hasher::new();
        key.update(machine.as_bytes()).update(b"\0").update(root.as_os_str().as_bytes());
        self.folder.join(format!("{}.last", &key.finalize().to_hex()[..32]))
    }

    fn list(&self, hash: TreeHash) -> PathBuf {
        self.folder.join(format!("{hash}.list"))
    }

    /// The hash of the tree that this machine was sent last.
    #[must_use]
    pub fn last_sent(&self, machine: &str, root: &Path) -> Option<TreeHash> {
        fs::read_to_string(self.last(machine, root)).ok()?.trim().parse().ok()
    }

    fn base(&self, machine: &str, root: &Path) -> Option<(TreeHash, Manifest)> {
        let hash = self.last_sent(machine, root)?;
        let manifest = Delta::decode(&fs::read(self.list(hash)).ok()?).ok()?.apply(&Manifest::default()).ok()?;
        (manifest.hash() == hash).then_some((hash, manifest))
    }

    /// Written beside and renamed: what cannot be kept is sent whole the next time.
    fn remember(&self, machine: &str, root: &Path, scan: &Scan) {
        let write = |path: &Path, bytes: &[u8]| -> io::Result<()> {
            let fresh = path.with_extension("new");
            fs::write(&fresh, bytes)?;
            fs::rename(&fresh, path)
        };
        let list = self.list(scan.hash);
        let kept = || -> io::Result<()> {
            fs::create_dir_all(&self.folder)?;
            if !list.is_file() {
                write(&list, &Delta::between(&Manifest::default(), scan.manifest()).encode())?;
                self.prune();
            }
            write(&self.last(machine, root), scan.hash.to_string().as_bytes())
        };
        let _ = kept();
    }

    fn prune(&self) {
        let mut lists: Vec<_> = fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "list"))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        lists.sort();
        for (_, path) in &lists[..lists.len().saturating_sub(KEPT)] {
            let _ = fs::remove_file(path);
        }
    }
}

/// Sends a tree as it was scanned to a machine that has not got it; looks at it again where it changes meanwhile.
///
/// # Errors
/// `Unavailable` where it changes all the time; whatever the tree and the machine say.
pub fn send_tree(
    connection: &mut Connection,
    tree: &Tree,
    scan: Scan,
    lists: &SentLists,
    user: Option<&UserSpec>,
) -> Result<SyncedTree, Problem> {
    let machine = connection.machine().to_owned();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let gone = |error: rustix::io::Errno| {
        let message = format!("cannot open the working tree {}", tree.root().display());
        Problem::new(ProblemKind::NotFound, message).because(error)
    };
    let root = rustix::fs::open(tree.root(), flags, Mode::empty()).map_err(gone)?;
    let base = lists.base(&machine, tree.root());
    let mut scan = scan;
    let mut changed = PathBuf::new();
    for _ in 0..TRIES {
        let base = base.as_ref().map(|(hash, manifest)| (*hash, manifest));
        let offer = Offer { root: root.as_fd(), manifest: scan.manifest(), hash: scan.hash, base };
        match connection.sync_tree(user, offer) {
            Ok(sent) => {
                lists.remember(&machine, tree.root(), &scan);
                return Ok(SyncedTree { scan, sent });
            }
            Err(TransferError::Local(SendError::Changed(path))) => {
                changed = path;
                scan = tree.scan_again(&scan).map_err(|error| error.problem())?;
            }
            Err(TransferError::Local(error)) => return Err(told(tree, &error)),
            Err(TransferError::Machine(error)) => return Err(error.problem()),
        }
    }
    let message = format!("{} changed all the time while it was sent", tree.root().display());
    Err(Problem::new(ProblemKind::Unavailable, message)
        .because(format!("{} was another file each time it was read", changed.display()))
        .hint("sync again once nothing writes there"))
}

fn told(tree: &Tree, error: &SendError) -> Problem {
    let kind = match error {
        SendError::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => ProblemKind::Denied,
        SendError::Read { .. } => ProblemKind::System,
        SendError::Wire(error) if error.is_gone() => ProblemKind::Unavailable,
        _ => ProblemKind::Protocol,
    };
    let problem = Problem::from_error(kind, error);
    problem.because(format!("while the working tree {} was sent", tree.root().display()))
}
