//! Putting a root together out of the staging area. Runs in a forked child, never in the agent itself.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use testyard_linux::cgroup::{Hierarchy, V1Mount};
use testyard_linux::files::{self, CopyOptions};
use testyard_linux::mount::{self, Attributes, Layer, OverlaySpec, RootMount, TmpfsOptions};
use testyard_linux::{Error, Result};

use crate::network;
use crate::place::{Roots, Submount};
use crate::start::staging::DEVICES;

/// Where an environment's root is put together, in the staging area.
const BASE: &str = "/scratch/environment";

/// Files that may be made in an environment's `/dev`, shared memory and semaphores among them.
const DEVICE_FILES: u64 = 65_536;

/// A root that is mounted but has no system file systems yet.
pub(crate) struct Root<'a> {
    /// Where it is.
    pub(crate) target: &'a Path,
    /// Whether the caller is in a network namespace of its own, and may have a fresh `/sys`.
    pub(crate) own_network: bool,
    /// The staged `/sys` for those who are not.
    pub(crate) outer_sys: &'a Path,
    /// What may be written to `/dev/shm`.
    pub(crate) shared: SharedMemory,
}

/// How much `/dev/shm` holds; what is none is the kernel's own limit.
#[derive(Clone, Copy)]
pub(crate) struct SharedMemory {
    pub(crate) bytes: Option<u64>,
    pub(crate) files: Option<u64>,
}

/// What an environment's root is made from.
pub(crate) struct EnvironmentRoot<'a> {
    /// Layers above those of the machine: its generations.
    pub(crate) generations: &'a [PathBuf],
    /// The folder of a sealed layer above them.
    pub(crate) sealed: Option<PathBuf>,
    /// The file system of another environment's changes, with which this one begins.
    pub(crate) forked: Option<BorrowedFd<'a>>,
    /// The machine's layers.
    pub(crate) roots: &'a Roots,
    /// Bytes that may be written.
    pub(crate) disk: u64,
    /// Whether it has a network namespace of its own.
    pub(crate) own_network: bool,
    /// The control groups that it shall see as its own.
    pub(crate) cgroups: Option<&'a Hierarchy>,
    /// Whether it sees the machine's shared folders as they are.
    pub(crate) shared: bool,
}

/// Mounts an environment's root and makes it `/`. The file system of its changes, which nothing leads to any more.
pub(crate) fn mount_environment(spec: &EnvironmentRoot<'_>) -> Result<OwnedFd> {
    let base = Path::new(BASE);
    let upper = mount::tmpfs(&TmpfsOptions { size: Some(spec.disk), inodes: None, mode: 0o755 })?;
    mount::attach(upper.as_fd(), base)?;
    let kept = open_folder(base)?;
    let sealed = |name: &str| spec.sealed.as_ref().map(|folder| folder.join(name)).filter(|folder| folder.is_dir());
    let own = sealed("root");
    let lower = own.iter().chain(spec.generations).chain(&spec.roots.layers).map(PathBuf::as_path).collect::<Vec<_>>();
    let overlay = overlay_in(base, "root", &lower, &spec.roots.data, spec.forked)?;
    let mut submounts = Vec::new();
    for (index, submount) in spec.roots.submounts.iter().enumerate() {
        let name = submount_name(index);
        let own = sealed(&name);
        let layers = own.iter().chain(&submount.layers).map(PathBuf::as_path).collect::<Vec<_>>();
        submounts.push((&submount.target, overlay_in(base, &name, &layers, &[], spec.forked)?));
    }
    let apart = if spec.shared { &[][..] } else { &spec.roots.shared };
    for (index, (staged, target)) in apart.iter().enumerate() {
        submounts.push((target, overlay_in(base, &format!("shared{index}"), &[staged], &[], spec.forked)?));
    }
    mount::attach(overlay.as_fd(), base)?;
    for (target, submount) in &submounts {
        let at = within(base, target);
        make_folders(&at)?;
        mount::attach(submount.as_fd(), &at)?;
    }
    for (staged, target) in apart {
        // An overlay's root is its upper folder, which was made without looking at the one below.
        let at = within(base, target);
        std::fs::metadata(staged)
            .and_then(|facts| std::fs::set_permissions(&at, facts.permissions()))
            .map_err(|error| Error::new("set the mode of", at.display(), error))?;
    }
    let shared = SharedMemory { bytes: Some(spec.disk), files: Some(DEVICE_FILES) };
    let root = Root { target: base, own_network: spec.own_network, outer_sys: Path::new("/sys"), shared };
    mount_system(&root)?;
    if let Some(hierarchy) = spec.cgroups {
        mount_cgroups(base, hierarchy);
    }
    if spec.shared {
        mount_exposed(base, &spec.roots.shared)?;
    }
    mount_exposed(base, &spec.roots.exposed)?;
    if let Some(names) = &spec.roots.names {
        network::show_hosts(&network::etc_of(base)?, &names.hosts)?;
    }
    mount::pivot_into(base, RootMount::Mounted)?;
    Ok(kept)
}

/// What the changes of the `index`th file system below the root are called.
pub(crate) fn submount_name(index: usize) -> String {
    format!("sub{index}")
}

/// The layers below an environment's root, merged and read-only; not attached anywhere. For looking at what was changed.
pub(crate) fn mount_below(layers: &[&Path], data: &[PathBuf]) -> Result<OwnedFd> {
    // An overlay without an upper layer needs two others.
    let nothing = Path::new("/scratch/empty");
    make_folders(nothing)?;
    mount::overlay(&OverlaySpec {
        lower: layers.iter().copied().chain([nothing]).map(Layer::Path).collect(),
        data_only: data.iter().map(|path| Layer::Path(path)).collect(),
        upper: None,
        user_xattr: true,
        read_only: true,
        ..OverlaySpec::default()
    })
}

/// Opens a folder for what comes later.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Error::new("open", path.display(), error))
}

/// Fills the empty folder `target` with what `name` holds in another environment's changes.
pub(crate) fn begin_with(forked: Option<BorrowedFd<'_>>, name: &str, target: &Path) -> Result<()> {
    let Some(forked) = forked else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(forked, name, flags, Mode::empty())
        .map_err(|error| Error::new("open the changes of", name, error))?;
    files::copy_tree(from.as_fd(), open_folder(target)?.as_fd(), CopyOptions::default()).map(drop)
}

/// An overlay whose upper and work folders are made below `base`; not attached yet.
fn overlay_in(
    base: &Path,
    name: &str,
    lower: &[&Path],
    data: &[PathBuf],
    forked: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd> {
    let upper = base.join(name);
    let work = base.join(format!("{name}.work"));
    make_folder(&upper, 0o755)?;
    make_folder(&work, 0o700)?;
    begin_with(forked, name, &upper)?;
    mount::overlay(&OverlaySpec {
        lower: lower.iter().map(|path| Layer::Path(path)).collect(),
        data_only: data.iter().map(|path| Layer::Path(path)).collect(),
        upper: Some((Layer::Path(&upper), Layer::Path(&work))),
        user_xattr: true,
        volatile: true,
        ..OverlaySpec::default()
    })
}

/// Mounts a file system of the host below a root, copy-on-write, its changes kept in `own`.
pub(crate) fn mount_submount(target: &Path, submount: &Submount, own: &Path) -> Result<()> {
    std::fs::create_dir_all(own).map_err(|error| Error::new("make folder", own.display(), error))?;
    for name in ["root", "root.work"] {
        let path = own.join(name);
        if !path.exists() {
            make_folder(&path, 0o755)?;
        }
    }
    let overlay = mount::overlay(&OverlaySpec {
        lower: submount.layers.iter().map(|path| Layer::Path(path)).collect(),
        upper: Some((Layer::Path(&own.join("root")), Layer::Path(&own.join("root.work")))),
        user_xattr: true,
        ..OverlaySpec::default()
    })?;
    let at = within(target, &submount.target);
    make_folders(&at)?;
    mount::attach(overlay.as_fd(), &at)
}

/// Mounts `/proc`, `/dev` and `/sys`.
pub(crate) fn mount_system(root: &Root<'_>) -> Result<()> {
    let proc = root.target.join("proc");
    make_folders(&proc)?;
    mount::attach(mount::proc()?.as_fd(), &proc)?;
    let sys = root.target.join("sys");
    make_folders(&sys)?;
    let system = if root.own_network {
        mount::sysfs(true)?
    } else {
        let system = mount::clone_tree(root.outer_sys, true)?;
        mount::set_attributes(system.as_fd(), &Attributes { read_only: true, ..Attributes::default() }, true)?;
        system
    };
    mount::attach(system.as_fd(), &sys)?;
    mount_devices(&root.target.join("dev"), root.shared)
}

/// `/dev/shm` is a folder of the same file system, whose limit is therefore both's: one mount less in every environment.
fn mount_devices(target: &Path, shared: SharedMemory) -> Result<()> {
    make_folders(target)?;
    // Mode 755: in a sticky folder that all may write, opening a node of another id with O_CREAT (every shell's
    // `> /dev/null`) is refused.
    let devices = mount::tmpfs(&TmpfsOptions { size: shared.bytes, inodes: shared.files, mode: 0o755 })?;
    mount::attach(devices.as_fd(), target)?;
    for name in DEVICES {
        let node = target.join(name);
        rustix::fs::mknodat(CWD, &node, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
            .map_err(|error| Error::new("make", node.display(), error))?;
        mount::bind(&Path::new("/devices").join(name), &node)?;
    }
    for (name, points_to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(points_to, target.join(name)).map_err(|error| Error::new("link", name, error))?;
    }
    make_folder(&target.join("pts"), 0o755)?;
    mount::attach(mount::devpts()?.as_fd(), &target.join("pts"))?;
    let shared = target.join("shm");
    make_folder(&shared, 0o777)?;
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777))
        .map_err(|error| Error::new("set the mode of", shared.display(), error))
}

/// Shows paths of the host as they are.
pub(crate) fn mount_exposed(target: &Path, exposed: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (staged, path) in exposed {
        let at = within(target, path);
        let kind = std::fs::metadata(staged).map_err(|error| Error::new("look at", path.display(), error))?;
        if kind.is_dir() {
            make_folders(&at)?;
        } else {
            make_folders(at.parent().unwrap_or(target))?;
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&at)
                .map_err(|error| Error::new("make", at.display(), error))?;
        }
        let clone = mount::clone_tree(staged, false)?;
        mount::attach(clone.as_fd(), &at)?;
    }
    Ok(())
}

/// Gives a machine or an environment its own view of its cgroups, where the kernel lets it: what runs containers inside needs it.
pub(crate) fn mount_cgroups(target: &Path, hierarchy: &Hierarchy) {
    let folder = target.join("sys/fs/cgroup");
    let mounted = || -> Result<()> {
        match hierarchy {
            Hierarchy::V2(_) => mount::attach(mount::cgroup_v2()?.as_fd(), folder.as_path()),
            Hierarchy::V1(mounts) => {
                let base = mount::tmpfs(&TmpfsOptions { size: Some(1 << 16), inodes: Some(64), mode: 0o755 })?;
                mount::attach(base.as_fd(), folder.as_path())?;
                for one in mounts {
                    let names: Vec<&str> = one.names.iter().map(String::as_str).collect();
                    let at = folder.join(names.join(","));
                    make_folder(&at, 0o755)?;
                    // One that the kernel refuses leaves an empty folder, as on hosts without it.
                    if let Ok(hierarchy) = mount::cgroup_v1(&names) {
                        mount::attach(hierarchy.as_fd(), at.as_path())?;
                    }
                }
                mount_other_cgroups(&folder, mounts)
            }
            Hierarchy::None => Ok(()),
        }
    };
    // Only programs that manage cgroups miss it, and they say so themselves.
    let _ = mounted();
}

/// The hierarchies of version 1 in which no group is ours: container runtimes want to find them (`devices` above all), and
/// do without groups in what they cannot write.
fn mount_other_cgroups(folder: &Path, ours: &[V1Mount]) -> Result<()> {
    for names in Hierarchy::own_v1_names()? {
        if ours.iter().any(|one| one.names == names) {
            continue;
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let Ok(hierarchy) = mount::cgroup_v1(&names) else { continue };
        let at = folder.join(names.join(",").trim_start_matches("name="));
        make_folder(&at, 0o755)?;
        mount::set_attributes(hierarchy.as_fd(), &Attributes { read_only: true, ..Attributes::default() }, false)?;
        mount::attach(hierarchy.as_fd(), at.as_path())?;
    }
    Ok(())
}

/// `path`, an absolute one, below `root`.
pub(crate) fn within(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Makes a folder and those above it, mode 755.
pub(crate) fn make_folders(path: &Path) -> Result<()> {
    if path.as_os_str() == OsStr::new("") || path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| Error::new("make folder", path.display(), error))
}

fn make_folder(path: &Path, mode: u32) -> Result<()> {
    std::fs::DirBuilder::new().mode(mode).create(path).map_err(|error| Error::new("make folder", path.display(), error))
}
