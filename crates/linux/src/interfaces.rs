//! Network interfaces of a network namespace, by netlink: bridges, pairs of linked interfaces, addresses.
//!
//! A netlink socket speaks of the namespace in which it was opened, wherever its owner goes afterwards.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice};

use crate::error::{Error, Result};

/// The interfaces of the network namespace in which this was opened.
#[derive(Debug)]
pub struct Interfaces {
    socket: OwnedFd,
}

/// The far end of a pair: where it is, what it is called there, and its hardware address.
#[derive(Debug, Clone, Copy)]
pub struct FarEnd<'a> {
    /// Its network namespace.
    pub network: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a str,
    /// Its hardware address.
    pub hardware: [u8; 6],
}

const HEADER: usize = 16;
const VETH_INFO_PEER: u16 = 1;
const BRIDGE_MULTICAST_SNOOPING: u16 = 23;

impl Interfaces {
    /// Those of the caller's network namespace.
    ///
    /// # Errors
    /// As socket.
    pub fn open() -> Result<Self> {
        // The protocol of routes is the one without a number.
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
            .map_err(|errno| Error::new("open", "a netlink socket", errno))?;
        Ok(Self { socket })
    }

    /// The number of an interface; none where there is none of this name.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn index(&self, name: &str) -> Result<Option<u32>> {
        match netdevice::name_to_index(&self.socket, name) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(Error::new("find", format_args!("the interface {name}"), errno)),
        }
    }

    /// A bridge that is up, and learns where its members are from what they send.
    ///
    /// # Errors
    /// `EEXIST` for a name that is taken, `EPERM` without capabilities over the namespace, `EOPNOTSUPP` for a kernel
    /// without bridges.
    pub fn make_bridge(&self, name: &str) -> Result<()> {
        let mut message = Message::link(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, 0, Some(true));
        message.text(libc::IFLA_IFNAME, name);
        message.nested(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "bridge");
            info.nested(libc::IFLA_INFO_DATA, |data| data.bytes(BRIDGE_MULTICAST_SNOOPING, &[0]));
        });
        self.ask(message, "make the bridge", name)
    }

    /// A pair of linked interfaces: the near end joins a bridge here and is up, the far end is in another namespace.
    ///
    /// # Errors
    /// `EEXIST` for a name that is taken, `EPERM` without capabilities over both namespaces, `EOPNOTSUPP` for a kernel
    /// without such pairs.
    pub fn make_pair(&self, name: &str, bridge: &str, far: FarEnd<'_>) -> Result<()> {
        let missing = || Error::new("find", format_args!("the bridge {bridge}"), Errno::NODEV);
        let master = self.index(bridge)?.ok_or_else(missing)?;
        let mut message = Message::link(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, 0, Some(true));
        message.text(libc::IFLA_IFNAME, name);
        message.bytes(libc::IFLA_MASTER, &master.to_ne_bytes());
        message.nested(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth");
            info.nested(libc::IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |peer| {
                    peer.raw(&link_header(0, None));
                    peer.text(libc::IFLA_IFNAME, far.name);
                    peer.bytes(libc::IFLA_ADDRESS, &far.hardware);
                    peer.bytes(libc::IFLA_NET_NS_FD, &far.network.as_raw_fd().to_ne_bytes());
                });
            });
        });
        self.ask(message, "make the interface", name)
    }

    /// Brings an interface up, or takes it down: then the other end of its pair has no carrier either.
    ///
    /// # Errors
    /// `ENODEV` where there is none of this name, `EPERM` without capabilities over the namespace.
    pub fn set_up(&self, name: &str, up: bool) -> Result<()> {
        let index = self.known(name)?;
        self.ask(Message::link(libc::RTM_NEWLINK, 0, index, Some(up)), "change the state of", name)
    }

    /// Sets an interface's hardware address, also the one that it has: the kernel then forgets what it knew of its
    /// neighbours, and tells them where `arp_notify` is set.
    ///
    /// # Errors
    /// As [`Interfaces::set_up`].
    pub fn set_hardware(&self, name: &str, hardware: [u8; 6]) -> Result<()> {
        let mut message = Message::link(libc::RTM_NEWLINK, 0, self.known(name)?, None);
        message.bytes(libc::IFLA_ADDRESS, &hardware);
        self.ask(message, "announce", name)
    }

    /// Gives an interface an address.
    ///
    /// # Errors
    /// As [`Interfaces::set_up`]; `EEXIST` for one that it has.
    pub fn add_address(&self, name: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
        let index = self.known(name)?;
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        let [a, b, c, d] = index.to_ne_bytes();
        message.raw(&[libc::AF_INET as u8, prefix, 0, 0, a, b, c, d]);
        let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        let broadcast = Ipv4Addr::from_bits(address.to_bits() | host);
        message.bytes(libc::IFA_LOCAL, &address.octets());
        message.bytes(libc::IFA_ADDRESS, &address.octets());
        message.bytes(libc::IFA_BROADCAST, &broadcast.octets());
        self.ask(message, "give an address to", name)
    }

    /// Removes an interface, and with it the other end of its pair. One that is not there is no error.
    ///
    /// # Errors
    /// `EPERM` without capabilities over the namespace.
    pub fn remove(&self, name: &str) -> Result<()> {
        let Some(index) = self.index(name)? else { return Ok(()) };
        match self.ask(Message::link(libc::RTM_DELLINK, 0, index, None), "remove the interface", name) {
            Err(error) if error.is_absent() => Ok(()),
            outcome => outcome,
        }
    }

    fn known(&self, name: &str) -> Result<u32> {
        self.index(name)?.ok_or_else(|| Error::new("find", format_args!("the interface {name}"), Errno::NODEV))
    }

    /// Sends a message and waits for the kernel's verdict, which comes before the next message is read.
    fn ask(&self, message: Message, operation: &'static str, name: &str) -> Result<()> {
        let failed = |errno: Errno| Error::new(operation, name, errno);
        let bytes = message.finished();
        retry_on_intr(|| rustix::net::send(&self.socket, &bytes, SendFlags::empty())).map_err(failed)?;
        let mut buffer = [0_u8; 4096];
        let (length, _) =
            retry_on_intr(|| rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())).map_err(failed)?;
        match verdict(&buffer[..length]) {
            Some(0) => Ok(()),
            Some(number) => Err(failed(Errno::from_raw_os_error(-number))),
            None => Err(failed(Errno::PROTO)),
        }
    }
}

/// The number in the kernel's answer: 0 where it did what was asked, else the negative error.
fn verdict(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let number = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    (i32::from(kind) == libc::NLMSG_ERROR).then_some(number)
}

/// The part of a message that names an interface: its number, or none, and whether it shall be up.
fn link_header(index: u32, up: Option<bool>) -> [u8; 16] {
    let flag = (libc::IFF_UP as u32).to_ne_bytes();
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if up == Some(true) {
        header[8..12].copy_from_slice(&flag);
    }
    if up.is_some() {
        header[12..16].copy_from_slice(&flag);
    }
    header
}

/// A message that is being put together.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: libc::c_int) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes }
    }

    fn link(kind: u16, flags: libc::c_int, index: u32, up: Option<bool>) -> Self {
        let mut message = Self::new(kind, flags);
        message.raw(&link_header(index, up));
        message
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |inside| inside.raw(value));
        // The length of what was not padded.
        let start = self.bytes.len() - value.len().next_multiple_of(4) - 4;
        self.bytes[start..start + 2].copy_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        fill(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
    }

    fn finished(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_say_how_long_they_are_and_are_aligned() {
        let mut message = Message::link(libc::RTM_NEWLINK, 0, 7, Some(true));
        message.text(libc::IFLA_IFNAME, "lo");
        message.nested(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, "veth"));
        let bytes = message.finished();
        assert_eq!(bytes.len(), 32 + 8 + 4 + 12);
        assert_eq!(bytes[..4], 56_u32.to_ne_bytes());
        assert_eq!(bytes[20..24], 7_u32.to_ne_bytes());
        assert_eq!(bytes[32..39], [7, 0, 3, 0, b'l', b'o', 0]);
        assert_eq!(bytes[40..49], [16, 0, 18, 0, 9, 0, 1, 0, b'v']);
    }

    #[test]
    fn only_an_answer_is_a_verdict() {
        let mut answer = [0; 20];
        answer[4] = libc::NLMSG_ERROR as u8;
        answer[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(verdict(&answer), Some(-17));
        assert_eq!(verdict(&answer[..18]), None);
        answer[4] = 16;
        assert_eq!(verdict(&answer), None);
    }

    #[test]
    fn the_loopback_is_there() {
        let interfaces = Interfaces::open().expect("netlink");
        assert_eq!(interfaces.index("lo").expect("an answer"), Some(1));
        assert_eq!(interfaces.index("nobody0").expect("an answer"), None);
        let missing = interfaces.set_up("nobody0", true).expect_err("it is not there");
        assert!(missing.is_absent(), "{missing}");
    }
}
