//! Bringing a cluster up: its machines side by side, then its daemons in their order, then a roll call.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use testyard_cluster::setup::{self, NodeSetup};
use testyard_cluster::start::{self, Action, Stage};
use testyard_cluster::{Daemon, Layout, Node, files};
use testyard_linux::step::{self, Step};
use testyard_model::network::InterfaceAddress;
use testyard_model::{
    BackendName, HostEntry, MachineName, MachineNetwork, MachineSpec, PrivateNetwork, Problem, ProblemKind, Publish,
    UserSpec,
};

use super::node::{self, Terms};
use crate::machine::Machine;
use crate::yard::Testyard;

/// How long a node's own setup may take.
pub(super) const SETUP: Duration = Duration::from_secs(30);
/// How long a cluster whose daemons run may take until every node is idle and answers.
const READY: Duration = Duration::from_secs(30);

/// What a node's machine is to be.
pub(super) fn machine_spec(layout: &Layout, network: &str, node: &Node) -> Result<MachineSpec, Problem> {
    let spec = &layout.spec;
    let name = network.parse().map_err(|error| Problem::new(ProblemKind::Bug, format!("{error}")))?;
    let mut publish = Vec::new();
    if node.is_controller() {
        publish.push(Publish { host: spec.ssh_port.unwrap_or(0), machine: files::SSH_PORT });
        if spec.slurmrestd {
            publish.push(Publish { host: 0, machine: files::REST_PORT });
        }
    }
    let hosts = layout.nodes.iter().map(|node| HostEntry { address: node.address, name: node.name.clone() });
    let network = PrivateNetwork {
        address: Some(InterfaceAddress { address: node.address, prefix: testyard_cluster::layout::PREFIX }),
        hosts: hosts.collect(),
        outbound: spec.outbound,
        publish,
        share: vec!["/home".into()],
        ..PrivateNetwork::new(name)
    };
    Ok(MachineSpec {
        image: spec.image.clone(),
        expose: spec.expose.clone(),
        privileged: spec.cgroups,
        network: MachineNetwork::Private(network),
        ..MachineSpec::new(BackendName::namespace())
    })
}

/// Makes a node's machine.
pub(super) fn make(yard: &Testyard, layout: &Layout, network: &str, node: &Node) -> Result<(), Problem> {
    let machine = machine_spec(layout, network, node)?;
    yard.machines().create(&node.name, &machine).map_err(|problem| of_node(problem, node))?;
    step::reach(Step::ClusterNode);
    Ok(())
}

/// Writes a node's files and starts what waits for nobody.
pub(super) fn set_up(yard: &Testyard, layout: &Layout, node: &Node, setup: &NodeSetup) -> Result<(), Problem> {
    let script = setup::script(layout, node, setup);
    let ran = node::run_script(yard, &node.name, "/bin/sh", &script, &Terms::root(SETUP))?;
    node::expect(ran, &node.name, "be set up").map(drop)
}

fn of_node(mut problem: Problem, node: &Node) -> Problem {
    problem.message = format!("node {}: {}", node.name, problem.message);
    if problem.hints.iter().any(|hint| hint.contains("--publish")) {
        problem.hints = vec!["take another port, or leave --ssh-port out for a free one".to_owned()];
    }
    if problem.hints.iter().any(|hint| hint.contains("--network ")) {
        problem.hints.retain(|hint| !hint.contains("--network "));
        problem.hints.push("or leave --outbound out".to_owned());
    }
    problem
}

/// The same on every node, at the same time; the first problem by the nodes' order.
pub(super) fn at_once<T: Sync>(all: &[T], work: impl Fn(&T) -> Result<(), Problem> + Sync) -> Result<(), Problem> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(|| work(one))).collect();
        let ended = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Problem::new(ProblemKind::Bug, "a thread that makes a node panicked")))
        });
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}

/// What a cluster's queue holds when its daemons start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// Nothing: every node is to be idle, and to answer a job.
    Empty,
    /// Jobs that were there before, which may begin at once, and nodes that were drained.
    Kept,
}

/// Brings up a cluster whose machines `begin` starts, all of them at the same time, and returns once every node answers.
/// The controller does not wait for other nodes than its own. What fails first is told; what was made stays for the
/// caller to remove.
pub(super) fn bring_up(
    yard: &Testyard,
    layout: &Layout,
    setup: &NodeSetup,
    queue: Queue,
    begin: impl Fn(&Node) -> Result<(), Problem> + Sync,
) -> Result<(), Problem> {
    let stages = start::stages(layout);
    let Some((last, before)) = stages.split_last() else { return Ok(()) };
    let (stop, _ours) = socket_pair()?;
    at_once(&layout.nodes, |node| {
        begin(node)?;
        set_up(yard, layout, node, setup)?;
        for stage in before.iter().filter(|_| node.is_controller()) {
            at_once(&stage.actions, |(number, action)| act(yard, layout, *number, action, &stop))?;
            step::reach(Step::ClusterDaemon);
        }
        Ok(())
    })?;
    until_ready(yard, layout, last, queue)
}

fn act(yard: &Testyard, layout: &Layout, number: u16, action: &Action, stop: &UnixStream) -> Result<(), Problem> {
    let node = &layout.nodes[usize::from(number) - 1];
    match action {
        Action::Start(daemon) => node::start(yard, node, *daemon, stop.as_fd()),
        Action::Run { what, script } => {
            let ran = node::run_script(yard, &node.name, "/bin/sh", script, &Terms::root(SETUP))?;
            node::expect(ran, &node.name, what).map(drop)
        }
    }
}

/// Starts the last daemons and watches them while the controller is asked. A daemon that ends is told at once, not when
/// patience with the controller has ended.
fn until_ready(yard: &Testyard, layout: &Layout, last: &Stage, queue: Queue) -> Result<(), Problem> {
    let (stop, ours) = socket_pair()?;
    let stop = &stop;
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        for (number, action) in &last.actions {
            let tell = tell.clone();
            scope.spawn(move || {
                if let Err(problem) = act(yard, layout, *number, action, stop) {
                    // Nobody listens any more once another problem was told.
                    let _ = tell.send(problem);
                }
            });
        }
        let banners = scope.spawn(|| banners(yard, layout));
        let ready = yard.connect(&layout.controller().name).and_then(|mut controller| {
            if queue == Queue::Kept {
                return await_states(yard, layout, &mut controller, &told, start::is_answering);
            }
            // Not the job alone: the controller gives one that waits for a node out a second after that one came.
            await_states(yard, layout, &mut controller, &told, |state| state == "idle")?;
            roll_call(layout, &mut controller)?;
            // The job that they all answered may be ending there yet.
            await_states(yard, layout, &mut controller, &told, |state| state == "idle")
        });
        drop(ours);
        let banners = banners.join().unwrap_or_else(|_| Err(Problem::new(ProblemKind::Bug, "a thread panicked")));
        ready.and(banners)
    })?;
    told.try_recv().map_or(Ok(()), Err)
}

fn socket_pair() -> Result<(UnixStream, UnixStream), Problem> {
    UnixStream::pair().map_err(|error| Problem::new(ProblemKind::System, "cannot make a socket pair").because(error))
}

/// Asks the controller until every node is in such a state.
fn await_states(
    yard: &Testyard,
    layout: &Layout,
    controller: &mut Machine,
    told: &mpsc::Receiver<Problem>,
    suits: impl Fn(&str) -> bool,
) -> Result<(), Problem> {
    let deadline = Instant::now() + READY;
    let terms = Terms::root(Duration::from_secs(5));
    loop {
        if let Ok(problem) = told.try_recv() {
            return Err(problem);
        }
        let asked = node::run(controller, &start::NODE_STATES, &terms)?;
        let states = start::node_states(&String::from_utf8_lossy(&asked.stdout));
        let wanting = start::not_in(&layout.nodes, &states, &suits);
        if wanting.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(not_ready(yard, layout, &wanting, &asked.stderr));
        }
        pause();
    }
}

/// What the controller says of each node; nothing where it does not answer in a few seconds.
pub(super) fn node_states(yard: &Testyard, controller: &MachineName) -> Vec<(String, String)> {
    let terms = Terms::root(Duration::from_secs(3));
    let asked = yard.connect(controller).and_then(|mut machine| node::run(&mut machine, &start::NODE_STATES, &terms));
    asked.map_or_else(|_| Vec::new(), |asked| start::node_states(&String::from_utf8_lossy(&asked.stdout)))
}

/// Returns once the controller would give each of these nodes a job.
pub(super) fn await_usable(yard: &Testyard, layout: &Layout, nodes: &[Node]) -> Result<(), Problem> {
    await_nodes(yard, layout, nodes, start::is_usable)
}

/// Returns once the controller says of each of these nodes that it is in such a state.
pub(super) fn await_nodes(
    yard: &Testyard,
    layout: &Layout,
    nodes: &[Node],
    suits: impl Fn(&str) -> bool,
) -> Result<(), Problem> {
    let deadline = Instant::now() + READY;
    loop {
        let states = node_states(yard, &layout.controller().name);
        let wanting = start::not_in(nodes, &states, &suits);
        if wanting.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(not_ready(yard, layout, &wanting, &[]));
        }
        pause();
    }
}

/// A moment, long enough for the others to get on.
pub(super) fn pause() {
    testyard_linux::pause(Duration::from_millis(4));
}

fn not_ready(yard: &Testyard, layout: &Layout, wanting: &[String], said: &[u8]) -> Problem {
    let message = format!("not every node was ready within {} s", READY.as_secs());
    let problem =
        wanting.iter().fold(Problem::new(ProblemKind::TimedOut, message), |problem, one| problem.because(one));
    let problem = node::because_of(problem, &String::from_utf8_lossy(said));
    let name = |one: &String| one.split(' ').next().map(str::to_owned);
    let silent = wanting.iter().find_map(name).and_then(|name| layout.find(&name).cloned());
    let problem = silent.map_or(problem.clone(), |node| node::with_log(problem, yard, &node, Daemon::Node));
    node::with_log(problem, yard, layout.controller(), Daemon::Controller)
}

/// A job that every node answers.
fn roll_call(layout: &Layout, controller: &mut Machine) -> Result<(), Problem> {
    let argv = start::roll_call(layout);
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    let terms = Terms { user: UserSpec::Named(layout.spec.user().name.to_string()), patience: READY };
    let ran = node::run(controller, &words, &terms)?;
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    let name = &layout.controller().name;
    let printed = node::expect(ran, name, "run a job on every node")?;
    let absent = start::absent(layout, &printed);
    if absent.is_empty() {
        return Ok(());
    }
    let message = format!("no answer from {} to a job that every node runs", absent.join(", "));
    Err(node::because_of(Problem::new(ProblemKind::Unavailable, message), &said))
}

/// Reads the banner of every node's SSH server.
fn banners(yard: &Testyard, layout: &Layout) -> Result<(), Problem> {
    let controller = &layout.controller().name;
    let ran = node::run_script(yard, controller, "/bin/bash", &start::banners(layout), &Terms::root(READY))?;
    let absent = start::absent(layout, &String::from_utf8_lossy(&ran.stdout)).join(", ");
    if absent.is_empty() {
        return Ok(());
    }
    let message = format!("no banner from the SSH server of {absent}");
    Err(node::because_of(Problem::new(ProblemKind::Unavailable, message), &String::from_utf8_lossy(&ran.stderr)))
}
