//! From a process that a backend just started to an agent in its place.

pub(crate) mod machine_root;
pub(crate) mod namespace;
pub(crate) mod staging;
pub(crate) mod trial;

use std::rc::Rc;

use testyard_linux::cgroup::{Group, Hierarchy};
use testyard_linux::process::{OpenFiles, SingleThreaded};
use testyard_linux::{Error, Result};
use testyard_model::Problem;
use testyard_protocol::start::{AgentMode, AgentStart, IdRange};

use crate::place::{Around, Place, PlaceKind};
use crate::route;

/// Enters the machine's place. From here on the process cannot go back.
pub(crate) fn enter(start: &AgentStart) -> std::result::Result<Place, Problem> {
    let system = |error: Error| error.problem();
    let token = SingleThreaded::check().map_err(system)?;
    let hierarchy = Hierarchy::detect().map_err(system)?;
    let groups = open_groups(start, &hierarchy).map_err(system)?;
    if let Some(groups) = &groups
        && hierarchy.is_v2()
    {
        // The router, which is about to be forked, is none of the machine's processes.
        groups.all.child("outside").and_then(|outside| outside.attach_self()).map_err(system)?;
    }
    let around = if groups.is_some() { None } else { Around::find(&hierarchy) };
    let join = || groups.as_ref().map_or(Ok(()), |groups| groups.machine.attach_self()).map_err(system);
    let mut network = false;
    let (kind, router) = match &start.mode {
        AgentMode::Process { workspaces } => {
            join()?;
            (PlaceKind::Process { workspaces: workspaces.clone() }, None)
        }
        AgentMode::Namespace(namespace) => {
            network = namespace.network.is_some();
            let mut router =
                route::fork(token, &start.machine, namespace.network.as_ref().map(|one| (one, namespace.ids)))
                    .map_err(system)?;
            join()?;
            let entered = namespace::enter(namespace, &mut router)?;
            if let Some(groups) = groups.as_ref().filter(|_| hierarchy.is_v2()) {
                delegate(&groups.machine);
            }
            (PlaceKind::Namespace(Box::new(entered)), Some(router))
        }
    };
    let folder = start.folder.as_ref().map(|folder| folder.as_path().to_owned());
    let group = groups.map(|groups| Rc::new(groups.all));
    Ok(Place { token, group, around, hierarchy, kind, router, network, open_files: OpenFiles::raise(), folder })
}

/// The machine's control groups.
struct Groups {
    /// The one that has its limits, with those of environments.
    all: Group,
    /// That of the machine's own processes, which its root sees as the top of the tree.
    machine: Group,
}

/// Version 2 hands controllers on only from a group without processes: what runs on the machine moves to one below,
/// after the namespace was made in which the group above is the top. Where that is refused, services inside have no limits.
fn delegate(machine: &Group) {
    if machine.child("init").and_then(|init| init.attach_self()).is_ok() {
        machine.hand_on_controllers();
    }
}

fn open_groups(start: &AgentStart, hierarchy: &Hierarchy) -> Result<Option<Groups>> {
    let Some(name) = &start.cgroup else { return Ok(None) };
    let group = Group::open(hierarchy, name)?;
    // Version 2 forbids processes beside child groups that have controllers: the agent and what runs on the
    // machine itself live in a leaf of their own.
    let own = group.child("machine")?;
    if let AgentMode::Namespace(namespace) = &start.mode
        && let IdRange::Range { first, .. } = namespace.ids
    {
        // The machine's root makes groups of its own below this one, which limits nothing.
        own.chown(first, first)?;
    }
    Ok(Some(Groups { all: group, machine: own }))
}
