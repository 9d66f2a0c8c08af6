//! An environment's init: a fork of the agent that sets the environment up, runs its commands, and by ending ends them.
//!
//! ```text
//! clone ─► join cgroup, host name, loopback ─► (id maps written) ─► root ─► ready ⇄ running ─► end
//! ```
//!
//! In namespaces it is process 1, and its end is the end of every process inside. Without namespaces it
//! is the subreaper of its commands and ends what descends from it one by one.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use testyard_linux::cgroup::Group;
use testyard_linux::namespace::Kind;
use testyard_linux::process::{self, CloneFlags, OpenFiles, SingleThreaded};
use testyard_linux::signal::{Signal, SignalFd};
use testyard_linux::{Result, mount, namespace, step};
use testyard_model::step::Step;
use testyard_model::{EnvironmentLimits, EnvironmentSpec, Isolation, Network, Problem};
use testyard_protocol::{Exec, Linger, RawText};

use super::listening::Waits;
use super::order::{self, Answer, Inbox, Order};
use super::source::{SourceMount, SourcePlace, SourceView};
use super::{root, workspace};
use crate::start::machine_root::MachineRoot;
use crate::worker::last_words;

/// The environment variable that marks what a command started.
pub(super) use testyard_protocol::start::relay::MARK;

/// Everything the init needs; most of it is simply still there after the fork.
pub(crate) struct Init<'a> {
    pub(crate) token: SingleThreaded,
    pub(crate) control: OwnedFd,
    pub(crate) spec: &'a EnvironmentSpec,
    pub(crate) host_name: String,
    pub(crate) group: Option<&'a Group>,
    pub(crate) setup: Setup<'a>,
    /// Variables that every command of the machine gets.
    pub(crate) machine_env: &'a [(RawText, RawText)],
    /// Variables of this environment.
    pub(crate) own_env: Vec<(RawText, RawText)>,
    /// The machine's id, for the mark on every process that a command starts.
    pub(crate) machine: &'a str,
    pub(crate) single_id: bool,
    /// The limit of open files that commands have, where the agent has another.
    pub(crate) open_files: Option<OpenFiles>,
    /// Where the machine's commands start that do not say.
    pub(crate) folder: Option<&'a Path>,
    /// Whether a user namespace awaits its maps.
    pub(crate) maps_follow: bool,
    /// A command that is known already.
    pub(crate) first: Option<FirstCommand<'a>>,
    /// The network namespace that was made for it.
    pub(crate) network: Option<OwnedFd>,
    /// What a working tree must not show.
    pub(crate) hidden: &'a [PathBuf],
    /// Another environment, with whose files this one begins.
    pub(crate) forked: Option<ForkedFrom<'a>>,
    /// Where its changes are kept, and what its source still needs.
    pub(crate) kept: Kept,
}

/// How the environment is kept apart.
pub(crate) enum Setup<'a> {
    /// Own namespaces over these layers.
    Namespaces(root::EnvironmentRoot<'a>),
    /// A folder of its own, made here; with the mount namespace to make it in.
    Workspace { folder: PathBuf, work: PathBuf, mounts: Option<BorrowedFd<'a>> },
    /// The machine itself, with a root of its own where it has one.
    Machine(Option<MachineRoot<'a>>),
}

/// What a fork begins with.
pub(crate) struct ForkedFrom<'a> {
    /// The file system of the first one's changes to its root.
    pub(crate) root: Option<BorrowedFd<'a>>,
    /// That of the changes to its source, and the source.
    pub(crate) source: Option<(&'a OwnedFd, &'a SourceMount)>,
}

/// What is opened while there is a way to it.
#[derive(Default)]
pub(crate) struct Kept {
    /// The file system of the root's changes.
    pub(super) root: Option<OwnedFd>,
    /// That of the source's changes, where it was shown.
    pub(super) source: Option<OwnedFd>,
    /// What a sealed layer changed of the source: a detached mount.
    pub(super) sealed: Option<OwnedFd>,
}

/// The command an environment was made for.
pub(crate) struct FirstCommand<'a> {
    pub(crate) number: u32,
    pub(crate) exec: &'a Exec,
    /// The working tree.
    pub(crate) source: Option<&'a SourceMount>,
    pub(crate) streams: Option<[OwnedFd; 3]>,
    pub(crate) once: bool,
}

pub(super) struct Running {
    pub(super) number: u32,
    pub(super) once: bool,
    pub(super) linger: Linger,
    /// Where its child says why it could not become the command; none where that is known already.
    pub(super) failure: Option<OwnedFd>,
}

/// Runs in the child until the environment ends.
pub(crate) fn run(mut init: Init<'_>) -> ! {
    let status = match set_up(&mut init) {
        Ok(inbox) => {
            let first = init.first.take();
            let kept = std::mem::take(&mut init.kept);
            let status = serve(&init, inbox, first, kept);
            if !matches!(init.setup, Setup::Namespaces(_)) {
                // Bounded: a fork bomb is for the limit on processes.
                let _ = process::kill_descendants(rustix::process::getpid());
            }
            if let Setup::Workspace { folder, .. } = &init.setup {
                workspace::remove(folder);
            }
            status
        }
        Err(error) => {
            let _ = order::send(init.control.as_fd(), &Answer::Broken(error.problem()), &[]);
            1
        }
    };
    process::exit_immediately(status)
}

fn set_up(init: &mut Init<'_>) -> Result<Inbox> {
    let mut inbox = Inbox::default();
    close_others(init)?;
    // Where even that is refused, commands may open more.
    let _ = init.open_files.map(OpenFiles::restore);
    if let Some(group) = init.group {
        group.attach_self()?;
    }
    match &init.setup {
        Setup::Namespaces(environment) => {
            let mut own = CloneFlags::NEWNS | CloneFlags::NEWIPC | CloneFlags::NEWUTS;
            let shared = init.spec.joins.is_some();
            if matches!(init.spec.network, Network::Private | Network::None) && !shared {
                own = own | CloneFlags::NEWNET;
            }
            namespace::unshare(own)?;
            // Hosts without cgroup namespaces: the environment then sees its path below the machine's.
            let _ = namespace::unshare(CloneFlags::NEWCGROUP);
            if own.contains(CloneFlags::NEWNET) {
                init.network = namespace::open(None, Kind::Network).ok();
            }
            namespace::set_host_name(&init.host_name)?;
            if matches!(init.spec.network, Network::Private | Network::Outbound) && !shared {
                namespace::loopback_up()?;
            }
            if init.maps_follow {
                await_maps(init, &mut inbox)?;
            }
            if let Some(sealed) =
                environment.sealed.as_ref().map(|folder| folder.join("source")).filter(|path| path.is_dir())
            {
                init.kept.sealed = Some(mount::clone_tree(sealed.as_path(), false)?);
            }
            init.kept.root = Some(root::mount_environment(environment)?);
            if let Some((changes, shown)) = init.forked.as_ref().and_then(|forked| forked.source) {
                let sealed = init.kept.sealed.take();
                let view = SourceView {
                    sealed: sealed.as_ref(),
                    forked: Some(changes),
                    ..source_view(init.spec, init.hidden, &shown.place)
                };
                init.kept.source = Some(view.mount(shown.tree.as_fd())?);
            }
        }
        Setup::Machine(Some(machine)) => {
            machine.mount()?;
            step::reach(Step::AgentRoot);
        }
        Setup::Machine(None) => process::set_subreaper(true)?,
        Setup::Workspace { folder, work, mounts } => workspace::set_up(folder, work, *mounts, init.spec)?,
    }
    if init.first.is_none() {
        tell_ready(init)?;
    }
    // The memory of this process is a copy of the agent's: nobody inside may look at it.
    process::set_dumpable(false)?;
    Ok(inbox)
}

/// Tells the agent that commands may come, and hands over what it keeps of this environment.
fn tell_ready(init: &mut Init<'_>) -> Result<()> {
    let mounts = match &init.setup {
        Setup::Machine(Some(_)) => Some(namespace::open(None, Kind::Mount)?),
        _ => init.network.take(),
    };
    let attached: Vec<_> = mounts.iter().map(|fd| fd.as_fd()).collect();
    order::send(init.control.as_fd(), &Answer::Ready, &attached)
}

/// What an init keeps of the agent's descriptors, beside the mount namespace that a workspace is made in.
pub(super) fn kept<'a>(
    control: &'a OwnedFd,
    group: Option<&'a Group>,
    forked: Option<&'a ForkedFrom<'_>>,
    first: Option<&'a FirstCommand<'_>>,
) -> Vec<BorrowedFd<'a>> {
    let mut kept = vec![control.as_fd()];
    if let Some(group) = group {
        kept.extend(group.folders().map(|(_, folder)| folder));
    }
    if let Some(forked) = forked {
        kept.extend(forked.root);
        kept.extend(forked.source.iter().flat_map(|(changes, shown)| [changes.as_fd(), shown.tree.as_fd()]));
    }
    if let Some(first) = first {
        kept.extend(first.source.map(|source| source.tree.as_fd()));
        kept.extend(first.streams.iter().flatten().map(|fd| fd.as_fd()));
    }
    kept.extend(step::log());
    kept
}

/// The fork has every descriptor of the agent: other clients' sockets among them, which must close when they do.
fn close_others(init: &Init<'_>) -> Result<()> {
    let mut kept = kept(&init.control, init.group, init.forked.as_ref(), init.first.as_ref());
    if let Setup::Workspace { mounts: Some(mounts), .. } = &init.setup {
        kept.push(*mounts);
    }
    process::close_range_from(3, &kept)
}

pub(super) fn source_view<'a>(spec: &EnvironmentSpec, hidden: &'a [PathBuf], place: &'a SourcePlace) -> SourceView<'a> {
    let size = spec.limits.disk.unwrap_or(EnvironmentLimits::DEFAULT_DISK).0;
    SourceView { place, size, hidden, sealed: None, forked: None }
}

fn await_maps(init: &Init<'_>, inbox: &mut Inbox) -> Result<()> {
    loop {
        if let Some(Order::Go) = inbox.take()? {
            return Ok(());
        }
        if !inbox.fill(&init.control)? {
            process::exit_immediately(0);
        }
    }
}

/// Waits until the agent has passed the status on, and says so or kills this process: ending takes the kernel longer
/// than that, on the same processors.
fn await_end(control: &OwnedFd, inbox: &mut Inbox) {
    loop {
        match inbox.take() {
            Ok(Some(Order::End)) | Err(_) => return,
            // Any other order is too late.
            Ok(Some(_)) => {}
            Ok(None) if inbox.fill(control).unwrap_or(false) => {}
            Ok(None) => return,
        }
    }
}

pub(super) struct Server<'a, 'b> {
    pub(super) init: &'b Init<'a>,
    pub(super) running: HashMap<Pid, Running>,
    /// Whether anything but this init may be here already.
    pub(super) inhabited: bool,
    /// Where the source was mounted: once an environment.
    pub(super) source: Option<PathBuf>,
    pub(super) kept: Kept,
    /// Ports that somebody waits for.
    pub(super) waits: Waits,
}

fn serve(init: &Init<'_>, mut inbox: Inbox, first: Option<FirstCommand<'_>>, kept: Kept) -> i32 {
    let Ok(signals) = SignalFd::new(&[Signal::CHLD, Signal::TERM]) else { return 1 };
    let source =
        init.forked.as_ref().and_then(|forked| forked.source).map(|(_, shown)| shown.place.target.as_path().to_owned());
    let running = HashMap::new();
    let mut server = Server { init, running, inhabited: false, source, kept, waits: Waits::default() };
    if let Some(first) = first {
        let source = first.source.and_then(|source| {
            let tree = source.tree.try_clone().ok()?;
            Some(SourceMount { tree, place: source.place.clone() })
        });
        server.start(first.number, first.exec, source, first.streams, first.once);
    }
    loop {
        // Before the first wait too: an order may have come together with the word that the maps are written.
        if !server.obey(&mut inbox) {
            return 0;
        }
        let mut watched = [PollFd::new(&init.control, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        if let Err(error) = poll(&mut watched, server.waits.pause().as_ref())
            && error != Errno::INTR
        {
            return 1;
        }
        let (orders, children) = (!watched[0].revents().is_empty(), !watched[1].revents().is_empty());
        if children {
            // First of all the status: somebody waits for it.
            if server.reap() {
                await_end(&init.control, &mut inbox);
                return 0;
            }
            while let Ok(Some(received)) = signals.read() {
                if received.signal == Signal::TERM {
                    // As any init: who asks the machine to end, ends it.
                    return 0;
                }
            }
            // One that ended before its signal was read would not be told again.
            if server.reap() {
                await_end(&init.control, &mut inbox);
                return 0;
            }
        }
        if orders && !inbox.fill(&init.control).unwrap_or(false) {
            return 0;
        }
        for (wait, accepts) in server.waits.answered() {
            // An agent that is gone ends this init.
            let _ = order::send(init.control.as_fd(), &Answer::Listening { wait, accepts }, &[]);
        }
    }
}

impl Server<'_, '_> {
    /// Follows the orders that came. False at the end.
    fn obey(&mut self, inbox: &mut Inbox) -> bool {
        let mut killed = Vec::new();
        while let Ok(Some(order)) = inbox.take() {
            match order {
                Order::Go => {}
                Order::End => return false,
                Order::Namespaces => self.send_namespaces(),
                Order::Uppers => self.send_uppers(),
                Order::Show(place) => {
                    let tree = inbox.attached.pop_front();
                    self.show(tree, place);
                }
                Order::Listening { wait, port, patience_ms } => self.waits.add(wait, port, patience_ms),
                Order::Signal { command, signal, group } => self.signal(command, signal, group),
                Order::Kill { command } => killed.push(command),
                Order::Run { command, exec, source, once } => {
                    let source = source.and_then(|place| {
                        let tree = inbox.attached.pop_front()?;
                        Some(SourceMount { tree, place })
                    });
                    let streams = if exec.terminal.is_none() {
                        let mut next = || inbox.attached.pop_front();
                        next().zip(next()).zip(next()).map(|((input, output), error)| [input, output, error])
                    } else {
                        None
                    };
                    self.start(command, &exec, source, streams, once);
                }
            }
        }
        if !killed.is_empty() {
            self.kill(&killed);
        }
        true
    }

    fn send_namespaces(&self) {
        let opened: Result<Vec<OwnedFd>> = Kind::ALL.into_iter().map(|kind| namespace::open(None, kind)).collect();
        let opened = opened.unwrap_or_default();
        let attached: Vec<_> = opened.iter().map(|fd| fd.as_fd()).collect();
        // An agent that is gone ends this init.
        let _ = order::send(self.init.control.as_fd(), &Answer::Namespaces, &attached);
    }

    fn send_uppers(&self) {
        let Kept { root, source, .. } = &self.kept;
        let answer = Answer::Uppers { root: root.is_some(), source: source.is_some() };
        let attached: Vec<_> = root.iter().chain(source).map(|fd| fd.as_fd()).collect();
        // An agent that is gone ends this init.
        let _ = order::send(self.init.control.as_fd(), &answer, &attached);
    }

    fn signal(&self, command: u32, signal: i32, group: bool) {
        let Some((pid, _)) = self.running.iter().find(|(_, running)| running.number == command) else { return };
        let Some(signal) = Signal::from_number(signal) else { return };
        // It may just have ended: then there is nobody left to tell.
        let _ = if group { signal.send_to_group(*pid) } else { signal.send_to(*pid) };
    }

    /// What a command started is found by descent, and by the mark in its environment where it was orphaned. Many at
    /// once, because each look at `/proc` takes the longer the more there are.
    fn kill(&self, commands: &[u32]) {
        let running = self.running.iter().filter(|(_, running)| commands.contains(&running.number));
        let pids: Vec<Pid> = running.map(|(pid, _)| *pid).collect();
        // What could not be ended is looked for by its mark.
        let _ = process::kill_trees(&pids);
        for pid in &pids {
            // Root inside may have hidden it in a `/proc` of its own; a child not waited for keeps its number.
            let _ = Signal::KILL.send_to_group(*pid);
            let _ = Signal::KILL.send_to(*pid);
        }
        let marks: Vec<String> = commands.iter().map(|command| self.mark(*command)).collect();
        for _ in 0..20 {
            let marked = process::environment_marked_any(MARK, &marks).unwrap_or_default();
            if marked.is_empty() {
                return;
            }
            for pid in marked {
                // It may end by itself first.
                let _ = Signal::KILL.send_to(pid);
            }
            rustix::thread::sched_yield();
        }
    }

    pub(super) fn mark(&self, command: u32) -> String {
        format!("{}.{}.{command}", self.init.machine, self.init.host_name)
    }

    /// Collects ended processes. True when the one that the environment was made for has ended.
    fn reap(&mut self) -> bool {
        while let Ok(Some((pid, status, usage))) = process::wait_any_nohang() {
            let Some(running) = self.running.remove(&pid) else { continue };
            let told = running.failure.as_ref().map(last_words).unwrap_or_default();
            let ends = running.once && (!told.is_empty() || !running.linger.applies(status));
            let network = self.init.network.as_ref().filter(|_| ends).map(|fd| fd.as_fd());
            let answer = match serde_json::from_slice::<Problem>(&told) {
                Ok(problem) => Answer::Failed { command: running.number, problem },
                Err(_) => Answer::Exited {
                    command: running.number,
                    status,
                    cpu_us: usage.user_us + usage.system_us,
                    memory_peak: usage.max_rss_bytes,
                },
            };
            let attached = if matches!(answer, Answer::Exited { .. }) { network } else { None };
            let sent = order::send(self.init.control.as_fd(), &answer, attached.as_slice());
            if ends || sent.is_err() {
                return true;
            }
        }
        false
    }
}

/// Whether this level has namespaces of its own.
pub(crate) fn has_namespaces(isolation: Isolation) -> bool {
    isolation >= Isolation::Namespace
}
