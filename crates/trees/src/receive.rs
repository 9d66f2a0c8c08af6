//! The receiver's part: says what it lacks, makes a layer of what comes, and makes the tree known once it is whole.

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use crate::list::{Delta, Input, ListError};
use crate::making::{Fresh, Layer, open_folder};
use crate::manifest::{ContentHash, Entry, EntryKind, Manifest, TreeHash};
use crate::store::{Making, Owner, Record, Store};
use crate::wire::{self, Kind, MAGIC, PIECE, WireError, hear, say};

/// A tree that differs in more than one in so many of its entries from the full layer becomes a full layer itself.
const SHARE: usize = 8;
/// But this many may always differ.
const FEW: usize = 64;
/// So many of the trees that are there are compared with one that comes without a base.
const COMPARED: usize = 3;

/// What was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The tree's hash, computed here.
    pub hash: TreeHash,
    /// Whether it was there before.
    pub known: bool,
}

/// Why a tree was not received. What had come of it and was verified stays for the next one.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The conversation failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The disk is full, or something else about files failed.
    #[error("cannot write {}", path.display())]
    Write {
        /// What was being made.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What came is not what was announced.
    #[error("what came as {} has another content than was announced", .0.display())]
    Content(PathBuf),
    /// The list does not have the announced hash.
    #[error("the list that came is of the tree {0}, not of the one that was announced")]
    Hash(TreeHash),
    /// The sender gave up.
    #[error("the sender gave up: a file changed while it was read")]
    Changed,
}

impl From<io::Error> for ReceiveError {
    fn from(error: io::Error) -> Self {
        Self::Wire(WireError::Stream(error))
    }
}

impl From<ListError> for ReceiveError {
    fn from(error: ListError) -> Self {
        Self::Wire(WireError::List(error))
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> ReceiveError + '_ {
    move |source| ReceiveError::Write { path: path.to_owned(), source }
}

/// Receives one tree into the store.
///
/// `overlays` says whether trees may be made of two layers: whoever shows them can then merge them.
///
/// # Errors
/// See [`ReceiveError`].
pub fn receive(
    store: &Store,
    owner: Owner,
    overlays: bool,
    input: &mut impl Read,
    output: &mut impl Write,
) -> Result<Received, ReceiveError> {
    let mut input = BufReader::with_capacity(PIECE, input);
    wire::hear_magic(&mut input)?;
    output.write_all(MAGIC)?;
    let mut body = Vec::new();
    let Some((hash, target, base)) = hear_offer(store, owner, &mut input, output, &mut body)? else {
        let hash = wire::hash(&mut Input(&body))?;
        say(output, Kind::Done, &[&hash.0])?;
        output.flush()?;
        return Ok(Received { hash, known: true });
    };
    let ground = Ground::find(store, owner, base, &target, overlays);
    let making = store.begin().map_err(at(Path::new("a layer")))?;
    let mut work =
        Work { layer: Layer::open(&making.path, owner).map_err(at(&making.path))?, making, target: &target, ground };
    let needed = work.prepare(store)?;
    say(output, Kind::Need, &[&wire::numbers(&needed)])?;
    output.flush()?;
    work.contents(&needed, &mut input, &mut body)?;
    work.keep(store, hash, owner)?;
    say(output, Kind::Done, &[&hash.0])?;
    output.flush()?;
    Ok(Received { hash, known: false })
}

/// A tree that is there.
struct Known {
    record: Record,
    manifest: Manifest,
}

type Offered = (TreeHash, Manifest, Option<Known>);

/// The tree that is offered; none where it is there already, and then the offer is still in `body`.
fn hear_offer(
    store: &Store,
    owner: Owner,
    input: &mut impl Read,
    output: &mut impl Write,
    body: &mut Vec<u8>,
) -> Result<Option<Offered>, ReceiveError> {
    for _ in 0..2 {
        if hear(input, body)? != Kind::Offer {
            return Err(WireError::OutOfTurn("something before an offer").into());
        }
        let mut offer = Input(body);
        let hash = wire::hash(&mut offer)?;
        if store.find(hash, owner).is_some() {
            return Ok(None);
        }
        let base = match offer.byte()? {
            0 => None,
            1 => Some(wire::hash(&mut offer)?),
            _ => return Err(ListError::Form.into()),
        };
        let known = match base {
            None => None,
            Some(base) => match store.load(base, owner) {
                Some((record, manifest)) => Some(Known { record, manifest }),
                None => {
                    say(output, Kind::Whole, &[])?;
                    output.flush()?;
                    continue;
                }
            },
        };
        let nothing = Manifest::default();
        let manifest = Delta::decode(offer.0)?.apply(known.as_ref().map_or(&nothing, |known| &known.manifest))?;
        let reached = manifest.hash();
        if reached != hash {
            return Err(ReceiveError::Hash(reached));
        }
        return Ok(Some((hash, manifest, known)));
    }
    Err(WireError::OutOfTurn("a base again, where the whole was asked for").into())
}

/// What a new tree is made over.
struct Ground {
    /// The tree that is most like it, and its layers' folders, topmost first.
    like: Option<(Known, Vec<OwnedFd>)>,
    /// The full layer that stays below it, and what is to be done to that; none where a full layer is made.
    below: Option<(String, Delta)>,
}

impl Ground {
    fn find(store: &Store, owner: Owner, base: Option<Known>, target: &Manifest, overlays: bool) -> Self {
        let like = base.or_else(|| {
            let near = store.trees(owner).into_iter().take(COMPARED).filter_map(|hash| {
                let (record, manifest) = store.load(hash, owner)?;
                let distance = Delta::between(&manifest, target).len();
                Some((distance, Known { record, manifest }))
            });
            near.min_by_key(|(distance, _)| *distance).map(|(_, known)| known)
        });
        let Some(known) = like else { return Self { like: None, below: None } };
        let below = known.record.layers.last().filter(|_| overlays).and_then(|full| {
            let delta = Delta::between(&store.list_of(full)?, target);
            let few = delta.len() <= FEW.max(target.entries().len() / SHARE);
            few.then(|| (full.clone(), delta))
        });
        let folders = known.record.layers.iter().map(|layer| open_folder(&store.layer(layer)));
        let folders: io::Result<Vec<OwnedFd>> = folders.collect();
        match folders {
            Ok(folders) => Self { like: Some((known, folders)), below },
            Err(_) => Self { like: None, below: None },
        }
    }
}

/// A tree that is being made.
struct Work<'t> {
    layer: Layer,
    making: Making,
    target: &'t Manifest,
    ground: Ground,
}

impl Work<'_> {
    /// Makes everything for which nothing need travel; the numbers of the entries whose content is missing.
    fn prepare(&mut self, store: &Store) -> Result<Vec<u32>, ReceiveError> {
        let left = self.left_behind(store);
        let mut needed = Vec::new();
        let entries = self.target.entries();
        let mut numbers: Box<dyn Iterator<Item = usize>> = Box::new(0..entries.len());
        if let Some((_, delta)) = &self.ground.below {
            let target = self.target;
            let put: Vec<usize> = delta.put().iter().filter_map(|entry| target.place(&entry.path)).collect();
            numbers = Box::new(put.into_iter());
            for path in hidden(delta, target) {
                self.layer.hide(&path).map_err(at(&path))?;
            }
        }
        for number in numbers {
            let entry = &entries[number];
            match &entry.kind {
                EntryKind::Link { target } => self.layer.link(&entry.path, target).map_err(at(&entry.path))?,
                EntryKind::File { .. } => {
                    if !self.share(entry)? && !self.salvage(&left, entry)? {
                        needed.push(number as u32);
                    }
                }
            }
        }
        Ok(needed)
    }

    /// Takes a file over from the tree that is most like this one.
    fn share(&mut self, entry: &Entry) -> Result<bool, ReceiveError> {
        let Some((known, folders)) = &self.ground.like else { return Ok(false) };
        if known.manifest.find(&entry.path) != Some(&entry.kind) {
            return Ok(false);
        }
        for folder in folders {
            if self.layer.share(folder.as_fd(), &entry.path).map_err(at(&entry.path))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What others had received when they broke off.
    fn left_behind(&self, store: &Store) -> Vec<(OwnedFd, fs::File)> {
        let others = store.abandoned().into_iter();
        others.filter_map(|(path, lock)| Some((open_folder(&path).ok()?, lock))).collect()
    }

    /// Takes over what was received before, if it is what is wanted.
    fn salvage(&mut self, left: &[(OwnedFd, fs::File)], entry: &Entry) -> Result<bool, ReceiveError> {
        let EntryKind::File { executable, content } = &entry.kind else { return Ok(false) };
        for (folder, _) in left {
            let found = self.layer.copy(folder.as_fd(), &entry.path, *executable, content);
            if found.map_err(at(&entry.path))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the contents as they come, which is in any order.
    fn contents(&mut self, needed: &[u32], input: &mut impl Read, body: &mut Vec<u8>) -> Result<(), ReceiveError> {
        let mut missing: HashSet<u32> = needed.iter().copied().collect();
        let mut open: Option<Open<'_>> = None;
        let target = self.target;
        loop {
            let kind = hear(input, body)?;
            if open.as_ref().is_some_and(|open| open.left == 0) {
                self.close(open.take())?;
            }
            match kind {
                Kind::File if open.is_none() => {
                    let mut head = Input(body);
                    let number = u32::try_from(head.number()?).map_err(|_| ListError::Form)?;
                    let (time, left) = (i64::from_le_bytes(head.array()?), head.number()?);
                    let entry = target.entries().get(number as usize).filter(|_| missing.remove(&number));
                    let Some(Entry { path, kind: EntryKind::File { executable, content } }) = entry else {
                        return Err(WireError::OutOfTurn("a content that was not asked for").into());
                    };
                    let fresh = self.layer.begin(path, *executable, time).map_err(at(path))?;
                    open = Some(Open { path, content, fresh, left });
                }
                Kind::Piece => {
                    let Some(open) = open.as_mut().filter(|open| open.left >= body.len() as u64) else {
                        return Err(WireError::OutOfTurn("more of a content than there is").into());
                    };
                    open.fresh.write(body).map_err(at(open.path))?;
                    open.left -= body.len() as u64;
                }
                Kind::End if open.is_none() && missing.is_empty() => return Ok(()),
                Kind::Changed => return Err(ReceiveError::Changed),
                _ => return Err(WireError::OutOfTurn("no content where one was to come").into()),
            }
        }
    }

    fn close(&self, open: Option<Open<'_>>) -> Result<(), ReceiveError> {
        let Some(Open { path, content, fresh, .. }) = open else { return Ok(()) };
        if self.layer.finish(fresh, content).map_err(at(path))? {
            return Ok(());
        }
        self.layer.discard(path);
        Err(ReceiveError::Content(path.to_owned()))
    }

    /// The tree is whole: makes it known.
    fn keep(&self, store: &Store, hash: TreeHash, owner: Owner) -> Result<(), ReceiveError> {
        let path = Path::new("the record of a tree");
        let list = Delta::between(&Manifest::default(), self.target).encode();
        let mut layers = vec![self.making.name.clone()];
        let full = self.ground.below.as_ref().map(|(full, _)| full);
        layers.extend(full.cloned());
        let _lock = store.lock().map_err(at(path))?;
        if full.is_some_and(|full| !store.layer(full).is_dir()) {
            let gone = io::Error::new(io::ErrorKind::NotFound, "the layer below was removed meanwhile");
            return Err(at(path)(gone));
        }
        store.keep_layer(&self.making, full.is_none().then_some(list.as_slice())).map_err(at(path))?;
        store.keep_tree(hash, owner, &Record { layers }, &list).map_err(at(path))
    }
}

/// A content that is coming.
struct Open<'t> {
    path: &'t Path,
    content: &'t ContentHash,
    fresh: Fresh,
    left: u64,
}

/// What is to be marked as gone: of a folder in which nothing is left, the folder alone.
fn hidden(delta: &Delta, target: &Manifest) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for path in delta.removed() {
        if found.last().is_some_and(|last| path.starts_with(last)) || target.any_below(path) {
            continue;
        }
        let mut top = path.as_path();
        let mut covered = false;
        for above in path.ancestors().skip(1).filter(|above| *above != Path::new("")) {
            covered = covered || target.find(above).is_some();
            if target.any_below(above) {
                break;
            }
            top = above;
        }
        if !covered && !found.iter().any(|one| one == top) {
            found.push(top.to_owned());
        }
    }
    found
}
