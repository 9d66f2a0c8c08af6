//! Machines with a network of their own: addresses, published ports, cutting off and bringing back.

use std::net::{Ipv4Addr, TcpListener};

use testyard_linux::lock::{FileLock, Mode, Patience};
use testyard_model::{
    InterfaceAddress, MachineName, MachineNetwork, MachineSpec, PrivateNetwork, Problem, ProblemKind,
};
use testyard_protocol::Request;
use testyard_registry::{Home, Registry};

use crate::machines::Machines;

impl Machines<'_> {
    /// Cuts a running machine off from the others of its network, or brings it back. Nothing in it can undo that; a start
    /// does.
    pub fn set_connected(&self, name: &MachineName, connected: bool) -> Result<(), Problem> {
        let mut machine = self.yard.connect(name)?;
        machine.connection().ask(&Request::Link { connected }, &[]).map_err(|error| error.problem())
    }
}

/// Held from the choice of an address until it is written down.
#[must_use]
pub(crate) struct Choosing(#[expect(dead_code, reason = "held, never looked at")] Option<FileLock>);

/// Where a clone of a machine is: as that one, but at a place of its own in the network.
pub(crate) fn elsewhere(spec: &MachineSpec) -> MachineSpec {
    let mut spec = spec.clone();
    if let MachineNetwork::Private(network) = &mut spec.network {
        network.address = None;
        network.publish.iter_mut().for_each(|port| port.host = 0);
    }
    spec
}

/// Decides what was left open: the address, and the ports of the host that were left to choose.
pub(crate) fn settle(home: &Home, registry: &Registry, spec: &MachineSpec) -> Result<(MachineSpec, Choosing), Problem> {
    let Some(network) = spec.network.private() else { return Ok((spec.clone(), Choosing(None))) };
    let lock = FileLock::acquire(&home.state().join("networks.lock"), Mode::Exclusive, Patience::Wait);
    let choosing = Choosing(lock.map_err(|error| error.problem())?);
    let mut network = network.clone();
    if network.address.is_none() {
        network.address = Some(free_address(registry, &network)?);
    }
    // All are held until each has one.
    let mut held = Vec::new();
    for port in network.publish.iter_mut().filter(|port| port.host == 0) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let bound = listener.and_then(|listener| Ok((listener.local_addr()?.port(), listener)));
        let (free, listener) = bound.map_err(|error| {
            Problem::new(ProblemKind::Exhausted, format!("no port of 127.0.0.1 is free for port {}", port.machine))
                .because(error)
        })?;
        port.host = free;
        held.push(listener);
    }
    Ok((MachineSpec { network: MachineNetwork::Private(network), ..spec.clone() }, choosing))
}

/// The next free address beside those of the network's members.
fn free_address(registry: &Registry, network: &PrivateNetwork) -> Result<InterfaceAddress, Problem> {
    let rows = registry.list().map_err(|error| error.problem())?;
    let members = rows.iter().filter_map(|row| row.spec.network.private()).filter(|other| other.name == network.name);
    let taken: Vec<InterfaceAddress> = members.filter_map(|member| member.address).collect();
    let addresses: Vec<Ipv4Addr> =
        taken.iter().map(|one| one.address).chain(network.hosts.iter().map(|one| one.address)).collect();
    let first = taken.iter().min().map_or(InterfaceAddress::FIRST, |one| {
        let first = Ipv4Addr::from_bits(one.network().to_bits() + 1);
        InterfaceAddress { address: first, prefix: one.prefix }
    });
    first.next_free(&addresses).ok_or_else(|| {
        Problem::new(ProblemKind::Exhausted, format!("network {} has no free address", network.name))
            .hint("delete machines that nobody needs: testyard list")
    })
}
