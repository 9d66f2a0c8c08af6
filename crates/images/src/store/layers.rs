//! Layers that images share. One exists as long as an image has it, or somebody who makes an image holds it.
//!
//! A layer is known by the digest of its uncompressed archive and by whose its files are. An import holds its lock shared
//! from before it looks for the layer until its image is there; a sweep takes it alone, and only then looks at the
//! images.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::{
    CONFIG, DOWNLOADS, Digest, Image, ImageHold, ImageRecord, LAYERS, LayerRecord, Ownership, Pruned, Staged, Store,
    StoreError, names_in, open_directory, read_file, staging, write_file,
};
use crate::import::ownership_of_caller;
use testyard_linux::files::remove_file;
use testyard_linux::lock::{FileLock, Mode, Patience};

/// A layer that nobody removes while this lives.
#[derive(Debug)]
pub(crate) struct HeldLayer {
    pub(crate) record: LayerRecord,
    _lock: FileLock,
}

const RECORD: &str = "layer.json";
/// The folders that the layer's archive does not name, relative, each with a NUL behind it.
const IMPLIED: &str = "implied";

fn key(diff: &Digest, ownership: Ownership) -> String {
    let ids = match ownership {
        Ownership::Kept => "kept",
        Ownership::SingleOwner => "single",
    };
    format!("{}-{ids}", diff.as_str())
}

impl Store {
    /// The layer with this digest; `make` puts it into the store where it is not there.
    pub(crate) fn find_or_make_layer<E: From<StoreError>>(
        &self,
        diff: &Digest,
        ownership: Ownership,
        make: impl FnOnce() -> Result<LayerRecord, E>,
    ) -> Result<HeldLayer, E> {
        let key = key(diff, ownership);
        let lock = FileLock::acquire(&self.lock_path(&format!("layer-{key}")), Mode::Shared, Patience::Wait);
        let lock = lock.map_err(StoreError::from)?.expect("a patient lock is always given");
        let record = match self.load_layer(&key)? {
            Some(record) => record,
            None => make()?,
        };
        Ok(HeldLayer { record, _lock: lock })
    }

    /// Whether the layer with this digest is there at this moment, for whoever would import it.
    pub(crate) fn has_layer(&self, diff: &Digest) -> Result<bool, StoreError> {
        Ok(self.load_layer(&key(diff, ownership_of_caller()))?.is_some())
    }

    /// Moves a finished temporary folder (holding `root/`) in, for whoever holds the layer's lock.
    pub(crate) fn admit_layer<'p>(
        &self,
        staged: Staged,
        record: &LayerRecord,
        implied: impl Iterator<Item = &'p [u8]>,
    ) -> Result<(), StoreError> {
        let implied: Vec<u8> = implied.flat_map(|path| path.iter().copied().chain([0])).collect();
        write_file(staged.directory(), IMPLIED, &implied)?;
        let text = serde_json::to_vec_pretty(record).expect("a record is plain data");
        write_file(staged.directory(), RECORD, &text)?;
        self.move_in(staged, &format!("{LAYERS}/{}", key(&record.diff, record.ownership)))
    }

    /// The folder of a layer that is there, and the folders that its archive does not name.
    pub(crate) fn tree_of_layer(&self, record: &LayerRecord) -> Result<(PathBuf, Vec<Vec<u8>>), StoreError> {
        let folder = self.path.join(LAYERS).join(key(&record.diff, record.ownership));
        let implied = read_file(&folder.join(IMPLIED))?;
        let implied = implied.split_inclusive(|byte| *byte == 0).map(|path| path[..path.len() - 1].to_vec()).collect();
        Ok((folder.join("root"), implied))
    }

    /// Puts an image of layers into the store, for whoever holds them.
    pub(crate) fn admit_assembled(
        &self,
        staged: Staged,
        record: &ImageRecord,
        config: &[u8],
    ) -> Result<(Image, ImageHold), StoreError> {
        write_file(staged.directory(), CONFIG, config)?;
        self.admit(staged, record)
    }

    /// The configuration of an image of layers, as it came; none where it has none.
    pub(crate) fn config_of(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        match read_file(&self.path.join(digest.as_str()).join(CONFIG)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The trees that an image is mounted from, topmost first. A layer that it has several times is there once: its
    /// topmost place decides alone what it shows.
    pub(super) fn layers_of(&self, record: &ImageRecord, folder: &Path) -> Vec<PathBuf> {
        if record.layers.is_empty() {
            return vec![folder.join("root")];
        }
        let mut seen = BTreeSet::new();
        let topmost = record.layers.iter().rev().filter(|diff| seen.insert(diff.as_str()));
        let layers = topmost.map(|diff| self.path.join(LAYERS).join(key(diff, record.ownership)).join("root"));
        (record.restored > 0).then(|| folder.join("root")).into_iter().chain(layers).collect()
    }

    /// Removes the layers that no image has.
    pub(super) fn sweep_layers(&self, pruned: &mut Pruned) -> Result<(), StoreError> {
        let Some(needed) = self.needed_layers()? else { return Ok(()) };
        for name in self.names(LAYERS)?.into_iter().filter(|name| !needed.contains(name)) {
            let path = self.lock_path(&format!("layer-{name}"));
            let Some(lock) = FileLock::acquire(&path, Mode::Exclusive, Patience::Try)? else { continue };
            // An image with it may have come while the lock was not ours.
            if self.needed_layers()?.is_some_and(|needed| !needed.contains(&name)) {
                let folder = self.path.join(LAYERS).join(&name);
                pruned.bytes += staging::disk_usage(&folder)?;
                self.staging().remove(&folder)?;
                remove_file(&path)?;
                pruned.layers += 1;
            }
            drop(lock);
        }
        Ok(())
    }

    /// Removes the downloads that nobody continues.
    pub(super) fn sweep_downloads(&self, pruned: &mut Pruned) -> Result<(), StoreError> {
        let folder = self.path.join(DOWNLOADS);
        for name in names_in(open_directory(&folder)?.as_fd(), &folder)? {
            let lock = self.lock_path(&format!("download-{name}"));
            let Some(held) = FileLock::acquire(&lock, Mode::Exclusive, Patience::Try)? else { continue };
            let path = folder.join(&name);
            pruned.bytes += std::fs::symlink_metadata(&path).map_or(0, |facts| facts.len());
            remove_file(&path)?;
            remove_file(&lock)?;
            pruned.temporary += 1;
            drop(held);
        }
        Ok(())
    }

    /// Where a blob is downloaded to, and the lock of whoever does; others wait.
    pub(crate) fn download_of(&self, blob: &Digest) -> Result<(PathBuf, FileLock), StoreError> {
        let path = self.lock_path(&format!("download-{}", blob.as_str()));
        let lock = FileLock::acquire(&path, Mode::Exclusive, Patience::Wait)?;
        Ok((self.path.join(DOWNLOADS).join(blob.as_str()), lock.expect("a patient lock is always given")))
    }

    /// After the layer of a download is in the store.
    pub(crate) fn forget_download(&self, path: &Path) -> Result<(), StoreError> {
        Ok(remove_file(path)?)
    }

    /// The names of all layers that an image has; none while an image cannot be read, which may have any.
    fn needed_layers(&self) -> Result<Option<BTreeSet<String>>, StoreError> {
        let mut needed = BTreeSet::new();
        for digest in self.digests()? {
            match self.load(&digest) {
                Ok(image) => {
                    needed.extend(image.record.layers.iter().map(|diff| key(diff, image.record.ownership)));
                }
                Err(StoreError::NotFound(_)) => {}
                Err(StoreError::Record { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(needed))
    }

    fn load_layer(&self, key: &str) -> Result<Option<LayerRecord>, StoreError> {
        let path = self.path.join(LAYERS).join(key).join(RECORD);
        match read_file(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(record) => Ok(Some(record)),
                Err(source) => Err(StoreError::Record { path, source }),
            },
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
