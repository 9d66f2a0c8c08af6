//! Workspaces: a folder and a process tree of one's own, on a machine that is otherwise shared.
//!
//! On a machine of backend `host` the init is the subreaper of what it starts. In a container it is process 1 of a
//! pid namespace and has a copy of the machine's mounts, so that its `/proc` shows only its own, and a working
//! tree can be shown.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use testyard_linux::process::{self, CloneFlags};
use testyard_linux::{Error, Result, files, mount, namespace};
use testyard_model::{EnvironmentSpec, UserSpec};

use crate::account;

/// Enters the machine's mounts, if it has any, and makes the folders.
pub(super) fn set_up(folder: &Path, work: &Path, mounts: Option<BorrowedFd<'_>>, spec: &EnvironmentSpec) -> Result<()> {
    process::set_subreaper(true)?;
    if let Some(mounts) = mounts {
        namespace::enter(mounts, CloneFlags::NEWNS)?;
        namespace::unshare(CloneFlags::NEWNS)?;
        mount::make_all_private()?;
        mount::attach(mount::proc()?.as_fd(), Path::new("/proc"))?;
    }
    let owner = match &spec.user {
        UserSpec::Numbered { uid, gid, .. } => Some((*uid, *gid)),
        // That nobody has this name is told by the first command.
        UserSpec::Named(_) => account::resolve(&spec.user, Path::new("/"))
            .ok()
            .map(|known| (known.credentials.uid, known.credentials.gid)),
        UserSpec::Root | UserSpec::Machine => None,
    };
    for path in [folder, &folder.join("tmp"), work] {
        rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))
            .map_err(|error| Error::new("make folder", path.display(), error))?;
        if let Some((uid, gid)) = owner {
            give(path, uid, gid)?;
        }
    }
    Ok(())
}

/// Gives a folder to a user. One's own already belongs to oneself; in a namespace with one id nobody else is there.
fn give(path: &Path, uid: u32, gid: u32) -> Result<()> {
    if rustix::process::geteuid().as_raw() == uid {
        return Ok(());
    }
    match std::os::unix::fs::chown(path, Some(uid), Some(gid)) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(()),
        other => other.map_err(|error| Error::new("give away", path.display(), error)),
    }
}

/// Removes the folder, after its last process has ended.
pub(super) fn remove(folder: &Path) {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(parent) = rustix::fs::open(parent, flags, Mode::empty()) {
        // What cannot be removed here stays below the machine's folder, and goes with it.
        let _ = files::remove_tree(parent.as_fd(), Path::new(name));
    }
}
