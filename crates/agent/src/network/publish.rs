//! Ports of the host's loopback that lead into a machine.
//!
//! A socket belongs to the network in which it was made. The router makes the listening ones on the host, and forks the
//! publisher, which enters the machine's network, accepts what comes to them, and connects inside. It gives up all
//! rights over the host before, and ends with the router.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use testyard_linux::process::{self, CloneFlags, CloneOptions, Forked, Pid, SingleThreaded};
use testyard_linux::{Error, Result, identity, namespace, signal, socket};
use testyard_model::{Problem, ProblemKind, Publish};

/// Connections at once; those beyond wait in the backlog.
const MOST: usize = 400;
/// What is kept of one direction of a connection while its reader is slow.
const BUFFER: usize = 64 * 1024;

/// The listening sockets, and the process that serves them.
pub(crate) struct Publisher {
    listeners: Vec<(TcpListener, u16)>,
    /// Its process, and a socket that closes with it.
    running: Option<(Pid, OwnedFd)>,
    token: SingleThreaded,
    left: u32,
}

/// How often a publisher that was killed is replaced.
const RESTARTS: u32 = 100;

impl Publisher {
    /// Takes the host's ports.
    pub(crate) fn bind(ports: &[Publish], token: SingleThreaded) -> std::result::Result<Self, Problem> {
        let bound = ports.iter().map(|port| {
            let listener = TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port.host));
            let listener = listener.map_err(|error| refused(*port, error))?;
            listener.set_nonblocking(true).map_err(|error| refused(*port, error))?;
            Ok((listener, port.machine))
        });
        Ok(Self {
            listeners: bound.collect::<std::result::Result<_, Problem>>()?,
            running: None,
            token,
            left: RESTARTS,
        })
    }

    /// A descriptor that becomes readable when the process has ended.
    pub(crate) fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|(_, socket)| socket.as_fd())
    }

    /// Whether the process has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let Some((_, socket)) = &self.running else { return false };
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&now)), Ok(1..))
    }

    /// Starts the process, or another in the place of one that was killed: whoever connected meanwhile has waited.
    pub(crate) fn start(&mut self, user: BorrowedFd<'_>, machine: BorrowedFd<'_>) -> Result<()> {
        if let Some((pid, _)) = self.running.take() {
            // It has ended, or does nothing else any more.
            let _ = signal::Signal::KILL.send_to(pid);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        }
        if self.listeners.is_empty() || self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        let (ours, theirs) = socket::pair(socket::Kind::Stream)?;
        match process::clone3(self.token, CloneFlags::NONE, CloneOptions::default())? {
            Forked::Child => {
                drop(ours);
                let status = self.serve(&theirs, user, machine).is_err();
                process::exit_immediately(i32::from(status))
            }
            Forked::Parent(child) => {
                self.running = Some((child.pid, ours));
                Ok(())
            }
        }
    }

    fn serve(&self, router: &OwnedFd, user: BorrowedFd<'_>, machine: BorrowedFd<'_>) -> Result<()> {
        let listeners = self.listeners.iter().map(|(listener, _)| listener.as_fd());
        let kept: Vec<_> = listeners.chain([router.as_fd(), user, machine]).collect();
        process::close_range_from(3, &kept)?;
        let own = identity::namespace_inode(std::path::Path::new("/proc/self/ns/user"))?;
        let foreign = identity::namespace_inode_of(user)? != own;
        if foreign {
            namespace::enter(user, CloneFlags::NEWUSER)?;
        }
        namespace::enter(machine, CloneFlags::NEWNET)?;
        process::drop_all_capabilities()?;
        signal::ignore(signal::Signal::PIPE)?;
        let mut relays: Vec<Relay> = Vec::new();
        loop {
            if !self.turn(router, &mut relays)? {
                return Ok(());
            }
        }
    }

    /// Waits for something and does it. False when the router is gone.
    fn turn(&self, router: &OwnedFd, relays: &mut Vec<Relay>) -> Result<bool> {
        let room = relays.len() < MOST;
        let mut polled = vec![PollFd::new(router, PollFlags::IN)];
        polled.extend(self.listeners.iter().filter(|_| room).map(|(listener, _)| PollFd::new(listener, PollFlags::IN)));
        for relay in relays.iter() {
            polled.extend(relay.polled());
        }
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::new("wait for", "connections to published ports", error)),
        }
        if !polled[0].revents().is_empty() {
            return Ok(false);
        }
        let first = polled.len() - 2 * relays.len();
        let broken = |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP);
        let broken: Vec<[bool; 2]> =
            polled[first..].chunks(2).map(|ends| [broken(&ends[0]), broken(&ends[1])]).collect();
        drop(polled);
        let mut broken = broken.into_iter();
        relays.retain_mut(|relay| relay.carry(broken.next().unwrap_or_default()));
        for (listener, port) in self.listeners.iter().filter(|_| room) {
            while relays.len() < MOST
                && let Ok((outside, _)) = listener.accept()
            {
                // Where nothing listens inside, the connection is closed at once, as a port of a machine would do.
                relays.extend(Relay::begin(outside, *port));
            }
        }
        Ok(true)
    }
}

fn refused(port: Publish, error: std::io::Error) -> Problem {
    let address = format!("127.0.0.1:{}", port.host);
    match error.kind() {
        ErrorKind::AddrInUse => Problem::new(
            ProblemKind::AlreadyExists,
            format!("port {} of 127.0.0.1 is taken, so port {} cannot be published there", port.host, port.machine),
        )
        .hint(format!(
            "publish it elsewhere: --publish {}:{}, or wherever there is room: --publish {}",
            port.host.wrapping_add(1).max(1024),
            port.machine,
            port.machine
        ))
        .hint(format!("see who has it: ss -ltnp 'sport = :{}'", port.host)),
        ErrorKind::PermissionDenied => {
            Problem::new(ProblemKind::Denied, format!("this user may not listen on port {} of 127.0.0.1", port.host))
                .hint(format!("publish it above 1023: --publish {}:{}", 10_000 + port.machine % 10_000, port.machine))
        }
        _ => Problem::new(ProblemKind::System, format!("cannot listen on {address}")).because(error),
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Flow {
    bytes: Vec<u8>,
    /// Nothing more comes from its reader.
    ended: bool,
    /// Its writer was told so.
    told: bool,
}

impl Flow {
    /// Moves what there is. False when the connection is broken.
    fn carry(&mut self, from: &mut TcpStream, to: &mut TcpStream) -> bool {
        loop {
            while !self.bytes.is_empty() {
                match to.write(&self.bytes) {
                    Ok(count) => drop(self.bytes.drain(..count)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return false,
                }
            }
            if self.ended {
                if !std::mem::replace(&mut self.told, true) {
                    // It may have closed that direction itself.
                    let _ = to.shutdown(Shutdown::Write);
                }
                return true;
            }
            self.bytes.resize(BUFFER, 0);
            let read = from.read(&mut self.bytes);
            self.bytes.truncate(*read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

/// A connection from outside and its continuation inside.
struct Relay {
    outside: TcpStream,
    inside: TcpStream,
    inward: Flow,
    outward: Flow,
    connecting: bool,
    /// Which ends are broken, the inner one first: the kernel goes on saying so whatever is asked.
    broken: [bool; 2],
}

impl Relay {
    fn begin(outside: TcpStream, port: u16) -> Option<Self> {
        outside.set_nonblocking(true).ok()?;
        // Small messages of people at a terminal.
        outside.set_nodelay(true).ok()?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let inside = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).ok()?;
        let connecting = match rustix::net::connect(&inside, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
            Ok(()) => false,
            Err(Errno::INPROGRESS) => true,
            Err(_) => return None,
        };
        let inside = TcpStream::from(inside);
        inside.set_nodelay(true).ok()?;
        Some(Self {
            outside,
            inside,
            inward: Flow::default(),
            outward: Flow::default(),
            connecting,
            broken: [false; 2],
        })
    }

    /// What it waits for: its inner end first.
    fn polled(&self) -> [PollFd<'_>; 2] {
        let wants = |reads: &Flow, writes: &Flow| {
            let mut flags = PollFlags::empty();
            if !reads.ended && reads.bytes.is_empty() {
                flags |= PollFlags::IN;
            }
            if !writes.bytes.is_empty() {
                flags |= PollFlags::OUT;
            }
            flags
        };
        if self.connecting {
            return [PollFd::new(&self.inside, PollFlags::OUT), PollFd::new(&self.outside, PollFlags::empty())];
        }
        let ends = [&self.inside, &self.outside];
        let wanted = [wants(&self.outward, &self.inward), wants(&self.inward, &self.outward)];
        [0, 1].map(|end| match self.broken[end] && wanted[end].is_empty() {
            false => PollFd::new(ends[end], wanted[end]),
            // Nothing but that it is broken would be heard of it, at once and for ever.
            true => PollFd::new(ends[1 - end], PollFlags::empty()),
        })
    }

    /// Moves what there is in both directions. False when it is over. An end that is broken has nothing more to say
    /// once all was read.
    fn carry(&mut self, broken: [bool; 2]) -> bool {
        self.broken = [self.broken[0] || broken[0], self.broken[1] || broken[1]];
        if self.connecting {
            match rustix::net::sockopt::socket_error(&self.inside) {
                Ok(Ok(())) if self.inside.peer_addr().is_ok() => self.connecting = false,
                // Not yet.
                Ok(Ok(())) => return true,
                _ => return false,
            }
        }
        self.inward.carry(&mut self.outside, &mut self.inside)
            && self.outward.carry(&mut self.inside, &mut self.outside)
            && !(self.inward.told && self.outward.told)
            && !(self.broken[0] && self.outward.ended)
            && !(self.broken[1] && self.inward.ended)
    }
}
