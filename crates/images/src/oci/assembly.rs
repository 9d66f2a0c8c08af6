//! Putting an image together out of layers: each found in the store or unpacked into it, held until the image is there.

use std::io::Read;

use sha2::{Digest as _, Sha256};
use testyard_model::ByteSize;

use super::choose::{architecture_of_host, digest_of, parse};
use super::document::{Config, Defaults};
use super::error::BundleError;
use super::parents::{self, Tree};
use super::{Blob, IMPLIED_LIMIT};
use crate::import::{ImportError, ImportOptions, UNUSABLE, ownership_of_caller};
use crate::store::{Digest, HeldLayer, Image, ImageConfig, ImageRecord, Origin, Ownership, Staged, Store, StoreError};

/// The most that an image may say of its commands.
const CONFIG_LIMIT: usize = 256 << 10;

/// An image that is being put together.
#[derive(Debug)]
pub(crate) struct Assembly<'s> {
    store: &'s Store,
    options: ImportOptions,
    /// What is left of the bounds for further layers.
    left: ImportOptions,
    ownership: Ownership,
    text: Vec<u8>,
    config: Config,
    layers: Vec<HeldLayer>,
}

impl Store {
    /// Begins an image with its configuration.
    pub(crate) fn assembly(&self, config: Vec<u8>, options: &ImportOptions) -> Result<Assembly<'_>, ImportError> {
        if options.name.as_ref().is_some_and(|(name, _)| name == "host") {
            return Err(StoreError::Host.into());
        }
        let parsed: Config = parse("the image's configuration", &config)?;
        if !matches!(parsed.os.as_str(), "" | "linux") {
            let wanted = format!("linux/{}", architecture_of_host());
            let there = vec![format!("{}/{}", parsed.os, parsed.architecture)];
            return Err(BundleError::Platform { wanted, there }.into());
        }
        Ok(Assembly {
            store: self,
            options: options.clone(),
            left: options.clone(),
            ownership: ownership_of_caller(),
            text: config,
            config: parsed,
            layers: Vec::new(),
        })
    }
}

impl Assembly<'_> {
    /// The next layer, above those before. What holds it is opened only where it is not in the store.
    pub(crate) fn add<R: Read, E: From<ImportError> + From<StoreError>>(
        &mut self,
        diff: &Digest,
        blob: &Blob,
        open: impl FnOnce() -> Result<R, E>,
    ) -> Result<(), E> {
        let (store, options, left) = (self.store, &self.options, &self.left);
        let layer = store.find_or_make_layer(diff, self.ownership, || {
            Ok::<_, E>(store.import_layer(diff, blob, open()?, left).map_err(|error| error.of_whole(options))?)
        })?;
        // The bounds are the whole image's.
        self.left.limit = ByteSize(self.left.limit.0.saturating_sub(layer.record.bytes));
        self.left.entry_limit = self.left.entry_limit.saturating_sub(layer.record.entries);
        self.layers.push(layer);
        Ok(())
    }

    /// The image, named as it is to be.
    pub(crate) fn finish(self, origin: impl FnOnce(Digest) -> Origin) -> Result<Image, ImportError> {
        let mut warnings: Vec<String> = Vec::new();
        // What lies below a layer that hides all is no part of the image.
        let first = self.layers.iter().rposition(|layer| layer.record.opaque).unwrap_or(0);
        let layers = &self.layers[first..];
        for layer in layers {
            let new = layer.record.warnings.iter().filter(|warning| !warnings.contains(warning)).cloned();
            warnings.extend(new.collect::<Vec<_>>());
        }
        let minimal = !layers.iter().any(|layer| layer.record.usable);
        if minimal {
            warnings.push(UNUSABLE.to_owned());
        }
        let own = architecture_of_host();
        if !matches!(self.config.architecture.as_str(), "" | "unknown") && self.config.architecture != own {
            warnings.push(format!("it is for {}, and this host is {own}", self.config.architecture));
        }
        let config = defaults(self.config.config.clone().unwrap_or_default(), &mut warnings)?;
        let found = layers.iter().rev().find_map(|layer| layer.record.arch.clone());
        let diffs: Vec<Digest> = layers.iter().map(|layer| layer.record.diff.clone()).collect();
        let config_digest = digest_of(&self.text);
        let staged = self.store.staging().create()?;
        let restored = match self.restore(first, &staged) {
            Ok(restored) => restored,
            Err(error) => {
                // As with any import: why it failed matters more.
                let _ = staged.discard();
                return Err(error);
            }
        };
        let record = ImageRecord {
            version: ImageRecord::VERSION,
            digest: digest(&config_digest, &diffs, self.ownership),
            origin: origin(config_digest),
            ownership: self.ownership,
            minimal,
            arch: found.or_else(|| architecture(&self.config.architecture)),
            entries: layers.iter().map(|layer| layer.record.entries).sum(),
            bytes: layers.iter().map(|layer| layer.record.bytes).sum(),
            created_ms: self.options.created_ms,
            warnings,
            layers: diffs,
            restored,
            config: (config != ImageConfig::default()).then_some(config),
        };
        let (image, _hold) = self.store.admit_assembled(staged, &record, &self.text)?;
        self.store.named(image, &self.options)
    }
}

impl Assembly<'_> {
    /// Gives the folders that layers only imply their attributes; how many.
    fn restore(&self, first: usize, staged: &Staged) -> Result<u64, ImportError> {
        let mut trees: Vec<Tree> = Vec::new();
        for layer in self.layers[first..].iter().rev() {
            let (root, implied) = self.store.tree_of_layer(&layer.record)?;
            if trees.iter().all(|other| other.root != root) {
                trees.push(Tree { root, implied });
            }
        }
        let implied = trees.iter().rev().skip(1).map(|tree| tree.implied.len()).sum();
        if implied > IMPLIED_LIMIT {
            return Err(BundleError::TooManyImplied(implied).into());
        }
        Ok(parents::restore(&trees, staged, self.ownership)?)
    }
}

/// What an image of layers is called by: its configuration, its layers, and whose its files are.
fn digest(config: &Digest, layers: &[Digest], ownership: Ownership) -> Digest {
    let owner = match ownership {
        Ownership::Kept => "kept",
        Ownership::SingleOwner => "single",
    };
    let mut hash = Sha256::new();
    hash.update(format!("testyard-image 2 ids {owner}\nconfig {config}\n"));
    layers.iter().for_each(|layer| hash.update(format!("layer {layer}\n")));
    Digest::of(&hash.finalize().into())
}

/// What commands get, as far as it means anything here.
fn defaults(written: Defaults, warnings: &mut Vec<String>) -> Result<ImageConfig, BundleError> {
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty() && !text.contains('\0'));
    let (env, refused): (Vec<String>, Vec<String>) = written
        .env
        .unwrap_or_default()
        .into_iter()
        .partition(|pair| !pair.contains('\0') && pair.find('=').is_some_and(|at| at > 0));
    if !refused.is_empty() {
        warnings.push(format!("{} of its variables mean nothing and were left out", refused.len()));
    }
    let config = ImageConfig {
        env,
        user: filled(written.user),
        working_directory: filled(written.working_dir).filter(|path| path.starts_with('/')),
        entrypoint: written.entrypoint.unwrap_or_default(),
        command: written.cmd.unwrap_or_default(),
    };
    let size = serde_json::to_vec(&config).map_or(usize::MAX, |text| text.len());
    if size > CONFIG_LIMIT { Err(BundleError::ConfigTooLarge) } else { Ok(config) }
}

/// A processor as `uname -m` says it.
fn architecture(name: &str) -> Option<String> {
    let name = match name {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "386" => "i686",
        "arm" => "armv7l",
        "ppc64le" | "s390x" | "riscv64" => name,
        _ => return None,
    };
    Some(name.to_owned())
}
