//! Import of a root file system archive: plain, gzip or zstd, from anybody.
//!
//! ```text
//! bytes ─► compression ─► entries ─► layout (decides, pure) ─► unpack (writes) ─► manifest ─► store
//!                                └─► bundle of layers: each unpacked likewise, see [`crate::oci`]
//! ```
//!
//! One bad entry refuses the whole archive, by the entry's name, and nothing of it stays.
//!
//! As root the ids of the archive are kept. An ordinary user owns every file (`single-owner`): keeping other
//! ids would need a subordinate range, which single-id machines could not show anyway.

mod architecture;
mod error;
mod layout;
pub(crate) mod measured;
mod notes;
mod unpack;
mod whiteout;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use testyard_model::{ByteSize, ImageReference};

pub use error::{ImportError, Refusal};
pub(crate) use layout::{Layout, Node, NodeKind};

use crate::archive::{self, ArchiveError, ArchiveReader, Compression, Entry};
use crate::manifest;
use crate::oci::{self, Bundle, Chosen};
use crate::store::{Digest, Image, ImageRecord, LayerRecord, Origin, Ownership, Staged, Store, StoreError};
use measured::{Bounded, Bounds, Measured};
use unpack::{TreeKind, Unpacked};

/// Bounds and names of an import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The name and tag to give it; it is then found as `name:tag`.
    pub name: Option<(String, String)>,
    /// The most bytes of all files together, holes included.
    pub limit: ByteSize,
    /// The most files, folders and links.
    pub entry_limit: u64,
    /// The most times its compressed size that an archive larger than 256 MiB may unpack to.
    pub ratio_limit: u64,
    /// Which image to take from what holds several, by name or digest.
    pub pick: Option<String>,
    /// Bytes of disk to leave free.
    pub reserve: ByteSize,
    /// Wait until the disk has it, so that it survives a power cut. Slow on a busy disk.
    pub flush: bool,
    /// The time to write into `image.json`, in milliseconds since 1970.
    pub created_ms: i64,
}

impl ImportOptions {
    /// What is more than any root file system of today needs.
    pub const DEFAULT_LIMIT: ByteSize = ByteSize::mebibytes(64 << 10);

    /// The defaults at this time.
    #[must_use]
    pub fn new(created_ms: i64) -> Self {
        Self {
            name: None,
            limit: Self::DEFAULT_LIMIT,
            entry_limit: 4_000_000,
            ratio_limit: 500,
            pick: None,
            reserve: ByteSize::mebibytes(256),
            flush: true,
            created_ms,
        }
    }

    /// The bounds of an uncompressed stream: contents, and the headers of empty entries.
    pub(crate) fn bounds(&self) -> Bounds {
        let limit = self.limit.0.saturating_add(self.limit.0 / 4).saturating_add(64 << 20);
        Bounds { limit, ratio: self.ratio_limit, harmless: 256 << 20 }
    }
}

impl Store {
    /// Imports what is in a file, or in the folder of an OCI image layout: a root file system's archive, or an image of
    /// layers.
    ///
    /// # Errors
    /// Any [`ImportError`]; then nothing of the archive stays.
    pub fn import_file(&self, path: &Path, options: &ImportOptions) -> Result<Image, ImportError> {
        let failed = |source| ImportError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        if kind.is_dir() {
            let bundle = Bundle::of_folder(file.into());
            if !bundle.is_there() {
                return Err(failed(std::io::ErrorKind::IsADirectory.into()));
            }
            return self.import_bundle(&bundle, name, options);
        }
        let again = if kind.is_file() { file.try_clone().ok() } else { None };
        self.import_stream(file, again, name, options)
    }

    /// Imports from any reader. `file` is its file name for the record.
    ///
    /// # Errors
    /// Any [`ImportError`]; then nothing of the archive stays.
    pub fn import(
        &self,
        source: impl Read,
        file: Option<String>,
        options: &ImportOptions,
    ) -> Result<Image, ImportError> {
        self.import_stream(source, None, file, options)
    }

    /// `again` is the same archive for reading at any place; without it, or where it is compressed, what an image of
    /// layers consists of is written down first.
    fn import_stream(
        &self,
        source: impl Read,
        again: Option<File>,
        file: Option<String>,
        options: &ImportOptions,
    ) -> Result<Image, ImportError> {
        let staged = self.staged(options)?;
        let mut measured = Measured::new(source);
        let count = measured.count();
        let done = archive::open(&mut measured).map_err(ImportError::from).and_then(|(compression, plain)| {
            let mut reader = ArchiveReader::new(Bounded::new(plain, options.bounds(), count));
            let begun = begin(&mut reader)?;
            if begun.last().is_some_and(|entry| oci::is_member(&entry.path)) {
                let again = again.filter(|_| compression == Compression::Plain);
                let bundle = Bundle::of_archive(reader, begun, again, &staged, options)?;
                return self.import_bundle(&bundle, file.clone(), options).map(Err);
            }
            let unpacked = unpack::unpack(reader, begun, &staged, TreeKind::Root, options)?;
            Ok(Ok((unpacked, Origin::Imported { compression, file })))
        });
        match done {
            Ok(Ok((unpacked, origin))) => self.keep_root(staged, &unpacked, origin, options),
            Ok(Err(image)) => {
                staged.discard()?;
                Ok(image)
            }
            Err(error) => Err(given_up(staged, error)),
        }
    }

    /// Imports a root file system that a program of ours writes.
    pub(crate) fn import_as(
        &self,
        source: impl Read,
        options: &ImportOptions,
        origin: impl FnOnce(Compression) -> Origin,
    ) -> Result<Image, ImportError> {
        let staged = self.staged(options)?;
        let unpacked = archive::open(source).map_err(ImportError::from).and_then(|(compression, source)| {
            let reader = ArchiveReader::new(source);
            Ok((compression, unpack::unpack(reader, Vec::new(), &staged, TreeKind::Root, options)?))
        });
        match unpacked {
            Ok((compression, unpacked)) => self.keep_root(staged, &unpacked, origin(compression), options),
            Err(error) => Err(given_up(staged, error)),
        }
    }

    fn staged(&self, options: &ImportOptions) -> Result<Staged, ImportError> {
        if options.name.as_ref().is_some_and(|(name, _)| name == "host") {
            return Err(StoreError::Host.into());
        }
        Ok(self.staging().create()?)
    }

    fn keep_root(
        &self,
        staged: Staged,
        unpacked: &Unpacked,
        origin: Origin,
        options: &ImportOptions,
    ) -> Result<Image, ImportError> {
        let record = record(unpacked, origin, options.created_ms);
        let (image, _hold) = self.admit(staged, &record)?;
        self.named(image, options)
    }

    /// The image with the name that it is to have.
    pub(crate) fn named(&self, image: Image, options: &ImportOptions) -> Result<Image, ImportError> {
        let Some((name, tag)) = &options.name else { return Ok(image) };
        self.name(name, tag, &image.record.digest)?;
        Ok(self.find(&ImageReference::Digest(image.record.digest.as_str().to_owned()))?)
    }

    /// The image that a bundle holds, layer by layer.
    fn import_bundle(
        &self,
        bundle: &Bundle,
        file: Option<String>,
        options: &ImportOptions,
    ) -> Result<Image, ImportError> {
        let Chosen { config, manifest, layers } = bundle.choose(options.pick.as_deref())?;
        let mut assembly = self.assembly(config, options)?;
        for (diff, layer) in layers {
            assembly.add(&diff, &layer, || bundle.open(&layer.name).map_err(ImportError::from))?;
        }
        assembly.finish(|config| Origin::Layered { file, manifest, config })
    }

    /// Unpacks a layer into the store. Its content is proven by its digests before it is seen there.
    pub(crate) fn import_layer(
        &self,
        diff: &Digest,
        blob: &oci::Blob,
        source: impl Read,
        options: &ImportOptions,
    ) -> Result<LayerRecord, ImportError> {
        let staged = self.staging().create()?;
        let wrapped = |error| ImportError::Layer { layer: blob.name.clone(), error: Box::new(error) };
        match unpack_layer(diff, blob, source, &staged, options) {
            Ok(unpacked) => {
                let record = layer_record(diff, &unpacked, options.created_ms);
                self.admit_layer(staged, &record, unpacked.layout.implied())?;
                Ok(record)
            }
            Err(error) => Err(given_up(staged, wrapped(error))),
        }
    }
}

/// Why it failed matters more than why its remains could not be removed, which prune repeats.
fn given_up(staged: Staged, error: ImportError) -> ImportError {
    let _ = staged.discard();
    error
}

/// The next of the entries that were read before, then of the archive. `last` is the path before it, for errors.
pub(crate) fn next_of<R: Read>(
    begun: &mut std::vec::IntoIter<Entry>,
    reader: &mut ArchiveReader<R>,
    last: &[u8],
) -> Result<Option<Entry>, ImportError> {
    match begun.next() {
        Some(entry) => Ok(Some(entry)),
        None => reader.next_entry().map_err(|error| ImportError::at(error, last)),
    }
}

/// The entries up to the first that tells what the archive is.
fn begin<R: Read>(reader: &mut ArchiveReader<R>) -> Result<Vec<Entry>, ImportError> {
    let mut begun = Vec::new();
    while let Some(entry) = reader.next_entry().map_err(|error| ImportError::at(error, b""))? {
        let own = matches!(entry.path.as_slice(), b"." | b"./");
        begun.push(entry);
        if !own || begun.len() > 8 {
            break;
        }
    }
    Ok(begun)
}

fn unpack_layer(
    diff: &Digest,
    blob: &oci::Blob,
    source: impl Read,
    staged: &Staged,
    options: &ImportOptions,
) -> Result<Unpacked, ImportError> {
    let mut packed = Measured::new(source);
    let count = packed.count();
    let read = |packed: &mut Measured<_>| {
        let (_, plain) = archive::open(packed)?;
        let mut plain = Measured::new(Bounded::new(plain, options.bounds(), count));
        let unpacked = unpack::unpack(ArchiveReader::new(&mut plain), Vec::new(), staged, TreeKind::Layer, options)?;
        let (found, _) = plain.finish().map_err(|source| ArchiveError::Read { offset: 0, source })?;
        Ok::<_, ImportError>((unpacked, found))
    };
    let unpacked = read(&mut packed);
    if let Err(error) = &unpacked
        && !matches!(error, ImportError::Archive(_))
    {
        return unpacked.map(|(unpacked, _)| unpacked);
    }
    // A blob that is not what its digest says is told as that, whatever its damage looked like.
    let (found, size) = packed.finish().map_err(|source| ArchiveError::Read { offset: 0, source })?;
    blob.check(&found, size)?;
    let (unpacked, found) = unpacked?;
    if found != *diff {
        return Err(oci::BundleError::Digest { what: "its content".to_owned(), expected: diff.clone(), found }.into());
    }
    Ok(unpacked)
}

fn layer_record(diff: &Digest, unpacked: &Unpacked, created_ms: i64) -> LayerRecord {
    LayerRecord {
        version: LayerRecord::VERSION,
        diff: diff.clone(),
        ownership: unpacked.ownership,
        opaque: unpacked.opaque,
        usable: is_usable(&unpacked.layout),
        arch: unpacked.arch.clone(),
        entries: unpacked.layout.len() as u64 - 1,
        bytes: unpacked.bytes,
        created_ms,
        warnings: unpacked.warnings.clone(),
    }
}

/// Whether anything in it looks like a root that programs run in.
fn is_usable(layout: &Layout) -> bool {
    [b"bin".as_slice(), b"usr", b"bin/sh"].into_iter().any(|path| layout.get(path).is_some())
}

/// What an image says of itself where nothing in it looks usable.
pub(crate) const UNUSABLE: &str =
    "there is no /bin/sh, /bin or /usr in it: only programs that bring all they need run there";

fn record(unpacked: &Unpacked, origin: Origin, created_ms: i64) -> ImageRecord {
    let layout = &unpacked.layout;
    let usable = is_usable(layout);
    let mut warnings = unpacked.warnings.clone();
    if !usable {
        warnings.push(UNUSABLE.to_owned());
    }
    ImageRecord {
        version: ImageRecord::VERSION,
        digest: manifest::digest(&manifest::text(layout, unpacked.ownership)),
        origin,
        ownership: unpacked.ownership,
        minimal: !usable,
        arch: unpacked.arch.clone(),
        entries: layout.len() as u64 - 1,
        bytes: unpacked.bytes,
        created_ms,
        warnings,
        layers: Vec::new(),
        restored: 0,
        config: None,
    }
}

/// Whether files can be given to anybody: only in the first user namespace is every id there.
pub(crate) fn ownership_of_caller() -> Ownership {
    if rustix::process::geteuid().is_root() && testyard_linux::namespace::knows_every_id() {
        Ownership::Kept
    } else {
        Ownership::SingleOwner
    }
}
