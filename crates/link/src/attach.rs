//! Descriptors that came with a frame: which of them can travel as bytes, which way, and what stands for them.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::socket::{self, Kind};
use testyard_machine::client::caller;
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::{Event, Exec, FrameHeader, FrameKind, Request, StreamTarget};

use crate::channel::kind_of;
use crate::hub::Side;
use crate::message::Direction;

/// Which way each descriptor's bytes go; a problem where one is more than bytes.
pub(crate) fn directions(
    side: Side,
    header: &FrameHeader,
    payload: &[u8],
    descriptors: &[OwnedFd],
) -> Result<Vec<Direction>, Problem> {
    if side == Side::Far {
        return Err(more_than_bytes("namespaces of a machine"));
    }
    let request = (header.kind == FrameKind::Message).then(|| serde_json::from_slice::<Request>(payload));
    let request = request.and_then(Result::ok);
    if let Some(Request::Source { .. }) = request {
        return Err(more_than_bytes("a working tree").hint("bring it there first: testyard sync"));
    }
    let direction = |(index, descriptor): (usize, &OwnedFd)| {
        let asked = request.as_ref().and_then(|request| match request {
            Request::Exec(exec) => of_command(exec, index),
            _ => None,
        });
        match (asked, kind_of(descriptor)) {
            (_, FileType::Directory) => Err(more_than_bytes("a folder")),
            (Some(direction), _) => Ok(direction),
            (None, kind) => by_access(descriptor, kind).ok_or_else(|| more_than_bytes("what was attached")),
        }
    };
    descriptors.iter().enumerate().map(direction).collect()
}

/// Which of a command's standard streams a descriptor is.
fn of_command(exec: &Exec, index: usize) -> Option<Direction> {
    let is = |target: StreamTarget| matches!(target, StreamTarget::Attached(at) if usize::from(at) == index);
    match (is(exec.stdin), is(exec.stdout) || is(exec.stderr)) {
        (true, true) => Some(Direction::Both),
        (true, false) => Some(Direction::Out),
        (false, true) => Some(Direction::In),
        (false, false) => None,
    }
}

fn by_access(descriptor: &OwnedFd, kind: FileType) -> Option<Direction> {
    if kind == FileType::Socket {
        return Some(Direction::Both);
    }
    let flags = rustix::fs::fcntl_getfl(descriptor.as_fd()).ok()?;
    match flags & OFlags::RWMODE {
        access if access == OFlags::WRONLY => Some(Direction::In),
        access if access == OFlags::RDWR => None,
        _ => Some(Direction::Out),
    }
}

/// A pipe or socket in place of a descriptor of the near side: our end, and the one for the agent.
pub(crate) fn stand_in(direction: Direction) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    match direction {
        Direction::Out => pipe().map(|(read, write)| (write, read)),
        Direction::In => pipe(),
        Direction::Both => socket::pair(Kind::Stream).map_err(|error| error.errno()),
    }
}

fn more_than_bytes(what: &str) -> Problem {
    let message = format!("{what} cannot be handed to or from a machine on another host");
    Problem::new(ProblemKind::Unsupported, message)
}

/// Whoever asks by number has another number there, or none: whoever logged in stands for them. A message's text cannot
/// hold these words but as a user, since quotes within texts are escaped.
pub(crate) fn as_who_logged_in(payload: &mut Vec<u8>) {
    let Ok(asking) = serde_json::to_vec(&caller()) else { return };
    while let Some(at) = payload.windows(asking.len()).position(|window| window == asking) {
        payload.splice(at..at + asking.len(), br#""machine""#.iter().copied());
    }
}

/// Whether an agent's message is one that a command's output comes before: any but that it was started, before which some
/// read nothing.
pub(crate) fn comes_after_output(payload: &[u8]) -> bool {
    !payload.starts_with(br#"{"started""#)
}

/// A welcome says that what is attached travels as bytes from here on.
pub(crate) fn mark_elsewhere(header: &FrameHeader, payload: &mut Vec<u8>) {
    if header.stream != 0 || !payload.starts_with(br#"{"welcome""#) {
        return;
    }
    if let Ok(Event::Welcome(mut welcome)) = serde_json::from_slice(payload) {
        welcome.elsewhere = true;
        *payload = serde_json::to_vec(&Event::Welcome(welcome)).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use testyard_model::{EnvironmentSpec, Isolation, UserSpec};
    use testyard_protocol::Place;

    use super::*;

    #[test]
    fn a_commands_start_waits_for_nothing() {
        let said = |event| serde_json::to_vec(&event).expect("plain data");
        assert!(!comes_after_output(&said(Event::Started { pid: 1, environment: None })));
        assert!(comes_after_output(&said(Event::Done)));
    }

    #[test]
    fn whoever_asks_is_whoever_logged_in() {
        let said = serde_json::to_string(&caller()).expect("plain data");
        let spec = EnvironmentSpec::new(Isolation::Workspace, caller());
        let argv = vec!["echo".into(), said.as_str().into()];
        let exec = Exec { argv, user: Some(caller()), place: Place::Fresh(Box::new(spec)), ..Exec::default() };
        let mut payload = serde_json::to_vec(&Request::Exec(Box::new(exec.clone()))).expect("plain data");
        as_who_logged_in(&mut payload);
        let spec = EnvironmentSpec::new(Isolation::Workspace, UserSpec::Machine);
        let expected = Exec { user: Some(UserSpec::Machine), place: Place::Fresh(Box::new(spec)), ..exec };
        let seen: Request = serde_json::from_slice(&payload).expect("a request");
        assert_eq!(seen, Request::Exec(Box::new(expected)));
    }
}
