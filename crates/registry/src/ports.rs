//! Ports that no two environments on this host are given at once, whatever their home, user or process.
//!
//! A lease of port n is the abstract Unix socket `\0testyard/port/<n>`, of type stream, bound and never listened on.
//! Its scope is the network namespace, exactly that of the port; the kernel releases it with its holder. Other programs
//! know nothing of it, so each port is also bind-tested, and ports that the kernel gives out by itself
//! (`ip_local_port_range`) are never used.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with, sockopt};
use testyard_model::{Problem, ProblemKind};

use crate::stable_hash::stable_hash;

/// Where leased ports come from.
#[derive(Debug, Clone)]
pub struct PortLeases {
    range: RangeInclusive<u16>,
    /// The ports of `range` that the kernel does not give out by itself, ascending.
    candidates: Vec<u16>,
    /// Whether this network namespace has IPv6.
    ipv6: bool,
}

/// A port that is its holder's until dropped.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    _name: OwnedFd,
}

impl PortLease {
    /// The number.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Why ports were not leased.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The range holds no port that may be used.
    #[error("no port of {}-{} lies outside {}-{}, which the kernel gives out by itself", range.start(), range.end(), ephemeral.start(), ephemeral.end())]
    NoCandidates {
        /// The range asked for.
        range: RangeInclusive<u16>,
        /// `net.ipv4.ip_local_port_range`.
        ephemeral: RangeInclusive<u16>,
    },
    /// Not enough ports are free.
    #[error(
        "{wanted} ports wanted, {free} free in {}-{}: {leased} are leased by testyard and {used} used by others",
        range.start(), range.end()
    )]
    Exhausted {
        /// The range.
        range: RangeInclusive<u16>,
        /// How many were asked for.
        wanted: usize,
        /// How many were free.
        free: usize,
        /// How many were leased, by any home and user in this network namespace.
        leased: usize,
        /// How many were in use by programs that know nothing of leases.
        used: usize,
    },
    /// The operating system refused what has nothing to do with a port being taken.
    #[error("cannot {action} to lease a port")]
    System {
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl PortError {
    /// The error as people see it, with what to do next.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::NoCandidates { .. } => Problem::from_error(ProblemKind::Unsupported, self)
                .hint("use another range, or narrow the kernel's: sysctl net.ipv4.ip_local_port_range='32768 60999'"),
            Self::Exhausted { .. } => Problem::from_error(ProblemKind::Exhausted, self)
                .hint("see who holds them: ss -xa | grep testyard/port; ss -tulpn")
                .hint("run fewer tests at once: --jobs"),
            Self::System { .. } => Problem::from_error(ProblemKind::System, self),
        }
    }
}

impl PortLeases {
    /// Ports of this range, less those that the kernel gives out by itself.
    ///
    /// # Errors
    /// No port is left, or `/proc/sys` cannot be read.
    pub fn new(range: RangeInclusive<u16>) -> Result<Self, PortError> {
        let ephemeral = ephemeral_range()?;
        let candidates: Vec<u16> = range.clone().filter(|port| *port != 0 && !ephemeral.contains(port)).collect();
        if candidates.is_empty() {
            return Err(PortError::NoCandidates { range, ephemeral });
        }
        Ok(Self { range, candidates, ipv6: fs::exists("/proc/net/if_inet6").unwrap_or(false) })
    }

    /// 20000–32767: below the kernel's default range and above the well-known servers of development machines. Where
    /// an administrator moved the kernel's range over it, the ports above 60999, then all above 1023.
    ///
    /// # Errors
    /// As [`PortLeases::new`].
    pub fn standard() -> Result<Self, PortError> {
        Self::new(20_000..=32_767).or_else(|_| Self::new(61_000..=65_535)).or_else(|_| Self::new(1_024..=65_535))
    }

    /// Leases `count` ports. The same key gets the same ports whenever they are free, so that a test's addresses,
    /// and so its logs, stay the same; otherwise the next free ones.
    ///
    /// # Errors
    /// Fewer are free (none is kept then), or the operating system refused.
    pub fn acquire_for(&self, key: &str, count: usize) -> Result<Vec<PortLease>, PortError> {
        let total = self.candidates.len();
        let start = (stable_hash(key.as_bytes()) % total as u64) as usize;
        let mut leases = Vec::with_capacity(count.min(total));
        let (mut leased, mut used) = (0, 0);
        for port in self.candidates[start..].iter().chain(&self.candidates[..start]) {
            if leases.len() == count {
                break;
            }
            match self.try_lease(*port)? {
                Tried::Leased(lease) => leases.push(lease),
                Tried::LeasedByOther => leased += 1,
                Tried::Used => used += 1,
            }
        }
        if leases.len() < count {
            return Err(PortError::Exhausted {
                range: self.range.clone(),
                wanted: count,
                free: leases.len(),
                leased,
                used,
            });
        }
        Ok(leases)
    }

    /// The name first: then nobody else bind-tests this port at the same time and takes our test for a use.
    fn try_lease(&self, port: u16) -> Result<Tried, PortError> {
        let failed = |action: &'static str| move |errno: Errno| PortError::System { action, source: errno.into() };
        let name = open_socket(AddressFamily::UNIX, SocketType::STREAM).map_err(failed("open a socket"))?;
        let address = SocketAddrUnix::new_abstract_name(format!("testyard/port/{port}").as_bytes())
            .map_err(failed("name a socket"))?;
        match bind(&name, &address) {
            Ok(()) => {}
            Err(Errno::ADDRINUSE) => return Ok(Tried::LeasedByOther),
            Err(errno) => return Err(failed("bind an abstract socket")(errno)),
        }
        let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into()];
        if self.ipv6 {
            addresses.push(Ipv6Addr::LOCALHOST.into());
        }
        for address in addresses {
            for kind in [SocketType::STREAM, SocketType::DGRAM] {
                if !is_bindable(SocketAddr::new(address, port), kind)? {
                    return Ok(Tried::Used);
                }
            }
        }
        Ok(Tried::Leased(PortLease { port, _name: name }))
    }
}

enum Tried {
    Leased(PortLease),
    LeasedByOther,
    Used,
}

/// Binds without SO_REUSEADDR, as the pickiest test would; what was merely bound leaves nothing behind when closed.
fn is_bindable(address: SocketAddr, kind: SocketType) -> Result<bool, PortError> {
    let failed = |action: &'static str| move |errno: Errno| PortError::System { action, source: errno.into() };
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = match open_socket(family, kind) {
        Ok(socket) => socket,
        // IPv6 was compiled in but switched off.
        Err(Errno::AFNOSUPPORT) if family == AddressFamily::INET6 => return Ok(true),
        Err(errno) => return Err(failed("open a socket")(errno)),
    };
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, true).map_err(failed("set up a socket"))?;
    }
    match bind(&socket, &address) {
        Ok(()) => Ok(true),
        // No such address: loopback is down, or IPv6 is switched off on it. Then nobody uses the port on it either.
        Err(Errno::ADDRNOTAVAIL) => Ok(true),
        Err(Errno::ADDRINUSE | Errno::ACCESS | Errno::PERM) => Ok(false),
        Err(errno) => Err(failed("bind-test an address")(errno)),
    }
}

fn open_socket(family: AddressFamily, kind: SocketType) -> Result<OwnedFd, Errno> {
    socket_with(family, kind, SocketFlags::CLOEXEC, None)
}

/// `net.ipv4.ip_local_port_range`, which rules IPv6 too.
fn ephemeral_range() -> Result<RangeInclusive<u16>, PortError> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    const ACTION: &str = "read net.ipv4.ip_local_port_range";
    let text = fs::read_to_string(FILE).map_err(|source| PortError::System { action: ACTION, source })?;
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(PortError::System { action: ACTION, source: io::Error::new(io::ErrorKind::InvalidData, text) }),
    }
}
