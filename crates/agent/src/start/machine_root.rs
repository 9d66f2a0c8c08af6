//! The machine's own root: its layers under its lasting upper, with the usual file systems on top.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use testyard_linux::Result;
use testyard_linux::cgroup::Hierarchy;
use testyard_linux::mount::{self, Layer, OverlaySpec, RootMount};
use testyard_model::EnvironmentLimits;

use crate::environment::root::{self, Root, SharedMemory};
use crate::network;
use crate::place::Roots;

/// What the machine's root is made from.
pub(crate) struct MachineRoot<'a> {
    pub(crate) roots: &'a Roots,
    pub(crate) hierarchy: &'a Hierarchy,
}

impl MachineRoot<'_> {
    /// Mounts the machine's root in a mount namespace of the caller's own and makes it `/`.
    pub(crate) fn mount(&self) -> Result<()> {
        let Self { roots, hierarchy } = self;
        let target = Path::new("/scratch/machine");
        let store = Path::new("/store");
        let (upper, work) = (store.join("upper"), store.join("work"));
        let overlay = mount::overlay(&OverlaySpec {
            lower: roots.layers.iter().map(|path| Layer::Path(path)).collect(),
            data_only: roots.data.iter().map(|path| Layer::Path(path)).collect(),
            upper: Some((Layer::Path(&upper), Layer::Path(&work))),
            user_xattr: true,
            ..OverlaySpec::default()
        })?;
        mount::attach(overlay.as_fd(), target)?;
        for (index, submount) in roots.submounts.iter().enumerate() {
            let own = store.join(format!("submounts/{index}"));
            root::mount_submount(target, submount, &own)?;
        }
        let root = Root {
            target,
            own_network: roots.names.is_some(),
            outer_sys: Path::new("/sys"),
            // The files of machines inside this one are there, and trees of metadata with an entry a file.
            shared: SharedMemory { bytes: Some(EnvironmentLimits::DEFAULT_DISK.0), files: None },
        };
        root::mount_system(&root)?;
        root::mount_exposed(target, &roots.shared)?;
        root::mount_exposed(target, &roots.exposed)?;
        if let Some(docker) = &roots.docker {
            // In its environments it is an empty file that nobody may execute: they have no containers.
            root::mount_exposed(target, &[(docker.clone(), PathBuf::from("/usr/local/bin/docker"))])?;
        }
        root::mount_cgroups(target, hierarchy);
        if let Some(names) = &roots.names {
            let etc = network::etc_of(target)?;
            if let Some(resolvers) = &names.resolvers {
                network::write_resolvers(&etc, resolvers)?;
            }
            network::show_hosts(&etc, &names.hosts)?;
        }
        mount::pivot_into(target, RootMount::Mounted)
    }
}
