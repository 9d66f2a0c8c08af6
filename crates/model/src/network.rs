//! The network of a machine: the host's, or one of its own that it shares with the machines that belong to it.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::MachineName;
use crate::units::as_text;

/// What a machine is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineNetwork {
    /// The host's own network.
    #[default]
    Host,
    /// An interface in a network of machines, and nothing of the host's unless asked for.
    Private(PrivateNetwork),
}

impl MachineNetwork {
    /// Whether it is the host's.
    #[must_use]
    pub fn is_host(&self) -> bool {
        *self == Self::Host
    }

    /// The network of its own, if it has one.
    #[must_use]
    pub fn private(&self) -> Option<&PrivateNetwork> {
        match self {
            Self::Host => None,
            Self::Private(network) => Some(network),
        }
    }
}

/// A machine's place in a network of machines. The network is there as long as one machine belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivateNetwork {
    /// Which one, among those of this home.
    pub name: NetworkName,
    /// The machine's address there. None only in what is asked for: then the next free one is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<InterfaceAddress>,
    /// Names that every member knows beside the members' own, which are known anyway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostEntry>,
    /// A way out to what the host reaches, with the names that it knows, as an environment with network `outbound` has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outbound: bool,
    /// Ports of the host's 127.0.0.1 that lead to ports of the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
    /// Folders, such as `/home`, that are the same for every member which names them, ids and modes included. They are
    /// there as long as the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub share: Vec<PathBuf>,
}

impl PrivateNetwork {
    /// In the network of this name, with the next free address and nothing else asked for.
    #[must_use]
    pub fn new(name: NetworkName) -> Self {
        Self { name, address: None, hosts: Vec::new(), outbound: false, publish: Vec::new(), share: Vec::new() }
    }
}

/// A network's name: 1–32 lower-case letters, digits and `-`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(String);

impl NetworkName {
    /// The longest.
    pub const MAX: usize = 32;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for NetworkName {
    /// The network of machines that name none.
    fn default() -> Self {
        Self("default".to_owned())
    }
}

/// Something about a network could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not a network's name.
    #[error("{0:?} is not a network's name: use at most 32 lower-case letters, digits and `-`")]
    Name(String),
    /// Not an address.
    #[error(
        "{0:?} is not an address of a machine: write one such as 10.77.0.2/24, of 8 to 30 bits and not the first or last"
    )]
    Address(String),
    /// Not a pair of ports.
    #[error("{0:?} does not publish a port: write HOST:MACHINE such as 2222:22, or the machine's port alone")]
    Publish(String),
    /// Not an entry of a table of hosts.
    #[error("{0:?} names no host: write ADDRESS=NAME such as 10.77.0.9=db")]
    Host(String),
}

impl FromStr for NetworkName {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let valid = (1..=Self::MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !text.starts_with('-');
        if valid { Ok(Self(text.to_owned())) } else { Err(NetworkError::Name(text.to_owned())) }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An IPv4 address with the number of bits that all members of its network share: `10.77.0.2/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// 8–30.
    pub prefix: u8,
}

impl InterfaceAddress {
    /// The first address of a network that was given none.
    pub const FIRST: Self = Self { address: Ipv4Addr::new(10, 213, 0, 1), prefix: 24 };

    /// The bits that all members share.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() & self.mask())
    }

    /// Whether both are of one network.
    #[must_use]
    pub fn shares_network(self, other: Self) -> bool {
        self.prefix == other.prefix && self.network() == other.network()
    }

    /// The first address of this one's network, from this one on, that is not among `taken`.
    #[must_use]
    pub fn next_free(self, taken: &[Ipv4Addr]) -> Option<Self> {
        let last = (self.network().to_bits() | !self.mask()).checked_sub(1)?;
        (self.address.to_bits()..=last)
            .map(Ipv4Addr::from_bits)
            .find(|address| !taken.contains(address))
            .map(|address| Self { address, prefix: self.prefix })
    }

    /// The hardware address of the machine with this address: a local one that no vendor has.
    #[must_use]
    pub fn hardware(self) -> [u8; 6] {
        let [a, b, c, d] = self.address.octets();
        [0x02, 0x54, a, b, c, d]
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }
}

impl FromStr for InterfaceAddress {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = || NetworkError::Address(text.to_owned());
        let (address, prefix) = text.split_once('/').unwrap_or((text, "24"));
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        let read = Self { address, prefix };
        let reserved = address.is_loopback() || address.is_multicast() || address.is_unspecified();
        let valid = (8..=30).contains(&prefix)
            && !reserved
            && address != read.network()
            && address.to_bits() != (read.network().to_bits() | !read.mask());
        if valid { Ok(read) } else { Err(bad()) }
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A port of the host's 127.0.0.1 that leads to a port of a machine: `2222:22`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Publish {
    /// The host's port. 0 only in what is asked for: then a free one is taken.
    pub host: u16,
    /// The machine's port.
    pub machine: u16,
}

impl FromStr for Publish {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = || NetworkError::Publish(text.to_owned());
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad);
        match text.split_once(':') {
            Some((host, machine)) => Ok(Self { host: port(host)?, machine: port(machine)? }),
            None => Ok(Self { host: 0, machine: port(text)? }),
        }
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            0 => write!(f, "{}", self.machine),
            host => write!(f, "{host}:{}", self.machine),
        }
    }
}

/// A name and its address: `10.77.0.9=db`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostEntry {
    /// The address.
    pub address: Ipv4Addr,
    /// The name.
    pub name: MachineName,
}

impl FromStr for HostEntry {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let read = text
            .split_once('=')
            .and_then(|(address, name)| Some(Self { address: address.parse().ok()?, name: name.parse().ok()? }));
        read.ok_or_else(|| NetworkError::Host(text.to_owned()))
    }
}

impl fmt::Display for HostEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.address, self.name)
    }
}

as_text!(NetworkName, InterfaceAddress, Publish, HostEntry);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_that_a_machine_can_have() {
        for (text, shown) in
            [("10.77.0.2/24", "10.77.0.2/24"), ("10.77.0.2", "10.77.0.2/24"), ("10.0.0.1/30", "10.0.0.1/30")]
        {
            assert_eq!(text.parse::<InterfaceAddress>().expect(text).to_string(), shown);
        }
        for bad in
            ["", "10.77.0.0/24", "10.77.0.255/24", "10.77.0.2/31", "10.77.0.2/7", "127.0.0.2/8", "::1/64", "x/24"]
        {
            assert!(bad.parse::<InterfaceAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_next_free_address_is_of_the_same_network() {
        let first: InterfaceAddress = "10.0.0.1/30".parse().expect("an address");
        let next = first.next_free(&[first.address]).expect("one is left");
        assert_eq!(next.to_string(), "10.0.0.2/30");
        assert!(next.shares_network(first) && next.hardware() != first.hardware());
        assert_eq!(first.next_free(&[first.address, next.address]), None);
    }

    #[test]
    fn ports_are_published_in_pairs_or_wherever_there_is_room() {
        let read = |text: &str| text.parse::<Publish>();
        assert_eq!(read("2222:22"), Ok(Publish { host: 2222, machine: 22 }));
        assert_eq!(read("22"), Ok(Publish { host: 0, machine: 22 }));
        for bad in ["", ":22", "0:22", "22:", "22:0", "1:2:3", "70000:1", "0.0.0.0:22"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_survive_json() {
        let network = PrivateNetwork {
            address: "10.77.0.2/24".parse().ok(),
            hosts: vec!["10.77.0.9=db".parse().expect("an entry")],
            outbound: true,
            publish: vec![Publish { host: 2222, machine: 22 }],
            share: vec!["/home".into()],
            ..PrivateNetwork::new("lab".parse().expect("a name"))
        };
        let network = MachineNetwork::Private(network);
        let json = serde_json::to_string(&network).expect("plain data");
        assert_eq!(serde_json::from_str::<MachineNetwork>(&json).expect("its own output"), network);
        assert_eq!(serde_json::to_string(&MachineNetwork::Host).expect("plain data"), r#""host""#);
        for bad in ["", "-a", "A", "a_b", "a/b", &"x".repeat(33)] {
            assert!(bad.parse::<NetworkName>().is_err(), "{bad}");
        }
    }
}
