//! Making the layer of one tree: from what is there already, from what was left behind, and from what comes.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use crate::chunk::{MAX, Pieces, WORTH, mark};
use crate::crew::{Crew, Small, crew};
use crate::list::{Delta, Input, ListError, put_number};
use crate::making::{Fresh, Layer, Ways, open_file, open_folder};
use crate::manifest::{ContentHash, EntryRef, KindRef, Manifest, TreeHash};
use crate::receive::{ReceiveError, at};
use crate::store::{Known, Making, Owner, Record, Store};
use crate::wire::{Kind, MOST_MARKED, PIECE, WireError, hear, say};

/// A tree that differs in more than one in so many of its entries from the full layer becomes a full layer itself.
const SHARE: usize = 8;
/// But this many may always differ.
const FEW: usize = 64;
/// So many of the trees that are there are compared with one that comes without a base.
const COMPARED: usize = 3;

/// What a new tree is made over.
pub(crate) struct Ground {
    /// The tree that is most like it, and its layers' folders, topmost first.
    like: Option<(Known, Vec<OwnedFd>)>,
    /// The full layer that stays below it, and what is to be done to that; none where a full layer is made.
    below: Option<(String, Delta)>,
}

impl Ground {
    pub(crate) fn find(store: &Store, owner: Owner, base: Option<Known>, target: &Manifest, overlays: bool) -> Self {
        let like = base.or_else(|| {
            let near = store.trees(owner).into_iter().take(COMPARED).filter_map(|hash| {
                let known = store.load(hash, owner)?;
                Some((Delta::between(&known.manifest, target).len(), known))
            });
            near.min_by_key(|(distance, _)| *distance).map(|(_, known)| known)
        });
        let Some(known) = like else { return Self { like: None, below: None } };
        let below = known.record.layers.last().filter(|_| overlays).and_then(|full| {
            let delta = Delta::between(known.full.as_ref().unwrap_or(&known.manifest), target);
            let entries = target.len();
            // Two trees that have little in common are not made of each other, and can be shown together.
            let same = entries.saturating_sub(delta.put().len());
            let few = delta.len() <= FEW.max(entries / SHARE) && 2 * same >= entries;
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
pub(crate) struct Work<'t> {
    layer: Layer,
    ways: Ways,
    making: Making,
    target: &'t Manifest,
    ground: Ground,
    /// Old contents in place of new ones, by the new one's number, with where each piece begins.
    old: HashMap<u32, (fs::File, Vec<u64>)>,
}

impl<'t> Work<'t> {
    pub(crate) fn begin(
        store: &Store,
        owner: Owner,
        target: &'t Manifest,
        ground: Ground,
    ) -> Result<Self, ReceiveError> {
        let making = store.begin().map_err(at(Path::new("a layer")))?;
        let layer = Layer::open(&making.path, owner).map_err(at(&making.path))?;
        Ok(Self { layer, ways: Ways::default(), making, target, ground, old: HashMap::new() })
    }

    /// Makes everything for which nothing need travel; the numbers of the entries whose content is missing.
    pub(crate) fn prepare(&mut self, store: &Store) -> Result<Vec<u32>, ReceiveError> {
        let left = self.left_behind(store);
        let mut needed = Vec::new();
        let target = self.target;
        let mut numbers: Box<dyn Iterator<Item = usize>> = Box::new(0..target.len());
        if let Some((_, delta)) = &self.ground.below {
            let put: Vec<usize> = delta.put().entries().filter_map(|entry| target.place(entry.path)).collect();
            numbers = Box::new(put.into_iter());
            for path in hidden(delta, target) {
                self.layer.make_way(&mut self.ways, &path).map_err(at(&path))?;
                self.layer.hide(&path).map_err(at(&path))?;
            }
        }
        for number in numbers {
            let Some(entry) = target.get(number) else { continue };
            self.layer.make_way(&mut self.ways, entry.path).map_err(at(entry.path))?;
            match entry.kind {
                KindRef::Link { target } => self.layer.link(entry.path, target).map_err(at(entry.path))?,
                KindRef::File { .. } => {
                    if !self.share(entry)? && !self.salvage(&left, entry)? {
                        needed.push(number as u32);
                    }
                }
            }
        }
        Ok(needed)
    }

    /// Takes a file over from the tree that is most like this one.
    fn share(&mut self, entry: EntryRef<'_>) -> Result<bool, ReceiveError> {
        let Some((known, folders)) = &self.ground.like else { return Ok(false) };
        if known.manifest.find(entry.path) != Some(entry.kind) {
            return Ok(false);
        }
        for folder in folders {
            if self.layer.share(folder.as_fd(), entry.path).map_err(at(entry.path))? {
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
    fn salvage(&mut self, left: &[(OwnedFd, fs::File)], entry: EntryRef<'_>) -> Result<bool, ReceiveError> {
        let KindRef::File { executable, content } = entry.kind else { return Ok(false) };
        for (folder, _) in left {
            let found = self.layer.copy(folder.as_fd(), entry.path, executable, content);
            if found.map_err(at(entry.path))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Says which pieces of old contents are there in place of the missing ones.
    pub(crate) fn tell_old(&mut self, needed: &[u32], output: &mut impl Write) -> Result<(), ReceiveError> {
        let Some((known, folders)) = &self.ground.like else { return Ok(()) };
        for number in needed {
            let Some(EntryRef { path, .. }) = self.target.get(*number as usize) else { continue };
            if !matches!(known.manifest.find(path), Some(KindRef::File { .. })) {
                continue;
            }
            let Some(file) = folders.iter().find_map(|folder| open_file(folder.as_fd(), path)) else { continue };
            let size = file.metadata().map_err(at(path))?.len();
            if size < WORTH || size / MAX as u64 * 20 > MOST_MARKED as u64 / 8 {
                continue;
            }
            let (mut list, mut starts) = (Vec::new(), vec![0]);
            put_number(&mut list, u64::from(*number));
            let mut pieces = Pieces::of(file.try_clone().map_err(at(path))?);
            loop {
                let piece = pieces.next().map_err(at(path))?;
                if piece.is_empty() || list.len() + 32 > MOST_MARKED {
                    break;
                }
                put_number(&mut list, piece.len() as u64);
                list.extend_from_slice(&mark(piece));
                starts.push(starts.last().copied().unwrap_or(0) + piece.len() as u64);
            }
            say(output, Kind::Old, &[&list])?;
            self.old.insert(*number, (file, starts));
        }
        Ok(())
    }

    /// Takes the contents as they come, which is in any order. Small ones are made by others meanwhile.
    pub(crate) fn contents(
        &mut self,
        needed: &[u32],
        input: &mut impl Read,
        body: &mut Vec<u8>,
    ) -> Result<(), ReceiveError> {
        let (crew, orders) = crew();
        let come = Coming {
            target: self.target,
            layer: &self.layer,
            old: &self.old,
            missing: needed.iter().copied().collect(),
            open: None,
        };
        let taken = thread::scope(|scope| {
            if !orders.start(needed.len(), &self.layer, scope) {
                let source = io::ErrorKind::OutOfMemory.into();
                return Err(ReceiveError::Write { path: "files: no thread could be started".into(), source });
            }
            let taken = come.take(crew, input, body);
            orders.work(&self.layer);
            taken
        });
        match orders.failure() {
            Some(error) => Err(error),
            None => taken,
        }
    }

    /// The tree is whole: makes it known.
    pub(crate) fn keep(&self, store: &Store, hash: TreeHash, owner: Owner) -> Result<(), ReceiveError> {
        let path = Path::new("the record of a tree");
        let mut layers = vec![self.making.name.clone()];
        let full = self.ground.below.as_ref().map(|(full, _)| full);
        layers.extend(full.cloned());
        let list = full.is_none().then(|| Delta::encode_whole(self.target));
        let above = self.ground.below.as_ref().map_or_else(|| Delta::default().encode(), |(_, delta)| delta.encode());
        let _lock = store.lock().map_err(at(path))?;
        if store.find(hash, owner).is_some() {
            // Somebody else sent the same at the same time, and may be showing it already.
            return Ok(());
        }
        if full.is_some_and(|full| !store.layer(full).is_dir()) {
            let gone = io::Error::new(io::ErrorKind::NotFound, "the layer below was removed meanwhile");
            return Err(at(path)(gone));
        }
        store.keep_layer(&self.making, list.as_deref()).map_err(at(path))?;
        store.keep_tree(hash, owner, &Record { layers }, &above).map_err(at(path))
    }
}

/// Contents that are coming.
struct Coming<'w> {
    target: &'w Manifest,
    layer: &'w Layer,
    old: &'w HashMap<u32, (fs::File, Vec<u64>)>,
    missing: HashSet<u32>,
    open: Option<Open<'w>>,
}

/// A content that is coming.
struct Open<'w> {
    number: u32,
    path: &'w Path,
    executable: bool,
    content: ContentHash,
    time: i64,
    size: u64,
    left: u64,
    /// None before its first piece.
    fresh: Option<Fresh>,
}

impl<'w> Coming<'w> {
    /// Follows the stream to its end.
    fn take(mut self, mut crew: Crew<'w>, input: &mut impl Read, body: &mut Vec<u8>) -> Result<(), ReceiveError> {
        loop {
            let kind = hear(input, body)?;
            match kind {
                Kind::File if self.open.is_none() => self.begin(body, &mut crew)?,
                Kind::Piece => self.piece(body, &mut crew)?,
                Kind::Zeros | Kind::Same => {
                    let mut numbers = Input(body);
                    let (first, second) = (numbers.number()?, if kind == Kind::Same { numbers.number()? } else { 0 });
                    if kind == Kind::Same { self.same(first, second)? } else { self.zeros(first)? }
                }
                Kind::End if self.open.is_none() && self.missing.is_empty() => {
                    crew.end();
                    return Ok(());
                }
                Kind::Changed => {
                    crew.end();
                    return Err(ReceiveError::Changed);
                }
                _ => return Err(WireError::OutOfTurn("no content where one was to come").into()),
            }
        }
    }

    fn begin(&mut self, body: &[u8], crew: &mut Crew<'w>) -> Result<(), ReceiveError> {
        let mut head = Input(body);
        let number = u32::try_from(head.number()?).map_err(|_| ListError::Form)?;
        let (time, size) = (i64::from_le_bytes(head.array()?), head.number()?);
        let entry = self.target.get(number as usize).filter(|_| self.missing.remove(&number));
        let Some(EntryRef { path, kind: KindRef::File { executable, content } }) = entry else {
            return Err(WireError::OutOfTurn("a content that was not asked for").into());
        };
        if size == 0 {
            crew.make(Small { path, executable, time, content, bytes: Vec::new() });
            return Ok(());
        }
        self.open = Some(Open { number, path, executable, content, time, size, left: size, fresh: None });
        Ok(())
    }

    /// The content that is coming, of which so much is now there; and its file.
    fn more(&mut self, length: u64) -> Result<&mut Open<'w>, ReceiveError> {
        let open = self.open.as_mut().filter(|open| open.left >= length && length > 0);
        let open = open.ok_or(WireError::OutOfTurn("more of a content than there is"))?;
        open.left -= length;
        if open.fresh.is_none() {
            open.fresh = Some(self.layer.begin(open.path, open.executable, open.time).map_err(at(open.path))?);
        }
        Ok(open)
    }

    fn piece(&mut self, body: &mut Vec<u8>, crew: &mut Crew<'w>) -> Result<(), ReceiveError> {
        let whole = |open: &mut Open<'w>| open.size <= PIECE as u64 && open.size == body.len() as u64;
        if let Some(Open { path, executable, content, time, .. }) = self.open.take_if(whole) {
            crew.make(Small { path, executable, time, content, bytes: std::mem::take(body) });
            return Ok(());
        }
        let open = self.more(body.len() as u64)?;
        let path = open.path;
        open.fresh.as_mut().map_or(Ok(()), |fresh| fresh.write(body)).map_err(at(path))?;
        self.close()
    }

    fn zeros(&mut self, length: u64) -> Result<(), ReceiveError> {
        let open = self.more(length)?;
        let path = open.path;
        open.fresh.as_mut().map_or(Ok(()), |fresh| fresh.skip(length)).map_err(at(path))?;
        self.close()
    }

    /// Pieces of the old content, by their numbers.
    fn same(&mut self, first: u64, count: u64) -> Result<(), ReceiveError> {
        let unknown = || WireError::OutOfTurn("pieces that were never named");
        let number = self.open.as_ref().ok_or_else(unknown)?.number;
        let (file, starts) = self.old.get(&number).ok_or_else(unknown)?;
        let place = |piece: u64| usize::try_from(piece).ok().and_then(|piece| starts.get(piece)).copied();
        let start = place(first).ok_or_else(unknown)?;
        let end = first.checked_add(count).and_then(place).ok_or_else(unknown)?;
        let open = self.more(end.saturating_sub(start))?;
        let path = open.path;
        let Some(fresh) = &mut open.fresh else { return Ok(()) };
        let (mut at_byte, mut space) = (start, vec![0; PIECE]);
        while at_byte < end {
            let count = space.len().min(usize::try_from(end - at_byte).unwrap_or(usize::MAX));
            file.read_exact_at(&mut space[..count], at_byte).map_err(at(path))?;
            fresh.write(&space[..count]).map_err(at(path))?;
            at_byte += count as u64;
        }
        self.close()
    }

    /// Ends the content that is coming, where all of it is there.
    fn close(&mut self) -> Result<(), ReceiveError> {
        let Some(Open { path, content, fresh: Some(fresh), .. }) = self.open.take_if(|open| open.left == 0) else {
            return Ok(());
        };
        if self.layer.finish(fresh, content).map_err(at(path))? {
            return Ok(());
        }
        self.layer.discard(path);
        Err(ReceiveError::Content(path.to_owned()))
    }
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
