//! The router: what a machine and its environments need of the host's network.
//!
//! pasta (package `passt`) is the host's program and needs the host's network, so it is started by a small process
//! that was forked before the agent entered the machine's namespaces: the router. Nothing in the machine can see it,
//! the agent or pasta. It also links the machine to the others of its network ([`crate::network`]). It answers one
//! request at a time, and ends with the agent, after every process that it started.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, WaitOptions, getpid};
use serde::{Deserialize, Serialize};
use testyard_linux::process::{self, CloneFlags, CloneOptions, Forked, SingleThreaded};
use testyard_linux::{Error, Result, identity, signal, socket};
use testyard_model::{EnvironmentId, EnvironmentSpec, Isolation, Network, Problem, ProblemKind};
use testyard_protocol::start::{IdRange, NetworkStart};
use testyard_protocol::{Event, Exec};

use crate::agent::Agent;
use crate::environment::order::{self, Inbox};
use crate::environment::{DelayedCommand, MACHINE};
use crate::network::{FORWARDED, Membership};
use crate::standard_streams::StandardStreams;

/// To the router.
#[derive(Serialize, Deserialize)]
enum Order {
    /// Give these namespaces (attached: user, network) a route.
    Connect(EnvironmentId),
    /// The environment is gone.
    Disconnect(EnvironmentId),
    /// Find the machine's network, or make it.
    Join,
    /// Link the machine's namespaces (attached: user, network) to it, with all that goes with that.
    Plug,
    /// Cut the machine off from its network, or bring it back.
    Link { connected: bool },
}

/// From the router.
#[derive(Serialize, Deserialize)]
enum Answer {
    /// An environment has a route, or why not.
    Route { environment: EnvironmentId, problem: Option<Problem> },
    /// What the machine itself asked for was done, or why not. Attached after `join`: the user namespace of the network,
    /// where it has one.
    Done(Option<Problem>),
}

/// The agent's side of the router.
pub(crate) struct Router {
    pub(crate) control: OwnedFd,
    inbox: Inbox,
    /// Those who wait until the machine was cut off or brought back.
    pub(crate) waiting: VecDeque<(u64, u32)>,
}

impl Router {
    /// Finds the machine's network, or makes it; the user namespace above its members, where there is one.
    pub(crate) fn join_network(&mut self) -> std::result::Result<Option<OwnedFd>, Problem> {
        self.settle(&Order::Join, &[])?;
        Ok(self.inbox.attached.pop_front())
    }

    /// Links the machine to its network.
    pub(crate) fn plug(&mut self, user: BorrowedFd<'_>, network: BorrowedFd<'_>) -> std::result::Result<(), Problem> {
        self.settle(&Order::Plug, &[user, network])
    }

    /// Gives an order and waits until it was followed; while nothing else is asked.
    fn settle(&mut self, order: &Order, attached: &[BorrowedFd<'_>]) -> std::result::Result<(), Problem> {
        let system = |error: Error| error.problem();
        order::send(self.control.as_fd(), order, attached).map_err(system)?;
        loop {
            if let Some(Answer::Done(problem)) = self.inbox.take().map_err(system)? {
                return problem.map_or(Ok(()), Err);
            }
            if !self.inbox.fill(&self.control).map_err(system)? {
                return Err(ended());
            }
        }
    }
}

fn ended() -> Problem {
    Problem::new(ProblemKind::Unavailable, "what connects the machine and its environments to networks has ended")
        .hint("restart the machine: testyard restart NAME")
}

/// Forks the router. To be called on the host's side of all namespaces.
pub(crate) fn fork(token: SingleThreaded, machine: &str, network: Option<(&NetworkStart, IdRange)>) -> Result<Router> {
    let (ours, theirs) = socket::pair(socket::Kind::Stream)?;
    match process::clone3(token, CloneFlags::NONE, CloneOptions::default())? {
        Forked::Parent(_) => Ok(Router { control: ours, inbox: Inbox::default(), waiting: VecDeque::new() }),
        Forked::Child => {
            let as_root = rustix::process::geteuid().is_root();
            let network = network.map(|(start, ids)| Membership::new(start.clone(), machine, token, ids));
            let status = Outside { as_root, running: HashMap::new(), network }.serve(&theirs).is_err();
            // What still runs has nobody left who would end it.
            let _ = process::kill_descendants(getpid());
            process::exit_immediately(i32::from(status))
        }
    }
}

/// The router itself.
struct Outside {
    as_root: bool,
    /// The processes that keep routes.
    running: HashMap<EnvironmentId, Vec<Pid>>,
    network: Option<Membership>,
}

impl Outside {
    fn serve(&mut self, control: &OwnedFd) -> Result<()> {
        process::close_range_from(3, &[control.as_fd()])?;
        signal::reset_handlers()?;
        signal::unblock_all()?;
        process::set_session()?;
        process::set_subreaper(true)?;
        let mut inbox = Inbox::default();
        loop {
            let mut watched = vec![PollFd::new(control, PollFlags::IN)];
            let network = self.network.iter().flat_map(Membership::watched);
            watched.extend(network.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut watched, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::new("wait for", "the agent", error)),
            }
            let asked = !watched[0].revents().is_empty();
            if let Some(network) = &mut self.network {
                network.attend();
            }
            if asked && !inbox.fill(control)? {
                return Ok(());
            }
            while let Some(order) = inbox.take()? {
                self.follow(order, &mut inbox, control)?;
            }
            while let Ok(Some(_)) = process::wait_any_nohang() {}
        }
    }

    fn follow(&mut self, order: Order, inbox: &mut Inbox, control: &OwnedFd) -> Result<()> {
        let answer = |answer: &Answer, attached: &[BorrowedFd<'_>]| order::send(control.as_fd(), answer, attached);
        let mut namespaces = || inbox.attached.pop_front().zip(inbox.attached.pop_front());
        match order {
            Order::Connect(environment) => {
                let problem = self.connect(environment, namespaces(), &[]).err();
                answer(&Answer::Route { environment, problem }, &[])
            }
            Order::Disconnect(environment) => {
                for pid in self.running.remove(&environment).unwrap_or_default() {
                    // It may have ended with the namespace.
                    if signal::Signal::KILL.send_to(pid).is_ok() {
                        // Ours through the subreaper's right; it is not to stay a zombie until the next order.
                        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                    }
                }
                Ok(())
            }
            Order::Join => match self.network.as_mut().map(Membership::join) {
                Some(Ok(user)) => answer(&Answer::Done(None), user.as_slice()),
                Some(Err(problem)) => answer(&Answer::Done(Some(problem)), &[]),
                None => answer(&Answer::Done(Some(no_network())), &[]),
            },
            Order::Plug => {
                let problem = self.plug(namespaces()).err();
                answer(&Answer::Done(problem), &[])
            }
            Order::Link { connected } => {
                let linked = self.network.as_ref().ok_or_else(no_network).and_then(|one| one.link(connected));
                answer(&Answer::Done(linked.err()), &[])
            }
        }
    }

    fn connect(
        &mut self,
        environment: EnvironmentId,
        namespaces: Option<(OwnedFd, OwnedFd)>,
        further: &[&str],
    ) -> std::result::Result<(), Problem> {
        let pids = connect(namespaces, self.as_root, further)?;
        self.running.insert(environment, pids);
        Ok(())
    }

    fn plug(&mut self, namespaces: Option<(OwnedFd, OwnedFd)>) -> std::result::Result<(), Problem> {
        let (network, (user, machine)) = self.network.as_mut().zip(namespaces).ok_or_else(no_network)?;
        network.plug(&user, &machine)?;
        if network.is_outbound() {
            self.connect(MACHINE, Some((user, machine)), &["--dns-forward", FORWARDED])?;
        }
        Ok(())
    }
}

fn no_network() -> Problem {
    Problem::new(ProblemKind::WrongState, "this machine is in the host's network, from which it cannot be cut off")
        .hint("give a machine a network of its own: testyard create NAME --network private")
}

/// Starts pasta and waits until the route is there. Returns the processes that keep it.
fn connect(
    namespaces: Option<(OwnedFd, OwnedFd)>,
    as_root: bool,
    further: &[&str],
) -> std::result::Result<Vec<Pid>, Problem> {
    let Some((user, network)) = namespaces else {
        return Err(Problem::new(ProblemKind::Bug, "a route was asked for without namespaces"));
    };
    let before = process::descendants(getpid()).unwrap_or_default();
    let mut command = Command::new("pasta");
    command.args(["--config-net", "--no-netns-quit", "--quiet", "--netns", "/proc/self/fd/3"]);
    // No port of the host is opened for what listens inside, and none of the inside's shows the host's.
    command.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    command.args(further);
    if as_root {
        // It would become `nobody` otherwise, who may not enter.
        command.args(["--runas", "0"]);
    }
    let own = identity::namespace_inode(Path::new("/proc/self/ns/user")).ok();
    if identity::namespace_inode_of(user.as_fd()).ok() == own {
        command.arg("--netns-only");
    } else {
        command.args(["--userns", "/proc/self/fd/4"]);
    }
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    // A file, not a pipe: pasta stays behind with its error output open.
    let said = rustix::fs::memfd_create("pasta", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| Error::new("make", "a file in memory", error).problem())?;
    let copy = said.try_clone().map_err(|error| Problem::from_error(ProblemKind::Exhausted, &error))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(copy));
    let started = process::spawn_with_descriptors(&mut command, &[(network.as_fd(), 3), (user.as_fd(), 4)]);
    let mut child = started.map_err(|error| {
        if error.is_absent() { missing() } else { error.problem().because("while a route out was made") }
    })?;
    // Its first process ends when the route is there.
    let status = child.wait().map_err(|error| Problem::from_error(ProblemKind::System, &error))?;
    if !status.success() {
        return Err(refused(&said));
    }
    let now = process::descendants(getpid()).unwrap_or_default();
    Ok(now.into_iter().filter(|pid| !before.contains(pid)).collect())
}

fn missing() -> Problem {
    Problem::new(ProblemKind::Unsupported, "a route out of an environment needs the program `pasta`, which is not here")
        .hint("install the package `passt`: apt-get install passt")
        .hint("use --network private, or --network host")
}

fn refused(said: &OwnedFd) -> Problem {
    let mut text = vec![0; 4096];
    let length = rustix::io::pread(said, &mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains("to syslog"));
    let last = lines.next_back().unwrap_or("it did not say why").to_owned();
    let unsupported = |message: &str| Problem::new(ProblemKind::Unsupported, message).because(&last);
    let other = "or use --network private, or --network host";
    if !last.contains("tun socket") {
        return unsupported("pasta could not make a route out of an environment")
            .hint("see `testyard doctor`, or use --network private");
    }
    let device = Path::new("/dev/net/tun");
    if !device.exists() {
        return unsupported("a route out of an environment needs /dev/net/tun, which is not here")
            .hint("start the outer container with --device /dev/net/tun")
            .hint(other);
    }
    unsupported("a route out of an environment needs /dev/net/tun, which this user may not open")
        .hint("let users open it: sudo chmod 666 /dev/net/tun")
        .hint(other)
}

impl Agent {
    /// Whether an environment of this kind is to have a route out.
    pub(crate) fn needs_route(&self, spec: &EnvironmentSpec) -> bool {
        spec.network == Network::Outbound && spec.isolation >= Isolation::Namespace
    }

    /// A fresh environment for one command that must not start before its route is there.
    pub(crate) fn exec_once_routed(
        &mut self,
        connection: u64,
        stream: u32,
        spec: &EnvironmentSpec,
        exec: Exec,
        streams: StandardStreams,
    ) -> std::result::Result<(), Problem> {
        let id = self.make_environment(spec, None)?;
        if let Some(environment) = self.environments.get_mut(&id) {
            environment.once = true;
            environment.holder = Some(connection);
            environment.delayed.push(DelayedCommand { connection, stream, exec, streams });
        }
        self.early.expect(connection, stream);
        Ok(())
    }

    /// Asks for a route for an environment whose init is ready.
    pub(crate) fn connect_route(&mut self, id: EnvironmentId) -> std::result::Result<(), Problem> {
        let missing =
            |what: &str| Problem::new(ProblemKind::Bug, format!("environment {id} has no {what} for a route"));
        let environment = self.environments.get(&id).ok_or_else(|| missing("record"))?;
        let network = environment.network.as_ref().ok_or_else(|| missing("network"))?;
        let user = environment.user.as_ref().ok_or_else(|| missing("user namespace"))?;
        let router = self.place.router.as_ref().ok_or_else(|| missing("router"))?;
        order::send(router.control.as_fd(), &Order::Connect(id), &[user.as_fd(), network.as_fd()])
            .map_err(|error| error.problem())
    }

    /// An environment with a route is gone.
    pub(crate) fn disconnect_route(&self, id: EnvironmentId) {
        if let Some(router) = &self.place.router {
            // A router that is gone has ended its routes.
            let _ = order::send(router.control.as_fd(), &Order::Disconnect(id), &[]);
        }
    }

    /// Cuts the machine off from its network, or brings it back.
    pub(crate) fn link_machine(
        &mut self,
        connection: u64,
        stream: u32,
        connected: bool,
    ) -> std::result::Result<(), Problem> {
        let router =
            self.place.router.as_mut().ok_or_else(|| if self.place.network { ended() } else { no_network() })?;
        order::send(router.control.as_fd(), &Order::Link { connected }, &[]).map_err(|error| error.problem())?;
        router.waiting.push_back((connection, stream));
        Ok(())
    }

    /// The router has answered.
    pub(crate) fn hear_router(&mut self) {
        let Some(router) = &mut self.place.router else { return };
        if !router.inbox.fill(&router.control).unwrap_or(false) {
            crate::agent::unwatch(&self.epoll, &router.control);
            let waiting = std::mem::take(&mut router.waiting);
            self.place.router = None;
            for (connection, stream) in waiting {
                self.fail(connection, stream, ended());
            }
            self.fail_routes();
            return;
        }
        while let Some(router) = &mut self.place.router {
            let Ok(Some(answer)) = router.inbox.take() else { return };
            match answer {
                Answer::Route { environment, problem: None } => self.environment_usable(environment),
                Answer::Route { environment, problem: Some(problem) } => {
                    self.environment_broken(environment, &problem);
                    self.end_environment(environment);
                }
                Answer::Done(problem) => {
                    let Some((connection, stream)) = router.waiting.pop_front() else { continue };
                    match problem {
                        None => self.answer(connection, stream, &Event::Done),
                        Some(problem) => self.fail(connection, stream, problem),
                    }
                }
            }
        }
    }

    fn fail_routes(&mut self) {
        let waiting: Vec<EnvironmentId> =
            self.environments.values().filter(|one| one.awaits_route()).map(|one| one.id).collect();
        for id in waiting {
            self.environment_broken(id, &ended());
            self.end_environment(id);
        }
    }
}
