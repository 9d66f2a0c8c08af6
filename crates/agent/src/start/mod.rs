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

use crate::place::{Place, PlaceKind};
use crate::route;

/// Enters the machine's place. From here on the process cannot go back.
pub(crate) fn enter(start: &AgentStart) -> std::result::Result<Place, Problem> {
    let system = |error: Error| error.problem();
    let token = SingleThreaded::check().map_err(system)?;
    let hierarchy = Hierarchy::detect().map_err(system)?;
    let group = join_group(start, &hierarchy).map_err(system)?;
    let mut network = false;
    let (kind, router) = match &start.mode {
        AgentMode::Process { workspaces } => (PlaceKind::Process { workspaces: workspaces.clone() }, None),
        AgentMode::Namespace(namespace) => {
            network = namespace.network.is_some();
            let mut router =
                route::fork(token, &start.machine, namespace.network.as_ref().map(|one| (one, namespace.ids)))
                    .map_err(system)?;
            let entered = namespace::enter(namespace, &mut router)?;
            (PlaceKind::Namespace(Box::new(entered)), Some(router))
        }
    };
    let folder = start.folder.as_ref().map(|folder| folder.as_path().to_owned());
    Ok(Place { token, group, hierarchy, kind, router, network, open_files: OpenFiles::raise(), folder })
}

fn join_group(start: &AgentStart, hierarchy: &Hierarchy) -> Result<Option<Rc<Group>>> {
    let Some(name) = &start.cgroup else { return Ok(None) };
    let group = Group::open(hierarchy, name)?;
    // Version 2 forbids processes beside child groups that have controllers: the agent and what runs on the
    // machine itself live in a leaf of their own.
    let own = group.child("machine")?;
    own.attach_self()?;
    if let AgentMode::Namespace(namespace) = &start.mode
        && let IdRange::Range { first, .. } = namespace.ids
    {
        // The machine's root makes groups of its own below this one, which limits nothing.
        own.chown(first, first)?;
    }
    Ok(Some(Rc::new(group)))
}
