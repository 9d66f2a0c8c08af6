//! Ending a machine from its records alone: what a supervisor does at its end, and a reaper in its place.
//!
//! Every function here may be interrupted anywhere and called again.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use testyard_linux::identity::ProcessIdentity;
use testyard_linux::step::{Step, reach};
use testyard_linux::{files, process, socket};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::Order;

use super::link::Link;
use super::names;
use super::records::Records;
use crate::backend::{Backend, BackendError, KernelIdentity, MachinePlace, RecordError, Recorder, ResourceKind};

/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(20);
/// How long an agent that can only be asked may take to end.
const ASKED: Duration = Duration::from_secs(5);

/// Why a machine could not be ended whole. What is left is still written down, for the next attempt.
#[derive(Debug, thiserror::Error)]
pub enum TeardownError {
    /// The kernel refused.
    #[error("cannot end machine {machine}")]
    System {
        /// Which.
        machine: String,
        /// What exactly.
        #[source]
        source: testyard_linux::Error,
    },
    /// Something in its folder stays.
    #[error("cannot remove {path}")]
    Stays {
        /// The first thing that stays.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its folder is another than the one that was made.
    #[error("{path} is not the folder that was made for machine {machine}, so nothing in it is removed")]
    Exchanged {
        /// Where.
        path: String,
        /// Which machine.
        machine: String,
    },
    /// Its process does not end.
    #[error("process {pid} of machine {machine} does not end, although it was killed")]
    Immortal {
        /// Which machine.
        machine: String,
        /// Which process.
        pid: i32,
    },
    /// Its backend could not.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// It could not be written down.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl TeardownError {
    /// For people.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let again = "try again: testyard reap";
        match self {
            Self::System { .. } => Problem::from_error(ProblemKind::System, self).hint(again),
            Self::Stays { .. } => Problem::from_error(ProblemKind::System, self)
                .hint("see whether something is mounted there or still uses it")
                .hint(again),
            Self::Exchanged { path, .. } => Problem::from_error(ProblemKind::Denied, self)
                .hint(format!("move it away: mv {path} SOMEWHERE"))
                .hint(again),
            Self::Immortal { .. } => Problem::from_error(ProblemKind::TimedOut, self).hint(again),
            Self::Backend(error) => error.problem(),
            Self::Record(error) => error.problem(),
        }
    }

    fn system(place: &MachinePlace) -> impl Fn(testyard_linux::Error) -> Self + '_ {
        |source| Self::System { machine: place.name.to_string(), source }
    }
}

/// Ends the machine's agent, known by its recorded identity, or by the socket on which it listens.
///
/// With an own pid namespace this ends everything in the machine; what else there is ends by
/// [`Backend::stopped`].
pub fn end_agent(place: &MachinePlace, agent: Option<&ProcessIdentity>) -> Result<(), TeardownError> {
    let failed = TeardownError::system(place);
    if let Ok(listening) = socket::connect(&place.agent_socket()) {
        ask_to_end(listening, Instant::now() + ASKED);
    }
    let Some(agent) = agent else { return Ok(()) };
    let Some(pidfd) = agent.open_pidfd().map_err(&failed)? else { return Ok(()) };
    kill(place, agent.pid, &pidfd)
}

/// Kills a process and waits until it is gone.
pub(super) fn kill(place: &MachinePlace, pid: i32, pidfd: &OwnedFd) -> Result<(), TeardownError> {
    match process::pidfd_signal(pidfd.as_fd(), libc::SIGKILL) {
        Err(error) if !error.is_absent() => return Err(TeardownError::system(place)(error)),
        _ => {}
    }
    if wait_for(pidfd, Instant::now() + DEATH) {
        // Where it was our own child, this ends the zombie; where not, its parent does.
        let _ = process::pidfd_wait(pidfd.as_fd(), true);
        return Ok(());
    }
    Err(TeardownError::Immortal { machine: place.name.to_string(), pid })
}

/// Tells an agent whose process nobody knows to end, and waits for its end of the line.
fn ask_to_end(listening: OwnedFd, deadline: Instant) {
    let mut link = Link::new(listening);
    if link.order(&Order::Shutdown { grace_ms: 0 }, None).is_err() {
        return;
    }
    // Reports may come before the end; more than a handful are not to be expected.
    for _ in 0..1000 {
        if !wait_for(&link, deadline) {
            return;
        }
        let mut buffer = [0; 4096];
        match socket::try_receive(&link, &mut buffer, &mut Vec::new()) {
            Ok(Some(0)) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Whether it became readable, which for a pidfd means that its process ended.
pub(super) fn wait_for(descriptor: &impl AsFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = left.try_into() else { return false };
        let mut polled = [PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Refuses a machine's folder that somebody put in the place of ours: a path alone proves nothing.
pub fn prove_folder(place: &MachinePlace, recorder: &dyn Recorder) -> Result<(), TeardownError> {
    let recorded =
        recorder.all()?.into_iter().find(|one| one.kind == ResourceKind::Folder && one.place == place.folder);
    let now = KernelIdentity::of_path(&place.folder).map_err(TeardownError::system(place))?;
    match (recorded.and_then(|folder| folder.identity), now) {
        (Some(made), Some(now)) if made != now => {
            Err(TeardownError::Exchanged { path: place.folder.display().to_string(), machine: place.name.to_string() })
        }
        _ => Ok(()),
    }
}

/// Removes what only a running machine has. Its agent has ended.
pub fn clear(
    place: &MachinePlace,
    runtime: &Path,
    backend: &dyn Backend,
    records: &mut dyn Records,
) -> Result<(), TeardownError> {
    names::unlink(runtime, &place.name, &place.id).map_err(TeardownError::system(place))?;
    prove_folder(place, &*records.recorder(&place.id))?;
    backend.stopped(place, &mut *records.recorder(&place.id))?;
    for path in [place.machine_socket(), place.agent_socket()] {
        files::remove_file(&path).map_err(TeardownError::system(place))?;
    }
    Ok(())
}

/// Removes the machine whole: its agent, what it has, its folders and its row.
pub fn delete(
    place: &MachinePlace,
    runtime: &Path,
    backend: &dyn Backend,
    records: &mut dyn Records,
    agent: Option<&ProcessIdentity>,
) -> Result<(), TeardownError> {
    records.begin_deletion(&place.id)?;
    reach(Step::DeleteIntent);
    end_agent(place, agent)?;
    reach(Step::DeleteAgentEnded);
    clear(place, runtime, backend, records)?;
    reach(Step::DeleteCgroups);
    backend.remove(place, &mut *records.recorder(&place.id))?;
    remove_folder(place, &place.folder)?;
    remove_folder(place, &place.runtime)?;
    forget_folder(place, &mut *records.recorder(&place.id))?;
    reach(Step::DeleteFolders);
    records.destroy(&place.id)?;
    reach(Step::DeleteRow);
    Ok(())
}

fn forget_folder(place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), TeardownError> {
    let recorded = recorder.all()?.into_iter();
    let gone: Vec<_> = recorded.filter(|one| one.place == place.folder).map(|one| one.id).collect();
    Ok(recorder.gone(&gone)?)
}

/// Removes a folder with all that is in it, but nothing that is mounted there.
fn remove_folder(place: &MachinePlace, path: &Path) -> Result<(), TeardownError> {
    let failed = TeardownError::system(place);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(testyard_linux::Error::new("open", parent.display(), errno))),
    };
    let removed = files::remove_tree(parent.as_fd(), name).map_err(failed)?;
    match removed.refused.into_iter().next() {
        None => Ok(()),
        Some(refused) => {
            let shown = path.parent().map_or_else(|| refused.path.clone(), |parent| parent.join(&refused.path));
            Err(TeardownError::Stays { path: shown.display().to_string(), source: refused.reason })
        }
    }
}
