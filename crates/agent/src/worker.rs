//! File workers: forked children that join the place whose files they move, and block as they like.
//!
//! They end with what they belong to. The agent's death kills them (the kernel sees to that), and so does the end of
//! their environment. Where only their client is gone, or the machine is to stop, one that receives is asked first,
//! because it has something to remove.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use rustix::process::{Pid, getpid, getppid};
use testyard_linux::process::{self, CloneFlags, CloneOptions, Forked};
use testyard_linux::signal::Signal;
use testyard_linux::{Error, socket};
use testyard_model::{EnvironmentId, Problem, ProblemKind};
use testyard_protocol::Event;

use crate::agent::{Agent, ChildKind};
use crate::timers::Due;

/// How long one that was asked to end may take to clean up.
const GRACE: Duration = Duration::from_secs(5);

/// A file worker's stream.
pub(crate) struct Worker {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
    /// The environment whose files it moves, or [`crate::environment::MACHINE`].
    pub(crate) place: EnvironmentId,
    pub(crate) task: Task,
    /// Where it says what went wrong; shut, it is asked to end.
    control: OwnedFd,
    pidfd: OwnedFd,
    /// The number under which its bytes are relayed, where they travel in frames.
    pub(crate) relay: Option<u32>,
    /// Why it was ended early.
    ended: Option<Problem>,
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Receives files, and removes what it has not finished.
    Push,
    /// Sends files.
    Pull,
    /// Receives a tree; what it has verified stays for the next one.
    Sync,
    /// Shows a tree on the machine itself, under this number.
    Present(u32),
    /// Looks at an environment's changes, or cleans up: for no client.
    Look,
}

impl Worker {
    /// Whether it moves files for a client, and so ends with it.
    pub(crate) fn is_transfer_of(&self, connection: u64) -> bool {
        self.connection == connection && !matches!(self.task, Task::Look | Task::Present(_))
    }

    fn kill(&self) {
        // One that has just ended needs no signal.
        let _ = process::pidfd_signal(self.pidfd.as_fd(), Signal::KILL.number());
    }
}

/// Ties this process to the agent. Changing user or capabilities unties it.
pub(crate) fn tie_to(agent: Pid) -> Result<(), Problem> {
    process::set_parent_death_signal(Signal::KILL.number()).map_err(|error| error.problem())?;
    if getppid() == Some(agent) { Ok(()) } else { process::exit_immediately(1) }
}

impl Agent {
    /// Forks a worker. In it, `work` gets the agent's process id, for [`tie_to`], and the socket that stays to it: at
    /// its end once the worker is to give up.
    pub(crate) fn fork_worker(
        &mut self,
        (connection, stream): (u64, u32),
        place: EnvironmentId,
        task: Task,
        work: impl FnOnce(&Self, Pid, &OwnedFd) -> Result<(), Problem>,
    ) -> Result<Pid, Problem> {
        let system = |error: Error| error.problem();
        let (control, theirs) = socket::pair(socket::Kind::Stream).map_err(system)?;
        rustix::io::ioctl_fionbio(&control, true)
            .map_err(|error| Error::new("prepare", "a socket", error).problem())?;
        let agent = getpid();
        match process::clone3(self.place.token, CloneFlags::NONE, CloneOptions::default()).map_err(system)? {
            Forked::Parent(child) => {
                let pidfd = child.pidfd;
                let worker = Worker { connection, stream, place, task, control, pidfd, relay: None, ended: None };
                self.children.insert(child.pid, ChildKind::Worker(worker));
                Ok(child.pid)
            }
            Forked::Child => {
                let status = match tie_to(agent).and_then(|()| work(self, agent, &theirs)) {
                    Ok(()) => 0,
                    Err(problem) => {
                        let _ = rustix::io::write(&theirs, &serde_json::to_vec(&problem).unwrap_or_default());
                        1
                    }
                };
                process::exit_immediately(status)
            }
        }
    }

    /// The worker that is this child.
    pub(crate) fn worker(&mut self, pid: Pid) -> Option<&mut Worker> {
        match self.children.get_mut(&pid) {
            Some(ChildKind::Worker(worker)) => Some(worker),
            _ => None,
        }
    }

    /// Whether there are workers.
    pub(crate) fn has_workers(&self) -> bool {
        self.children.values().any(|child| matches!(child, ChildKind::Worker(_)))
    }

    /// Ends these workers, with this as the reason that their clients get.
    pub(crate) fn end_workers(&mut self, why: &Problem, which: impl Fn(&Worker) -> bool) {
        for (pid, child) in &mut self.children {
            let ChildKind::Worker(worker) = child else { continue };
            if !which(worker) || worker.ended.is_some() {
                continue;
            }
            worker.ended = Some(why.clone());
            if worker.task == Task::Push && rustix::net::shutdown(&worker.control, Shutdown::Write).is_ok() {
                self.timers.add(Instant::now() + GRACE, Due::Worker(*pid));
            } else {
                worker.kill();
            }
        }
    }

    /// Ends these workers at once.
    pub(crate) fn kill_workers(&mut self, why: &Problem, which: impl Fn(&Worker) -> bool) {
        for child in self.children.values_mut() {
            if let ChildKind::Worker(worker) = child
                && which(worker)
            {
                worker.ended.get_or_insert_with(|| why.clone());
                worker.kill();
            }
        }
    }

    /// The client wants no more of a transfer.
    pub(crate) fn end_transfer(&mut self, connection: u64, stream: u32) {
        let why = Problem::new(ProblemKind::Interrupted, "the transfer was stopped before its end");
        self.end_workers(&why, |worker| worker.is_transfer_of(connection) && worker.stream == stream);
    }

    /// Whether a stream is that of a transfer, and no command's.
    pub(crate) fn is_transfer(&self, connection: u64, stream: u32) -> bool {
        self.children.values().any(
            |child| matches!(child, ChildKind::Worker(one) if one.is_transfer_of(connection) && one.stream == stream),
        )
    }

    /// One that was asked to end has had its time.
    pub(crate) fn worker_is_due(&mut self, pid: Pid) {
        if let Some(worker) = self.worker(pid).filter(|worker| worker.ended.is_some()) {
            worker.kill();
        }
    }

    /// A worker has ended.
    pub(crate) fn worker_ended(&mut self, worker: Worker, status: i32) {
        let told = last_words(&worker.control);
        let failed = |kind, message: String| Event::Failed(Problem::new(kind, message));
        let event = match (worker.ended, serde_json::from_slice::<Problem>(&told)) {
            (_, Err(_)) if status == 0 => Event::Done,
            (Some(why), _) => Event::Failed(why),
            (None, Ok(problem)) => Event::Failed(problem),
            // The client stopped reading; it knows why.
            (None, Err(_)) if status & 0x7f == Signal::PIPE.number() => {
                failed(ProblemKind::Unavailable, "the stream of files was closed before its end".to_owned())
            }
            (None, Err(_)) => failed(ProblemKind::System, format!("the file worker ended with status {status:#x}")),
        };
        let unused = match worker.task {
            Task::Present(number) => self.presented.settle(number, status == 0),
            _ => Vec::new(),
        };
        let exhausted = is_exhausted(&event);
        match worker.relay {
            Some(number) => self.finish(number, event),
            None => self.answer(worker.connection, worker.stream, &event),
        }
        // Nobody waits for the rest.
        match worker.task {
            Task::Present(_) => self.after_presenting(unused),
            // Where there was no room for all of it, what had come stands in the way of every other.
            Task::Sync if exhausted => self.sweep_trees(),
            Task::Sync if status == 0 => self.sweep_trees_soon(),
            _ => {}
        }
        if self.ending.is_some() && self.commands.is_empty() && !self.has_workers() {
            self.kill_everything();
        }
        self.stop |= self.is_over();
    }
}

/// What a process that has ended wrote of its problem into a pipe or socket that never blocks: with paths as long as the
/// kernel takes, more than one read.
pub(crate) fn last_words(end: &OwnedFd) -> Vec<u8> {
    let (mut told, mut part) = (Vec::new(), [0; 8192]);
    while let Ok(length @ 1..) = rustix::io::read(end, &mut part) {
        told.extend_from_slice(&part[..length]);
    }
    told
}

fn is_exhausted(event: &Event) -> bool {
    matches!(event, Event::Failed(problem) if problem.kind == ProblemKind::Exhausted)
}
