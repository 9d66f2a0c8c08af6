//! The store: immutable images by their digest, names that point at them.
//!
//! ```text
//! images/                    0700, so that a setuid file in an image is out of everybody's reach
//!   <digest>/root/           the tree, never changed; not where the image is a list of layers
//!   <digest>/image.json      what it is
//!   <digest>/config.json     the configuration of an image of layers, as it came
//!   layers/<diff>-<ids>/     a layer that images share: root/ and layer.json
//!   downloads/<digest>       a layer as it comes from a server; an interrupted one is continued
//!   references/<name>:<tag>  holds a digest; `+` stands for `/`
//!   builds/<key>             holds the digest that a build with this key gave
//!   locks/…                  one file a build key and a digest, held with flock
//!   temporary/<id>{,.lock}   half-made or half-deleted things: dead as soon as nobody holds the lock
//! ```
//!
//! Everything appears by a rename and disappears by one, so a process that dies leaves only folders below
//! `temporary/`, whose lock the kernel has released: that is the proof by which [`Store::prune`] removes them.

mod layers;
mod record;
mod staging;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode as FileMode, OFlags, RenameFlags};
use rustix::io::Errno;
use testyard_model::{ImageReference, Problem, ProblemKind};

pub(crate) use layers::HeldLayer;
pub(crate) use record::hexadecimal;
pub use record::{Digest, DigestError, ImageConfig, ImageRecord, LayerRecord, Origin, Ownership};
pub(crate) use staging::{Staged, Staging, random_name, write_file};

use testyard_linux::Error as SystemError;
use testyard_linux::files::{remove_file, verified_private_directory};
use testyard_linux::lock::{FileLock, Mode, Patience};

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error(transparent)]
    System(#[from] SystemError),
    /// There is no such image.
    #[error("there is no image {0}")]
    NotFound(ImageReference),
    /// `host` is no stored image.
    #[error("the image `host` is this host itself and is never stored")]
    Host,
    /// The first digits of a digest fit several images.
    #[error("{reference} fits several images: {}", .fitting.join(", "))]
    Ambiguous {
        /// As it was written.
        reference: ImageReference,
        /// What it fits.
        fitting: Vec<String>,
    },
    /// A machine stands on it.
    #[error("the image {0} is in use by a machine")]
    InUse(ImageReference),
    /// `image.json` is not what this version writes.
    #[error("{} is damaged", .path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: serde_json::Error,
    },
}

impl StoreError {
    /// As people and programs see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::System(error) => return crate::problem::of_system(error),
            Self::NotFound(_) => ProblemKind::NotFound,
            Self::Host | Self::Ambiguous { .. } => ProblemKind::Usage,
            Self::InUse(_) => ProblemKind::WrongState,
            Self::Record { .. } => ProblemKind::System,
        };
        let problem = Problem::from_error(kind, self);
        match self {
            Self::System(_) | Self::Host => problem,
            Self::NotFound(reference) if reference.server().is_some() => problem
                .hint("see the images there are: testyard image list")
                .hint(format!("fetch it: testyard image pull {reference}")),
            Self::NotFound(reference) => problem
                .hint("see the images there are: testyard image list")
                .hint(format!("build a Debian release: testyard image build {reference}"))
                .hint(format!("import a root file system: testyard image import {reference} ARCHIVE.tar.gz")),
            Self::Ambiguous { .. } => problem.hint("write more digits of the digest"),
            Self::InUse(_) => problem.hint("see which machines use it: testyard list"),
            Self::Record { .. } => problem.hint("remove what is damaged: testyard image prune"),
        }
    }
}

/// The folder of images of one Testyard home.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    directory: OwnedFd,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// What it is.
    pub record: ImageRecord,
    /// The names that point at it, as `name:tag`.
    pub references: Vec<String>,
    /// Its tree: never to be written to. Of an image of layers the lowest one.
    pub root: PathBuf,
    /// Its layers, topmost first: what an overlay is mounted from. One where it has a tree of its own.
    pub layers: Vec<PathBuf>,
}

/// Keeps an image from being deleted while it lives; a machine's supervisor holds one.
#[derive(Debug)]
pub struct ImageHold {
    /// Carries the lock; may be handed to another process.
    pub lock: FileLock,
}

/// What [`Store::prune`] did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Images without a name and without a machine.
    pub images: Vec<Digest>,
    /// Layers that no image has.
    pub layers: usize,
    /// Folders of builds and deletions that died.
    pub temporary: usize,
    /// Bytes on disk given back.
    pub bytes: u64,
    /// What lies in the store without proof that it is Testyard's, by path; left alone.
    pub unknown: Vec<PathBuf>,
}

const REFERENCES: &str = "references";
const BUILDS: &str = "builds";
const LAYERS: &str = "layers";
const DOWNLOADS: &str = "downloads";
const LOCKS: &str = "locks";
const TEMPORARY: &str = "temporary";
const RECORD: &str = "image.json";
const CONFIG: &str = "config.json";

impl Store {
    /// Opens the store in this folder, making it where it is missing. Its parent must exist.
    ///
    /// # Errors
    /// The folder is not ours alone (0700), or cannot be made.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let directory = verified_private_directory(path)?;
        for name in [REFERENCES, BUILDS, LAYERS, DOWNLOADS, LOCKS, TEMPORARY] {
            match rustix::fs::mkdirat(&directory, name, FileMode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(SystemError::new("make", path.join(name).display(), errno).into()),
            }
        }
        Ok(Self { path: path.to_owned(), directory })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every image, by digest.
    ///
    /// # Errors
    /// The folder cannot be read. A damaged image is left out (and removed by [`Store::prune`]).
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let mut images = Vec::new();
        for digest in self.digests()? {
            match self.load(&digest) {
                Ok(image) => images.push(image),
                Err(StoreError::Record { .. } | StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(images)
    }

    /// The image that a reference names.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Ambiguous`], [`StoreError::Host`].
    pub fn find(&self, reference: &ImageReference) -> Result<Image, StoreError> {
        let missing = || StoreError::NotFound(reference.clone());
        let digest = match reference {
            ImageReference::Host => return Err(StoreError::Host),
            ImageReference::Named { name, tag } => {
                self.pointer(REFERENCES, &reference_file(name, tag))?.ok_or_else(missing)?
            }
            ImageReference::Digest(digits) => {
                let mut fitting: Vec<_> =
                    self.digests()?.into_iter().filter(|digest| digest.as_str().starts_with(digits)).collect();
                if fitting.len() > 1 {
                    let fitting = fitting.iter().map(ToString::to_string).collect();
                    return Err(StoreError::Ambiguous { reference: reference.clone(), fitting });
                }
                fitting.pop().ok_or_else(missing)?
            }
        };
        self.load(&digest).map_err(|error| match error {
            StoreError::NotFound(_) => missing(),
            error => error,
        })
    }

    /// Keeps an image from being deleted until the hold is dropped.
    ///
    /// # Errors
    /// The image is being deleted or is gone.
    pub fn hold(&self, digest: &Digest) -> Result<ImageHold, StoreError> {
        let missing = || StoreError::NotFound(ImageReference::Digest(digest.as_str().to_owned()));
        let lock = FileLock::acquire(&self.lock_path(digest.as_str()), Mode::Shared, Patience::Try)?;
        let lock = lock.ok_or_else(missing)?;
        if self.load(digest).is_err() {
            return Err(missing());
        }
        Ok(ImageHold { lock })
    }

    /// Deletes an image with all its names, or only the name given where others point at it too.
    ///
    /// `in_use` are the digests that machines stand on, those of stopped machines included.
    /// Returns whether the image itself went.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::NotFound`].
    pub fn delete(&self, reference: &ImageReference, in_use: &BTreeSet<Digest>) -> Result<bool, StoreError> {
        let image = self.find(reference)?;
        if let ImageReference::Named { name, tag } = reference
            && image.references.len() > 1
        {
            self.forget(REFERENCES, &reference_file(name, tag))?;
            return Ok(false);
        }
        if !self.remove(&image, in_use)? {
            return Err(StoreError::InUse(reference.clone()));
        }
        self.sweep_layers(&mut Pruned::default())?;
        Ok(true)
    }

    /// Removes what builds, imports and deletions left that died, in the store at `path`, if there is one; how many.
    ///
    /// # Errors
    /// The first thing that could not be removed.
    pub fn sweep(path: &Path) -> Result<usize, StoreError> {
        if !path.join(TEMPORARY).is_dir() {
            return Ok(0);
        }
        let mut pruned = Pruned::default();
        Self::open(path)?.staging().prune(&mut pruned)?;
        Ok(pruned.temporary)
    }

    /// Removes images that neither a name nor a machine needs, and what builds and deletions left that died.
    ///
    /// # Errors
    /// The first thing that could not be removed.
    pub fn prune(&self, in_use: &BTreeSet<Digest>) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned::default();
        self.staging().prune(&mut pruned)?;
        for digest in self.digests()? {
            let image = match self.load(&digest) {
                Ok(image) => image,
                Err(StoreError::Record { .. }) => self.damaged(&digest),
                Err(StoreError::NotFound(_)) => continue,
                Err(error) => return Err(error),
            };
            let bytes = self.disk_usage(&digest)?;
            if image.references.is_empty() && self.remove(&image, in_use)? {
                pruned.images.push(digest);
                pruned.bytes += bytes;
            }
        }
        self.sweep_layers(&mut pruned)?;
        self.sweep_downloads(&mut pruned)?;
        self.forget_what_is_gone()?;
        Ok(pruned)
    }

    /// Removes pointers to images that are gone, and the lock files that nobody holds.
    fn forget_what_is_gone(&self) -> Result<(), StoreError> {
        for folder in [REFERENCES, BUILDS] {
            for name in self.names(folder)? {
                let digest = self.pointer(folder, &name)?;
                if !digest.is_some_and(|digest| exists(self.directory.as_fd(), digest.as_str())) {
                    self.forget(folder, &name)?;
                }
            }
        }
        for name in self.names(LOCKS)? {
            let path = self.lock_path(&name);
            // Whoever waits for it notices that the file is gone and makes a new one.
            if let Some(lock) = FileLock::acquire(&path, Mode::Exclusive, Patience::Try)? {
                remove_file(&path)?;
                drop(lock);
            }
        }
        Ok(())
    }

    /// Bytes that an image takes on disk, as its files' blocks add up; hard links count once.
    ///
    /// # Errors
    /// A folder of it cannot be read.
    pub fn disk_usage(&self, digest: &Digest) -> Result<u64, StoreError> {
        Ok(staging::disk_usage(&self.path.join(digest.as_str()))?)
    }

    /// Points a name at an image; a name that pointed elsewhere is moved.
    ///
    /// # Errors
    /// [`StoreError::Host`] for the name `host`; the file cannot be written.
    pub fn name(&self, name: &str, tag: &str, digest: &Digest) -> Result<(), StoreError> {
        if name == "host" {
            return Err(StoreError::Host);
        }
        self.point(REFERENCES, &reference_file(name, tag), digest)
    }

    /// The image that a build with this key gave before, while it is still there.
    pub(crate) fn built(&self, key: &str) -> Result<Option<Image>, StoreError> {
        let Some(digest) = self.pointer(BUILDS, key)? else { return Ok(None) };
        match self.load(&digest) {
            Ok(image) => Ok(Some(image)),
            Err(StoreError::NotFound(_) | StoreError::Record { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn remember_build(&self, key: &str, digest: &Digest) -> Result<(), StoreError> {
        self.point(BUILDS, key, digest)
    }

    /// Held while one process builds what has this key; the others wait here and then find it.
    pub(crate) fn lock_build(&self, key: &str) -> Result<FileLock, StoreError> {
        let path = self.lock_path(&format!("build-{key}"));
        let lock = FileLock::acquire(&path, Mode::Exclusive, Patience::Wait)?;
        Ok(lock.expect("a patient lock is always given"))
    }

    pub(crate) fn staging(&self) -> Staging {
        Staging::new(self.path.join(TEMPORARY))
    }

    /// Moves a finished temporary folder (holding `root/`) in. One that is there already wins: it is the same.
    /// The hold keeps a prune away until the image has its name.
    pub(crate) fn admit(&self, staged: Staged, record: &ImageRecord) -> Result<(Image, ImageHold), StoreError> {
        let text = serde_json::to_vec_pretty(record).expect("a record is plain data");
        write_file(staged.directory(), RECORD, &text)?;
        // Shut out a deletion of an equal image between our look at it and its naming.
        let digest = record.digest.as_str();
        let lock = FileLock::acquire(&self.lock_path(digest), Mode::Shared, Patience::Wait)?;
        let lock = lock.expect("a patient lock is always given");
        self.move_in(staged, digest)?;
        Ok((self.load(&record.digest)?, ImageHold { lock }))
    }

    /// Moves a finished temporary folder to a place below the store. One that is there already wins: it is the same.
    fn move_in(&self, staged: Staged, place: &str) -> Result<(), StoreError> {
        match rustix::fs::renameat_with(rustix::fs::CWD, staged.path(), &self.directory, place, RenameFlags::NOREPLACE)
        {
            Ok(()) => Ok(staged.moved_away()?),
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(staged.discard()?),
            Err(errno) => Err(SystemError::new("move an image to", self.path.join(place).display(), errno).into()),
        }
    }

    fn remove(&self, image: &Image, in_use: &BTreeSet<Digest>) -> Result<bool, StoreError> {
        let digest = &image.record.digest;
        if in_use.contains(digest) {
            return Ok(false);
        }
        let path = self.lock_path(digest.as_str());
        let Some(lock) = FileLock::acquire(&path, Mode::Exclusive, Patience::Try)? else { return Ok(false) };
        for reference in &image.references {
            self.forget(REFERENCES, &reference.replace('/', "+"))?;
        }
        self.staging().remove(&self.path.join(digest.as_str()))?;
        remove_file(&path)?;
        drop(lock);
        Ok(true)
    }

    fn damaged(&self, digest: &Digest) -> Image {
        Image {
            record: ImageRecord::damaged(digest.clone()),
            references: Vec::new(),
            root: self.path.join(digest.as_str()),
            layers: Vec::new(),
        }
    }

    fn load(&self, digest: &Digest) -> Result<Image, StoreError> {
        let folder = self.path.join(digest.as_str());
        let path = folder.join(RECORD);
        let text = match read_file(&path) {
            Ok(text) => text,
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::NotFound(ImageReference::Digest(digest.as_str().to_owned())));
            }
            Err(error) => return Err(error.into()),
        };
        let record: ImageRecord =
            serde_json::from_slice(&text).map_err(|source| StoreError::Record { path, source })?;
        let mut references = Vec::new();
        for name in self.names(REFERENCES)? {
            if self.pointer(REFERENCES, &name)?.as_ref() == Some(digest) {
                references.push(name.replace('+', "/"));
            }
        }
        let layers = self.layers_of(&record, &folder);
        let root = layers.last().cloned().unwrap_or_else(|| folder.join("root"));
        Ok(Image { record, references, root, layers })
    }

    fn digests(&self) -> Result<Vec<Digest>, StoreError> {
        let names = names_in(self.directory.as_fd(), &self.path)?;
        Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn names(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let path = self.path.join(folder);
        let directory = open_directory(&path)?;
        Ok(names_in(directory.as_fd(), &path)?)
    }

    fn pointer(&self, folder: &str, name: &str) -> Result<Option<Digest>, StoreError> {
        match read_file(&self.path.join(folder).join(name)) {
            Ok(text) => Ok(std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok())),
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn point(&self, folder: &str, name: &str, digest: &Digest) -> Result<(), StoreError> {
        const DRAFT: &str = "draft";
        let staged = self.staging().create()?;
        write_file(staged.directory(), DRAFT, digest.as_str().as_bytes())?;
        let path = self.path.join(folder).join(name);
        rustix::fs::renameat(staged.directory(), DRAFT, rustix::fs::CWD, &path)
            .map_err(|errno| SystemError::new("write", path.display(), errno))?;
        Ok(staged.discard()?)
    }

    fn forget(&self, folder: &str, name: &str) -> Result<(), StoreError> {
        Ok(remove_file(&self.path.join(folder).join(name))?)
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.path.join(LOCKS).join(name)
    }
}

/// What the file of a name is called. No name has a `+`.
fn reference_file(name: &str, tag: &str) -> String {
    format!("{name}:{tag}").replace('/', "+")
}

pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd, SystemError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, FileMode::empty()).map_err(|errno| SystemError::new("open", path.display(), errno))
}

pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, SystemError> {
    std::fs::read(path).map_err(|source| SystemError::new("read", path.display(), source))
}

/// The names in a folder, sorted; those that are not UTF-8 are none of ours.
pub(crate) fn names_in(directory: std::os::fd::BorrowedFd<'_>, path: &Path) -> Result<Vec<String>, SystemError> {
    let failed = |errno: Errno| SystemError::new("list", path.display(), errno);
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory).map_err(failed)? {
        let name: CString = entry.map_err(failed)?.file_name().to_owned();
        if let Ok(name) = name.into_string()
            && !matches!(name.as_str(), "." | "..")
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Whether a file exists, links not followed.
pub(crate) fn exists(directory: std::os::fd::BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}
