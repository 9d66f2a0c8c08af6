//! What an ordinary user exposes of its own, beside the metadata tree.
//!
//! A tree takes a minute on a busy host, and what is exposed by other names would need another one. Own folders are
//! therefore mounted over the tree, copy-on-write, each with its masks: one tree serves every list of them. What is not
//! simply a folder of this user's (a file, somebody else's folder, one with mounts below it) is still built in.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use testyard_images::{HostOptions, HostView, MaskEffect, MaskEntry, write_mask_layer};
use testyard_linux::{Error, mount};
use testyard_machine::backend::{BackendError, MachinePlace};
use testyard_model::{Access, Exposure};
use testyard_protocol::start::SubmountStart;

/// A view for the tree, and what is mounted over it.
pub(super) struct Apart {
    pub(super) view: HostView,
    pub(super) submounts: Vec<SubmountStart>,
}

/// Takes out of a view what can be mounted over it. `masks` is where its masks are written to.
pub(super) fn apart(
    place: &MachinePlace,
    options: &HostOptions,
    whole: &HostView,
    masks: &Path,
) -> Result<Apart, BackendError> {
    let failed = |source: Error| BackendError::Host { operation: "expose", machine: place.name.clone(), source };
    let table = mount::mount_table(None).map_err(failed)?;
    let has_mounts = |path: &Path| table.iter().any(|one| one.point != path && one.point.starts_with(path));
    let skipped = |path: &Path| whole.skipped.iter().any(|(point, _)| path.starts_with(point));
    let as_it_is = |one: &Exposure| one.access != Access::CopyOnWrite;
    let shown = |path: &Path| place.spec.expose.iter().any(|one| as_it_is(one) && one.path == path);
    let simple = |path: &Path| is_own_folder(path) && !has_mounts(path) && !skipped(path);
    // What is the host's own is mounted after all else.
    let read: Vec<PathBuf> = options.expose.iter().filter(|path| !shown(path)).cloned().collect();
    let (built_in, mounted) = separate(&read, simple);
    let view = HostView::load(&HostOptions { expose: built_in, ..options.clone() }).map_err(|error| error.problem())?;
    let entries: Vec<MaskEntry> = whole.masks().cloned().collect();
    let mut submounts = Vec::new();
    for path in mounted.into_iter().filter(|path| is_masked(&view, path)) {
        let target = masks.join(format!("exposed-{}", submounts.len()));
        std::fs::create_dir(&target).map_err(|error| failed(Error::new("make folder", target.display(), error)))?;
        let written = write_mask_layer(&entries, &path, &target).map_err(failed)?;
        if !written.whole {
            submounts.push(SubmountStart { path, mask: (written.entries > 0).then_some(written.path) });
        }
    }
    Ok(Apart { view, submounts })
}

/// What is built in, and what is mounted; neither lies below the other or its own kind.
fn separate(exposed: &[PathBuf], simple: impl Fn(&Path) -> bool) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mounted, built_in): (Vec<PathBuf>, Vec<PathBuf>) = exposed.iter().cloned().partition(|path| simple(path));
    let above = |path: &PathBuf, all: &[PathBuf]| all.iter().any(|other| other != path && path.starts_with(other));
    let built_in: Vec<PathBuf> = built_in.into_iter().filter(|path| !above(path, &mounted)).collect();
    let kept = mounted.iter().filter(|path| !above(path, &mounted) && !above(path, &built_in)).cloned().collect();
    (built_in, kept)
}

/// A folder, named without links, whose files are shown as they are: the one user inside is the one that it belongs to.
fn is_own_folder(path: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    std::fs::symlink_metadata(path).is_ok_and(|facts| facts.is_dir() && facts.uid() == own)
        && path.canonicalize().is_ok_and(|real| real == path)
        && std::fs::read_dir(path).is_ok()
}

fn is_masked(view: &HostView, path: &Path) -> bool {
    let hides = |mask: &MaskEntry| matches!(mask.effect, MaskEffect::Hidden | MaskEffect::Empty { .. });
    view.masks().any(|mask| hides(mask) && path.starts_with(&mask.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_folders_are_mounted_and_all_else_is_built_in() {
        let check = |exposed: &[&str], built_in: &[&str], mounted: &[&str]| {
            let paths = |texts: &[&str]| texts.iter().map(PathBuf::from).collect::<Vec<_>>();
            let simple = |path: &Path| path.starts_with("/home/ann") && path.extension().is_none();
            assert_eq!(separate(&paths(exposed), simple), (paths(built_in), paths(mounted)), "{exposed:?}");
        };
        check(&["/home/ann/data", "/root"], &["/root"], &["/home/ann/data"]);
        check(&["/home/ann/one", "/home/ann/two"], &[], &["/home/ann/one", "/home/ann/two"]);
        check(&["/home/ann", "/home/ann/.ssh/x.pub", "/home/ann/data"], &[], &["/home/ann"]);
        check(&["/home", "/home/ann"], &["/home"], &[]);
        check(&["/home/ann/a.txt", "/home/ann/data"], &["/home/ann/a.txt"], &["/home/ann/data"]);
        check(&[], &[], &[]);
    }
}
