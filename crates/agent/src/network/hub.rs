//! Where the members of a network are linked: found with a member that runs, or made.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testyard_linux::interfaces::Interfaces;
use testyard_linux::lock::{FileLock, Mode, Patience};
use testyard_linux::namespace::{self, IdMap, Kind};
use testyard_linux::process::{CloneFlags, SingleThreaded};
use testyard_linux::{Error, files, socket};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::start::{IdRange, NetworkMember, NetworkStart};

use super::in_child;

/// The bridge's name.
pub(super) const BRIDGE: &str = "members";
/// How long another member may take to hand the network on; it may be starting something just now.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// The namespaces of a network.
pub(crate) struct Hub {
    /// The user namespace above all members; none where they are root's.
    pub(crate) user: Option<OwnedFd>,
    /// The network namespace with the bridge.
    pub(crate) network: OwnedFd,
}

impl Hub {
    /// Finds the network, or makes it where no member runs. With a socket on which it is to be handed on.
    pub(crate) fn join(start: &NetworkStart, token: SingleThreaded, ids: IdRange) -> Result<(Self, OwnedFd), Problem> {
        let system = |error: Error| error.problem();
        // Of two that start at once the second finds the first.
        let _lock = FileLock::acquire(&start.lock, Mode::Exclusive, Patience::Wait).map_err(system)?;
        let hub = match Self::find(start)? {
            Some(hub) => hub,
            None => Self::make(token, ids)?,
        };
        files::remove_file(&start.socket).map_err(system)?;
        let listener = socket::listen(&start.socket, 0o600).map_err(system)?;
        rustix::io::ioctl_fionbio(&listener, true).map_err(|error| {
            Problem::new(ProblemKind::System, "cannot wait for members of a network").because(error)
        })?;
        Ok((hub, listener))
    }

    /// Hands the network on to whoever asks for it and may.
    pub(crate) fn hand_on(&self, listener: &OwnedFd) {
        // Who is gone again, or does not take it, asks anew.
        while let Ok(member) = socket::accept(listener) {
            let own = rustix::process::geteuid().as_raw();
            if !socket::peer(&member).is_ok_and(|peer| peer.uid == own || peer.uid == 0) {
                continue;
            }
            let attached: Vec<_> = [&self.network].into_iter().chain(&self.user).map(|fd| fd.as_fd()).collect();
            let _ = socket::try_send(&member, &[IoSlice::new(b"n")], &attached);
        }
    }

    fn find(start: &NetworkStart) -> Result<Option<Self>, Problem> {
        let failed = |error| Error::new("list the members in", start.members.display(), error).problem();
        for entry in std::fs::read_dir(&start.members).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // One that is just being written or removed does not run.
            let Some(member) = read_member(&path) else { continue };
            if member.socket != start.socket
                && let Some(hub) = Self::ask(&member, &start.name)?
            {
                return Ok(Some(hub));
            }
        }
        Ok(None)
    }

    /// Asks a member for the network; none where it does not run.
    fn ask(member: &NetworkMember, network: &str) -> Result<Option<Self>, Problem> {
        let Ok(socket) = socket::connect(&member.socket) else { return Ok(None) };
        let silent = || {
            Problem::new(
                ProblemKind::TimedOut,
                format!("machine {} does not let others into network {network}", member.name),
            )
            .hint(format!("restart it: testyard restart {}", member.name))
        };
        let mut polled = [PollFd::new(&socket, PollFlags::IN)];
        if !matches!(poll(&mut polled, Some(&PATIENCE)), Ok(1..)) {
            return Err(silent());
        }
        let mut handed = Vec::new();
        // It ends just now: then it holds nothing any more.
        let Ok(1..) = socket::receive(&socket, &mut [0; 8], &mut handed) else { return Ok(None) };
        let mut handed = handed.into_iter();
        let network = handed.next().ok_or_else(silent)?;
        Ok(Some(Self { user: handed.next(), network }))
    }

    fn make(token: SingleThreaded, ids: IdRange) -> Result<Self, Problem> {
        let user = if rustix::process::geteuid().is_root() { None } else { Some(user_namespace(ids)?) };
        let made = in_child(token, || {
            let built = || {
                if let Some(user) = &user {
                    namespace::enter(user.as_fd(), CloneFlags::NEWUSER)?;
                }
                namespace::unshare(CloneFlags::NEWNET)?;
                Interfaces::open()?.make_bridge(BRIDGE)?;
                namespace::open(None, Kind::Network)
            };
            built().map(|network| vec![network]).map_err(|error| unavailable(&error))
        })?;
        let missing = || Problem::new(ProblemKind::Bug, "a network was made and is not there");
        Ok(Self { user, network: made.into_iter().next().ok_or_else(missing)? })
    }
}

/// The user namespace above an ordinary user's machines.
pub(crate) fn user_namespace(ids: IdRange) -> Result<OwnedFd, Problem> {
    let own = [rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()];
    let [own_uid, own_gid] = own.map(|own| IdMap::single(0, own));
    let made = match ids {
        IdRange::Granted { uids, gids, count } => {
            let [uids, gids] = [uids, gids].map(|outside| IdMap { inside: 1, outside, count });
            namespace::granted_user_namespace(&[own_uid, uids], &[own_gid, gids])
        }
        IdRange::Range { .. } | IdRange::Single | IdRange::Host => {
            namespace::new_user_namespace(&[own_uid], &[own_gid], true)
        }
    };
    made.map_err(|error| error.problem())
}

fn read_member(path: &Path) -> Option<NetworkMember> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Why this kernel links no machines.
pub(super) fn unavailable(error: &Error) -> Problem {
    let problem = error.problem();
    if error.errno() == rustix::io::Errno::OPNOTSUPP {
        return Problem { kind: ProblemKind::Unsupported, ..problem }
            .hint("load what links machines: modprobe -a bridge veth")
            .hint("or use --network host");
    }
    problem
}
