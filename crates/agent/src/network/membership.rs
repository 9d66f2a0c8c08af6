//! The router's part in the machine's own network: found, linked, handed on, cut off.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use testyard_linux::process::SingleThreaded;
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::start::{IdRange, NetworkStart};

use super::{Hub, Port, Publisher};

/// A machine that belongs to a network.
pub(crate) struct Membership {
    start: NetworkStart,
    port: Port,
    token: SingleThreaded,
    ids: IdRange,
    joined: Option<Joined>,
    plugged: Option<Plugged>,
}

/// It has its network.
struct Joined {
    hub: Hub,
    /// Where others ask for it.
    listener: OwnedFd,
}

/// Its namespaces are linked to it.
struct Plugged {
    user: OwnedFd,
    machine: OwnedFd,
    publisher: Publisher,
}

impl Membership {
    pub(crate) fn new(start: NetworkStart, machine: &str, token: SingleThreaded, ids: IdRange) -> Self {
        Self { start, port: Port::of(machine, token), token, ids, joined: None, plugged: None }
    }

    pub(crate) fn is_outbound(&self) -> bool {
        self.start.outbound
    }

    /// Finds the network, or makes it; the user namespace above its members, where there is one.
    pub(crate) fn join(&mut self) -> Result<Option<BorrowedFd<'_>>, Problem> {
        let (hub, listener) = Hub::join(&self.start, self.token, self.ids)?;
        let joined = self.joined.insert(Joined { hub, listener });
        Ok(joined.hub.user.as_ref().map(|user| user.as_fd()))
    }

    /// Links the machine's namespaces to it, and takes the ports of the host that lead there.
    pub(crate) fn plug(&mut self, user: &OwnedFd, machine: &OwnedFd) -> Result<(), Problem> {
        let joined = self.joined.as_ref().ok_or_else(not_joined)?;
        let publisher = Publisher::bind(&self.start.publish, self.token)?;
        self.port.plug(&joined.hub, machine.as_fd(), self.start.address)?;
        let keep = |fd: &OwnedFd| fd.try_clone().map_err(|error| Problem::from_error(ProblemKind::Exhausted, &error));
        let plugged = self.plugged.insert(Plugged { user: keep(user)?, machine: keep(machine)?, publisher });
        plugged.start().map_err(|error| error.problem())
    }

    /// Cuts the machine off, or brings it back.
    pub(crate) fn link(&self, connected: bool) -> Result<(), Problem> {
        let (joined, plugged) = self.joined.as_ref().zip(self.plugged.as_ref()).ok_or_else(not_joined)?;
        match connected {
            true => self.port.reconnect(&joined.hub, plugged.machine.as_fd(), self.start.address),
            false => self.port.cut(&joined.hub),
        }
    }

    /// What is to be waited for.
    pub(crate) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listener = self.joined.iter().map(|joined| joined.listener.as_fd());
        listener.chain(self.plugged.iter().filter_map(|plugged| plugged.publisher.watched()))
    }

    /// Does what came up meanwhile.
    pub(crate) fn attend(&mut self) {
        if let Some(joined) = &self.joined {
            joined.hub.hand_on(&joined.listener);
        }
        if let Some(plugged) = &mut self.plugged
            && plugged.publisher.has_ended()
        {
            // Where no process can be had now, the ports stay taken and silent until the machine is restarted.
            let _ = plugged.start();
        }
    }
}

impl Plugged {
    fn start(&mut self) -> testyard_linux::Result<()> {
        self.publisher.start(self.user.as_fd(), self.machine.as_fd())
    }
}

fn not_joined() -> Problem {
    Problem::new(ProblemKind::Bug, "a machine's network was asked for before it was found")
}
