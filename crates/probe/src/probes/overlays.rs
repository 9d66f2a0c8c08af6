//! Overlays: as root, as an ordinary user, over data-only layers, and over an idmapped mount of the root.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use testyard_linux::files::attributes;
use testyard_linux::mount::{self, Attributes, Layer, OverlaySpec};
use testyard_linux::namespace::new_user_namespace;
use testyard_linux::process::CloneFlags;

use crate::finding::{Done, Lacking, Outcome, Step};
use crate::inside::{Users, inside};
use crate::{host, provide, scratch};

pub(crate) fn root() -> Outcome {
    host::need_full_root()?;
    inside(CloneFlags::NEWNS, &Users::Same, || {
        let scratch = scratch::tmpfs()?;
        exercise(&scratch, false)?;
        change_root(&scratch, Layer::Path(Path::new("/")), false)?;
        Ok(Done::new("files and folders were changed, deleted and made anew in overlays, one of them over /"))
    })
}

pub(crate) fn user() -> Outcome {
    inside(CloneFlags::NEWNS, &Users::Single, || {
        let scratch = scratch::tmpfs()?;
        exercise(&scratch, true)?;
        Ok(Done::new("a whiteout and an opaque folder were made in a user namespace"))
    })
    .map_err(|lacking| lacking.provide_or(provide::user_namespaces()))
}

/// Makes three folders and an overlay over them, or over the layer that is given.
fn mounted(scratch: &Path, name: &str, lower: Layer<'_>, data: &[Layer<'_>], user: bool) -> Result<PathBuf, Lacking> {
    let base = scratch.join(name);
    for folder in ["upper", "work", "merged"] {
        std::fs::create_dir_all(base.join(folder)).step("making folders")?;
    }
    let (upper, work, merged) = (base.join("upper"), base.join("work"), base.join("merged"));
    let spec = OverlaySpec {
        lower: vec![lower],
        data_only: data.to_vec(),
        upper: Some((Layer::Path(&upper), Layer::Path(&work))),
        user_xattr: user,
        ..OverlaySpec::default()
    };
    let overlay = mount::overlay(&spec)?;
    mount::attach(overlay.as_fd(), merged.as_path()).step("attaching the overlay")?;
    Ok(merged)
}

/// Deletes, changes and makes anew, and looks at what the upper layer then holds.
fn exercise(scratch: &Path, user: bool) -> Result<(), Lacking> {
    let lower = scratch.join("lower");
    std::fs::create_dir_all(lower.join("old/inner")).step("making folders")?;
    std::fs::write(lower.join("gone"), "lower").step("writing a file")?;
    std::fs::write(lower.join("kept"), "lower").step("writing a file")?;
    let merged = mounted(scratch, "small", Layer::Path(&lower), &[], user)?;
    let upper = scratch.join("small/upper");

    std::fs::remove_file(merged.join("gone")).step("deleting a file of the lower layer")?;
    if merged.join("gone").exists() || !lower.join("gone").exists() {
        return Err(Lacking::new("a deleted file came back, or was deleted in the lower layer"));
    }
    let whiteout = std::fs::symlink_metadata(upper.join("gone")).step("looking for the whiteout")?;
    if !(whiteout.file_type().is_char_device() && whiteout.rdev() == 0) && whiteout.len() != 0 {
        return Err(Lacking::new("a deleted file left no whiteout in the upper layer"));
    }
    std::fs::write(merged.join("kept"), "upper").step("changing a file of the lower layer")?;
    if std::fs::read(lower.join("kept")).step("reading the lower layer")? != b"lower" {
        return Err(Lacking::new("a change went through to the lower layer"));
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a user's own way to delete is what is tried; nothing is mounted below"
    )]
    std::fs::remove_dir_all(merged.join("old")).step("deleting a folder of the lower layer")?;
    std::fs::create_dir(merged.join("old")).step("making a deleted folder anew")?;
    let empty = std::fs::read_dir(merged.join("old")).step("listing a folder made anew")?.next().is_none();
    let name = if user { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
    let folder = std::fs::File::open(upper.join("old")).step("opening the upper layer")?;
    if !empty || attributes::get(&folder, name)?.is_none() {
        return Err(Lacking::new("a folder made anew is not opaque: what was in it shows through"));
    }
    Ok(())
}

/// Deletes and appends to files of the host's root, seen through an overlay.
fn change_root(scratch: &Path, lower: Layer<'_>, user: bool) -> Result<(), Lacking> {
    let merged = mounted(scratch, "root", lower, &[], user)?;
    let file = merged.join("etc/passwd");
    let before = std::fs::read(&file).step("reading /etc/passwd through the overlay")?;
    std::fs::write(&file, [&before[..], b"probe:x:9:9::/:\n"].concat()).step("appending to /etc/passwd")?;
    std::fs::remove_file(&file).step("deleting /etc/passwd in the overlay")?;
    if file.exists() { Err(Lacking::new("a deleted file came back")) } else { Ok(()) }
}

/// Folders of the host whose content machines show.
const DATA: [&str; 3] = ["/usr", "/etc", "/var"];

pub(crate) fn data_only() -> Outcome {
    inside(CloneFlags::NEWNS, &Users::Single, || {
        // Found before the scratch tmpfs covers a folder that may be among them.
        let source = small_file().ok_or_else(|| Lacking::new("there is no small file below /usr to try it with"))?;
        let expected = std::fs::read(&source).step("reading a file below /usr")?;
        let refused: Vec<&str> =
            DATA.into_iter().filter(|folder| Path::new(folder).is_dir() && !is_usable(Path::new(folder))).collect();
        let scratch = scratch::tmpfs()?;
        let tree = scratch.join("tree");
        std::fs::create_dir_all(&tree).step("making a folder")?;
        let stub = std::fs::File::create(tree.join("name")).step("making a file")?;
        stub.set_len(expected.len() as u64).step("making a sparse file")?;
        let redirect = source.strip_prefix("/usr").unwrap_or(&source);
        let redirect = format!("/{}", redirect.display());
        let older = "(older kernels have no user attributes on tmpfs)";
        attributes::set(&stub, c"user.overlay.metacopy", b"").step(format!("marking a file as metadata {older}"))?;
        attributes::set(&stub, c"user.overlay.redirect", redirect.as_bytes()).step("redirecting a file")?;
        let merged =
            mounted(&scratch, "data", Layer::Path(&tree), &[Layer::Path(Path::new("/usr"))], true)?.join("name");
        if std::fs::read(&merged).step("reading through the redirect")? != expected {
            return Err(Lacking::new("a redirected file had another content"));
        }
        std::fs::write(&merged, "changed").step("writing to a redirected file")?;
        let done = Done::new("a file's metadata was ours and its data came from /usr");
        Ok(match refused.as_slice() {
            [] => done,
            folders => done.detail(format!("not usable as layers, because of mounts below: {}", folders.join(", "))),
        })
    })
    .map_err(|lacking| lacking.provide_or(provide::user_namespaces()))
}

fn small_file() -> Option<PathBuf> {
    ["/usr/lib/os-release", "/usr/bin/env", "/usr/bin/true", "/usr/bin/cat"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| std::fs::symlink_metadata(path).is_ok_and(|facts| facts.is_file() && facts.len() > 0))
}

/// Whether a folder of the host can be a layer in this user namespace: not where something is mounted below it.
fn is_usable(folder: &Path) -> bool {
    let empty = ["/media", "/srv", "/opt"].into_iter().map(Path::new).find(|path| path.is_dir() && *path != folder);
    let Some(other) = empty else { return true };
    let spec = OverlaySpec {
        lower: vec![Layer::Path(other)],
        data_only: vec![Layer::Path(folder)],
        user_xattr: true,
        ..OverlaySpec::default()
    };
    mount::overlay(&spec).is_ok()
}

/// The whole way that machines of root take: the root's owners shifted into a range, under an overlay that the
/// range's root mounts and changes.
pub(crate) fn idmapped() -> Outcome {
    host::need_full_root()?;
    let users = Users::range()?;
    let Users::Written(maps) = &users else { return Err(Lacking::new("this is not root")) };
    let namespace = new_user_namespace(&maps.uids, &maps.gids, false).step("making a user namespace")?;
    let tree = shifted(Path::new("/"), &namespace)?;
    let kind = root_file_system().unwrap_or_else(|| "its file system".to_owned());
    inside(CloneFlags::NEWNS, &users, || {
        let scratch = scratch::tmpfs()?;
        let point = scratch.join("shifted");
        std::fs::create_dir(&point).step("making a folder")?;
        mount::attach(tree.as_fd(), point.as_path()).step("attaching the idmapped root")?;
        let owner = std::fs::metadata(&point).step("looking at the idmapped root")?.uid();
        if owner != 0 {
            return Err(Lacking::new(format!("the idmapped root belongs to user {owner}, not to root inside")));
        }
        change_root(&scratch, Layer::Path(&point), true)?;
        Ok(Done::new(format!("/ ({kind}) was idmapped, and changed in an overlay by a root that is not the host's")))
    })
}

fn shifted(path: &Path, namespace: &OwnedFd) -> Result<OwnedFd, Lacking> {
    let tree = mount::clone_tree(path, false).step("copying the mount of /")?;
    let attributes = Attributes { idmap: Some(namespace.as_fd()), ..Attributes::default() };
    mount::set_attributes(tree.as_fd(), &attributes, false).map_err(|error| {
        let kind = root_file_system().unwrap_or_else(|| "its file system".to_owned());
        Lacking::doing(format_args!("idmapping / ({kind})"), &error)
    })?;
    Ok(tree)
}

fn root_file_system() -> Option<String> {
    let table = mount::mount_table(None).ok()?;
    table.into_iter().rev().find(|entry| entry.point == *"/").map(|entry| entry.fs_type)
}
