//! The staging area: a small tree of mounts that holds everything roots are made from.
//!
//! ```text
//! /layers/N       the image's layers, read-only, ids mapped where the machine has a range
//! /data/N         data-only layers (an ordinary user's view of the host)
//! /submounts/N    local file systems below the host's root, with a mask
//! /exposed/N      paths shown as they are
//! /store          upper, work and generations of the machine
//! /devices/NAME   the device nodes that environments may have
//! /docker         the agent's own program, where the machine is given a `docker`
//! /host           an ordinary user's machine only: the host's own tree, to take working trees from
//! /proc, /sys     the host's, from which the kernel lets fresh ones be mounted
//! /scratch        a tmpfs of the machine's own: mount points, sources
//! ```
//!
//! Only the agent and forks of it that have not yet changed root are ever in it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use testyard_linux::files::{self, CopyOptions};
use testyard_linux::mount::{self, Attributes, TmpfsOptions};
use testyard_linux::{Error, Result};
use testyard_protocol::start::{IdRange, NamespaceStart};

/// The agent's own program, for machines that are given a `docker`.
pub(crate) const DOCKER: &str = "docker";

/// The table of hosts of the machine's network.
pub(crate) const HOSTS: &str = "hosts";

/// Device nodes that every environment has.
pub(crate) const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Builds the staging area over `start.staging` in the current mount namespace.
///
/// With `map`, layers are mapped into that user namespace. The area is the working folder afterwards.
pub(crate) fn build(start: &NamespaceStart, map: Option<BorrowedFd<'_>>) -> Result<()> {
    // In a user namespace nobody can use a mount that was made outside of it, so working trees are taken from here.
    let host = if is_of_user(start.ids) { Some(mount::clone_tree(Path::new("/"), true)?) } else { None };
    let area = mount::tmpfs(&TmpfsOptions { size: Some(16 << 20), inodes: Some(65_536), mode: 0o755 })?;
    mount::attach(area.as_fd(), &start.staging)?;
    let root = start.staging.as_path();
    for folder in ["layers", "data", "submounts", "exposed", "copies", "devices", "proc", "sys", "scratch"] {
        make_folder(&root.join(folder))?;
    }
    if let Some(host) = host {
        make_folder(&root.join("host"))?;
        mount::attach(host.as_fd(), &root.join("host"))?;
    }
    for (index, layer) in start.layers.iter().enumerate() {
        let idmap = map.filter(|_| layer.mapped);
        let path =
            if layer.copied { copied(&layer.path, &root.join(format!("copies/{index}")))? } else { layer.path.clone() };
        stage(&path, &root.join(format!("layers/{index}")), idmap, true)?;
    }
    for (index, layer) in start.data.iter().enumerate() {
        stage(layer, &root.join(format!("data/{index}")), None, true)?;
    }
    for (index, submount) in start.submounts.iter().enumerate() {
        let folder = root.join(format!("submounts/{index}"));
        make_folder(&folder)?;
        stage(&submount.path, &folder.join("root"), map, true)?;
        if let Some(mask) = &submount.mask {
            let mask = copied(mask, &root.join(format!("copies/sub{index}")))?;
            stage(&mask, &folder.join("mask"), map, true)?;
        }
    }
    for (index, one) in start.exposed.iter().enumerate() {
        stage(&one.path, &root.join(format!("exposed/{index}")), map, !one.writable)?;
    }
    if let Some(network) = &start.network {
        make_folder(&root.join("shares"))?;
        for (index, share) in network.shares.iter().enumerate() {
            stage(&share.from, &root.join(format!("shares/{index}")), map, false)?;
        }
        stage(&network.hosts, &root.join(HOSTS), map, true)?;
    }
    match &start.disk {
        Some(image) => mount_store(image, &root.join("store"), map)?,
        None => stage(&start.store, &root.join("store"), None, false)?,
    }
    if start.docker {
        let own = std::env::current_exe().map_err(|error| Error::new("find", "this program", error))?;
        stage(&own, &root.join(DOCKER), None, true)?;
    }
    for name in DEVICES {
        stage(&Path::new("/dev").join(name), &root.join("devices").join(name), None, false)?;
    }
    attach_clone(Path::new("/proc"), &root.join("proc"), map.is_none())?;
    // Never the host's cgroups below it. Without a mapped range the kernel gives only the whole tree; what is below is
    // covered where it is used.
    attach_clone(Path::new("/sys"), &root.join("sys"), is_of_user(start.ids))?;
    std::env::set_current_dir(root).map_err(|error| Error::new("enter", root.display(), error))
}

/// Whether the area is built on the machine's side of its user namespace: by an ordinary user, who maps nothing.
pub(crate) fn is_of_user(ids: IdRange) -> bool {
    matches!(ids, IdRange::Single | IdRange::Granted { .. })
}

/// Clones what is at `path` (not what is mounted below it) onto `target`, a new file or folder.
fn stage(path: &Path, target: &Path, idmap: Option<BorrowedFd<'_>>, read_only: bool) -> Result<()> {
    let clone = mount::clone_tree(path, false)?;
    if read_only || idmap.is_some() {
        let attributes = Attributes { read_only, idmap, ..Attributes::default() };
        mount::set_attributes(clone.as_fd(), &attributes, false)?;
    }
    make_like(path, target)?;
    mount::attach(clone.as_fd(), target)
}

/// Mounts the file system in a file as the store. Nobody else ever sees it, and the kernel lets go of the device with the
/// last of the machine's processes.
fn mount_store(image: &Path, target: &Path, idmap: Option<BorrowedFd<'_>>) -> Result<()> {
    let failed = |path: &Path, error: rustix::io::Errno| Error::new("open", path.display(), error);
    let file =
        rustix::fs::open(image, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| failed(image, error))?;
    let mounted = mount::disk_image(file.as_fd())?;
    {
        // By who may, before the ids are mapped; an open folder would forbid that.
        let root =
            rustix::fs::openat(&mounted, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| failed(image, error))?;
        for name in ["upper", "work", "generations", "submounts", "shared"] {
            match rustix::fs::mkdirat(&root, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(Error::new("make folder", name, error)),
            }
        }
    }
    if idmap.is_some() {
        mount::set_attributes(mounted.as_fd(), &Attributes { idmap, ..Attributes::default() }, false)?;
    }
    make_folder(target)?;
    mount::attach(mounted.as_fd(), target)
}

/// Copies a small tree to the staging area's own file system.
fn copied(path: &Path, target: &Path) -> Result<PathBuf> {
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::new("open", path.display(), error))
    };
    make_folder(target)?;
    let options = CopyOptions { owners: true, attributes: true, ..CopyOptions::default() };
    files::copy_tree(open(path)?.as_fd(), open(target)?.as_fd(), options)?;
    Ok(target.to_owned())
}

fn attach_clone(path: &Path, target: &Path, recursive: bool) -> Result<()> {
    let clone: OwnedFd = mount::clone_tree(path, recursive)?;
    mount::attach(clone.as_fd(), target)
}

/// A file or folder to mount `path` on.
fn make_like(path: &Path, target: &Path) -> Result<()> {
    let kind = std::fs::metadata(path).map_err(|error| Error::new("look at", path.display(), error))?;
    if kind.is_dir() {
        return make_folder(target);
    }
    std::fs::write(target, b"").map_err(|error| Error::new("make", target.display(), error))
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir(path).map_err(|error| Error::new("make folder", path.display(), error))
}

/// Paths of the staged layers, as they are called once the staging area is the root.
pub(crate) fn numbered(folder: &str, count: usize) -> Vec<PathBuf> {
    (0..count).map(|index| PathBuf::from(format!("/{folder}/{index}"))).collect()
}
