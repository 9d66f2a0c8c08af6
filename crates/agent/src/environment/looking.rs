//! Looking at what an environment's commands did to its files. Only its init has a way to them, so that is asked first;
//! what is done with them is done by a forked worker, which may block.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use testyard_linux::process;
use testyard_linux::signal::Signal;
use testyard_linux::{Error, signal, step};
use testyard_model::step::Step;
use testyard_model::{EnvironmentId, Problem, ProblemKind};
use testyard_protocol::changes::{Fetch, Part, When};

use super::changes::{self, Layers};
use super::keeping::{MOST_LAYERS, SEALED, Uppers, layer_folder};
use super::order::Order;
use super::root::submount_name;
use super::source::CHANGES;
use super::{MACHINE, State};
use crate::agent::Agent;
use crate::place::PlaceKind;
use crate::worker::Task;

/// Who wants to look, and at what.
pub(crate) struct Looking {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
    pub(crate) look: Look,
}

/// What is wanted.
pub(crate) enum Look {
    /// The list of changes, written here.
    Changes { to: Option<OwnedFd>, limit: u32 },
    /// Files, written here.
    Fetch { to: Option<OwnedFd>, part: Part, when: When },
    /// An environment with the same files.
    Fork { for_ms: u64 },
    /// A layer of this name.
    Seal { layer: String },
}

impl Look {
    pub(crate) fn fetch(fetch: Fetch, to: Option<OwnedFd>) -> Self {
        Self::Fetch { to, part: fetch.part, when: fetch.when }
    }
}

impl Agent {
    /// Asks the init where the changes are.
    pub(crate) fn look(&mut self, id: EnvironmentId, looking: Looking) -> Result<(), Problem> {
        let processes = matches!(self.place.kind, PlaceKind::Process { .. });
        let there = self.environments.get_mut(&id).filter(|one| one.state == State::InUse && id != MACHINE);
        let environment = there.ok_or_else(|| {
            Problem::new(ProblemKind::NotFound, format!("environment {id} is not there, or not ready"))
        })?;
        if processes {
            return Err(Problem::new(
                ProblemKind::Unsupported,
                "backend `host` keeps no record of what a test changed",
            )
            .hint("create the machine with --backend namespace"));
        }
        if let Look::Seal { layer } = &looking.look {
            let based = environment.spec.layer.is_some();
            self.can_seal(layer)?;
            if based {
                return Err(Problem::new(
                    ProblemKind::Usage,
                    "an environment over a layer cannot be sealed to another",
                ));
            }
        }
        self.order(id, &Order::Uppers, &[]).map_err(|error| error.problem())?;
        let Some(environment) = self.environments.get_mut(&id) else { return Ok(()) };
        environment.looking.push_back(looking);
        Ok(())
    }

    /// An init has sent where its environment's changes are.
    pub(crate) fn uppers_came(&mut self, id: EnvironmentId, root: bool, source: bool) {
        let Some(environment) = self.environments.get_mut(&id) else { return };
        let mut next = |there: bool| if there { environment.inbox.attached.pop_front() } else { None };
        let uppers = Uppers { root: next(root), source: next(source) };
        let Some(looking) = environment.looking.pop_front() else { return };
        let Looking { connection, stream, look } = looking;
        let outcome = match look {
            Look::Fork { for_ms } => self.fork((connection, stream), id, for_ms, &uppers),
            look => self.look_with_worker((connection, stream), id, look, &uppers),
        };
        if let Err(problem) = outcome {
            self.fail(connection, stream, problem);
        }
    }

    fn look_with_worker(
        &mut self,
        (connection, stream): (u64, u32),
        id: EnvironmentId,
        look: Look,
        uppers: &Uppers,
    ) -> Result<(), Problem> {
        let seals = matches!(look, Look::Seal { .. });
        self.fork_worker((connection, stream), id, Task::Look, |agent, _, control| {
            agent.look_in_worker(id, look, uppers, control)
        })?;
        if seals {
            step::reach(Step::AgentLayerCopying);
        }
        Ok(())
    }

    /// In the child.
    fn look_in_worker(&self, id: EnvironmentId, look: Look, uppers: &Uppers, failure: &OwnedFd) -> Result<(), Problem> {
        let system = |error: Error| error.problem();
        signal::restore_default(Signal::PIPE).map_err(system)?;
        signal::unblock_all().map_err(system)?;
        let missing = || Problem::new(ProblemKind::Protocol, "a request for files came without its descriptor");
        let to = match &look {
            Look::Changes { to, .. } | Look::Fetch { to, .. } => Some(to.as_ref().ok_or_else(missing)?),
            Look::Fork { .. } | Look::Seal { .. } => None,
        };
        let open = [&uppers.root, &uppers.source].into_iter().flatten().chain(to).chain([failure]);
        let kept: Vec<_> = open.map(|fd| fd.as_fd()).collect();
        // Other clients' sockets must close when they do.
        process::close_range_from(3, &kept).map_err(system)?;
        let layers = self.layers_of(id);
        match look {
            Look::Changes { to: Some(to), limit } => changes::tell(&layers, uppers, to, limit),
            Look::Fetch { to: Some(to), part, when } => changes::send(&layers, uppers, to, part, when),
            Look::Seal { layer } => {
                let used: Vec<&str> = self.environments.values().filter_map(|one| one.spec.layer.as_deref()).collect();
                changes::seal(uppers, &layer, layers.submounts.len())?;
                changes::prune(MOST_LAYERS, &layer, &used);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Everything that lies below an environment's changes.
    fn layers_of(&self, id: EnvironmentId) -> Layers {
        let mut layers = Layers::default();
        let (Some(environment), PlaceKind::Namespace(place)) = (self.environments.get(&id), &self.place.kind) else {
            return layers;
        };
        let sealed = environment.spec.layer.as_deref().map(layer_folder);
        let below = |name: &str, own: &[PathBuf]| -> Vec<PathBuf> {
            let sealed = sealed.iter().map(|folder| folder.join(name)).filter(|folder| folder.is_dir());
            sealed.chain(own.iter().cloned()).collect()
        };
        let own: Vec<PathBuf> = environment.generations.iter().chain(&place.roots.layers).cloned().collect();
        layers.root = below("root", &own);
        layers.data.clone_from(&place.roots.data);
        for (index, submount) in place.roots.submounts.iter().enumerate() {
            layers.submounts.push((submount.target.clone(), below(&submount_name(index), &submount.layers)));
        }
        let staged = environment.shown.as_ref().map(|shown| shown.staged()).unwrap_or_default();
        layers.source = below("source", &staged);
        let target = environment.spec.source.clone();
        layers.hidden = place.roots.hidden.clone();
        layers.made = ["/proc", "/sys", "/dev", "/tmp"].map(PathBuf::from).to_vec();
        layers.made.extend(place.roots.submounts.iter().map(|submount| submount.target.clone()));
        layers.made.extend(place.roots.exposed.iter().map(|(_, path)| path.clone()));
        layers.made.extend(target.or_else(|| environment.shown.as_ref().map(|shown| shown.path.clone())));
        layers.top = layers.made.last().cloned().unwrap_or_default();
        layers
    }
}

/// What a sealed layer is called until it is whole.
pub(super) fn unfinished(name: &str) -> PathBuf {
    layer_folder(name).with_file_name(format!("un{SEALED}{name}"))
}

/// The name of an environment's source within its sealed layer, and of its changes in their file system.
pub(super) const SOURCE: (&str, &str) = ("source", CHANGES);
