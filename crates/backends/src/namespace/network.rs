//! What is written down of a network of machines: its members, their names, and the folders that they share.
//!
//! ```text
//! networks/LAB/members/ID    a machine that belongs to it, by its id
//! networks/LAB/hosts         the names of all of them, as every member sees them
//! networks/LAB/share/home    a folder that is the same for every member
//! networks.lock              held while any of that is changed, or a member looks for those that run
//! ```
//!
//! A network is made with its first member and goes with its last.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode as FileMode, OFlags};
use testyard_linux::lock::{FileLock, Mode, Patience};
use testyard_linux::{Error, files};
use testyard_machine::backend::{BackendError, KernelIdentity, MachinePlace, RecordedResource, Recorder, ResourceKind};
use testyard_model::{HostEntry, InterfaceAddress, MachineSpec, PrivateNetwork, Problem, ProblemKind};
use testyard_protocol::start::{NetworkMember, NetworkStart, ShareStart};

use super::ids::{self, Sort};
use super::{granted, refuse};

/// Refuses what no network gives.
pub(super) fn check(spec: &MachineSpec) -> Result<(), BackendError> {
    let Some(network) = spec.network.private() else { return Ok(()) };
    let system = ["/", "/proc", "/sys", "/dev", "/etc"];
    let wrong = |path: &&PathBuf| {
        !path.is_absolute()
            || path.components().any(|part| part == std::path::Component::ParentDir)
            || system.iter().any(|one| path.as_path() == Path::new(one))
    };
    if let Some(path) = network.share.iter().find(wrong) {
        let ability = format!("whose {} is that of its network's other machines", path.display());
        return Err(refuse(ability, "share a folder with an absolute path, such as /home"));
    }
    let mut ports = BTreeSet::new();
    if let Some(twice) = network.publish.iter().find(|port| port.host != 0 && !ports.insert(port.host)) {
        let hint = "publish each port of the host once";
        return Err(refuse(format!("that publishes port {} of the host twice", twice.host), hint));
    }
    Ok(())
}

/// Where the networks of this home are.
fn networks(place: &MachinePlace) -> PathBuf {
    place.images.parent().unwrap_or(&place.folder).join("networks")
}

fn folder(place: &MachinePlace, network: &PrivateNetwork) -> PathBuf {
    networks(place).join(network.name.as_str())
}

fn lock_file(place: &MachinePlace) -> PathBuf {
    networks(place).with_extension("lock")
}

fn member_file(place: &MachinePlace, network: &PrivateNetwork) -> PathBuf {
    folder(place, network).join("members").join(place.id.as_str())
}

/// Where a folder that members share is kept: one name for one path.
fn share_folder(place: &MachinePlace, network: &PrivateNetwork, path: &Path) -> PathBuf {
    let name = path.to_string_lossy().trim_matches('/').replace('%', "%25").replace('/', "%2f");
    folder(place, network).join("share").join(name)
}

fn failed<'a>(place: &'a MachinePlace) -> impl Fn(Error) -> BackendError + 'a {
    move |source| BackendError::Host { operation: "keep the network", machine: place.name.clone(), source }
}

fn changed(place: &MachinePlace) -> Result<FileLock, BackendError> {
    let lock = FileLock::acquire(&lock_file(place), Mode::Exclusive, Patience::Wait).map_err(failed(place))?;
    lock.ok_or_else(|| Problem::new(ProblemKind::Bug, "a lock that is waited for was not had").into())
}

/// Makes the machine a member, if it is to be one, and says so to the agent. Again at each start: its name may have
/// changed.
pub(super) fn join(place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<Option<NetworkStart>, BackendError> {
    join_with(place, None, recorder)
}

/// As [`join`], for a machine with the files of another: what is shared in another's network is copied where the network
/// of this one has nothing of it yet.
pub(super) fn join_as_copy(
    place: &MachinePlace,
    from: &MachinePlace,
    recorder: &mut dyn Recorder,
) -> Result<(), BackendError> {
    join_with(place, Some(from), recorder).map(drop)
}

fn join_with(
    place: &MachinePlace,
    from: Option<&MachinePlace>,
    recorder: &mut dyn Recorder,
) -> Result<Option<NetworkStart>, BackendError> {
    let Some(network) = place.spec.network.private() else { return Ok(None) };
    let address = network.address.ok_or_else(|| {
        Problem::new(ProblemKind::Bug, format!("machine {} has no address in network {}", place.name, network.name))
    })?;
    let _lock = changed(place)?;
    let there = folder(place, network);
    let file = member_file(place, network);
    let known: Vec<RecordedResource> = recorder.all()?;
    let missing = [(ResourceKind::Folder, there.as_path()), (ResourceKind::File, file.as_path())];
    let missing: Vec<_> =
        missing.into_iter().filter(|(_, path)| !known.iter().any(|one| one.place == **path)).collect();
    let intended = recorder.intend(&missing)?;
    let member = NetworkMember { name: place.name.to_string(), address, socket: place.runtime.join("network.sock") };
    let made = || -> Result<(), Error> {
        for folder in [networks(place), there.clone(), there.join("members"), there.join("share")] {
            make(&folder, 0o700)?;
        }
        network.share.iter().try_for_each(|path| {
            let target = share_folder(place, network, path);
            let original = from.and_then(|from| Some(share_folder(from, from.spec.network.private()?, path)));
            match original.filter(|original| original.is_dir() && !target.exists()) {
                Some(original) => copy(place, &original, &target),
                None => make(&target, 0o755),
            }
        })
    };
    made().map_err(failed(place))?;
    refuse_taken(place, network, &member)?;
    let entries: Vec<String> = network.hosts.iter().map(HostEntry::to_string).collect();
    let record = Record { member: member.clone(), hosts: entries };
    let text = serde_json::to_vec(&record).map_err(|error| Problem::from_error(ProblemKind::Bug, &error))?;
    write(&file, &text).map_err(failed(place))?;
    let mut identities = Vec::new();
    for (id, (_, path)) in intended.into_iter().zip(&missing) {
        identities.extend(KernelIdentity::of_path(path).map_err(failed(place))?.map(|identity| (id, identity)));
    }
    recorder.made(&identities)?;
    let hosts = there.join("hosts");
    write_hosts(&there, &hosts).map_err(failed(place))?;
    let share = |path: &PathBuf| ShareStart { from: share_folder(place, network, path), path: path.clone() };
    Ok(Some(NetworkStart {
        name: network.name.to_string(),
        lock: lock_file(place),
        members: there.join("members"),
        socket: member.socket,
        address,
        outbound: network.outbound,
        publish: network.publish.clone(),
        hosts,
        shares: network.share.iter().map(share).collect(),
    }))
}

/// What is written down of a member: what others need to find it, and the names that it brings.
#[derive(serde::Serialize, serde::Deserialize)]
struct Record {
    #[serde(flatten)]
    member: NetworkMember,
    #[serde(default)]
    hosts: Vec<String>,
}

fn records(there: &Path) -> Result<Vec<(String, Record)>, Error> {
    let members = there.join("members");
    let failed = |error: io::Error| Error::new("list the members in", members.display(), error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&members).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if is_unfinished(&entry.file_name()) {
            continue;
        }
        let text = std::fs::read(entry.path()).map_err(failed)?;
        if let Ok(record) = serde_json::from_slice::<Record>(&text) {
            found.push((entry.file_name().to_string_lossy().into_owned(), record));
        }
    }
    found.sort_by_key(|(_, record)| record.member.address);
    Ok(found)
}

/// Refuses an address that another member has, or that is of another network than theirs.
fn refuse_taken(place: &MachinePlace, network: &PrivateNetwork, own: &NetworkMember) -> Result<(), BackendError> {
    let there = folder(place, network);
    for (id, Record { member, .. }) in records(&there).map_err(failed(place))? {
        if id == place.id.as_str() {
            continue;
        }
        let address = own.address;
        if member.address.address == address.address {
            let message =
                format!("address {} of network {} is that of machine {}", address.address, network.name, member.name);
            return Err(Problem::new(ProblemKind::AlreadyExists, message)
                .hint("choose another, or leave --address out for the next free one")
                .into());
        }
        if !member.address.shares_network(address) {
            let message = format!(
                "address {address} is not of network {}, in which machine {} is {}",
                network.name, member.name, member.address
            );
            return Err(Problem::new(ProblemKind::Usage, message)
                .hint("choose one beside it, or leave --address out for the next free one")
                .into());
        }
    }
    Ok(())
}

/// Writes the table of hosts in its place, so that machines that see it see it change.
fn write_hosts(there: &Path, hosts: &Path) -> Result<(), Error> {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let records = records(there)?;
    let mut known = BTreeSet::new();
    for (_, record) in &records {
        let InterfaceAddress { address, .. } = record.member.address;
        if known.insert((address, record.member.name.clone())) {
            let _ = writeln!(text, "{address}\t{}", record.member.name);
        }
    }
    for entry in records.iter().flat_map(|(_, record)| &record.hosts) {
        if let Ok(HostEntry { address, name }) = entry.parse()
            && known.insert((address, name.to_string()))
        {
            let _ = writeln!(text, "{address}\t{name}");
        }
    }
    let failed = |error: io::Error| Error::new("write", hosts.display(), error);
    if std::fs::read(hosts).is_ok_and(|now| now == text.as_bytes()) {
        return Ok(());
    }
    let file = std::fs::OpenOptions::new().create(true).write(true).truncate(false).open(hosts).map_err(failed)?;
    // Never shorter than it has to be while it is written: who reads now finds old lines, not none.
    std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), 0).map_err(failed)?;
    file.set_len(text.len() as u64).map_err(failed)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.set_permissions(mode).map_err(failed)
}

/// The machine is a member no more; the last one takes the network with it.
pub(super) fn leave(place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
    let networks = networks(place);
    let known = recorder.all()?;
    let ours: Vec<_> = known.iter().filter(|one| one.place.starts_with(&networks) && one.place != networks).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let _lock = changed(place)?;
    for file in ours.iter().filter(|one| one.kind == ResourceKind::File) {
        files::remove_file(&file.place).map_err(failed(place))?;
    }
    for one in ours.iter().filter(|one| one.kind == ResourceKind::Folder) {
        forget(place, &one.place).map_err(failed(place))?;
    }
    recorder.gone(&ours.iter().map(|one| one.id).collect::<Vec<_>>())?;
    Ok(())
}

/// Half a record, of a member that was killed while it wrote it down.
fn is_unfinished(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Removes a network that has no members; that its folder of members can be removed is the proof.
fn forget(place: &MachinePlace, there: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(there.join("members")).into_iter().flatten().flatten() {
        if is_unfinished(&entry.file_name()) {
            // Whoever writes one has the lock that is held here.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    match rustix::fs::rmdir(there.join("members")) {
        Ok(()) => {}
        Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) => return write_hosts(there, &there.join("hosts")),
        Err(rustix::io::Errno::NOENT) if there.exists() => {}
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(Error::new("remove", there.join("members").display(), error)),
    }
    let (Some(parent), Some(name)) = (there.parent(), there.file_name()) else { return Ok(()) };
    if ids::sort_of(&place.spec) == Sort::Granted
        && let Some(name) = name.to_str()
    {
        return granted::remove(place, parent, name);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(parent, flags, FileMode::empty())
        .map_err(|error| Error::new("open", parent.display(), error))?;
    let removed = files::remove_tree(opened.as_fd(), name)?;
    match removed.refused.into_iter().next() {
        None => Ok(()),
        Some(refused) => Err(Error::new("remove", refused.path.display(), refused.reason)),
    }
}

/// Copies a folder that others share. Half a copy is never taken for a whole one.
fn copy(place: &MachinePlace, original: &Path, target: &Path) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |path: &Path| {
        rustix::fs::open(path, flags, FileMode::empty()).map_err(|error| Error::new("open", path.display(), error))
    };
    let mut beside = target.as_os_str().to_owned();
    beside.push(".copy");
    let beside = PathBuf::from(beside);
    let granted = ids::sort_of(&place.spec) == Sort::Granted;
    if let (Some(parent), Some(name)) = (beside.parent(), beside.file_name())
        && beside.exists()
    {
        if granted {
            granted::remove(place, parent, &name.to_string_lossy())?;
        }
        match files::remove_tree(open(parent)?.as_fd(), name) {
            Err(error) if !error.is_absent() => return Err(error),
            _ => {}
        }
    }
    make(&beside, 0o755)?;
    if granted {
        granted::copy(place, original, &beside)?;
        return std::fs::rename(&beside, target).map_err(|error| Error::new("rename", beside.display(), error));
    }
    let options = files::CopyOptions { owners: true, attributes: true, ..files::CopyOptions::default() };
    let (from, to) = (open(original)?, open(&beside)?);
    files::copy_tree(from.as_fd(), to.as_fd(), options)?;
    std::fs::rename(&beside, target).map_err(|error| Error::new("rename", beside.display(), error))
}

fn make(path: &Path, mode: u32) -> Result<(), Error> {
    match rustix::fs::mkdir(path, FileMode::from_raw_mode(mode)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(Error::new("make folder", path.display(), errno)),
    }
}

/// Writes a file whole: who reads it finds the old one or the new one.
fn write(path: &Path, text: &[u8]) -> Result<(), Error> {
    let failed = |error: io::Error| Error::new("write", path.display(), error);
    let beside = path.with_file_name(format!(".{}", path.file_name().unwrap_or_default().display()));
    std::fs::write(&beside, text).map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)
}
