//! From a process that a backend just started to an agent in its place.

pub(crate) mod machine_root;
mod namespace;
pub(crate) mod staging;
pub(crate) mod trial;

use std::rc::Rc;

use testyard_linux::Result;
use testyard_linux::cgroup::{Group, Hierarchy};
use testyard_linux::process::{OpenFiles, SingleThreaded};
use testyard_protocol::start::{AgentMode, AgentStart, IdRange};

use crate::place::{Place, PlaceKind};
use crate::route;

/// Enters the machine's place. From here on the process cannot go back.
pub(crate) fn enter(start: &AgentStart) -> Result<Place> {
    let token = SingleThreaded::check()?;
    let hierarchy = Hierarchy::detect()?;
    let group = join_group(start, &hierarchy)?;
    let router = match &start.mode {
        AgentMode::Process { .. } => None,
        AgentMode::Namespace(_) => Some(route::fork(token, rustix::process::geteuid().is_root())?),
    };
    let kind = match &start.mode {
        AgentMode::Process { workspaces } => PlaceKind::Process { workspaces: workspaces.clone() },
        AgentMode::Namespace(namespace) => PlaceKind::Namespace(Box::new(namespace::enter(namespace)?)),
    };
    let folder = start.folder.as_ref().map(|folder| folder.as_path().to_owned());
    Ok(Place { token, group, hierarchy, kind, router, open_files: OpenFiles::raise(), folder })
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
