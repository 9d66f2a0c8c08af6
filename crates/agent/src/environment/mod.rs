//! Environments, as the agent sees them: a record of each, the way to make one, and those parked ahead of need.
//!
//! ```text
//!             clone             ready             lease                 status
//! (request) ───────► preparing ───────► parked ───────► in use ───────► ending ───► (gone: cgroup back to the pool)
//! ```

mod book;
mod changes;
mod ending;
mod group;
mod hearing;
mod holding;
pub(crate) mod init;
pub(crate) mod joining;
pub(crate) mod keeping;
pub(crate) mod layered;
mod listening;
pub(crate) mod looking;
pub(crate) mod order;
pub(crate) mod parking;
pub(crate) mod root;
mod shared_network;
pub(crate) mod source;
mod starting;
mod workspace;

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;

use testyard_linux::cgroup::Group;
use testyard_linux::namespace::{self, IdMap, Kind};
use testyard_linux::process::{self, Child, CloneFlags, CloneOptions, Forked, Pid};
use testyard_linux::socket;
use testyard_linux::{Error, Result, step};
use testyard_model::step::Step;
use testyard_model::{EnvironmentId, EnvironmentLimits, EnvironmentSpec, Network, UserSpec};
use testyard_protocol::start::{AgentStart, IdRange};
use testyard_protocol::{Exec, Linger, RawText};

pub(crate) use self::group::PooledGroup;
use self::init::{FirstCommand, ForkedFrom, Init, Kept, Setup};
use self::joining::Joining;
use self::looking::Looking;
use self::order::{Answer, Inbox, Order, Outbox};
use crate::place::{NamespacePlace, Place, PlaceKind};
use crate::source::Source;
use crate::standard_streams::StandardStreams;
use crate::start::machine_root::MachineRoot;
use crate::start::namespace::granted_map;

/// The machine itself is the environment of this number: it has an init like any other, and its commands.
pub(crate) const MACHINE: EnvironmentId = EnvironmentId(0);

/// Where an environment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its init is setting it up.
    Preparing,
    /// Ready, and nobody's.
    Parked,
    /// Somebody's.
    InUse,
    /// Its processes are ending.
    Ending,
}

/// One environment.
pub(crate) struct Environment {
    pub(crate) id: EnvironmentId,
    pub(crate) spec: EnvironmentSpec,
    pub(crate) state: State,
    pub(crate) pid: Pid,
    pub(crate) control: OwnedFd,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    pub(crate) group: Option<PooledGroup>,
    /// Kept until its turn to be destroyed comes.
    pub(crate) network: Option<OwnedFd>,
    /// The connection that holds it.
    pub(crate) holder: Option<u64>,
    /// Which generation of the machine's files it shows.
    pub(crate) generation: u64,
    /// Streams of requests that wait for it to be ready, or gone.
    pub(crate) waiting: Vec<Waiting>,
    /// It ends with its one command.
    pub(crate) once: bool,
    /// Its folder, when it is a workspace.
    pub(crate) workspace: Option<PathBuf>,
    /// Its user namespace, where it needs a route out.
    pub(crate) user: Option<OwnedFd>,
    /// Commands that wait until it can be used.
    pub(crate) delayed: Vec<DelayedCommand>,
    /// Its namespaces, in the order of [`Kind::ALL`], once somebody wanted in.
    pub(crate) namespaces: Option<Vec<OwnedFd>>,
    /// Those who wait for them.
    pub(crate) joining: Vec<Joining>,
    /// Streams of those who wait for a source to be shown before they come in.
    pub(crate) showing: VecDeque<(u64, u32)>,
    /// The layers that its root was made of, above those of the machine.
    pub(crate) generations: Vec<PathBuf>,
    /// Whether it outlives the command that it was made for.
    pub(crate) linger: Linger,
    /// It has no holder, and lives until its time is over.
    pub(crate) kept: bool,
    /// The working tree that it shows.
    pub(crate) shown: Option<Rc<Source>>,
    /// Those who wait to be told where its changes are.
    pub(crate) looking: VecDeque<Looking>,
}

impl Environment {
    /// Whether its init is ready and its route out is not there yet.
    pub(crate) fn awaits_route(&self) -> bool {
        self.state == State::Preparing && self.user.is_some()
    }

    /// Whether it was made ahead of need, and is nobody's.
    pub(crate) fn is_spare(&self) -> bool {
        self.holder.is_none() && !self.once && !self.kept && self.id != MACHINE
    }
}

/// A command for an environment that is still being made.
pub(crate) struct DelayedCommand {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
    pub(crate) exec: Exec,
    pub(crate) streams: StandardStreams,
}

/// A request that waits for an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// To be told that it is ready.
    Ready { connection: u64, stream: u32, parked: bool },
    /// To be told that it is gone.
    Gone { connection: u64, stream: u32 },
    /// To be told that something in it accepts connections.
    Listening { connection: u64, stream: u32, wait: u32 },
}

/// What is asked for when an environment is made.
pub(crate) struct Request<'a> {
    pub(crate) machine: &'a str,
    pub(crate) id: EnvironmentId,
    pub(crate) spec: &'a EnvironmentSpec,
    pub(crate) group: Option<&'a Group>,
    pub(crate) generations: &'a [PathBuf],
    pub(crate) machine_env: &'a [(RawText, RawText)],
    pub(crate) first: Option<FirstCommand<'a>>,
    pub(crate) forked: Option<ForkedFrom<'a>>,
    /// The network namespace that it shares instead of having its own.
    pub(crate) network: Option<BorrowedFd<'a>>,
    /// Whether there are so many environments that the descriptors kept for them should not be copied.
    pub(crate) many: bool,
}

/// Descriptors kept for environments have numbers from here on where there are many: what is made for the moment, and
/// is what a new init keeps, has lower ones. Older kernels cut such a table right only at multiples of this number.
pub(crate) const HIGH: RawFd = 4096;

/// What a clone gives.
pub(crate) struct Made {
    pub(crate) pid: Pid,
    pub(crate) control: OwnedFd,
    pub(crate) network: Option<OwnedFd>,
    pub(crate) user: Option<OwnedFd>,
    pub(crate) workspace: Option<PathBuf>,
}

/// Clones an environment's init.
pub(crate) fn make(place: &Place, request: Request<'_>) -> Result<Made> {
    let workspace = workspace_of(place, &request);
    let (ours, theirs) = socket::pair(socket::Kind::Stream)?;
    let flags = flags_of(place, request.spec);
    let options = CloneOptions {
        cgroup: request.group.and_then(Group::clone_into),
        below: request.many.then(|| highest_kept(&request, &theirs)).filter(|highest| *highest < HIGH).map(|_| HIGH),
        ..CloneOptions::default()
    };
    let cloned = match request.network {
        None => process::clone3(place.token, flags, options),
        Some(network) => shared_network::clone_into(place.token, network, flags, options),
    };
    match cloned? {
        Forked::Child => {
            drop(ours);
            init::run(child_side(place, request, theirs, workspace, flags))
        }
        Forked::Parent(child) => {
            drop(theirs);
            step::reach(Step::AgentEnvironmentCloned);
            finish(place, request.spec, child, ours, workspace, flags)
        }
    }
}

/// The highest of the descriptors that an init keeps of the agent's.
fn highest_kept(request: &Request<'_>, control: &OwnedFd) -> RawFd {
    let kept = init::kept(control, request.group, request.forked.as_ref(), request.first.as_ref());
    kept.iter().map(|fd| fd.as_raw_fd()).max().unwrap_or(0)
}

fn child_side<'a>(
    place: &'a Place,
    mut request: Request<'a>,
    control: OwnedFd,
    workspace: Option<PathBuf>,
    flags: CloneFlags,
) -> Init<'a> {
    let hidden: &[PathBuf] = match &place.kind {
        PlaceKind::Namespace(namespace) => &namespace.roots.hidden,
        PlaceKind::Process { .. } => &[],
    };
    let forked = request.forked.take();
    let setup = match (&place.kind, &workspace) {
        (PlaceKind::Namespace(namespace), None) => Setup::Namespaces(root::EnvironmentRoot {
            generations: request.generations,
            sealed: request.spec.layer.as_deref().map(keeping::layer_folder),
            forked: forked.as_ref().and_then(|forked| forked.root),
            roots: &namespace.roots,
            disk: request.spec.limits.disk.unwrap_or(EnvironmentLimits::DEFAULT_DISK).0,
            own_network: request.spec.network != Network::Host && request.network.is_none(),
            cgroups: request.spec.cgroups.then_some(&place.hierarchy),
            shared: request.spec.shared,
        }),
        (PlaceKind::Namespace(namespace), Some(folder)) => Setup::Workspace {
            folder: folder.clone(),
            work: folder.join("work"),
            mounts: namespace.mounts.as_ref().map(|fd| fd.as_fd()),
        },
        (PlaceKind::Process { .. }, folder) => {
            let folder = folder.clone().unwrap_or_default();
            Setup::Workspace { work: folder.join("work"), folder, mounts: None }
        }
    };
    Init {
        token: place.token,
        control,
        host_name: request.spec.host_name.clone().unwrap_or_else(|| request.id.to_string()),
        own_env: own_environment(request.id, workspace.as_deref()),
        spec: request.spec,
        group: request.group,
        setup,
        machine_env: request.machine_env,
        single_id: is_single(place),
        open_files: place.open_files,
        folder: place.folder.as_deref(),
        maps_follow: flags.contains(CloneFlags::NEWUSER),
        machine: request.machine,
        first: request.first,
        network: None,
        hidden,
        forked,
        kept: Kept::default(),
    }
}

/// Clones the machine's own init, and waits until the machine's root is there.
pub(crate) fn make_machine(place: &mut Place, start: &AgentStart, spec: &EnvironmentSpec) -> Result<Made> {
    let (ours, theirs) = socket::pair(socket::Kind::Stream)?;
    let flags = match &place.kind {
        PlaceKind::Process { .. } => CloneFlags::NONE,
        PlaceKind::Namespace(_) => CloneFlags::NEWNS | CloneFlags::NEWPID,
    };
    match process::clone3(place.token, flags, CloneOptions::default())? {
        Forked::Child => {
            drop(ours);
            let root = match &place.kind {
                PlaceKind::Namespace(namespace) => {
                    Some(MachineRoot { roots: &namespace.roots, hierarchy: &place.hierarchy })
                }
                PlaceKind::Process { .. } => None,
            };
            init::run(Init {
                token: place.token,
                control: theirs,
                host_name: MACHINE.to_string(),
                own_env: Vec::new(),
                spec,
                group: None,
                setup: Setup::Machine(root),
                machine_env: &start.env,
                machine: &start.machine,
                single_id: is_single(place),
                open_files: place.open_files,
                folder: place.folder.as_deref(),
                maps_follow: false,
                first: None,
                network: None,
                hidden: &[],
                forked: None,
                kept: Kept::default(),
            })
        }
        Forked::Parent(child) => {
            drop(theirs);
            let mounts = await_ready(&ours)?;
            if let PlaceKind::Namespace(namespace) = &mut place.kind {
                namespace.mounts = mounts;
            }
            Ok(Made { pid: child.pid, control: ours, network: None, user: None, workspace: None })
        }
    }
}

fn await_ready(control: &OwnedFd) -> Result<Option<OwnedFd>> {
    let failed = |cause: String| Error::new("start", "the machine's init", std::io::Error::other(cause));
    let mut inbox = Inbox::default();
    while inbox.fill(control)? {
        match inbox.take()? {
            Some(Answer::Ready) => return Ok(inbox.attached.pop_front()),
            Some(Answer::Broken(problem)) => {
                return Err(failed([problem.message].into_iter().chain(problem.causes).collect::<Vec<_>>().join(": ")));
            }
            _ => {}
        }
    }
    Err(failed("it ended".to_owned()))
}

fn is_single(place: &Place) -> bool {
    matches!(&place.kind, PlaceKind::Namespace(namespace) if namespace.ids == IdRange::Single)
}

/// The variables by which a command knows where it is.
fn own_environment(id: EnvironmentId, workspace: Option<&std::path::Path>) -> Vec<(RawText, RawText)> {
    let mut env = vec![(RawText::from("TESTYARD_ENVIRONMENT"), RawText::from(id.to_string()))];
    let temporary = workspace.map_or_else(|| PathBuf::from("/tmp"), |folder| folder.join("tmp"));
    env.push(("TMPDIR".into(), temporary.into()));
    if let Some(folder) = workspace {
        env.push(("TESTYARD_WORKSPACE".into(), folder.join("work").into()));
    }
    env
}

fn workspace_of(place: &Place, request: &Request<'_>) -> Option<PathBuf> {
    let id = request.id;
    match &place.kind {
        PlaceKind::Process { workspaces } => Some(workspaces.join(id.to_string())),
        PlaceKind::Namespace(_) if init::has_namespaces(request.spec.isolation) => None,
        PlaceKind::Namespace(_) => Some(PathBuf::from(format!("/tmp/testyard-{id}"))),
    }
}

fn flags_of(place: &Place, spec: &EnvironmentSpec) -> CloneFlags {
    let PlaceKind::Namespace(namespace) = &place.kind else { return CloneFlags::NONE };
    if !init::has_namespaces(spec.isolation) {
        return CloneFlags::NEWPID;
    }
    // The others are made by the child itself: meanwhile the agent serves.
    let mut flags = CloneFlags::NEWPID;
    if spec.network == Network::Outbound {
        // Its route is made from outside before its init goes on.
        flags = flags | CloneFlags::NEWNET;
    }
    if namespace.ids != IdRange::Host {
        flags = flags | CloneFlags::NEWUSER;
    }
    flags
}

fn finish(
    place: &Place,
    spec: &EnvironmentSpec,
    child: Child,
    control: OwnedFd,
    workspace: Option<PathBuf>,
    flags: CloneFlags,
) -> Result<Made> {
    let network =
        if flags.contains(CloneFlags::NEWNET) { namespace::open(Some(child.pid), Kind::Network).ok() } else { None };
    // Opened while its init can still be looked at.
    let user = if spec.network == Network::Outbound && flags.contains(CloneFlags::NEWNET) {
        Some(namespace::open(Some(child.pid), Kind::User)?)
    } else {
        None
    };
    if let (PlaceKind::Namespace(namespace), true) = (&place.kind, flags.contains(CloneFlags::NEWUSER)) {
        let (uids, gids, deny) = maps_of(namespace, spec);
        let mapped = namespace::write_id_maps(child.pid, &uids, &gids, deny)
            .and_then(|()| order::send(control.as_fd(), &Order::Go, &[]));
        if let Err(error) = mapped {
            // Its init waits for the word to go on and ends without it.
            let _ = process::pidfd_signal(child.pidfd.as_fd(), 9);
            return Err(error);
        }
    }
    Ok(Made { pid: child.pid, control, network, user, workspace })
}

/// An environment's ids: all of the machine's, or the one that there is under the number that its user has.
fn maps_of(namespace: &NamespacePlace, spec: &EnvironmentSpec) -> (Vec<IdMap>, Vec<IdMap>, bool) {
    match namespace.ids {
        IdRange::Range { count, .. } => {
            let all = vec![IdMap { inside: 0, outside: 0, count }];
            (all.clone(), all, false)
        }
        IdRange::Granted { count, .. } => {
            let all = granted_map(count).to_vec();
            (all.clone(), all, false)
        }
        IdRange::Single | IdRange::Host => {
            let (uid, gid) = match &spec.user {
                UserSpec::Numbered { uid, gid, .. } => (*uid, *gid),
                UserSpec::Machine | UserSpec::Root | UserSpec::Named(_) => (0, 0),
            };
            let one = |inside| vec![IdMap { inside, outside: 0, count: 1 }];
            (one(uid), one(gid), true)
        }
    }
}
