//! The image `host`: a live view of this host's own root. Never stored, never hashed.
//!
//! What a machine over it stands on: the root and those local mounts below it that count
//! ([`HostView::layers`]), each with what must not be seen in it ([`HostLayer::masks`]). A backend either puts
//! a written mask layer ([`write_mask_layer`]) above each of them, or, for ordinary users, builds a
//! metadata tree in which masked things simply do not exist ([`crate::tree`]).

mod facts;
mod mask;
mod mask_layer;
mod mounts;

use std::path::{Component, Path, PathBuf};

use sha2::{Digest as _, Sha256};
use testyard_linux::Error as SystemError;
use testyard_linux::mount::{MountEntry, mount_table};
use testyard_model::{Problem, ProblemKind};

pub use facts::{gather_mask_facts, secrets_of};
pub use mask::{FolderFacts, MaskEffect, MaskEntry, MaskFacts, mask_plan};
pub use mask_layer::{MaskLayer, write_mask_layer};

/// Why the host cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The operating system refused.
    #[error(transparent)]
    System(#[from] SystemError),
    /// A path that is to be exposed or masked is relative or has a `..`.
    #[error("{} is not an absolute path without `..`", .0.display())]
    Path(PathBuf),
    /// What belongs to the kernel is made anew in each machine.
    #[error("{} cannot be exposed: /proc, /sys and /dev are the machine's own", .0.display())]
    Kernel(PathBuf),
}

impl HostError {
    /// As people and programs see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::System(error) => crate::problem::of_system(error),
            Self::Path(_) => Problem::from_error(ProblemKind::Usage, self)
                .hint("write the whole path, for example: --expose /home/me/data"),
            Self::Kernel(_) => Problem::from_error(ProblemKind::Usage, self),
        }
    }
}

/// What a machine's owner and Testyard itself say about the view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// Masked or skipped paths to show after all.
    pub expose: Vec<PathBuf>,
    /// Where something will be mounted, the working tree above all: those folders exist, empty.
    pub mount_points: Vec<PathBuf>,
    /// Testyard's own state and runtime folders: always hidden.
    pub own: Vec<PathBuf>,
    /// Sockets of agents (`SSH_AUTH_SOCK` and its kind): hidden wherever they are.
    pub sockets: Vec<PathBuf>,
}

/// One file system of the host that a machine sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLayer {
    /// Where it is on the host, and in the machine. The first is always `/`.
    pub path: PathBuf,
    /// The kind of file system: `ext4`, `tmpfs`.
    pub fs_type: String,
    /// What must not be seen in it; absolute paths, sorted, parents first.
    pub masks: Vec<MaskEntry>,
}

/// The host as an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostView {
    /// The root, then what is mounted below it, sorted by path.
    pub layers: Vec<HostLayer>,
    /// Names this boot and these mounts; 64 hexadecimal digits. Not of the contents: they live.
    pub identity: String,
    /// Secrets and Testyard's own folders: what nobody exposed by name, wherever it lies. Absolute.
    pub hidden: Vec<PathBuf>,
    /// Mount points of which nothing is seen, with the kind of file system each has, for `info`.
    pub skipped: Vec<(PathBuf, String)>,
}

impl HostView {
    /// Looks at this host's mounts, users and secrets.
    ///
    /// # Errors
    /// A path in the options is not absolute, or the mount table cannot be read.
    pub fn load(options: &HostOptions) -> Result<Self, HostError> {
        check(options)?;
        let table = mount_table(None)?;
        let facts = gather_mask_facts(options, &table)?;
        let boot = testyard_linux::identity::boot_id()?;
        Ok(Self::plan(&table, options, &facts, &boot))
    }

    /// The same from given facts. Pure.
    #[must_use]
    pub fn plan(table: &[MountEntry], options: &HostOptions, facts: &MaskFacts, boot: &str) -> Self {
        let plan = mask_plan(facts);
        let chosen = mounts::choose(table, options, &plan);
        let mut identity = Sha256::new();
        identity.update(boot);
        for mount in &chosen.layers {
            let (major, minor) = mount.major_minor;
            identity.update(format!("\0{}\0{major}:{minor}\0{}", mount.point.display(), mount.root.display()));
        }
        let mut layers: Vec<_> = chosen
            .layers
            .iter()
            .map(|mount| HostLayer { path: mount.point.clone(), fs_type: mount.fs_type.clone(), masks: Vec::new() })
            .collect();
        for entry in plan {
            // Layers are sorted, so the last that fits is the deepest.
            if let Some(layer) = layers.iter_mut().rev().find(|layer| entry.path.starts_with(&layer.path)) {
                layer.masks.push(entry);
            }
        }
        // An exposed part of a mount that is not seen needs a place to be mounted on.
        for part in &chosen.parts {
            let above = layers.iter_mut().rev().find(|layer| layer.path != *part && part.starts_with(&layer.path));
            if let Some(above) = above {
                above.masks.push(MaskEntry { path: part.clone(), effect: MaskEffect::MountPoint });
                above.masks.sort_by(|one, other| one.path.cmp(&other.path));
            }
        }
        Self {
            layers,
            identity: crate::store::hexadecimal(&identity.finalize()),
            hidden: mask::hidden(facts),
            skipped: chosen.skipped,
        }
    }

    /// Every mask of every layer.
    pub fn masks(&self) -> impl Iterator<Item = &MaskEntry> {
        self.layers.iter().flat_map(|layer| &layer.masks)
    }
}

fn check(options: &HostOptions) -> Result<(), HostError> {
    for path in options.expose.iter().chain(&options.mount_points) {
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !path.is_absolute() || !plain {
            return Err(HostError::Path(path.clone()));
        }
    }
    let kernel = |path: &&PathBuf| mounts::OF_THE_KERNEL.iter().any(|other| path.starts_with(other));
    match options.expose.iter().find(kernel) {
        Some(path) => Err(HostError::Kernel(path.clone())),
        None => Ok(()),
    }
}

/// Whether one path is the other or above it.
fn covers(upper: &Path, path: &Path) -> bool {
    path.starts_with(upper)
}
