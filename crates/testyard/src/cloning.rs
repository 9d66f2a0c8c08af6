//! Machines with the files of others.

use testyard_model::{MachineInfo, MachineName, MachineSpec, MachineState, Problem};
use testyard_protocol::Request;

use crate::machines::{Machines, wrong_state};
use crate::{keeper, networks};

impl Machines<'_> {
    /// A new machine with the files of another. A running one is held still meanwhile; it must not be in use. In a private
    /// network it has an address of its own, and publishes the same ports elsewhere.
    pub fn clone_from(&self, from: &MachineName, to: &MachineName) -> Result<MachineInfo, Problem> {
        self.clone_as(from, to, networks::elsewhere)
    }

    /// As [`Machines::clone_from`], and decides what the new one is to be. In another private network the folders that its
    /// members share begin as copies of the first one's.
    pub(crate) fn clone_as(
        &self,
        from: &MachineName,
        to: &MachineName,
        spec: impl FnOnce(&MachineSpec) -> MachineSpec,
    ) -> Result<MachineInfo, Problem> {
        let registry = self.yard.registry()?;
        let source = self.settled(&registry, from)?;
        let mut held_still = None;
        let mut held_stopped = None;
        match source.state {
            MachineState::Running => {
                let mut supervisor = self.supervisor(&source)?;
                supervisor.ask(&Request::Quiesce, &[]).map_err(|error| error.problem())?;
                held_still = Some(supervisor);
            }
            MachineState::Stopped | MachineState::Failed => held_stopped = Some(self.lease(&registry, &source)?),
            state => return Err(wrong_state(from, state)),
        }
        let spec = spec(&source.spec);
        let (spec, choosing) = networks::settle(&self.yard.options().home, &registry, &spec)?;
        let (id, lease) = self.reserve(&registry, to, &spec, source.backend_reason.clone())?;
        drop(choosing);
        let place = self.yard.place(&id, to, &spec);
        let outcome = self.bring_up(keeper::start(self.yard, &place, lease, Some(&source.id), false), &id);
        drop(held_still);
        if let Some(lease) = held_stopped {
            // A row or file that stays is swept by the reaper; nobody holds it.
            let _ = lease.release(&registry);
        }
        outcome
    }
}
