//! A container's root: the machine's own, copy-on-write, with the volumes that were asked for.
//!
//! What is mounted in the machine below its root is seen as it is: `/tmp` and the home of a developer's machine
//! outlive one container, so that what one leaves the next finds.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use testyard_linux::mount::{self, Attributes, Layer, OverlaySpec, RootMount, TmpfsOptions};
use testyard_linux::{Error, Result};

/// What a container is shown in its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// What a container may write over the machine's root, in bytes.
const CHANGES: u64 = 1 << 30;

/// Puts the root together over the empty folder `base` and makes it `/`. In a mount namespace and a pid namespace of the
/// caller's own. False where its changes are the machine's too, because the kernel refuses an overlay here.
pub(crate) fn enter(base: &Path, volumes: &[Volume]) -> Result<bool> {
    mount::make_all_private()?;
    let table = mount::mount_table(None)?;
    let changes = mount::tmpfs(&TmpfsOptions { size: Some(CHANGES), inodes: None, mode: 0o755 })?;
    mount::attach(changes.as_fd(), base)?;
    let own = overlay(base);
    match &own {
        Ok(overlay) => {
            mount::attach(overlay.as_fd(), base)?;
            let points = table.iter().map(|entry| entry.point.as_path()).filter(|point| is_seen(point, base));
            for point in points {
                show(point, &within(base, point), false)?;
            }
        }
        Err(_) => {
            let whole = mount::clone_tree(Path::new("/"), true)?;
            mount::attach(whole.as_fd(), base)?;
        }
    }
    for volume in volumes {
        show_volume(base, volume)?;
    }
    system(base, own.is_ok())?;
    mount::pivot_into(base, RootMount::Mounted)?;
    Ok(own.is_ok())
}

fn overlay(base: &Path) -> Result<std::os::fd::OwnedFd> {
    let (upper, work) = (base.join("upper"), base.join("work"));
    for folder in [&upper, &work] {
        fs::create_dir(folder).map_err(|error| Error::new("make folder", folder.display(), error))?;
    }
    mount::overlay(&OverlaySpec {
        lower: vec![Layer::Path(Path::new("/"))],
        upper: Some((Layer::Path(&upper), Layer::Path(&work))),
        user_xattr: true,
        volatile: true,
        ..OverlaySpec::default()
    })
}

/// Whether what is mounted here belongs into a container.
fn is_seen(point: &Path, base: &Path) -> bool {
    let system = ["/proc", "/sys", "/dev"].iter().any(|one| point.starts_with(one));
    let docker = point.file_name().is_some_and(|name| name == crate::NAME);
    point != Path::new("/") && !system && !docker && !base.starts_with(point) && !point.starts_with(base)
}

/// Shows a file or folder at another place, which is made where it is missing.
fn show(source: &Path, target: &Path, recursive: bool) -> Result<()> {
    let clone = mount::clone_tree(source, recursive)?;
    make_like(source, target)?;
    mount::attach(clone.as_fd(), target)
}

fn make_like(source: &Path, target: &Path) -> Result<()> {
    let failed = |error| Error::new("make", target.display(), error);
    if source.is_dir() {
        return fs::create_dir_all(target).map_err(failed);
    }
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    fs::OpenOptions::new().create(true).append(true).open(target).map(drop).map_err(failed)
}

fn show_volume(base: &Path, volume: &Volume) -> Result<()> {
    if !volume.source.exists() {
        fs::create_dir_all(&volume.source).map_err(|error| Error::new("make", volume.source.display(), error))?;
    }
    let target = within(base, &volume.target);
    make_like(&volume.source, &target)?;
    let clone = mount::clone_tree(&volume.source, true)?;
    if volume.read_only {
        mount::set_attributes(clone.as_fd(), &Attributes { read_only: true, ..Attributes::default() }, true)?;
    }
    mount::attach(clone.as_fd(), &target)
}

/// `/proc`, `/sys` and `/dev`. With `own` nothing of them is there yet.
fn system(base: &Path, own: bool) -> Result<()> {
    let at = |name: &str| base.join(name);
    if own {
        for name in ["sys", "dev"] {
            show(&Path::new("/").join(name), &at(name), true)?;
        }
    }
    let _ = fs::create_dir_all(at("proc"));
    // Refused where the machine's own is partly covered: then a container sees the machine's processes.
    match mount::proc() {
        Ok(proc) => mount::attach(proc.as_fd(), &at("proc"))?,
        Err(_) if own => show(Path::new("/proc"), &at("proc"), true)?,
        Err(_) => {}
    }
    let shared = mount::tmpfs(&TmpfsOptions { size: Some(64 << 20), inodes: None, mode: 0o1777 })?;
    mount::attach(shared.as_fd(), &at("dev/shm"))
}

fn within(base: &Path, path: &Path) -> PathBuf {
    base.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_file_systems_and_its_own_folder_are_not_carried_over() {
        let base = Path::new("/dev/shm/testyard-docker-0/root");
        for (point, seen) in [
            ("/", false),
            ("/proc/sys", false),
            ("/dev/shm", false),
            ("/usr/local/bin/docker", false),
            ("/tmp", true),
            ("/root", true),
        ] {
            assert_eq!(is_seen(Path::new(point), base), seen, "{point}");
        }
        assert!(!is_seen(Path::new("/run"), Path::new("/run/x/root")), "what holds the root itself");
    }
}
