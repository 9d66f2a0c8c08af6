//! What a machine's state is now. Its row says what was last written down, and a killed process writes nothing: so
//! before a row is shown, the kernel is asked.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use testyard_linux::process::pidfd_open;
use testyard_model::{MachineId, MachineInfo, MachineState, Problem, ProblemKind};
use testyard_registry::{HostIdentity, Lease, MachineRow, Registry};

use crate::records::{agent_of, info_of};

/// What the kernel says of those who keep a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keepers {
    /// The agent lives, or nothing can be said of it from here.
    Alive,
    /// The agent has ended; its supervisor, or a reaper, has not written that down yet.
    AgentEnded,
    /// The host was restarted since.
    OfAnotherBoot,
}

/// The machine as it is shown.
pub(crate) fn info_now(row: MachineRow, here: &HostIdentity) -> MachineInfo {
    let keepers = match row.state {
        MachineState::Running => keepers(&row, here),
        _ => Keepers::Alive,
    };
    honest(info_of(row), keepers)
}

/// Whether a row says that its machine runs, and the kernel that its agent has ended.
pub(crate) fn has_just_ended(row: &MachineRow, here: &HostIdentity) -> bool {
    row.state == MachineState::Running && keepers(row, here) == Keepers::AgentEnded
}

/// Whether it is coming up or going down.
pub(crate) fn is_under_way(state: MachineState) -> bool {
    matches!(state, MachineState::Creating | MachineState::Starting | MachineState::Stopping)
}

/// Whether a supervisor, or a command that is about to start one, is alive.
pub(crate) fn is_supervised(registry: &Registry, row: &MachineRow) -> Result<bool, Problem> {
    let id = format!("{}.supervisor", row.id).parse().expect("a machine's id and the kind are a lease's id");
    Lease::is_held(registry, &id).map_err(|error| error.problem())
}

/// The machine's row, once it is certain that its supervisor is dead; none when the row is gone or one lives.
pub(crate) fn abandoned(registry: &Registry, id: &MachineId) -> Result<Option<MachineRow>, Problem> {
    let Some(row) = registry.load(id).map_err(|error| error.problem())? else { return Ok(None) };
    // A dying process closes its sockets a moment before its lock.
    for _ in 0..100 {
        if !is_supervised(registry, &row)? {
            return Ok(Some(row));
        }
        testyard_linux::pause(Duration::from_millis(5));
    }
    Ok(None)
}

fn keepers(row: &MachineRow, here: &HostIdentity) -> Keepers {
    if !row.host.is_judged_by(here) {
        return Keepers::Alive;
    }
    if row.host.boot_id != here.boot_id {
        return Keepers::OfAnotherBoot;
    }
    let agent = agent_of(row).and_then(|agent| Pid::from_raw(agent.pid));
    match agent {
        Some(pid) if has_ended(pid) => Keepers::AgentEnded,
        _ => Keepers::Alive,
    }
}

/// Zombies too have ended. Of a thousand machines in a row: without a look at `/proc`.
fn has_ended(pid: Pid) -> bool {
    match pidfd_open(pid) {
        Ok(pidfd) => {
            let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
            matches!(poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1))
        }
        Err(error) => error.is_absent(),
    }
}

/// What is shown of a machine whose row says that it runs; pure.
fn honest(info: MachineInfo, keepers: Keepers) -> MachineInfo {
    match keepers {
        Keepers::Alive => info,
        Keepers::OfAnotherBoot => MachineInfo { state: MachineState::Stopped, supervisor_pid: None, ..info },
        Keepers::AgentEnded => {
            let cause = Problem::new(ProblemKind::Unavailable, "the machine's agent has just ended")
                .hint(format!("testyard logs {}", info.name))
                .hint(format!("testyard start {}", info.name));
            MachineInfo { state: MachineState::Failed, cause: Some(cause), supervisor_pid: None, ..info }
        }
    }
}

#[cfg(test)]
mod tests {
    use testyard_model::{BackendName, MachineId, MachineSpec};

    use super::*;

    fn row(pid: u32, boot_id: &str) -> MachineRow {
        let here = HostIdentity { boot_id: boot_id.to_owned(), ..here() };
        let agent = serde_json::json!({"pid": pid, "start_ticks": 1, "boot_id": boot_id, "pid_namespace": 7});
        MachineRow {
            id: MachineId::from_bits(1),
            name: "web".parse().expect("a name"),
            state: MachineState::Running,
            spec: MachineSpec::new(BackendName::host()),
            backend_reason: None,
            created_ms: 0,
            expires_ms: None,
            cause: None,
            host: here,
            supervisor: None,
            agent: Some(agent),
            generation: 0,
        }
    }

    fn here() -> HostIdentity {
        HostIdentity { host_id: "h".to_owned(), boot_id: "b".to_owned(), pid_namespace: 7 }
    }

    #[test]
    fn a_row_that_outlived_its_agent_is_not_shown_as_running() {
        let mut child = std::process::Command::new("true").spawn().expect("true is everywhere");
        let pid = child.id();
        let alive = info_now(row(std::process::id(), "b"), &here());
        assert_eq!((alive.state, alive.cause), (MachineState::Running, None));
        // A zombie at first, then nothing at all.
        let patience = Duration::from_secs(10);
        assert!(testkit::wait::wait_until(patience, || has_just_ended(&row(pid, "b"), &here())));
        child.wait().expect("our own child");
        let ended = info_now(row(pid, "b"), &here());
        assert_eq!(ended.state, MachineState::Failed);
        assert!(ended.cause.is_some_and(|cause| cause.message.contains("agent")));
    }

    #[test]
    fn a_machine_of_another_boot_is_stopped_and_of_another_host_left_alone() {
        assert_eq!(info_now(row(1, "earlier"), &here()).state, MachineState::Stopped);
        let elsewhere = HostIdentity { host_id: "elsewhere".to_owned(), ..here() };
        assert_eq!(info_now(row(u32::MAX >> 2, "b"), &elsewhere).state, MachineState::Running);
    }
}
