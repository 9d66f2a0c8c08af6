//! Control groups: a group made, limited, entered, read and removed, for each controller by itself.

use testyard_linux::cgroup::{Controller, Group, Hierarchy};
use testyard_linux::process::CloneFlags;

use crate::finding::{Done, Lacking, Outcome, Step};
use crate::inside::{Users, inside};

pub(crate) fn memory() -> Outcome {
    controller(Controller::Memory)
}

pub(crate) fn pids() -> Outcome {
    controller(Controller::Pids)
}

pub(crate) fn cpu() -> Outcome {
    controller(Controller::Cpu)
}

pub(crate) fn io() -> Outcome {
    controller(Controller::BlockIo)
}

fn controller(controller: Controller) -> Outcome {
    let hierarchy = Hierarchy::detect().step("looking for control groups")?;
    let word = match hierarchy {
        Hierarchy::V2(_) => controller.v2_name().unwrap_or("own"),
        _ => controller.v1_name(),
    };
    let available = hierarchy.controllers()?;
    if !available.contains(&controller) {
        return Err(match hierarchy {
            Hierarchy::None => Lacking::new("no control groups are mounted here"),
            Hierarchy::V1(_) => Lacking::new(format!("no {word} controller is mounted")),
            Hierarchy::V2(_) => {
                Lacking::new(format!("the {word} controller is not handed on to this group")).provide_or(delegation())
            }
        });
    }
    let (version, hierarchy) = match hierarchy {
        Hierarchy::V1(mounts) => {
            let only = mounts.into_iter().filter(|mount| mount.controllers.contains(&controller)).collect();
            (1, Hierarchy::V1(only))
        }
        other => (2, other),
    };
    let group = Group::create(&hierarchy, &group_name(std::process::id()))
        .map_err(|error| Lacking::doing("making a group", &error).provide_or(delegation()))?;
    let outcome = use_group(&group, controller, version);
    group.remove().step("removing the group")?;
    outcome
}

fn use_group(group: &Group, controller: Controller, version: u8) -> Outcome {
    let limited = match controller {
        Controller::Memory => group.set_limits(Some(256 << 20), None, None),
        Controller::Pids => group.set_limits(None, Some(64), None),
        Controller::Cpu => group.set_limits(None, None, Some(0.5)),
        Controller::CpuAccounting | Controller::BlockIo | Controller::Freezer => Ok(Vec::new()),
    };
    if let [first, ..] = limited.step("setting the limit")?.as_slice() {
        return Err(Lacking::new(format!("the {first} limit cannot be set in this group")).provide_or(delegation()));
    }
    inside(CloneFlags::NONE, &Users::Same, || {
        group.attach_self().step("entering the group")?;
        let usage = group.usage();
        let counted = match controller {
            Controller::Memory => usage.memory_now.is_some(),
            Controller::Pids => usage.pids.is_some(),
            Controller::BlockIo => usage.io_read.is_some(),
            Controller::Cpu | Controller::CpuAccounting | Controller::Freezer => true,
        };
        if counted {
            Ok(Done::new(format!("a group of version {version} was limited, entered and read")))
        } else {
            Err(Lacking::new("a group can be made and entered, but its usage cannot be read"))
        }
    })
}

/// The name of the group of the probe process with this pid.
fn group_name(pid: u32) -> String {
    format!("testyard-probe-{pid}")
}

/// Removes what a probe process that was killed left in any of the trees.
pub(crate) fn sweep(pid: u32) {
    let trees = match Hierarchy::detect() {
        Ok(Hierarchy::V1(mounts)) => mounts.into_iter().map(|mount| Hierarchy::V1(vec![mount])).collect(),
        Ok(other) => vec![other],
        Err(_) => Vec::new(),
    };
    for tree in trees {
        if let Ok(group) = Group::open(&tree, &group_name(pid)) {
            // The name holds the pid of a child of ours that has not been waited for: nobody else's.
            let _ = group.remove();
        }
    }
}

fn delegation() -> Option<String> {
    if rustix::process::geteuid().is_root() {
        return Some("start the outer container with --cgroupns=private and a writable /sys/fs/cgroup".to_owned());
    }
    Some(if std::path::Path::new("/run/systemd/system").exists() {
        "systemd-run --user --scope -p Delegate=yes testyard …".to_owned()
    } else {
        "sudo testyard …".to_owned()
    })
}
