//! Machines that are more than their image when they are there: a user, files, what a script does.

use testyard_model::{MachineInfo, MachineName, MachineSpec, Problem};

use crate::machines::Machines;

impl Machines<'_> {
    /// As [`Machines::create`], and does `furnish` with the machine, which is part of creating it: where that fails, or
    /// this process is killed before it is done, nothing of the machine stays.
    ///
    /// # Errors
    /// As of [`Machines::create`] and of `furnish`.
    pub fn create_furnished(
        &self,
        name: &MachineName,
        spec: &MachineSpec,
        furnish: impl FnOnce(&MachineInfo) -> Result<(), Problem>,
    ) -> Result<MachineInfo, Problem> {
        // Held from before any of it is made: one whose only holder died is removed by whoever looks next.
        let (info, lease) = self.create_held(name, spec, "creating it")?;
        let furnished = furnish(&info);
        if furnished.is_err() {
            // The first error says why; what this leaves, a reaper knows.
            let _ = self.delete(&info.name, true);
        }
        let released = lease.release(&self.yard.registry()?).map_err(|error| error.problem());
        furnished.and(released).map(|()| info)
    }
}
