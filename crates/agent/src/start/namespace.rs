//! Entering a namespace machine: its user namespace and its staging area.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use testyard_linux::mount::{self, RootMount, TmpfsOptions};
use testyard_linux::namespace::{self, IdMap, Kind};
use testyard_linux::process::{self, CloneFlags, Credentials};
use testyard_linux::{Error, Result, seccomp, step};
use testyard_model::Problem;
use testyard_model::step::Step;
use testyard_protocol::start::{IdRange, NamespaceStart};

use super::staging;
use crate::network;
use crate::place::{Names, NamespacePlace, Roots, Submount};
use crate::route::Router;

/// Enters. The machine's init comes next.
pub(crate) fn enter(start: &NamespaceStart, router: &mut Router) -> std::result::Result<NamespacePlace, Problem> {
    let system = |error: Error| error.problem();
    let maker = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let above = if start.network.is_some() { router.join_network()? } else { None };
    let outbound = start.network.as_ref().is_some_and(|network| network.outbound);
    // While the host's own files are still seen.
    let resolvers = outbound.then(network::resolvers);
    let user = enter_user_namespace(start, above).map_err(system)?;
    if start.network.is_some() {
        namespace::unshare(CloneFlags::NEWNET).map_err(system)?;
        namespace::loopback_up().map_err(system)?;
        let namespaces = || Ok((namespace::open(None, Kind::User)?, namespace::open(None, Kind::Network)?));
        let (own, machine) = namespaces().map_err(system)?;
        router.plug(own.as_fd(), machine.as_fd())?;
    }
    settle(start, user, maker, resolvers).map_err(system)
}

/// Makes the staging area the root, and what is left to be the machine's own.
fn settle(
    start: &NamespaceStart,
    user: Option<OwnedFd>,
    maker: (u32, u32),
    resolvers: Option<String>,
) -> Result<NamespacePlace> {
    let own = CloneFlags::NEWNS.union(CloneFlags::NEWIPC).union(CloneFlags::NEWUTS);
    namespace::unshare(own)?;
    // Version 1 hosts may lack cgroup namespaces; the machine then sees its own paths, which hide nothing.
    let _ = namespace::unshare(CloneFlags::NEWCGROUP);
    namespace::set_host_name(&start.host_name)?;
    // The working folder since it was built: its path leads through folders that the machine's root may not pass.
    mount::pivot_into(Path::new("."), RootMount::BindOntoItself)?;
    let scratch = mount::tmpfs(&TmpfsOptions { size: Some(64 << 20), inodes: Some(65_536), mode: 0o700 })?;
    mount::attach(scratch.as_fd(), Path::new("/scratch"))?;
    for folder in ["environment", "machine", "sources"] {
        make_folder(&Path::new("/scratch").join(folder))?;
    }
    if start.generations_in_memory {
        let generations = mount::tmpfs(&TmpfsOptions { size: None, inodes: None, mode: 0o755 })?;
        mount::attach(generations.as_fd(), Path::new("/store/generations"))?;
    }
    let mut shared = shared_folders(&start.shared)?;
    if let Some(network) = &start.network {
        let staged = staging::numbered("shares", network.shares.len());
        shared.extend(staged.into_iter().zip(network.shares.iter().map(|share| share.path.clone())));
    }
    step::reach(Step::AgentEntered);
    let roots = Roots {
        layers: staging::numbered("layers", start.layers.len()),
        data: staging::numbered("data", start.data.len()),
        submounts: start.submounts.iter().enumerate().map(|(index, one)| Submount::staged(index, one)).collect(),
        exposed: staging::numbered("exposed", start.exposed.len())
            .into_iter()
            .zip(start.exposed.iter().map(|one| one.path.clone()))
            .collect(),
        shared,
        names: start.network.is_some().then(|| Names { hosts: PathBuf::from("/").join(staging::HOSTS), resolvers }),
        docker: start.docker.then(|| PathBuf::from("/").join(staging::DOCKER)),
        hidden: start.hidden.clone(),
    };
    // Everything that runs here descends from this process and inherits its filter, which the kernel then compiles once.
    seccomp::install_default(profile_of(start.ids))?;
    Ok(NamespacePlace { ids: start.ids, mounts: None, user, maker, roots })
}

/// What a machine's processes may ask of the kernel: less, unless its root is the host's.
fn profile_of(ids: IdRange) -> seccomp::Profile {
    match ids {
        IdRange::Host => seccomp::Profile::Privileged,
        IdRange::Range { .. } | IdRange::Granted { .. } | IdRange::Single => seccomp::Profile::Confined,
    }
}

/// Joins the machine's user namespace, below the one of its network where that has one; the staging area is built on the side that may build it.
fn enter_user_namespace(start: &NamespaceStart, above: Option<OwnedFd>) -> Result<Option<OwnedFd>> {
    let private = || -> Result<()> {
        namespace::unshare(CloneFlags::NEWNS)?;
        mount::make_all_private()
    };
    match start.ids {
        IdRange::Host => {
            private()?;
            staging::build(start, None)?;
            Ok(None)
        }
        IdRange::Range { first, count } => {
            let map = [IdMap { inside: 0, outside: first, count }];
            let user = namespace::new_user_namespace(&map, &map, false)?;
            private()?;
            staging::build(start, Some(user.as_fd()))?;
            namespace::enter(user.as_fd(), CloneFlags::NEWUSER)?;
            process::become_user(&Credentials { uid: 0, gid: 0, groups: Vec::new() }, true)?;
            // Changing ids made this process undumpable, and then even its own children's id maps belong to the
            // host's root. Nothing in the machine can see this process, so nothing is given away.
            process::set_dumpable(true)?;
            Ok(Some(user))
        }
        IdRange::Granted { count, .. } => {
            if let Some(above) = above {
                namespace::enter(above.as_fd(), CloneFlags::NEWUSER)?;
                process::set_dumpable(true)?;
            }
            let map = granted_map(count);
            let user = namespace::new_user_namespace(&map, &map, false)?;
            namespace::enter(user.as_fd(), CloneFlags::NEWUSER)?;
            process::become_user(&Credentials { uid: 0, gid: 0, groups: Vec::new() }, true)?;
            process::set_dumpable(true)?;
            private()?;
            staging::build(start, None)?;
            Ok(Some(user))
        }
        IdRange::Single => {
            if let Some(above) = above {
                namespace::enter(above.as_fd(), CloneFlags::NEWUSER)?;
            }
            let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            namespace::unshare(CloneFlags::NEWUSER)?;
            let map = |outside| [IdMap { inside: 0, outside, count: 1 }];
            namespace::write_id_maps(rustix::process::getpid(), &map(uid), &map(gid), true)?;
            private()?;
            staging::build(start, None)?;
            let own = namespace::open(None, Kind::User)?;
            Ok(Some(own))
        }
    }
}

/// An ordinary user's own id and those that are granted, once more. The kernel takes no run of ids that is two outside.
pub(crate) fn granted_map(count: u32) -> [IdMap; 2] {
    [IdMap::single(0, 0), IdMap { inside: 1, outside: 1, count }]
}

/// The folders of the machine that are kept apart from its root, made where this is its first start.
fn shared_folders(targets: &[PathBuf]) -> Result<Vec<(PathBuf, PathBuf)>> {
    let folder = Path::new("/store/shared");
    let made = |index: usize, target: &PathBuf| {
        let staged = folder.join(index.to_string());
        if !staged.exists() {
            let mode = match target.as_path() {
                path if path == Path::new("/tmp") => 0o1777,
                path if path == Path::new("/root") => 0o700,
                _ => 0o755,
            };
            std::fs::create_dir_all(&staged)
                .and_then(|()| std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(mode)))
                .map_err(|error| Error::new("make folder", target.display(), error))?;
        }
        Ok((staged, target.clone()))
    };
    targets.iter().enumerate().map(|(index, target)| made(index, target)).collect()
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir(path).map_err(|error| Error::new("make folder", path.display(), error))
}
