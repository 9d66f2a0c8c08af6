//! Bringing a machine up, and undoing what was done where that fails.

use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use testyard_linux::identity::ProcessIdentity;
use testyard_linux::signal::Signal;
use testyard_linux::step::{Step, reach};
use testyard_linux::{files, process, socket};
use testyard_model::{MachineState, Problem};
use testyard_protocol::{Order, Report};

use super::link::Link;
use super::records::{AgentRecord, Records};
use super::{Announcement, Setup, SupervisorError, Task, names, teardown};

/// How long an agent may take until it serves.
const READY: Duration = Duration::from_secs(60);
/// The same where that is on another host: programs may have to travel there first, and what a user's machines stand on may
/// have to be made there. Where nothing goes on any more, the link itself gives up sooner.
const READY_ELSEWHERE: Duration = Duration::from_secs(10 * 60);
/// How long an agent that is adopted may take to answer.
const ADOPTED: Duration = Duration::from_secs(10);
/// Environment numbers are reserved in blocks of so many.
pub(super) const SLOTS: u32 = 4096;

/// A machine that is up.
pub(super) struct Running {
    pub(super) link: Link,
    pub(super) pidfd: OwnedFd,
    pub(super) pid: i32,
    pub(super) listener: OwnedFd,
}

/// An agent that was started or found.
pub(super) struct Agent {
    identity: ProcessIdentity,
    pidfd: OwnedFd,
}

/// Makes or starts the machine and tells its creator. `agent` is set as soon as there is one, for [`undo`].
pub(super) fn bring_up(setup: &mut Setup, agent: &mut Option<Agent>) -> Result<Running, SupervisorError> {
    files::verified_private_directory(&setup.place.runtime).map_err(SupervisorError::System)?;
    let mut records = (setup.open_records)()?;
    let own = ProcessIdentity::of_self().map_err(SupervisorError::System)?;
    records.record_supervisor(&setup.place.id, Some(&own))?;
    let mut link = match setup.task {
        Task::Adopt => adopt(setup, &mut *records, agent)?,
        _ => start(setup, &mut *records, agent)?,
    };
    let started = agent.as_ref().expect("both ways above set it");
    let deadline = match setup.task {
        Task::Adopt => ADOPTED,
        _ if setup.place.spec.remote.is_some() => READY_ELSEWHERE,
        _ => READY,
    };
    let limits = await_ready(setup, &mut *records, &mut link, &started.pidfd, deadline)?;
    reach(Step::SupervisorAgentReady);
    if setup.task == Task::Adopt || !limits.is_empty() {
        records.record_agent(&setup.place.id, &AgentRecord::new(&started.identity, limits.clone()))?;
    }
    let listener = listen(setup)?;
    reach(Step::SupervisorListening);
    if setup.info.state != MachineState::Running {
        records.transition(&setup.place.id, setup.info.state, MachineState::Running)?;
    }
    reach(Step::SupervisorRunning);
    setup.info.state = MachineState::Running;
    setup.info.cause = None;
    setup.info.supervisor_pid = Some(own.pid);
    setup.info.limits = limits;
    // A last look: nobody is told of a machine that has just died.
    if teardown::wait_for(&started.pidfd, Instant::now()) {
        return Err(death(setup, &started.pidfd));
    }
    let told = setup.creator.tell(&Announcement::Ready(Box::new(setup.info.clone())));
    if told.is_err() && setup.task.is_creation() {
        return Err(SupervisorError::CreatorGone);
    }
    let pid = started.identity.pid;
    let pidfd = agent.take().expect("it was set above").pidfd;
    Ok(Running { link, pidfd, pid, listener })
}

fn start(setup: &mut Setup, records: &mut dyn Records, agent: &mut Option<Agent>) -> Result<Link, SupervisorError> {
    let place = &setup.place;
    match &setup.task {
        Task::Create => setup.backend.create(place, &mut *records.recorder(&place.id))?,
        Task::Copy(from) => setup.backend.copy(from, place, &mut *records.recorder(&place.id))?,
        Task::Start | Task::Adopt => {
            records.transition(&place.id, setup.info.state, MachineState::Starting)?;
            setup.info.state = MachineState::Starting;
        }
    }
    reach(Step::SupervisorFolders);
    let first = records.reserve_slots(&place.id, SLOTS)?;
    let started = setup.backend.start(place, &mut *records.recorder(&place.id))?;
    let identity = started.process;
    *agent = Some(Agent { identity: identity.clone(), pidfd: started.pidfd });
    records.record_agent(&place.id, &AgentRecord::new(&identity, Vec::new()))?;
    reach(Step::SupervisorAgentSpawned);
    let mut link = Link::new(started.socket);
    link.order(&Order::Slots { first, count: SLOTS.into() }, None)?;
    Ok(link)
}

/// Finds the agent of a supervisor that died.
fn adopt(setup: &mut Setup, records: &mut dyn Records, agent: &mut Option<Agent>) -> Result<Link, SupervisorError> {
    let recorded = records.agent(&setup.place.id)?.ok_or(SupervisorError::NothingToAdopt)?;
    let identity = recorded.process();
    let pidfd = identity.open_pidfd().map_err(SupervisorError::System)?.ok_or(SupervisorError::NothingToAdopt)?;
    *agent = Some(Agent { identity, pidfd });
    let listening = socket::connect(&setup.place.agent_socket()).map_err(SupervisorError::Link)?;
    let mut link = Link::new(listening);
    if !teardown::wait_for(&link, Instant::now() + ADOPTED) {
        return Err(SupervisorError::AgentSilent { seconds: ADOPTED.as_secs() });
    }
    link.skip_preamble()?;
    Ok(link)
}

/// Waits for the agent's word that it serves; what it says it cannot isolate or limit.
fn await_ready(
    setup: &Setup,
    records: &mut dyn Records,
    link: &mut Link,
    pidfd: &OwnedFd,
    patience: Duration,
) -> Result<Vec<String>, SupervisorError> {
    let deadline = Instant::now() + patience;
    let mut dead = false;
    loop {
        loop {
            match link.report() {
                Ok(Some(Report::Ready { limits })) => return Ok(limits),
                Ok(Some(Report::Broken(problem))) => return Err(SupervisorError::AgentBroken(Box::new(problem))),
                Ok(Some(Report::NeedSlots)) => {
                    let first = records.reserve_slots(&setup.place.id, SLOTS)?;
                    link.order(&Order::Slots { first, count: SLOTS.into() }, None)?;
                }
                Ok(Some(Report::Activity { .. })) => {}
                Ok(None) if dead => return Err(death(setup, pidfd)),
                Ok(None) => break,
                Err(SupervisorError::AgentGone) => return Err(death(setup, pidfd)),
                Err(error) => return Err(error),
            }
        }
        let Ok(timeout) = deadline.saturating_duration_since(Instant::now()).try_into() else {
            return Err(SupervisorError::AgentSilent { seconds: patience.as_secs() });
        };
        let mut polled =
            [link.as_fd(), setup.signals.as_fd(), pidfd.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(0) => return Err(SupervisorError::AgentSilent { seconds: patience.as_secs() }),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(SupervisorError::System(testyard_linux::Error::new("wait for", "the agent", errno)));
            }
        }
        // What it said before its end is still to be read.
        dead = !polled[2].revents().is_empty();
        while let Some(received) = setup.signals.read().map_err(SupervisorError::System)? {
            if received.signal != Signal::CHLD {
                return Err(SupervisorError::Interrupted);
            }
        }
    }
}

/// How the agent ended, with the end of what it wrote.
pub(super) fn death(setup: &Setup, pidfd: &OwnedFd) -> SupervisorError {
    // Its end of the link closes a moment before it is a zombie.
    teardown::wait_for(pidfd, Instant::now() + Duration::from_secs(2));
    let how = match process::pidfd_wait(pidfd.as_fd(), true) {
        Ok(Some(status)) => how_it_ended(status),
        _ => "nobody saw how".to_owned(),
    };
    SupervisorError::AgentEnded { how, log: last_lines(&setup.place.log()) }
}

pub(super) fn how_it_ended(status: i32) -> String {
    match testyard_model::CommandStatus::from_wait_status(status) {
        testyard_model::CommandStatus::Exited(code) => format!("it exited with {code}"),
        other => format!("signal {}", i32::from(other.shell_code()) - 128),
    }
}

/// The last lines of a log, for a problem's causes.
fn last_lines(path: &Path) -> Vec<String> {
    const TAIL: u64 = 2048;
    let Ok(mut file) = std::fs::File::open(path) else { return Vec::new() };
    let length = file.metadata().map_or(0, |facts| facts.len());
    if file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).is_err() {
        return Vec::new();
    }
    let mut bytes = Vec::new();
    if file.take(TAIL).read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].iter().map(|line| (*line).to_owned()).collect()
}

fn listen(setup: &Setup) -> Result<OwnedFd, SupervisorError> {
    let path = setup.place.machine_socket();
    // Left by a supervisor that died; we hold the machine's lock, so nobody listens there.
    files::remove_file(&path).map_err(SupervisorError::System)?;
    let listener = socket::listen(&path, 0o600).map_err(SupervisorError::System)?;
    rustix::io::ioctl_fionbio(&listener, true)
        .map_err(|errno| SupervisorError::System(testyard_linux::Error::new("prepare", path.display(), errno)))?;
    names::link(&setup.runtime, &setup.place.name, &setup.place.id).map_err(SupervisorError::System)?;
    Ok(listener)
}

/// After a failure: a machine that was being created is removed, another is marked as failed.
pub(super) fn undo(setup: &mut Setup, agent: Option<Agent>, problem: &Problem) -> Result<(), SupervisorError> {
    let place = &setup.place;
    if let Some(agent) = &agent {
        teardown::kill(place, agent.identity.pid, &agent.pidfd)?;
    }
    end_descendants(setup)?;
    let mut records = (setup.open_records)()?;
    if setup.task.is_creation() {
        teardown::delete(place, &setup.runtime, &*setup.backend, &mut *records, None)?;
        return Ok(());
    }
    teardown::clear(place, &setup.runtime, &*setup.backend, &mut *records)?;
    records.record_supervisor(&place.id, None)?;
    records.record_failure(&place.id, setup.info.state, problem)?;
    Ok(())
}

/// What the agent left running on the host, where it had no pid namespace of its own.
pub(super) fn end_descendants(setup: &Setup) -> Result<(), SupervisorError> {
    if setup.own_process {
        process::kill_descendants(rustix::process::getpid()).map_err(SupervisorError::System)?;
    }
    Ok(())
}
