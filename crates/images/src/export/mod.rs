//! Images for other tools: one archive that is both an OCI image layout and what `docker load` reads.
//!
//! A layer's archive is written from its tree. It is not the one that was imported, byte by byte, so its digest is another;
//! what comes out the second time is equal to the first.

mod tree;
mod writer;

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek as _, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use testyard_model::{ImageReference, Problem, ProblemKind};

use crate::oci::{architecture_name, digest_of};
use crate::store::{Digest, Image, ImageConfig, Staged, Store, StoreError, open_directory, random_name, write_file};
use testyard_linux::Error as SystemError;
use writer::{ArchiveWriter, Header};

/// Why an image was not exported. There is no half of an archive.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The store refused, or the operating system.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<SystemError> for ExportError {
    fn from(error: SystemError) -> Self {
        Self::Store(error.into())
    }
}

impl ExportError {
    /// As people and programs see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Store(StoreError::System(error)) if error.source.kind() == io::ErrorKind::PermissionDenied => {
                Problem::from_error(ProblemKind::Denied, self)
                    .hint("files that not even their owner may read are exported by root only")
            }
            Self::Store(error) => error.problem(),
            Self::Write { source, .. } => {
                let kind = match source.kind() {
                    io::ErrorKind::StorageFull => ProblemKind::Exhausted,
                    io::ErrorKind::PermissionDenied => ProblemKind::Denied,
                    io::ErrorKind::NotFound => ProblemKind::NotFound,
                    _ => ProblemKind::System,
                };
                Problem::from_error(kind, self)
            }
        }
    }
}

/// A layer that is written, waiting to be put into the archive.
struct Written {
    file: File,
    digest: Digest,
    size: u64,
}

impl Store {
    /// Writes an image to a file, which appears when it is whole. Returns its size.
    ///
    /// # Errors
    /// Any [`ExportError`].
    pub fn export_file(&self, reference: &ImageReference, path: &Path) -> Result<u64, ExportError> {
        let failed = |source| ExportError::Write { path: path.to_owned(), source };
        let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let draft = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), random_name()));
        let mut file = File::create_new(&draft).map_err(failed)?;
        let written = self.export(reference, &mut file).and_then(|()| {
            file.sync_data().and_then(|()| std::fs::rename(&draft, path)).map_err(failed)?;
            Ok(file.metadata().map_err(failed)?.len())
        });
        if written.is_err() {
            // Why there is no archive matters more.
            let _ = std::fs::remove_file(&draft);
        }
        written
    }

    /// Writes an image to anything.
    ///
    /// # Errors
    /// Any [`ExportError`].
    pub fn export(&self, reference: &ImageReference, target: impl Write) -> Result<(), ExportError> {
        let image = self.find(reference)?;
        let _hold = self.hold(&image.record.digest)?;
        let staged = self.staging().create()?;
        let written = self.export_layers(&image, &staged).and_then(|layers| {
            let config = self.config_of(&image.record.digest)?;
            let documents = Documents::of(&image, name_of(&image, reference).as_ref(), config, &layers);
            write_archive(&documents, layers, target)
        });
        staged.discard()?;
        written
    }

    fn export_layers(&self, image: &Image, staged: &Staged) -> Result<Vec<Written>, ExportError> {
        let mut layers = Vec::new();
        for (number, root) in image.layers.iter().rev().enumerate() {
            let name = format!("layer-{number}");
            write_file(staged.directory(), &name, b"")?;
            let path = staged.path().join(&name);
            let failed = |source| ExportError::Write { path: path.clone(), source };
            let file = File::options().read(true).write(true).open(&path).map_err(failed)?;
            let mut sum = Summing { target: BufWriter::with_capacity(256 << 10, file), hash: Sha256::new(), size: 0 };
            tree::write(&open_directory(root)?, image.record.ownership, &mut sum)?;
            let Summing { target, hash, size } = sum;
            let mut file = target.into_inner().map_err(|error| failed(error.into_error()))?;
            file.rewind().map_err(failed)?;
            layers.push(Written { file, digest: Digest::of(&hash.finalize().into()), size });
        }
        Ok(layers)
    }
}

/// The name that the archive tells: the one asked for, else the first.
fn name_of(image: &Image, reference: &ImageReference) -> Option<String> {
    match reference {
        ImageReference::Named { .. } => Some(reference.to_string()),
        _ => image.references.first().cloned(),
    }
}

/// The documents of an archive that tell what its layers are, for readers of either form.
struct Documents {
    index: String,
    saved: String,
    manifest: String,
    config: String,
}

impl Documents {
    fn of(image: &Image, name: Option<&String>, config: Option<Vec<u8>>, layers: &[Written]) -> Self {
        let config = configuration(image, config, layers).to_string();
        let config_digest = digest_of(config.as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config_digest, config.len() as u64),
            "layers": layers.iter().map(|one| descriptor("layer.v1.tar", &one.digest, one.size)).collect::<Vec<_>>(),
        })
        .to_string();
        let mut entry = descriptor("manifest.v1+json", &digest_of(manifest.as_bytes()), manifest.len() as u64);
        if let Some(name) = name {
            let tag = name.rsplit(':').next().unwrap_or(name);
            entry["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
        }
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        let tags: Vec<&String> =
            name.into_iter().filter(|name| !name.contains(|c: char| c.is_ascii_uppercase())).collect();
        let saved = json!([{
            "Config": path(&config_digest),
            "RepoTags": tags,
            "Layers": layers.iter().map(|one| path(&one.digest)).collect::<Vec<_>>(),
        }])
        .to_string();
        Self { index, saved, manifest, config }
    }
}

fn write_archive(documents: &Documents, layers: Vec<Written>, target: impl Write) -> Result<(), ExportError> {
    let mut archive = ArchiveWriter::new(BufWriter::with_capacity(256 << 10, target));
    // Some readers give what they unpack to whom the archive says, which an ordinary user may not do to others.
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut put = |name: &str, size: u64, content: &mut dyn Read| {
        let (kind, mode) = if name.ends_with('/') { (b'5', 0o755) } else { (b'0', 0o644) };
        let header = Header { path: name.as_bytes(), kind, mode, uid, gid, size, ..Header::default() };
        let failed = |source| ExportError::Write { path: "the archive".into(), source };
        archive.entry(&header, content).map_err(failed)
    };
    put("oci-layout", 30, &mut &br#"{"imageLayoutVersion":"1.0.0"}"#[..])?;
    for folder in ["blobs/", "blobs/sha256/"] {
        put(folder, 0, &mut io::empty())?;
    }
    let Documents { index, saved, manifest, config } = documents;
    let blob = |text: &str| path(&digest_of(text.as_bytes()));
    for (name, text) in
        [("index.json", index), ("manifest.json", saved), (&blob(manifest), manifest), (&blob(config), config)]
    {
        put(name, text.len() as u64, &mut text.as_bytes())?;
    }
    let mut there = std::collections::BTreeSet::new();
    for mut layer in layers {
        // Two empty layers are one blob.
        if there.insert(layer.digest.clone()) {
            put(&path(&layer.digest), layer.size, &mut layer.file)?;
        }
    }
    archive.finish().map_err(|source| ExportError::Write { path: "the archive".into(), source })
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.as_str())
}

fn descriptor(kind: &str, digest: &Digest, size: u64) -> Value {
    let media_type = format!("application/vnd.oci.image.{kind}");
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}

/// The image's configuration, its own where it came with one, with the layers that are written now.
fn configuration(image: &Image, config: Option<Vec<u8>>, layers: &[Written]) -> Value {
    let stored = config.and_then(|text| serde_json::from_slice::<Value>(&text).ok()).filter(Value::is_object);
    let mut config = stored.unwrap_or_else(|| {
        let defaults = image.record.config.clone().unwrap_or_default();
        let ImageConfig { env, user, working_directory, entrypoint, command } = defaults;
        json!({
            "architecture": architecture_name(image.record.arch.as_deref()),
            "os": "linux",
            "config": {"Env": env, "User": user, "WorkingDir": working_directory, "Entrypoint": entrypoint, "Cmd": command},
        })
    });
    let diffs: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
    config["rootfs"] = json!({"type": "layers", "diff_ids": diffs});
    // As many as there are layers, or readers are led astray.
    config["history"] = layers.iter().map(|_| json!({"created_by": "testyard image export"})).collect();
    config
}

/// Sums and counts what is written through it.
struct Summing<W> {
    target: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.target.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.flush()
    }
}
