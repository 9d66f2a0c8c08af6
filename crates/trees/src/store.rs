//! What a receiver keeps: trees by their hash and owner, over layers that they share.
//!
//! ```text
//! records/HASH-UID-GID   which layers a tree is made of, topmost first, and how its list differs from that of the full
//!                        one; appears whole, by a rename
//! layers/NAME            a full tree, or what one has that the full one below it has not
//! layers/NAME.list       the list of a full one
//! making/NAME            a layer in the making; its folder is locked while somebody is at it
//! lock                   taken to add a record, and to remove layers that no record names
//! ```
//!
//! The folder must be one that nobody else can enter. Records are of one boot: what was not on the disk when the power
//! went is not taken for whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, FileType, FlockOperation, Mode, mknodat};

use crate::list::{Delta, Input, put_number};
use crate::manifest::{Manifest, TreeHash};

const MAGIC: &[u8; 8] = b"tyrecd02";
const RECORDS: &str = "records";
const LAYERS: &str = "layers";
const MAKING: &str = "making";
/// The start of a record, which holds all but its list.
const HEAD: usize = 4096;

/// Whom a tree's files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// The trees of one machine.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    boot: String,
}

/// A tree that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its layers' names, topmost first; the last one is a full tree.
    pub layers: Vec<String>,
}

/// A tree that is there, with its list.
pub(crate) struct Known {
    pub(crate) record: Record,
    pub(crate) manifest: Manifest,
    /// The list of its full layer, where the tree is another.
    pub(crate) full: Option<Manifest>,
}

/// Where one layer is made.
#[derive(Debug)]
pub(crate) struct Making {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    _lock: File,
}

impl Store {
    /// The store in a folder, which is made where it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(folder: &Path) -> io::Result<Self> {
        for part in [RECORDS, LAYERS, MAKING] {
            DirBuilder::new().recursive(true).mode(0o700).create(folder.join(part))?;
        }
        Ok(Self::at(folder))
    }

    /// The store in a folder that may be missing: then nothing is in it.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { folder: folder.to_owned(), boot: boot.trim().to_owned() }
    }

    /// Whether a layer here can say that something below it is gone. The mark is a device, which a store on an overlay
    /// (a machine's own root) refuses.
    pub(crate) fn can_hide(&self) -> bool {
        let mark = self.folder.join(MAKING).join(format!("mark-{}", std::process::id()));
        let made = mknodat(CWD, &mark, FileType::CharacterDevice, Mode::empty(), 0).is_ok();
        // Whatever stays there is swept with what was never finished.
        let _ = fs::remove_file(&mark);
        made
    }

    /// Where a layer is.
    #[must_use]
    pub fn layer(&self, name: &str) -> PathBuf {
        self.folder.join(LAYERS).join(name)
    }

    fn record_path(&self, hash: TreeHash, owner: Owner) -> PathBuf {
        self.folder.join(RECORDS).join(format!("{hash}-{}-{}", owner.uid, owner.gid))
    }

    /// The tree of this hash, if it is there. Costs a look at a small file.
    #[must_use]
    pub fn find(&self, hash: TreeHash, owner: Owner) -> Option<Record> {
        let mut file = File::open(self.record_path(hash, owner)).ok()?;
        let mut head = vec![0; HEAD];
        let length = io::Read::read(&mut file, &mut head).ok()?;
        let record = self.head(&mut Input(&head[..length]))?;
        // Its time tells which ones were used last.
        let _ = file.set_modified(SystemTime::now());
        Some(record)
    }

    /// The tree of this hash with its list. Whether that still has the hash is not looked at: what is made of it is.
    pub(crate) fn load(&self, hash: TreeHash, owner: Owner) -> Option<Known> {
        let bytes = fs::read(self.record_path(hash, owner)).ok()?;
        let mut input = Input(&bytes);
        let record = self.head(&mut input)?;
        let delta = Delta::decode(input.0).ok()?;
        let full = self.list_of(record.layers.last()?)?;
        if delta.is_empty() {
            return Some(Known { record, manifest: full, full: None });
        }
        let manifest = delta.apply(&full).ok()?;
        Some(Known { record, manifest, full: Some(full) })
    }

    /// The list of a full layer.
    fn list_of(&self, layer: &str) -> Option<Manifest> {
        let bytes = fs::read(self.layer(&format!("{layer}.list"))).ok()?;
        Delta::decode(&bytes).ok()?.into_whole().ok()
    }

    fn head(&self, input: &mut Input<'_>) -> Option<Record> {
        if input.array().ok()? != *MAGIC {
            return None;
        }
        let text = |input: &mut Input<'_>| -> Option<String> {
            let length = input.count().ok()?;
            String::from_utf8(input.bytes(length).ok()?.to_vec()).ok()
        };
        if text(input)? != self.boot {
            return None;
        }
        let count = input.count().ok()?;
        let layers: Option<Vec<String>> = (0..count.min(8)).map(|_| text(input)).collect();
        layers.filter(|layers| !layers.is_empty()).map(|layers| Record { layers })
    }

    /// The trees of an owner, last used first.
    #[must_use]
    pub fn trees(&self, owner: Owner) -> Vec<TreeHash> {
        let ending = format!("-{}-{}", owner.uid, owner.gid);
        let mut found: Vec<(SystemTime, TreeHash)> = entries(&self.folder.join(RECORDS))
            .into_iter()
            .filter_map(|(name, path)| {
                let hash = name.strip_suffix(&ending)?.parse().ok()?;
                Some((fs::metadata(path).and_then(|facts| facts.modified()).ok()?, hash))
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, hash)| hash).collect()
    }

    /// A new place to make a layer in.
    pub(crate) fn begin(&self) -> io::Result<Making> {
        let nanoseconds = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        for attempt in 0..1000 {
            let name = format!("{:x}{:08x}{attempt}", nanoseconds.tv_sec, nanoseconds.tv_nsec);
            let path = self.folder.join(MAKING).join(&name);
            match DirBuilder::new().mode(0o755).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
            let lock = File::open(&path)?;
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(Making { name, path, _lock: lock });
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// What was left by those who broke off: locked, so that nobody else takes it, too.
    pub(crate) fn abandoned(&self) -> Vec<(PathBuf, File)> {
        let all = entries(&self.folder.join(MAKING)).into_iter();
        all.filter_map(|(_, path)| {
            let lock = File::open(&path).ok()?;
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
            Some((path, lock))
        })
        .collect()
    }

    /// Taken to change which layers there are; waits for others, who hold it for a moment.
    pub(crate) fn lock(&self) -> io::Result<File> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.folder.join("lock"))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// Puts a layer that was made among the others. Under the lock.
    pub(crate) fn keep_layer(&self, making: &Making, list: Option<&[u8]>) -> io::Result<()> {
        if let Some(list) = list {
            fs::write(self.layer(&format!("{}.list", making.name)), list)?;
        }
        fs::rename(&making.path, self.layer(&making.name))
    }

    /// Makes a tree known, by what its list has that the one of its full layer has not. Under the lock.
    pub(crate) fn keep_tree(&self, hash: TreeHash, owner: Owner, record: &Record, above: &[u8]) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        let mut text = |text: &str| {
            put_number(&mut bytes, text.len() as u64);
            bytes.extend_from_slice(text.as_bytes());
        };
        text(&self.boot);
        let count = record.layers.len() as u8;
        bytes.push(count);
        for layer in &record.layers {
            put_number(&mut bytes, layer.len() as u64);
            bytes.extend_from_slice(layer.as_bytes());
        }
        bytes.extend_from_slice(above);
        let path = self.record_path(hash, owner);
        let fresh = path.with_extension("new");
        fs::write(&fresh, &bytes)?;
        fs::rename(&fresh, &path)
    }

    /// Forgets trees, but the `spared` and the `most` that were used last. Their layers stay until [`Store::sweep`].
    pub fn forget(&self, most: usize, spared: &[String]) {
        let mut found: Vec<(SystemTime, PathBuf)> = entries(&self.folder.join(RECORDS))
            .into_iter()
            .filter(|(name, _)| !spared.iter().any(|spared| name.starts_with(spared.as_str())))
            .filter_map(|(_, path)| Some((fs::metadata(&path).and_then(|facts| facts.modified()).ok()?, path)))
            .collect();
        found.sort();
        let old = found.len().saturating_sub(most);
        for (_, path) in &found[..old] {
            // One that stays is found by the next one who looks.
            let _ = fs::remove_file(path);
        }
    }

    /// Removes layers that no record of this boot names, and what was begun and abandoned, by `remove`: a folder, and a
    /// name in it.
    ///
    /// # Errors
    /// The store cannot be locked or listed.
    pub fn sweep(&self, remove: &dyn Fn(&Path, &str)) -> io::Result<()> {
        let _lock = self.lock()?;
        let mut named = Vec::new();
        for (_, path) in entries(&self.folder.join(RECORDS)) {
            let mut head = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(File::open(&path)?, HEAD as u64), &mut head)?;
            match self.head(&mut Input(&head)) {
                Some(record) => named.extend(record.layers),
                None => fs::remove_file(&path)?,
            }
        }
        let layers = self.folder.join(LAYERS);
        for (name, path) in entries(&layers) {
            let layer = name.strip_suffix(".list").unwrap_or(&name);
            if named.iter().any(|named| named == layer) {
                continue;
            }
            if path.is_dir() {
                remove(&layers, &name);
            } else {
                fs::remove_file(&path)?;
            }
        }
        for (path, _lock) in self.abandoned() {
            if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                remove(&self.folder.join(MAKING), name);
            }
        }
        Ok(())
    }
}

/// What is in a folder: names that are ours, all of them text.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let all = fs::read_dir(folder).into_iter().flatten().flatten();
    all.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect()
}
