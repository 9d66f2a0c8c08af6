//! Waiting until something in an environment accepts connections: the init tries, the agent passes the answer on.
//!
//! Only a connection tells. A socket that listens may be one that nobody serves yet; and what `/proc/net` shows must be
//! read and parsed for every socket that there is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use testyard_model::{EnvironmentId, Problem, ProblemKind};
use testyard_protocol::Event;

use super::order::Order;
use super::{State, Waiting};
use crate::agent::Agent;

/// The first two tries are so far apart, each later pair half as much again.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// Tries are never further apart. With many environments at once each try takes time from those it waits for.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);
/// The loopback answers at once; only a full backlog does not, and who waits in it is not served yet.
const ANSWER: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// One port that is waited for, in the init.
struct Wait {
    number: u32,
    port: u16,
    pause: Duration,
    next: Instant,
    until: Instant,
}

/// Every port that is waited for, in the init.
#[derive(Default)]
pub(super) struct Waits(Vec<Wait>);

impl Waits {
    pub(super) fn add(&mut self, number: u32, port: u16, patience_ms: u64) {
        let now = Instant::now();
        let until = now.checked_add(Duration::from_millis(patience_ms)).unwrap_or(now);
        self.0.push(Wait { number, port, pause: FIRST_PAUSE, next: now, until });
    }

    /// How long to wait until the next try; none where nothing is waited for.
    pub(super) fn pause(&self) -> Option<Timespec> {
        let next = self.0.iter().map(|wait| wait.next).min()?;
        Timespec::try_from(next.saturating_duration_since(Instant::now())).ok()
    }

    /// Tries what is due; those that are answered now, with their answer.
    pub(super) fn answered(&mut self) -> Vec<(u32, bool)> {
        let now = Instant::now();
        let mut answered = Vec::new();
        self.0.retain_mut(|wait| {
            if wait.next > now {
                return true;
            }
            let accepts = accepts(wait.port);
            let over = accepts || now >= wait.until;
            if over {
                answered.push((wait.number, accepts));
            }
            wait.next = (now + wait.pause).min(wait.until.max(now));
            wait.pause = (wait.pause * 3 / 2).min(LONGEST_PAUSE);
            !over
        });
        answered
    }
}

/// Whether something accepts connections on this port of the loopback.
fn accepts(port: u16) -> bool {
    let loopbacks = [
        (AddressFamily::INET, IpAddr::V4(Ipv4Addr::LOCALHOST)),
        (AddressFamily::INET6, IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    loopbacks.into_iter().any(|(family, address)| connects(family, SocketAddr::new(address, port)).unwrap_or(false))
}

fn connects(family: AddressFamily, address: SocketAddr) -> Result<bool, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => return Ok(true),
        Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let mut polled = [PollFd::new(&socket, PollFlags::OUT)];
    if poll(&mut polled, Some(&ANSWER))? == 0 {
        return Ok(false);
    }
    Ok(rustix::net::sockopt::socket_error(&socket)?.is_ok())
}

impl Agent {
    /// Answers once something in an environment accepts connections.
    pub(crate) fn await_listening(
        &mut self,
        connection: u64,
        stream: u32,
        id: EnvironmentId,
        port: u16,
        patience_ms: u64,
    ) -> Result<(), Problem> {
        let wait = self.number();
        let there = self.environments.get(&id).filter(|one| one.state != State::Ending);
        let missing = || Problem::new(ProblemKind::NotFound, format!("environment {id} is not there"));
        there.ok_or_else(missing)?;
        self.order(id, &Order::Listening { wait, port, patience_ms }, &[]).map_err(|error| error.problem())?;
        self.wait_for(id, Waiting::Listening { connection, stream, wait });
        Ok(())
    }

    /// An init has seen a connection accepted, or its patience has ended.
    pub(super) fn listening_answered(&mut self, id: EnvironmentId, answered: u32, accepts: bool) {
        let Some(environment) = self.environments.get_mut(&id) else { return };
        let asked = |one: &Waiting| matches!(one, Waiting::Listening { wait, .. } if *wait == answered);
        let Some(place) = environment.waiting.iter().position(asked) else { return };
        if let Waiting::Listening { connection, stream, .. } = environment.waiting.remove(place) {
            let late = || Problem::new(ProblemKind::TimedOut, "nothing accepted connections in time");
            let event = if accepts { Event::Done } else { Event::Failed(late()) };
            self.answer(connection, stream, &event);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_of_either_family_is_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().expect("a bound socket").port();
            assert!(accepts(port), "{address}");
            drop(listener);
            assert!(!accepts(port), "{address}");
        }
    }

    #[test]
    fn waits_end_with_an_answer_each() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let open = listener.local_addr().expect("a bound socket").port();
        let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("a bound socket").port();
        let mut waits = Waits::default();
        assert!(waits.pause().is_none());
        waits.add(1, open, 60_000);
        waits.add(2, closed, 0);
        waits.add(3, closed, 60_000);
        let mut answered = waits.answered();
        answered.sort_unstable();
        assert_eq!(answered, [(1, true), (2, false)]);
        assert!(waits.pause().is_some_and(|pause| pause.tv_sec == 0));
    }
}
