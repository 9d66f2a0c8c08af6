//! A machine's cgroup: made by the supervisor, given to the machine's root, removed from the records alone.

use std::path::{Path, PathBuf};

use testyard_linux::Error;
use testyard_linux::cgroup::{Group, Hierarchy};
use testyard_linux::step::{Step, reach};
use testyard_machine::backend::{BackendError, KernelIdentity, MachinePlace, Recorder, ResourceKind};
use testyard_model::MachineSpec;
use testyard_protocol::start::IdRange;

use super::refuse;

fn host<'a>(place: &'a MachinePlace, operation: &'static str) -> impl Fn(Error) -> BackendError + 'a {
    move |source| BackendError::Host { operation, machine: place.name.clone(), source }
}

/// Refuses limits that this host cannot set.
pub(super) fn check(spec: &MachineSpec) -> Result<(), BackendError> {
    let asked = spec.memory.is_some() || spec.cpus.is_some();
    if !asked {
        return Ok(());
    }
    if Hierarchy::detect().is_ok_and(|hierarchy| is_ours(&hierarchy)) {
        Ok(())
    } else {
        Err(refuse("with limits: no cgroup here is writable", "run as root, or leave --memory and --cpus out"))
    }
}

/// Whether groups can be made: a group is made in every tree. Others, such as Slurm, give an ordinary user's processes some.
fn is_ours(hierarchy: &Hierarchy) -> bool {
    let writable = hierarchy.writable();
    let all = hierarchy.controllers().map_or(0, |controllers| controllers.len());
    !writable.is_empty() && writable.len() >= all
}

/// The group's name below the supervisor's own.
fn name(place: &MachinePlace) -> String {
    format!("testyard-{}", place.id)
}

/// The folders of a group of this name, one a hierarchy.
fn folders(hierarchy: &Hierarchy, name: &str) -> Vec<PathBuf> {
    match hierarchy {
        Hierarchy::V1(mounts) => {
            mounts.iter().filter(|one| !one.controllers.is_empty()).map(|one| one.own.join(name)).collect()
        }
        Hierarchy::V2(mount) => vec![mount.own.join(name)],
        Hierarchy::None => Vec::new(),
    }
}

/// Makes the machine's group, if this host has one to give. Returns its name.
pub(super) fn create(
    place: &MachinePlace,
    ids: IdRange,
    recorder: &mut dyn Recorder,
) -> Result<Option<String>, BackendError> {
    remove(place, recorder)?;
    let failed = host(place, "make the cgroup");
    let hierarchy = Hierarchy::detect().map_err(&failed)?;
    if !is_ours(&hierarchy) {
        return Ok(None);
    }
    let name = name(place);
    let folders = folders(&hierarchy, &name);
    let intended: Vec<_> = folders.iter().map(|folder| (ResourceKind::Cgroup, folder.as_path())).collect();
    let recorded = recorder.intend(&intended)?;
    let group = Group::create(&hierarchy, &name).map_err(&failed)?;
    let mut made = Vec::new();
    for (id, folder) in recorded.iter().zip(&folders) {
        if let Some(identity) = KernelIdentity::of_path(folder).map_err(&failed)? {
            made.push((*id, identity));
        }
    }
    recorder.made(&made)?;
    reach(Step::SupervisorCgroups);
    let memory = place.spec.memory.map(|size| size.0);
    let unavailable = group.set_limits(memory, None, place.spec.cpus).map_err(&failed)?;
    if !unavailable.is_empty() {
        return Err(refuse(
            format!("limited in {}", unavailable.join(" and ")),
            "see `testyard doctor` for the controllers that can be written",
        ));
    }
    if let IdRange::Range { first, .. } = ids {
        group.chown(first, first).map_err(&failed)?;
    }
    Ok(Some(name))
}

/// Removes every group of the machine that the records name and the kernel confirms.
pub(super) fn remove(place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
    let failed = host(place, "remove the cgroup");
    let recorded: Vec<_> =
        recorder.all()?.into_iter().filter(|resource| resource.kind == ResourceKind::Cgroup).collect();
    if recorded.is_empty() {
        return Ok(());
    }
    let hierarchy = Hierarchy::detect().map_err(&failed)?;
    for resource in &recorded {
        let now = KernelIdentity::of_path(&resource.place).map_err(&failed)?;
        let named = resource.place.file_name().is_some_and(|file| file.to_str() == Some(&name(place)));
        let proven = named && (resource.identity.is_none() || resource.identity == now);
        if now.is_some() && proven {
            remove_folder(&hierarchy, &resource.place).map_err(&failed)?;
        }
    }
    recorder.gone(&recorded.iter().map(|resource| resource.id).collect::<Vec<_>>())?;
    Ok(())
}

/// Removes one folder of a group, wherever this process itself is.
fn remove_folder(hierarchy: &Hierarchy, folder: &Path) -> Result<(), Error> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let only = match hierarchy {
        Hierarchy::V1(mounts) => {
            let mount = mounts
                .iter()
                .filter(|mount| folder.starts_with(&mount.point))
                .max_by_key(|mount| mount.point.as_os_str().len());
            let Some(mount) = mount else { return Ok(()) };
            let mut mount = mount.clone();
            mount.own = parent.to_path_buf();
            Hierarchy::V1(vec![mount])
        }
        Hierarchy::V2(mount) => {
            let mut mount = mount.clone();
            mount.own = parent.to_path_buf();
            Hierarchy::V2(mount)
        }
        Hierarchy::None => return Ok(()),
    };
    match Group::open(&only, name) {
        Ok(group) => group.remove(),
        Err(error) if error.is_absent() => Ok(()),
        Err(error) => Err(error),
    }
}
