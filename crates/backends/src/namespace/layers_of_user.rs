//! The host as an ordinary user's machine can have it.
//!
//! The metadata tree where the kernel takes it: a root that the user can really change. Else a root composed of one
//! overlay for each folder without mounts below it: in a user namespace the kernel refuses `/` itself as a layer.
//! What is composed keeps the files of others as "nobody": see `docs/machines.md` for the limits.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testyard_images::{
    HostOptions, HostTree, HostView, ImageConfig, MaskEffect, MaskEntry, TreeCache, TreeOptions, write_mask_layer,
};
use testyard_linux::{Error, identity, mount};
use testyard_machine::backend::{BackendError, MachinePlace};
use testyard_protocol::start::{ExposedStart, LayerStart, SubmountStart, TRY_ROOT};

use super::exposed::{Apart, apart};
use super::ids::{self, Sort};
use super::layers::Layers;

/// Top-level folders that every root has of its own.
const OWN: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

/// The best view of the host that this user can have here.
pub(super) fn find(
    place: &MachinePlace,
    options: &HostOptions,
    view: &HostView,
    masks: &Path,
    exposed: Vec<ExposedStart>,
) -> Result<Layers, BackendError> {
    let Apart { view: without, submounts } = apart(place, options, view, masks)?;
    match tree(place, &without) {
        Ok(tree) => Ok(Layers { submounts, ..of_tree(place, tree, view, exposed) }),
        Err(reason) => composed(place, view, masks, exposed, &reason),
    }
}

fn of_tree(place: &MachinePlace, tree: HostTree, view: &HostView, exposed: Vec<ExposedStart>) -> Layers {
    let one_owner = match ids::sort_of(&place.spec) {
        Sort::Granted => "every file of the host seems to belong to root",
        _ => "one user: every file of the host seems to belong to whom the command runs as",
    };
    let mut limits = vec![one_owner.to_owned()];
    if !tree.report.left_out.is_empty() {
        let names: Vec<String> = tree.report.left_out.iter().map(|path| path.display().to_string()).collect();
        limits.push(format!(
            "files of the host that are not seen, as they could not be redirected to: {}",
            names.join(", ")
        ));
    }
    Layers {
        layers: vec![LayerStart { path: tree.path, mapped: false, copied: false }],
        data: tree.data_layers,
        submounts: Vec::new(),
        exposed,
        hidden: view.hidden.clone(),
        limits,
        lease: Some(tree.lease.into_fd()),
        config: ImageConfig::default(),
    }
}

/// The metadata tree, tried on this kernel; or why there is none.
fn tree(place: &MachinePlace, view: &HostView) -> Result<HostTree, String> {
    let run = place.runtime.parent().unwrap_or(&place.runtime);
    let state = place.images.parent().unwrap_or(&place.folder);
    let tree = TreeCache::usual(run, state)
        .find_or_build(view, &TreeOptions::default())
        .map_err(|error| said(&error.problem()))?;
    let verdict = run.join("metadata-tree");
    let key = identity::boot_id().map(|boot| format!("{boot} {}", tree.key)).unwrap_or_default();
    let known = std::fs::read_to_string(&verdict).unwrap_or_default();
    match known.split_once('\n') {
        Some((of, "works")) if of == key => return Ok(tree),
        Some((of, reason)) if of == key => return Err(reason.to_owned()),
        _ => {}
    }
    // Another home of this user may have tried it, in the same user namespace.
    let works = tree.path.with_file_name("works");
    let within = std::fs::read_link("/proc/self/ns/user").unwrap_or_default().display().to_string();
    let tried = match std::fs::read_to_string(&works) {
        Ok(known) if known == within => Ok(()),
        _ => try_root(place, &tree),
    };
    let text = tried.as_ref().err().map_or("works", String::as_str);
    // Without the notes the next start tries again.
    let _ = std::fs::write(&verdict, format!("{key}\n{text}"));
    if tried.is_ok() {
        let _ = std::fs::write(&works, within);
    }
    tried.map(|()| tree)
}

fn said(problem: &testyard_model::Problem) -> String {
    [problem.message.clone()].into_iter().chain(problem.causes.iter().cloned()).collect::<Vec<_>>().join(": ")
}

/// Has the agent's program mount the tree in a user namespace and read a file through it.
fn try_root(place: &MachinePlace, tree: &HostTree) -> Result<(), String> {
    let paths = [&tree.path].into_iter().chain(&tree.data_layers);
    let output = Command::new(&place.agent)
        .arg(TRY_ROOT)
        .args(paths)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("the trial could not be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Err(if text.is_empty() { format!("the trial ended with {}", output.status) } else { text })
}

struct Composition<'a> {
    place: &'a MachinePlace,
    base: PathBuf,
    masks: PathBuf,
    entries: Vec<MaskEntry>,
    mounts: BTreeSet<PathBuf>,
    seen: BTreeSet<&'a Path>,
    submounts: Vec<SubmountStart>,
}

/// The composed root.
fn composed(
    place: &MachinePlace,
    view: &HostView,
    masks: &Path,
    exposed: Vec<ExposedStart>,
    reason: &str,
) -> Result<Layers, BackendError> {
    let failed =
        |source: Error| BackendError::Host { operation: "compose the root", machine: place.name.clone(), source };
    let table = mount::mount_table(None).map_err(failed)?;
    let mut composition = Composition {
        place,
        base: masks.join("root"),
        masks: masks.to_owned(),
        entries: view.masks().cloned().collect(),
        mounts: table.into_iter().map(|entry| entry.point).collect(),
        seen: view.layers.iter().map(|layer| layer.path.as_path()).collect(),
        submounts: Vec::new(),
    };
    composition.make(Path::new("/"))?;
    composition.split(Path::new("/"))?;
    let temporary = composition.base.join("tmp");
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o1777))
        .map_err(|error| composition.failed(&temporary, error))?;
    Ok(Layers {
        layers: vec![LayerStart { path: composition.base, mapped: false, copied: true }],
        data: Vec::new(),
        submounts: composition.submounts,
        exposed,
        hidden: view.hidden.clone(),
        limits: vec![format!(
            "composed root: files of other users belong to `nobody` and cannot be changed or removed, and renames \
             between top-level folders are copies (the metadata tree is not available: {reason})"
        )],
        lease: None,
        config: ImageConfig::default(),
    })
}

impl Composition<'_> {
    fn failed(&self, path: &Path, error: std::io::Error) -> BackendError {
        let source = Error::new("make", path.display(), error);
        BackendError::Host { operation: "compose the root", machine: self.place.name.clone(), source }
    }

    fn below_base(&self, path: &Path) -> PathBuf {
        self.base.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn make(&self, path: &Path) -> Result<(), BackendError> {
        let own = self.below_base(path);
        std::fs::create_dir(&own).map_err(|error| self.failed(&own, error))
    }

    /// What is in a folder that cannot be a layer itself.
    fn split(&mut self, folder: &Path) -> Result<(), BackendError> {
        // What this user cannot list, nobody in the machine can.
        let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
        for entry in entries.filter_map(Result::ok) {
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
            let effect = self.entries.iter().find(|mask| mask.path == path).map(|mask| mask.effect.clone());
            match effect {
                Some(MaskEffect::Hidden | MaskEffect::Replaced { .. }) => {}
                Some(MaskEffect::Empty { .. }) => self.make(&path)?,
                _ if kind.is_symlink() => self.link(&path)?,
                _ if kind.is_dir() => self.folder(&path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn link(&self, path: &Path) -> Result<(), BackendError> {
        let own = self.below_base(path);
        let target = std::fs::read_link(path).map_err(|error| self.failed(path, error))?;
        std::os::unix::fs::symlink(target, &own).map_err(|error| self.failed(&own, error))
    }

    fn folder(&mut self, path: &Path) -> Result<(), BackendError> {
        self.make(path)?;
        let unseen = self.mounts.contains(path) && !self.seen.contains(path);
        if OWN.iter().any(|own| path == Path::new(own)) || unseen || std::fs::read_dir(path).is_err() {
            return Ok(());
        }
        if self.mounts.iter().any(|point| point != path && point.starts_with(path)) {
            return self.split(path);
        }
        let mut name = OsString::from("layer-");
        name.push(self.submounts.len().to_string());
        let mask = self.masks.join(name);
        std::fs::create_dir(&mask).map_err(|error| self.failed(&mask, error))?;
        let written = write_mask_layer(&self.entries, path, &mask).map_err(|source| BackendError::Host {
            operation: "write the mask",
            machine: self.place.name.clone(),
            source,
        })?;
        if written.whole {
            return Ok(());
        }
        let mask = (written.entries > 0).then_some(written.path);
        self.submounts.push(SubmountStart { path: path.to_owned(), mask });
        Ok(())
    }
}
