//! Links from a machine's name to its socket, so that a command finds a running machine without the registry.

use std::io;
use std::path::{Path, PathBuf};

use testyard_linux::files::{remove_file, remove_link_to};
use testyard_model::{MachineId, MachineName};

/// The folder of links in a runtime folder.
#[must_use]
pub fn name_folder(runtime: &Path) -> PathBuf {
    runtime.join("by-name")
}

/// Where a running machine of this name listens.
#[must_use]
pub fn socket_of(runtime: &Path, name: &MachineName) -> PathBuf {
    name_folder(runtime).join(name.as_str())
}

/// Makes the name lead to the machine, in one step: whoever looks finds the old or the new target.
pub(crate) fn link(runtime: &Path, name: &MachineName, id: &MachineId) -> Result<(), testyard_linux::Error> {
    let folder = name_folder(runtime);
    let failed = |error: io::Error| testyard_linux::Error::new("make the name link in", folder.display(), error);
    match std::fs::create_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    // Names cannot begin with a dot, and ids are unique: nobody else makes this one.
    let fresh = folder.join(format!(".{id}"));
    remove_file(&fresh)?;
    std::os::unix::fs::symlink(target(id), &fresh).map_err(failed)?;
    std::fs::rename(&fresh, folder.join(name.as_str())).map_err(failed)
}

/// Removes the name's link, if it leads to this machine.
pub(crate) fn unlink(runtime: &Path, name: &MachineName, id: &MachineId) -> Result<(), testyard_linux::Error> {
    // Left where a supervisor died between making and naming it.
    let _ = std::fs::remove_file(name_folder(runtime).join(format!(".{id}")));
    remove_link_to(&target(id), &socket_of(runtime, name))
}

fn target(id: &MachineId) -> PathBuf {
    Path::new("..").join(id.as_str()).join("machine.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_one_machine_and_only_its_own_removes_it() {
        let runtime = tempfile::tempdir().expect("a temporary folder");
        let runtime = runtime.path();
        let (first, second) = (MachineId::from_bits(1), MachineId::from_bits(2));
        let name: MachineName = "web".parse().expect("a name");
        link(runtime, &name, &first).expect("it is free");
        link(runtime, &name, &second).expect("the new one wins");
        unlink(runtime, &name, &first).expect("nothing to do");
        let leads_to = std::fs::read_link(socket_of(runtime, &name)).expect("still there");
        assert_eq!(leads_to, target(&second));
        unlink(runtime, &name, &second).expect("it goes");
        unlink(runtime, &name, &second).expect("again is no error");
        assert_eq!(std::fs::read_dir(name_folder(runtime)).expect("a folder").count(), 0);
    }
}
