//! A machine's port of its network: a pair of interfaces, one on the bridge and one in the machine.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use testyard_linux::interfaces::{FarEnd, Interfaces};
use testyard_linux::process::{CloneFlags, SingleThreaded};
use testyard_linux::{Result, namespace, pause};
use testyard_model::{InterfaceAddress, Problem};

use super::hub::{BRIDGE, Hub, unavailable};
use super::{INTERFACE, in_child};

/// How often a machine that is back says so.
const ANNOUNCED: u32 = 3;
const MOMENT: Duration = Duration::from_millis(10);

/// A machine's port, by the name of its near end.
pub(crate) struct Port {
    name: String,
    token: SingleThreaded,
}

impl Port {
    /// The port of the machine with this id: ten characters, of the fifteen that a name may have.
    pub(crate) fn of(machine: &str, token: SingleThreaded) -> Self {
        Self { name: format!("m-{machine}"), token }
    }

    /// Links a machine's network namespace to the bridge.
    pub(crate) fn plug(
        &self,
        hub: &Hub,
        machine: BorrowedFd<'_>,
        address: InterfaceAddress,
    ) -> std::result::Result<(), Problem> {
        self.at_the_bridge(hub, |bridge| {
            // A namespace that was let go of a moment ago keeps its end for a while.
            bridge.remove(&self.name)?;
            bridge.make_pair(
                &self.name,
                BRIDGE,
                FarEnd { network: machine, name: INTERFACE, hardware: address.hardware() },
            )?;
            namespace::enter(machine, CloneFlags::NEWNET)?;
            let own = Interfaces::open()?;
            own.add_address(INTERFACE, address.address, address.prefix)?;
            own.set_up(INTERFACE, true)
        })
    }

    /// Brings the machine back. What it and the others took for unreachable meanwhile they look for anew.
    pub(crate) fn reconnect(
        &self,
        hub: &Hub,
        machine: BorrowedFd<'_>,
        address: InterfaceAddress,
    ) -> std::result::Result<(), Problem> {
        self.at_the_bridge(hub, |bridge| {
            bridge.set_up(&self.name, true)?;
            namespace::enter(machine, CloneFlags::NEWNET)?;
            let own = Interfaces::open()?;
            // Without it only this side forgets; the others find out within a second or two.
            let _ = std::fs::write(format!("/proc/sys/net/ipv4/conf/{INTERFACE}/arp_notify"), "1");
            for _ in 0..ANNOUNCED {
                own.set_hardware(INTERFACE, address.hardware())?;
                // The kernel notices a moment later that there is a carrier.
                pause(MOMENT);
            }
            Ok(())
        })
    }

    /// Cuts the machine off from the others. Nothing in it can undo that.
    pub(crate) fn cut(&self, hub: &Hub) -> std::result::Result<(), Problem> {
        self.at_the_bridge(hub, |bridge| bridge.set_up(&self.name, false))
    }

    fn at_the_bridge(
        &self,
        hub: &Hub,
        work: impl FnOnce(&Interfaces) -> Result<()>,
    ) -> std::result::Result<(), Problem> {
        let done = in_child(self.token, || {
            let there = || {
                if let Some(user) = &hub.user {
                    namespace::enter(user.as_fd(), CloneFlags::NEWUSER)?;
                }
                namespace::enter(hub.network.as_fd(), CloneFlags::NEWNET)?;
                work(&Interfaces::open()?)
            };
            there().map(|()| Vec::new()).map_err(|error| unavailable(&error))
        });
        done.map(drop)
    }
}
