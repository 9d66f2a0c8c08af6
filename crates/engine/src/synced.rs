//! Keeping a machine's copy of a working tree the same as the tree.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{Mode, OFlags};
use testyard_machine::client::{ClientError, Connection, TransferError, synced};
use testyard_model::{Problem, ProblemKind, UserSpec};
use testyard_protocol::Synced;
use testyard_sync::{History, Scan};
use testyard_trees::{Delta, Manifest, Offer, SendError, Sent, TreeHash, open_below};

/// How often a tree that changes while it is sent is looked at again.
const TRIES: usize = 4;
/// So many lists are kept: the one that a list is made from is most likely among them.
const KEPT: usize = 16;
/// A list is made of so many others at most.
const DEEPEST: u8 = 7;
/// One that differs in more than one in so many of its entries is kept whole.
const SHARE: usize = 8;
/// Begins a list that is kept as what differs from another: this, of how many it is made, the other's hash, a delta. Whole
/// ones begin with a zero.
const STEP: u8 = 1;

/// The lists of trees that machines were sent, so that the next one is sent as what changed.
#[derive(Debug, Clone)]
pub struct SentLists {
    folder: PathBuf,
}

/// A part of what a machine is to have: the tree, or what git remembers of it.
#[derive(Debug, Clone)]
pub enum Part {
    /// The files below a folder, as they were scanned.
    Tree {
        /// The folder.
        root: PathBuf,
        /// What it holds.
        scan: Scan,
        /// The same without what no machine gets, and its hash, where there is any of that.
        without: Option<Arc<(Manifest, TreeHash)>>,
    },
    /// Objects and references.
    History(Arc<History>),
}

/// The working trees that are copied.
pub trait CopiedTrees: fmt::Debug + Send + Sync {
    /// Whether machines get a copy of the tree at this path also where they could be shown the tree itself.
    fn is_always_copied(&self, path: &Path) -> bool;

    /// The parts of the tree at this path; `again` says that it was found to be another than the last time.
    ///
    /// # Errors
    /// It cannot be read.
    fn look(&self, path: &Path, again: bool) -> Result<Vec<Part>, Problem>;
}

/// Copies of working trees on machines.
#[derive(Debug)]
pub struct Copies {
    trees: Arc<dyn CopiedTrees>,
    lists: SentLists,
    user: Option<UserSpec>,
    /// One at a time is sent to a machine: the second would find it there.
    sending: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

/// What is asked of a machine about a tree that it has; none where it has not got it.
pub type Ask<'a, T> = dyn FnMut(&mut Connection, Synced) -> Result<Option<T>, ClientError> + 'a;

/// A tree that a machine has now.
#[derive(Debug)]
pub struct Copied<T> {
    /// What was asked of the machine, answered.
    pub answer: T,
    /// The parts, as they were sent.
    pub parts: Vec<Part>,
    /// What travelled.
    pub sent: Sent,
}

impl Part {
    /// The files below `root`, without what is below these absolute paths.
    #[must_use]
    pub fn of_tree(root: &Path, top: &Path, scan: &Scan, hidden: &[PathBuf]) -> Self {
        let hidden: Vec<&Path> = hidden.iter().filter_map(|path| path.strip_prefix(top).ok()).collect();
        let is_hidden = |path: &Path| hidden.iter().any(|hidden| path.starts_with(hidden));
        let whole = scan.manifest();
        let any = !hidden.is_empty() && whole.entries().any(|entry| is_hidden(entry.path));
        let without = any.then(|| {
            let mut manifest = Manifest::with_room(whole.len());
            for entry in whole.entries().filter(|entry| !is_hidden(entry.path)) {
                manifest.push(entry.path, entry.kind);
            }
            let hash = manifest.hash();
            Arc::new((manifest, hash))
        });
        Self::Tree { root: root.to_owned(), scan: scan.clone(), without }
    }

    /// What it holds.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        match self {
            Self::Tree { without: Some(without), .. } => &without.0,
            Self::Tree { scan, .. } => scan.manifest(),
            Self::History(history) => history.manifest(),
        }
    }

    /// The hash of that.
    #[must_use]
    pub fn hash(&self) -> TreeHash {
        match self {
            Self::Tree { without: Some(without), .. } => without.1,
            Self::Tree { scan, .. } => scan.hash,
            Self::History(history) => history.hash(),
        }
    }

    /// What it held when it was looked at before, where that is known.
    fn before(&self) -> Option<(TreeHash, &Manifest)> {
        match self {
            Self::Tree { scan, without: None, .. } => scan.before(),
            Self::Tree { .. } | Self::History(_) => None,
        }
    }

    /// Calls `use_it` with a way to open the part's files.
    fn opened<T>(
        &self,
        use_it: impl FnOnce(&dyn Fn(&Path) -> rustix::io::Result<OwnedFd>) -> T,
    ) -> Result<T, rustix::io::Errno> {
        match self {
            Self::Tree { root, .. } => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let root = rustix::fs::open(root, flags, Mode::empty())?;
                Ok(use_it(&|path| open_below(root.as_fd(), path)))
            }
            Self::History(history) => Ok(use_it(&|path| history.open(path))),
        }
    }
}

impl SentLists {
    /// In a folder of a home, which need not be there yet.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn last(&self, machine: &str, place: &Path) -> PathBuf {
        let mut key = blake3::Hasher::new();
        key.update(machine.as_bytes()).update(b"\0").update(place.as_os_str().as_bytes());
        self.folder.join(format!("{}.last", &key.finalize().to_hex()[..32]))
    }

    fn list(&self, hash: TreeHash) -> PathBuf {
        self.folder.join(format!("{hash}.list"))
    }

    fn last_sent(&self, machine: &str, place: &Path) -> Option<TreeHash> {
        fs::read_to_string(self.last(machine, place)).ok()?.trim().parse().ok()
    }

    /// The list of a tree that was sent.
    fn base(&self, hash: TreeHash) -> Option<Manifest> {
        let manifest = self.load(hash, DEEPEST)?;
        (manifest.hash() == hash).then_some(manifest)
    }

    /// The same, unproven, made of so many others at most.
    fn load(&self, hash: TreeHash, most: u8) -> Option<Manifest> {
        let bytes = fs::read(self.list(hash)).ok()?;
        match bytes.split_first()? {
            (&STEP, rest) => {
                let (below, delta) = rest.get(1..)?.split_first_chunk::<32>()?;
                let below = self.load(TreeHash(*below), most.checked_sub(1)?)?;
                Delta::decode(delta).ok()?.apply(&below).ok()
            }
            _ => Delta::decode(&bytes).ok()?.into_whole().ok(),
        }
    }

    /// Of how many others the list of a tree is made; none where it is not there.
    fn depth(&self, hash: TreeHash) -> Option<u8> {
        let mut start = [0; 2];
        io::Read::read_exact(&mut fs::File::open(self.list(hash)).ok()?, &mut start).ok()?;
        Some(if start[0] == STEP { start[1] } else { 0 })
    }

    /// Keeps the list of a tree that is being sent. One that cannot be kept is sent whole the next time.
    fn keep(&self, part: &Part) {
        let list = self.list(part.hash());
        if list.is_file() || fs::create_dir_all(&self.folder).is_err() {
            return;
        }
        let bytes = self.as_step(part).unwrap_or_else(|| Delta::encode_whole(part.manifest()));
        if write_beside(&list, &bytes).is_ok() {
            self.prune();
        }
    }

    /// A list as what differs from the one before, where that is little.
    fn as_step(&self, part: &Part) -> Option<Vec<u8>> {
        let (hash, before) = part.before()?;
        let depth = self.depth(hash).filter(|depth| *depth < DEEPEST)?;
        let delta = Delta::between(before, part.manifest());
        let few = delta.len() <= part.manifest().len() / SHARE;
        few.then(|| [&[STEP, depth + 1], hash.0.as_slice(), &delta.encode()].concat())
    }

    /// A machine has this tree now.
    fn remember(&self, machine: &str, place: &Path, part: &Part) {
        // In place: what is half written, or not at all, names no tree, and then the next one is offered whole.
        let file = fs::File::options().write(true).create(true).truncate(false).open(self.last(machine, place));
        let _ = file.and_then(|mut file| io::Write::write_all(&mut file, part.hash().to_string().as_bytes()));
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

impl Copies {
    /// Files belong to `user` on the machine; none means the machine's own.
    #[must_use]
    pub fn new(trees: Arc<dyn CopiedTrees>, lists: SentLists, user: Option<UserSpec>) -> Self {
        Self { trees, lists, user, sending: Mutex::default() }
    }

    /// Whether a machine gets a copy of the tree at this path; else it is shown the tree itself.
    #[must_use]
    pub fn is_copied(&self, path: &Path) -> bool {
        self.trees.is_always_copied(path)
    }

    /// The hashes of the parts of the tree at `path`, as it was looked at last.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn hashes(&self, path: &Path) -> Result<Vec<TreeHash>, Problem> {
        Ok(self.trees.look(path, false)?.iter().map(Part::hash).collect())
    }

    /// Makes sure that the machine has the tree at `path` as it is, and asks it something about that.
    ///
    /// # Errors
    /// `Unavailable` where the tree changes all the time, or the machine loses it; whatever both say.
    pub fn bring<T>(
        &self,
        connection: &mut Connection,
        path: &Path,
        ask: &mut Ask<'_, T>,
    ) -> Result<Copied<T>, Problem> {
        let machine = connection.machine().to_owned();
        let mut sent = Sent { known: true, ..Sent::default() };
        let mut parts = self.trees.look(path, false)?;
        let mut asked = |connection: &mut Connection, parts: &[Part]| {
            let hashes: Vec<TreeHash> = parts.iter().map(Part::hash).collect();
            ask(connection, synced(&hashes, path, self.user.as_ref())).map_err(|error| error.problem())
        };
        // What was sent last is likely there still, and then nothing need be said but that.
        let likely = |parts: &[Part]| {
            let mut places = parts.iter().enumerate().map(|(index, part)| (place_of(path, index), part));
            places.all(|(place, part)| self.lists.last_sent(&machine, &place) == Some(part.hash()))
        };
        if likely(&parts)
            && let Some(answer) = asked(connection, &parts)?
        {
            return Ok(Copied { answer, parts, sent });
        }
        let lock =
            Arc::clone(self.sending.lock().unwrap_or_else(PoisonError::into_inner).entry(machine.clone()).or_default());
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TRIES {
            let mut whole = true;
            for (index, part) in parts.iter().enumerate() {
                match self.send(connection, path, &place_of(path, index), part)? {
                    Some(one) => {
                        sent.known &= one.known;
                        sent.files += one.files;
                        sent.bytes += one.bytes;
                    }
                    None => {
                        whole = false;
                        break;
                    }
                }
            }
            if whole {
                let lost = || {
                    Problem::new(ProblemKind::Unavailable, format!("machine {machine} lost the tree that it was sent"))
                };
                let answer = asked(connection, &parts)?.ok_or_else(lost)?;
                return Ok(Copied { answer, parts, sent });
            }
            parts = self.trees.look(path, true)?;
        }
        Err(Problem::new(
            ProblemKind::Unavailable,
            format!("{} changed all the time while it was sent", path.display()),
        )
        .hint("sync again once nothing writes there"))
    }

    /// Sends one part; none where a file is no longer what was listed.
    fn send(
        &self,
        connection: &mut Connection,
        path: &Path,
        place: &Path,
        part: &Part,
    ) -> Result<Option<Sent>, Problem> {
        let machine = connection.machine().to_owned();
        let elsewhere = connection.welcome().elsewhere;
        let last = self.lists.last_sent(&machine, place);
        // It is likely the one that was there when the tree was looked at before.
        let before = part.before().filter(|(hash, _)| Some(*hash) == last);
        let listed = if before.is_some() { None } else { last.and_then(|hash| Some((hash, self.lists.base(hash)?))) };
        let base = before.or_else(|| listed.as_ref().map(|(hash, manifest)| (*hash, manifest)));
        let outcome = thread::scope(|scope| {
            let keeping = thread::Builder::new().spawn_scoped(scope, || self.lists.keep(part));
            let sent = part.opened(|open| {
                let offer = Offer { open, manifest: part.manifest(), hash: part.hash(), packed: elsewhere, base };
                connection.sync_tree(self.user.as_ref(), offer)
            });
            if keeping.is_err() {
                self.lists.keep(part);
            }
            sent
        });
        let gone = |errno: rustix::io::Errno| {
            let message = format!("cannot open the working tree {}", path.display());
            Problem::new(ProblemKind::NotFound, message).because(errno)
        };
        match outcome.map_err(gone)? {
            Ok(sent) => {
                self.lists.remember(&machine, place, part);
                Ok(Some(sent))
            }
            Err(TransferError::Local(SendError::Changed(_))) => Ok(None),
            Err(TransferError::Local(error)) => Err(told(path, &error)),
            Err(TransferError::Machine(error)) => Err(error.problem()),
        }
    }
}

/// Written beside and renamed: a reader sees the old or the new one.
fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes)?;
    fs::rename(&fresh, path)
}

/// Under what name a part was sent: its list is that of no other.
fn place_of(path: &Path, index: usize) -> PathBuf {
    if index == 0 { path.to_owned() } else { path.join(".git") }
}

fn told(path: &Path, error: &SendError) -> Problem {
    let kind = match error {
        SendError::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => ProblemKind::Denied,
        SendError::Read { .. } => ProblemKind::System,
        SendError::Wire(error) if error.is_gone() => ProblemKind::Unavailable,
        _ => ProblemKind::Protocol,
    };
    let problem = Problem::from_error(kind, error);
    problem.because(format!("while the working tree {} was sent", path.display()))
}

#[cfg(test)]
mod tests {
    use testyard_sync::{Tree, TreeOptions};

    use super::*;

    #[test]
    fn lists_are_kept_as_what_changed_and_read_as_the_whole() {
        let (work, kept) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let write = |number: usize, text: &str| {
            fs::write(work.path().join(format!("file-{number:03}")), text).expect("there is room");
        };
        (0..200).for_each(|number| write(number, "first"));
        let tree = Tree::open(work.path(), TreeOptions::default()).expect("a tree");
        let lists = SentLists::new(kept.path().join("sent"));
        let part = |scan: &Scan| Part::of_tree(work.path(), work.path(), scan, &[]);
        let mut scan = tree.scan().expect("a scan");
        lists.keep(&part(&scan));
        let mut depths = Vec::new();
        for round in 0..9 {
            write(round, "another");
            fs::remove_file(work.path().join(format!("file-{:03}", 199 - round))).expect("it is there");
            let next = tree.scan_again(&scan).expect("a scan");
            lists.keep(&part(&next));
            assert_eq!(lists.base(next.hash).as_ref(), Some(next.manifest()), "{round}");
            assert_eq!(lists.base(scan.hash).as_ref(), Some(scan.manifest()), "{round}");
            depths.extend(lists.depth(next.hash));
            scan = next;
        }
        assert_eq!(depths, [1, 2, 3, 4, 5, 6, 7, 0, 1]);
        // Of a tree that another has little in common with, all of it.
        (0..200).for_each(|number| write(number, "new"));
        let other = tree.scan_again(&scan).expect("a scan");
        lists.keep(&part(&other));
        assert_eq!(lists.depth(other.hash), Some(0));
        // What is damaged is none.
        fs::write(lists.list(other.hash), [STEP, 1, 7]).expect("there is room");
        assert_eq!(lists.base(other.hash), None);
        for round in 0..KEPT {
            write(0, &format!("{round}"));
            scan = tree.scan_again(&scan).expect("a scan");
            lists.keep(&part(&scan));
        }
        assert_eq!(fs::read_dir(kept.path().join("sent")).expect("a folder").count(), KEPT);
    }
}
