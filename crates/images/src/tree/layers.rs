//! Which folders of the host become data-only layers. The rule is the kernel's: nothing may be mounted below one.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use testyard_linux::mount::MountEntry;

use crate::host::{HostView, MaskEffect};

/// The kernel takes 500 lower layers; room is kept for the tree, masks and generations.
pub(super) const LAYER_LIMIT: usize = 400;

/// What the builder does with a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The root of the data layer with this number.
    Layer(usize),
    /// Above a mount: made by itself, its subfolders have roles of their own.
    Split,
    /// The place of a mount that is not seen: an empty folder.
    Empty,
    /// In a mount that is not seen, on the way to a part of it that is: nothing else in it is made.
    Way,
}

/// The roles of all folders that are not simply inside a data layer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Roles {
    pub(super) layers: Vec<PathBuf>,
    roles: HashMap<PathBuf, Role>,
}

impl Roles {
    pub(super) fn get(&self, path: &Path) -> Option<Role> {
        self.roles.get(path).copied()
    }

    /// Walks the few folders above mounts, and `/`.
    pub(super) fn find(view: &HostView, table: &[MountEntry]) -> Self {
        let seen: BTreeSet<&Path> = view.layers.iter().map(|layer| layer.path.as_path()).collect();
        let mounts: BTreeSet<&Path> = table.iter().map(|mount| mount.point.as_path()).collect();
        let emptied: BTreeSet<&Path> = view
            .masks()
            .filter(|mask| matches!(mask.effect, MaskEffect::Empty { .. } | MaskEffect::Hidden))
            .map(|mask| mask.path.as_path())
            .collect();
        let mut found = Self::default();
        let mut waiting = vec![PathBuf::from("/")];
        let mut layers = Vec::new();
        while let Some(folder) = waiting.pop() {
            let mounts_below = mounts.iter().any(|point| *point != folder && point.starts_with(&folder));
            if folder != Path::new("/") && !mounts_below {
                layers.push(folder);
                continue;
            }
            found.roles.insert(folder.clone(), Role::Split);
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let path = entry.path();
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || emptied.contains(path.as_path()) {
                    continue;
                }
                if !mounts.contains(path.as_path()) || seen.contains(path.as_path()) {
                    waiting.push(path);
                    continue;
                }
                let parts: Vec<_> = seen.iter().filter(|part| part.starts_with(&path)).collect();
                for part in &parts {
                    waiting.push(part.to_path_buf());
                    let way = part.ancestors().skip(1).take_while(|above| above.starts_with(&path));
                    found.roles.extend(way.map(|above| (above.to_owned(), Role::Way)));
                }
                if parts.is_empty() {
                    found.roles.insert(path, Role::Empty);
                }
            }
        }
        // Each lookup tries the layers in order: the one with nearly all files comes first.
        layers.sort_by_key(|path| (weight(path), path.clone()));
        for (number, path) in layers.iter().enumerate() {
            found.roles.insert(path.clone(), Role::Layer(number));
        }
        found.layers = layers;
        found
    }
}

fn weight(path: &Path) -> usize {
    ["/usr", "/etc", "/opt", "/var"].iter().position(|other| path.starts_with(other)).unwrap_or(usize::MAX)
}
