//! A transport's own TCP connections, asked to send small words at once.
//!
//! Slurm's `srun` carries a step's standard streams over TCP and leaves `TCP_NODELAY` unset: a small word that follows
//! another then waits until the first is acknowledged, which the other kernel puts off for 40 ms where nothing goes the
//! other way. The process is our child, so that its sockets can be had and set. Where they cannot, all is as slow as it was.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Sets `TCP_NODELAY` on what this process has; on how many.
pub(crate) fn send_promptly(process: u32) -> usize {
    let Some(pid) = Pid::from_raw(process.cast_signed()) else { return 0 };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return 0 };
    let Ok(entries) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return 0 };
    let sockets = entries.flatten().filter(|entry| {
        std::fs::read_link(entry.path())
            .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
    });
    let numbers = sockets.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let held = numbers.filter_map(|number| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok());
    held.filter(|socket| is_tcp(socket) && sockopt::set_tcp_nodelay(socket.as_fd(), true).is_ok()).count()
}

fn is_tcp(socket: &OwnedFd) -> bool {
    let family = sockopt::socket_domain(socket);
    family.is_ok_and(|family| [AddressFamily::INET, AddressFamily::INET6].contains(&family))
        && sockopt::socket_type(socket).is_ok_and(|kind| kind == SocketType::STREAM)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_childs_connection_is_set_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        assert!(!stream.nodelay().expect("a socket"));
        // The same connection, in another process.
        let input = OwnedFd::from(stream.try_clone().expect("a descriptor"));
        let mut child = Command::new("/bin/sleep").arg("1000").stdin(Stdio::from(input)).spawn().expect("it starts");
        let set = send_promptly(child.id());
        child.kill().expect("ours");
        child.wait().expect("ours");
        assert_eq!((set, stream.nodelay().expect("a socket")), (1, true));
        assert_eq!(send_promptly(child.id()), 0, "one that is gone has none");
    }
}
