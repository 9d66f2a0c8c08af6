//! Environments that outlive their commands: lingering ones, which a connection still holds, and kept ones, which live
//! until their time is over; and the layers that environments were sealed to.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use testyard_linux::step;
use testyard_model::step::Step;
use testyard_model::{EnvironmentId, EnvironmentSpec, Isolation, Problem, ProblemKind};
use testyard_protocol::Event;

use super::book::place_of;
use super::init::ForkedFrom;
use super::source::SourceMount;
use super::{Environment, MACHINE, State, Waiting};
use crate::agent::Agent;
use crate::place::PlaceKind;
use crate::source::Source;
use crate::timers::Due;

/// More kept environments than this are refused: each is memory and processes.
const MOST_KEPT: usize = 64;
/// How many sealed layers a machine keeps.
pub(super) const MOST_LAYERS: usize = 8;
/// Where they are. The kernel refuses layers within layers, which this folder is made to avoid.
pub(super) const LAYERS: &str = "/store/generations";
/// What each is called there, before its name.
pub(super) const SEALED: &str = "sealed-";

/// The folder of a sealed layer.
pub(super) fn layer_folder(name: &str) -> PathBuf {
    Path::new(LAYERS).join(format!("{SEALED}{name}"))
}

fn is_layer_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The uppers of an environment that is to be forked.
pub(super) struct Uppers {
    pub(super) root: Option<OwnedFd>,
    pub(super) source: Option<OwnedFd>,
}

impl Agent {
    /// Refuses a layer that is not there.
    pub(crate) fn check_layer(&self, spec: &EnvironmentSpec) -> Result<(), Problem> {
        let Some(name) = &spec.layer else { return Ok(()) };
        self.can_seal(name)?;
        if spec.isolation < Isolation::Namespace || !layer_folder(name).is_dir() {
            return Err(Problem::new(ProblemKind::NotFound, format!("there is no layer {name} on this machine")));
        }
        Ok(())
    }

    /// Refuses names of layers that cannot be, and machines that have none.
    pub(super) fn can_seal(&self, name: &str) -> Result<(), Problem> {
        if !matches!(self.place.kind, PlaceKind::Namespace(_)) {
            return Err(Problem::new(ProblemKind::Unsupported, "a machine of backend `host` has no layers"));
        }
        if !is_layer_name(name) {
            return Err(Problem::new(ProblemKind::Usage, format!("{name:?} cannot be a layer's name"))
                .hint("use 1 to 64 lower-case letters and digits"));
        }
        Ok(())
    }

    /// The names of the layers that were sealed on this machine.
    pub(crate) fn layers(&self) -> Vec<String> {
        let entries = std::fs::read_dir(LAYERS).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut layers: Vec<String> = names.filter_map(|name| name.strip_prefix(SEALED).map(str::to_owned)).collect();
        layers.sort();
        layers
    }

    /// Whether an environment stays after the command that it was made for; if so, its client holds it like any other.
    pub(super) fn lingers(&mut self, id: EnvironmentId, wait_status: i32) -> bool {
        let Some(environment) = self.environments.get_mut(&id) else { return false };
        let stays = environment.once && environment.linger.applies(wait_status) && environment.state != State::Ending;
        if stays {
            environment.once = false;
        }
        stays
    }

    /// Lets an environment live on without a holder.
    pub(crate) fn keep(&mut self, id: EnvironmentId, for_ms: u64) -> Result<(), Problem> {
        let kept = self.environments.values().filter(|one| one.kept && one.id != id).count();
        let there = self.environments.get_mut(&id).filter(|one| one.state == State::InUse && !one.once);
        let environment = there.ok_or_else(|| {
            Problem::new(ProblemKind::NotFound, format!("environment {id} is not there, or not to be kept"))
        })?;
        if kept >= MOST_KEPT {
            let message = format!("{MOST_KEPT} environments of this machine are kept already");
            return Err(Problem::new(ProblemKind::Exhausted, message)
                .hint("testyard env list")
                .hint("testyard env delete"));
        }
        environment.kept = true;
        environment.holder = None;
        self.expire_after(id, for_ms);
        step::reach(Step::AgentEnvironmentKept);
        Ok(())
    }

    fn expire_after(&mut self, id: EnvironmentId, for_ms: u64) {
        self.timers.forget(Due::Expire(id));
        // Centuries are as good as for ever, and the clock cannot hold more.
        let patience = Duration::from_millis(for_ms.min(1 << 42));
        self.timers.add(Instant::now() + patience, Due::Expire(id));
    }

    /// The numbers of the environments that outlive their commands.
    pub(crate) fn lasting(&self) -> Vec<EnvironmentId> {
        let lasting = |one: &&Environment| one.state == State::InUse && !one.once && one.id != MACHINE;
        self.environments.values().filter(lasting).map(|one| one.id).collect()
    }

    /// Makes another environment with the files of one that is there.
    pub(super) fn fork(
        &mut self,
        (connection, stream): (u64, u32),
        id: EnvironmentId,
        for_ms: u64,
        uppers: &Uppers,
    ) -> Result<(), Problem> {
        let missing = || Problem::new(ProblemKind::NotFound, format!("environment {id} is not there"));
        let first = self.environments.get(&id).ok_or_else(missing)?;
        let Some(root) = &uppers.root else {
            return Err(Problem::new(
                ProblemKind::Unsupported,
                "only environments of isolation `namespace` can be forked",
            ));
        };
        let (spec, generations, generation) = (first.spec.clone(), first.generations.clone(), first.generation);
        let shown = first.shown.clone();
        let tree = shown.as_ref().and_then(|shown| shown.mount()).transpose().map_err(|error| error.problem())?;
        let mounted = tree.zip(shown.as_ref()).map(|(tree, shown)| SourceMount { tree, place: place_of(shown, &spec) });
        let forked = ForkedFrom { root: Some(root.as_fd()), source: uppers.source.as_ref().zip(mounted.as_ref()) };
        let fork = self.make_over(&spec, None, generations, Some(forked))?;
        if let Some(environment) = self.environments.get_mut(&fork) {
            environment.kept = true;
            environment.generation = generation;
            environment.shown = shown;
        }
        self.expire_after(fork, for_ms);
        self.wait_for(fork, Waiting::Ready { connection, stream, parked: false });
        Ok(())
    }

    /// What an ended environment still had of others.
    pub(super) fn let_go_of(&mut self, environment: &mut Environment) {
        self.timers.forget(Due::Expire(environment.id));
        for looking in std::mem::take(&mut environment.looking) {
            let problem = Problem::new(ProblemKind::Unavailable, format!("environment {} ended", environment.id));
            self.answer(looking.connection, looking.stream, &Event::Failed(problem));
        }
        if let Some(source) = environment.shown.take() {
            release(source);
        }
    }
}

/// Lets go of a source that may have been the last one's.
pub(crate) fn release(source: Rc<Source>) {
    if let Some(source) = Rc::into_inner(source) {
        source.detach();
    }
}
