//! A machine's own files: `store/{upper,work,generations,submounts,shared}` in its folder, owned by the machine's root.
//!
//! The kernel takes no overlay as the upper layer of another, and inside a container the machine's folder is often on
//! one. Then the store is in the shared memory file system, where it lasts until the host restarts.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use testyard_linux::mount::{self, Attributes};
use testyard_linux::{Error, files};
use testyard_machine::backend::{BackendError, KernelIdentity, MachinePlace, RecordedResource, Recorder, ResourceKind};
use testyard_protocol::start::IdRange;

use super::ids::{self, Sort};
use super::{disk, granted};

/// How often is tried what somebody else may be changing.
const ATTEMPTS: u32 = 3;

/// Where the machine's files are.
pub(super) fn folder(place: &MachinePlace) -> PathBuf {
    if in_memory(place) { shared_memory().join(format!("store-{}", place.id)) } else { place.folder.join("store") }
}

/// Whether the machine's own folder cannot hold them.
fn in_memory(place: &MachinePlace) -> bool {
    const OVERLAY_MAGIC: i64 = 0x794c_7630;
    rustix::fs::statfs(&place.folder).is_ok_and(|facts| facts.f_type == OVERLAY_MAGIC)
}

/// The folder for stores in memory, verified to be this user's alone where it is used.
fn shared_memory() -> PathBuf {
    PathBuf::from(format!("/dev/shm/testyard-{}", rustix::process::geteuid().as_raw()))
}

/// What a machine lacks whose files are in memory.
pub(super) fn limit(place: &MachinePlace) -> Option<String> {
    in_memory(place).then(|| {
        "the machine's files are in memory, and gone when this host restarts: Testyard's state is on an overlay, over \
         which the kernel makes no other"
            .to_owned()
    })
}

/// An empty folder over which the agent mounts its staging area, in its own mount namespace.
pub(super) fn staging(place: &MachinePlace) -> PathBuf {
    place.folder.join("staging")
}

fn host<'a>(place: &'a MachinePlace, operation: &'static str) -> impl Fn(Error) -> BackendError + 'a {
    move |source| BackendError::Host { operation, machine: place.name.clone(), source }
}

/// Makes the folders.
pub(super) fn create(place: &MachinePlace, ids: IdRange, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
    let folder = folder(place);
    let recorded = recorder.intend(&[(ResourceKind::Folder, &folder)])?;
    let failed = host(place, "make the folders");
    make_all(place, ids, &folder).map_err(&failed)?;
    if let Some(image) = disk::image(place) {
        disk::create(place, &image)?;
    }
    if let (Some(id), Some(identity)) = (recorded.first(), KernelIdentity::of_path(&folder).map_err(&failed)?) {
        recorder.made(&[(*id, identity)])?;
    }
    Ok(())
}

/// Makes sure that what a start needs is there: a crash may have left an overlay's work folder in use, and what was
/// in memory is gone after a restart of the host.
pub(super) fn prepare(place: &MachinePlace, ids: IdRange, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
    let folder = folder(place);
    if !folder.exists() {
        remove(place, recorder)?;
        return create(place, ids, recorder);
    }
    make_all(place, ids, &folder).map_err(host(place, "prepare the folders"))
}

fn make_all(place: &MachinePlace, ids: IdRange, folder: &Path) -> Result<(), Error> {
    make(&staging(place))?;
    for attempt in 1.. {
        if in_memory(place) {
            files::verified_private_directory(&shared_memory())?;
        }
        match make_owned(ids, folder) {
            // Whoever removed the last store at this moment took the folder away.
            Err(error) if error.is_absent() && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    if place.spec.disk.is_some() {
        // They are in the file system of its own.
        return Ok(());
    }
    ["upper", "work", "generations", "submounts", "shared"]
        .iter()
        .try_for_each(|name| make_owned(ids, &folder.join(name)))
}

fn make(path: &Path) -> Result<(), Error> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(Error::new("make folder", path.display(), errno)),
    }
}

fn make_owned(ids: IdRange, path: &Path) -> Result<(), Error> {
    make(path)?;
    if let IdRange::Range { first, .. } = ids {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(CWD, path, Some(Uid::from_raw(first)), Some(Gid::from_raw(first)), flags)
            .map_err(|errno| Error::new("give away", path.display(), errno))?;
    }
    Ok(())
}

/// Generations are copies of the upper layer for environments; without a running machine there are none.
pub(super) fn forget_generations(place: &MachinePlace) -> Result<(), BackendError> {
    let failed = host(place, "remove old generations");
    remove_tree(place, &folder(place), "generations").map_err(&failed)
}

/// Removes the machine's files.
pub(super) fn remove(place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
    let failed = host(place, "remove the files");
    let recorded = recorder.all()?;
    // The machine's own folder is its supervisor's to remove.
    let ours = |resource: &&RecordedResource| resource.kind == ResourceKind::Folder && resource.place != place.folder;
    let ours: Vec<_> = recorded.iter().filter(ours).collect();
    for resource in &ours {
        let now = KernelIdentity::of_path(&resource.place).map_err(&failed)?;
        // A folder that was replaced by another is not ours to remove. One that was only intended is known by its
        // place below the machine's own folder, or by the machine's id in its name.
        let proven = resource.identity.is_none() || resource.identity == now;
        let own = resource.place.starts_with(&place.folder) || resource.place == folder(place);
        if now.is_none() || !proven || !own {
            continue;
        }
        if let Some(parent) = resource.place.parent()
            && let Some(name) = resource.place.file_name().and_then(|name| name.to_str())
        {
            remove_tree(place, parent, name).map_err(&failed)?;
        }
    }
    if in_memory(place) {
        // It stays while another machine's files are there, or another sort of file.
        let _ = rustix::fs::rmdir(shared_memory());
    }
    recorder.gone(&ours.iter().map(|resource| resource.id).collect::<Vec<_>>())?;
    Ok(())
}

fn remove_tree(place: &MachinePlace, folder: &Path, name: &str) -> Result<(), Error> {
    let Some(parent) = open(folder)? else { return Ok(()) };
    if ids::sort_of(&place.spec) == Sort::Granted && folder.join(name).exists() {
        return granted::remove(place, folder, name);
    }
    // After a crash of the agent what it had started removes its own folders at the same time.
    for attempt in 1.. {
        match files::remove_tree(parent.as_fd(), name) {
            Ok(removed) => match removed.refused.into_iter().next() {
                None => break,
                Some(refused) if attempt == ATTEMPTS => {
                    return Err(Error::new("remove", refused.path.display(), refused.reason));
                }
                Some(_) => {}
            },
            Err(error) if error.is_absent() => break,
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => {}
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<Option<OwnedFd>, Error> {
    match rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(errno) => Err(Error::new("open", path.display(), errno)),
    }
}

/// Copies a machine's files for a clone, which has ids of its own.
pub(super) fn copy(from: &MachinePlace, to: &MachinePlace, ids: IdRange) -> Result<(), BackendError> {
    if to.spec.disk.is_some() {
        return disk::copy(from, to);
    }
    let failed = host(to, "copy the files");
    if let IdRange::Granted { .. } = ids {
        let folders = ["upper", "submounts", "shared"].map(|name| (folder(from).join(name), folder(to).join(name)));
        return folders.iter().try_for_each(|(from, into)| granted::copy(to, from, into)).map_err(failed);
    }
    // Of the folder above those that root inside can give away.
    let before = rustix::fs::lstat(folder(from))
        .map_err(|errno| failed(Error::new("look at", folder(from).display(), errno)))?
        .st_uid;
    for name in ["upper", "submounts", "shared"] {
        let source = shifted(&folder(from).join(name), before, ids).map_err(&failed)?;
        let target = open(&folder(to).join(name)).map_err(&failed)?;
        if let (Some(source), Some(target)) = (source, target) {
            let options = files::CopyOptions { owners: true, attributes: true, ..files::CopyOptions::default() };
            files::copy_tree(source.as_fd(), target.as_fd(), options).map_err(&failed)?;
        }
    }
    Ok(())
}

/// A folder of another machine's whose ids begin at `before`, its files owned as those of a machine with these ids
/// are: the kernel shows them so through an idmapped mount, with access lists and the capabilities of files.
fn shifted(path: &Path, before: u32, ids: IdRange) -> Result<Option<OwnedFd>, Error> {
    let Some(folder) = open(path)? else { return Ok(None) };
    let IdRange::Range { first, .. } = ids else { return Ok(Some(folder)) };
    let failed = |errno| Error::new("open", path.display(), errno);
    if before == first {
        return Ok(Some(folder));
    }
    let shown = mount::clone_tree(path, false)?;
    let shift = ids::shift(before, first)?;
    let attributes = Attributes { idmap: Some(shift.as_fd()), ..Attributes::default() };
    mount::set_attributes(shown.as_fd(), &attributes, false)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&shown, ".", flags, Mode::empty()).map(Some).map_err(failed)
}
