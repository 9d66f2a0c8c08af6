//! Unix sockets: pairs, descriptors in messages, and the peer's identity.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::error::{Error, Result};

/// How many descriptors one message may carry.
pub const DESCRIPTORS_PER_MESSAGE: usize = 64;

/// The longest path that a socket address holds, its final zero not counted.
pub const ADDRESS_LENGTH: usize = 107;

/// What a connected pair carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A byte stream.
    Stream,
    /// Whole messages, in order.
    SeqPacket,
}

impl Kind {
    fn socket_type(self) -> SocketType {
        match self {
            Self::Stream => SocketType::STREAM,
            Self::SeqPacket => SocketType::SEQPACKET,
        }
    }
}

/// Who is on the other end, as the kernel recorded it at connect time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process id; 0 where it lives outside of our pid namespace.
    pub pid: i32,
    /// Its user id, in our user namespace.
    pub uid: u32,
    /// Its group id, in our user namespace.
    pub gid: u32,
}

/// A connected pair, close-on-exec.
pub fn pair(kind: Kind) -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, kind.socket_type(), SocketFlags::CLOEXEC, None)
        .map_err(|errno| Error::new("make", "a pair of sockets", errno))
}

/// Sends bytes and descriptors as one message; waits when the buffer is full. Returns the bytes taken.
///
/// The descriptors travel with the first byte, so on a stream they arrive exactly once even when
/// fewer bytes were taken than offered. A vanished peer is `EPIPE`, never a signal.
pub fn send(socket: impl AsFd, bytes: &[IoSlice<'_>], descriptors: &[BorrowedFd<'_>]) -> Result<usize> {
    send_with(socket.as_fd(), bytes, descriptors, SendFlags::NOSIGNAL)
        .map_err(|errno| Error::new("send to", "a socket", errno))
}

/// [`send`] without waiting: `None` when the buffer is full.
pub fn try_send(socket: impl AsFd, bytes: &[IoSlice<'_>], descriptors: &[BorrowedFd<'_>]) -> Result<Option<usize>> {
    match send_with(socket.as_fd(), bytes, descriptors, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(sent) => Ok(Some(sent)),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(Error::new("send to", "a socket", errno)),
    }
}

fn send_with(
    socket: BorrowedFd<'_>,
    bytes: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> rustix::io::Result<usize> {
    if descriptors.len() > DESCRIPTORS_PER_MESSAGE {
        return Err(Errno::TOOMANYREFS);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
    retry_on_intr(|| {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::TOOMANYREFS);
        }
        rustix::net::sendmsg(socket, bytes, &mut control, flags)
    })
}

/// Receives bytes and descriptors (close-on-exec) of one message; waits for one. 0 bytes is the end.
///
/// On a non-blocking socket with nothing there the error's errno is `EAGAIN`. A message with more
/// than [`DESCRIPTORS_PER_MESSAGE`] descriptors, or one that met our descriptor limit, is `EMSGSIZE`.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize> {
    receive_with(socket.as_fd(), buffer, descriptors, RecvFlags::CMSG_CLOEXEC)
        .map_err(|errno| Error::new("receive from", "a socket", errno))
}

/// [`receive`] without waiting: `None` when nothing is there.
pub fn try_receive(socket: impl AsFd, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<Option<usize>> {
    match receive_with(socket.as_fd(), buffer, descriptors, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT) {
        Ok(received) => Ok(Some(received)),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(Error::new("receive from", "a socket", errno)),
    }
}

fn receive_with(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    flags: RecvFlags,
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry_on_intr(|| rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags))?;
    let before = descriptors.len();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = item {
            descriptors.extend(received);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        // What did arrive belongs to a message that is not whole: nobody may act on it.
        descriptors.truncate(before);
        return Err(Errno::MSGSIZE);
    }
    Ok(message.bytes)
}

/// Who connected; the proof that a client is allowed.
pub fn peer(socket: impl AsFd) -> Result<Peer> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // rustix's type for this cannot say pid 0, which is what the kernel answers for a peer in
    // another pid namespace.
    // SAFETY: both pointers are to live, writable values, and `length` is the size of the first.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if answer != 0 {
        return Err(Error::new("identify", "a socket's peer", std::io::Error::last_os_error()));
    }
    Ok(Peer { pid: credentials.pid, uid: credentials.uid, gid: credentials.gid })
}

/// Binds a stream socket at a path of any length and listens; the socket file has `mode` from its
/// first moment on. An existing file at the path is `EADDRINUSE`: who owns the folder removes it.
pub fn listen(path: &Path, mode: u32) -> Result<OwnedFd> {
    let failed = |errno: Errno| Error::new("listen on", path.display(), errno);
    let socket = stream_socket().map_err(failed)?;
    // The mode of the file that `bind` makes is the socket's own, less the umask.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode)).map_err(failed)?;
    at_address(path, |address| rustix::net::bind(&socket, address)).map_err(failed)?;
    rustix::net::listen(&socket, 128).map_err(failed)?;
    Ok(socket)
}

/// Connects to a listening stream socket at a path of any length.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let failed = |errno: Errno| Error::new("connect to", path.display(), errno);
    let socket = stream_socket().map_err(failed)?;
    at_address(path, |address| retry_on_intr(|| rustix::net::connect(&socket, address))).map_err(failed)?;
    Ok(socket)
}

/// The next connection of a listening socket, close-on-exec; waits unless the socket is non-blocking.
pub fn accept(listener: impl AsFd) -> Result<OwnedFd> {
    retry_on_intr(|| rustix::net::accept_with(&listener, SocketFlags::CLOEXEC))
        .map_err(|errno| Error::new("accept from", "a listening socket", errno))
}

fn stream_socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// Calls with an address for `path`; one that is too long is reached through its folder's descriptor.
fn at_address<T>(path: &Path, act: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    if path.as_os_str().len() <= ADDRESS_LENGTH {
        return act(&SocketAddrUnix::new(path)?);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    act(&SocketAddrUnix::new(&short)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn socket_kind(socket: impl AsFd) -> Kind {
        match rustix::net::sockopt::socket_type(socket).expect("a socket has a type") {
            SocketType::STREAM => Kind::Stream,
            _ => Kind::SeqPacket,
        }
    }

    #[test]
    fn descriptors_and_bytes_arrive_together() {
        for kind in [Kind::Stream, Kind::SeqPacket] {
            let (left, right) = pair(kind).expect("sockets are to be had");
            assert_eq!(socket_kind(&left), kind);
            let many: Vec<_> = (0..DESCRIPTORS_PER_MESSAGE).map(|_| left.as_fd()).collect();
            let sent = send(&left, &[IoSlice::new(b"he"), IoSlice::new(b"llo")], &many).expect("it fits");
            assert_eq!(sent, 5);
            let mut buffer = [0; 16];
            let mut received = Vec::new();
            assert_eq!(receive(&right, &mut buffer, &mut received).expect("it was sent"), 5);
            assert_eq!(&buffer[..5], b"hello");
            assert_eq!(received.len(), DESCRIPTORS_PER_MESSAGE);
            for fd in &received {
                let flags = rustix::io::fcntl_getfd(fd).expect("open");
                assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            }
        }
    }

    #[test]
    fn nothing_there_is_none_and_the_end_is_zero() {
        let (left, right) = pair(Kind::Stream).expect("sockets are to be had");
        let mut descriptors = Vec::new();
        assert_eq!(try_receive(&right, &mut [0; 4], &mut descriptors).expect("no error"), None);
        drop(left);
        assert_eq!(receive(&right, &mut [0; 4], &mut descriptors).expect("no error"), 0);
        let error = send(&right, &[IoSlice::new(b"x")], &[]).expect_err("the peer is gone");
        assert_eq!(error.errno(), Errno::PIPE);
    }

    #[test]
    fn a_full_buffer_is_none() {
        let (left, _right) = pair(Kind::Stream).expect("sockets are to be had");
        let chunk = [0; 65536];
        let full = (0..1000).any(|_| try_send(&left, &[IoSlice::new(&chunk)], &[]).expect("no error").is_none());
        assert!(full);
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let (left, _right) = pair(Kind::Stream).expect("sockets are to be had");
        let many: Vec<_> = (0..=DESCRIPTORS_PER_MESSAGE).map(|_| left.as_fd()).collect();
        assert_eq!(send(&left, &[IoSlice::new(b"x")], &many).expect_err("too many").errno(), Errno::TOOMANYREFS);
    }

    #[test]
    fn paths_of_any_length_can_be_listened_on() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let long = folder.path().join("d".repeat(150));
        std::fs::create_dir(&long).expect("a folder");
        for path in [folder.path().join("short"), long.join("socket")] {
            let listener = listen(&path, 0o600).expect("nobody listens there");
            let mode = rustix::fs::stat(&path).expect("the file is there").st_mode;
            assert_eq!(mode & 0o777, 0o600);
            let client = connect(&path).expect("it listens");
            let server = accept(&listener).expect("one waits");
            let peer = peer(&server).expect("known");
            assert_eq!(peer.pid, std::process::id().cast_signed());
            assert_eq!(peer.uid, rustix::process::getuid().as_raw());
            drop(client);
            assert_eq!(listen(&path, 0o600).expect_err("taken").errno(), Errno::ADDRINUSE);
        }
        let missing = connect(&folder.path().join("missing")).expect_err("nobody is there");
        assert_eq!(missing.errno(), Errno::NOENT);
    }
}
