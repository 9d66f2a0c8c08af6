//! Namespaces, a fresh `/proc` in them, and system call filters.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use testyard_linux::interfaces::{FarEnd, Interfaces};
use testyard_linux::namespace::{IdMap, Kind, loopback_up, open, set_host_name, unshare};
use testyard_linux::process::{CloneFlags, Credentials, become_user, set_no_new_privileges};
use testyard_linux::{mount, seccomp as filter};

use crate::finding::{Done, Lacking, Outcome, Step};
use crate::inside::{Maps, Users, inside};
use crate::probes::programs::find;
use crate::{host, provide, scratch};

/// A user namespace is worth something only if its root may do things in it: some distributions let
/// everybody make one and take all rights away.
pub(crate) fn user() -> Outcome {
    inside(CloneFlags::NEWUSER | CloneFlags::NEWNS, &Users::Single, || {
        scratch::tmpfs().map_err(|lacking| {
            let reason = format!("a user namespace can be made, but its root may not mount: {}", lacking.reason);
            Lacking::new(reason).provide_or(provide::user_namespaces())
        })?;
        Ok(Done::new("a user namespace was made, and its root mounted a tmpfs"))
    })
}

pub(crate) fn user_range() -> Outcome {
    let users = Users::range()?;
    let how = if matches!(users, Users::Granted(_)) { "newuidmap" } else { "root" };
    inside(CloneFlags::NEWNS, &users, || {
        let scratch = scratch::tmpfs()?;
        let owner = (Some(Uid::from_raw(1000)), Some(Gid::from_raw(1000)));
        let file = scratch.join("file");
        std::fs::write(&file, "").step("writing a file")?;
        rustix::fs::chownat(CWD, &file, owner.0, owner.1, AtFlags::empty()).step("giving a file to another user")?;
        become_user(&Credentials { uid: 1000, gid: 1000, groups: vec![100] }, false)?;
        rustix::fs::chmod(&file, Mode::RUSR).step("changing a file as the other user")?;
        Ok(Done::new(format!("65536 ids were mapped by {how}, and another user than root used")))
    })
}

pub(crate) fn newuidmap() -> Outcome {
    for program in ["newuidmap", "newgidmap"] {
        find(program).ok_or_else(|| {
            Lacking::new(format!("{program} is not installed")).provide(provide::package("uidmap", program))
        })?;
    }
    // Everybody may map the own id, so this needs no grant: it shows that the programs have their privilege.
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let users = Users::Granted(Maps { uids: vec![IdMap::single(0, uid)], gids: vec![IdMap::single(0, gid)] });
    inside(CloneFlags::NEWUSER, &users, || Ok(Done::new("newuidmap and newgidmap wrote the maps of a namespace")))
}

pub(crate) fn mount() -> Outcome {
    inside(CloneFlags::NEWNS, &Users::least(), || {
        let scratch = scratch::tmpfs()?;
        Ok(Done::new(format!("a tmpfs was mounted on {} that only its namespace saw", scratch.display())))
    })
    .map_err(needs_privilege)
}

pub(crate) fn pid() -> Outcome {
    inside(CloneFlags::NEWPID, &Users::least(), || {
        let pid = rustix::process::getpid();
        if pid.is_init() { Ok(Done::new("a process was number 1")) } else { Err(Lacking::new("no number 1")) }
    })
    .map_err(needs_privilege)
}

pub(crate) fn network() -> Outcome {
    inside(CloneFlags::NEWNET, &Users::least(), || {
        loopback_up()?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).step("listening on the own loopback")?;
        let address = listener.local_addr().step("asking for the port")?;
        TcpStream::connect(address).step("connecting over the own loopback")?;
        Ok(Done::new("a connection went over a loopback of its own"))
    })
    .map_err(needs_privilege)
}

/// What machines with a network of their own take: a bridge, linked to an interface in another namespace.
pub(crate) fn machine_network() -> Outcome {
    inside(CloneFlags::NEWNET, &Users::least(), || {
        // It speaks of this namespace also from the next one.
        let bridge = Interfaces::open()?;
        let linked = || -> testyard_linux::Result<()> {
            bridge.make_bridge("members")?;
            unshare(CloneFlags::NEWNET)?;
            let network = open(None, Kind::Network)?;
            let far = FarEnd { network: network.as_fd(), name: "net0", hardware: [2, 0, 0, 0, 0, 1] };
            bridge.make_pair("port", "members", far)?;
            Interfaces::open()?.set_up("net0", true)
        };
        linked().map_err(|error| {
            let unknown = error.errno() == rustix::io::Errno::OPNOTSUPP;
            let lacking = Lacking::from(error);
            if unknown { lacking.provide(provide::as_root("modprobe -a bridge veth")) } else { lacking }
        })?;
        Ok(Done::new("a bridge in one network namespace was linked to an interface in another"))
    })
    .map_err(needs_privilege)
}

pub(crate) fn ipc() -> Outcome {
    // Its queues can be mounted only in a mount namespace of the same users.
    inside(CloneFlags::NEWIPC | CloneFlags::NEWNS, &Users::least(), || {
        let queues = mount::message_queues().step("mounting its message queues")?;
        drop(queues);
        Ok(Done::new("its message queues were mounted"))
    })
    .map_err(needs_privilege)
}

pub(crate) fn uts() -> Outcome {
    inside(CloneFlags::NEWUTS, &Users::least(), || {
        set_host_name("testyard-probe")?;
        Ok(Done::new("a host name was set in it"))
    })
    .map_err(needs_privilege)
}

pub(crate) fn cgroup() -> Outcome {
    inside(CloneFlags::NEWCGROUP, &Users::least(), || {
        let own = std::fs::read_to_string("/proc/self/cgroup").step("reading /proc/self/cgroup")?;
        let hidden = own.lines().all(|line| line.ends_with(":/"));
        if hidden {
            Ok(Done::new("its processes see their own group as the root of the tree"))
        } else {
            Err(Lacking::new("its processes still see where in the host's tree they are"))
        }
    })
    .map_err(needs_privilege)
}

/// What every container does, and what many outer containers forbid: their `/proc` has parts covered, and the
/// kernel does not let a user namespace uncover them.
pub(crate) fn fresh_proc() -> Outcome {
    let users = match Users::range() {
        Ok(users @ Users::Written(_)) => users,
        _ => Users::Single,
    };
    inside(CloneFlags::NEWPID | CloneFlags::NEWNS, &users, || {
        mount::make_all_private()?;
        let fresh = mount::proc().map_err(|error| {
            let lacking = Lacking::from(error);
            match covered_proc() {
                Some(paths) => Lacking::new(format!("{}; the outer container covers {paths}", lacking.reason))
                    .provide(provide::UNMASKED_PROC),
                None => lacking.provide_or(provide::user_namespaces()),
            }
        })?;
        let status = rustix::fs::openat(fresh.as_fd(), "1/status", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        status.step("finding process 1 in it")?;
        Ok(Done::new("a /proc of a new pid namespace was mounted"))
    })
}

/// The parts of `/proc` that mounts cover, as a short list.
fn covered_proc() -> Option<String> {
    let table = mount::mount_table(None).ok()?;
    let covered: Vec<String> = table
        .iter()
        .filter(|entry| entry.point.starts_with("/proc") && entry.point != *"/proc")
        .map(|entry| entry.point.display().to_string())
        .collect();
    let shown = covered.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    match covered.len() {
        0 => None,
        1..=3 => Some(shown),
        more => Some(format!("{shown} and {} more", more - 3)),
    }
}

pub(crate) fn seccomp() -> Outcome {
    inside(CloneFlags::NONE, &Users::Same, || {
        set_no_new_privileges()?;
        filter::install_default(filter::Profile::Confined).step("installing a filter")?;
        match host::status_field("Seccomp").as_deref() {
            Some("2") => Ok(Done::new("a filter was installed and is in force")),
            mode => Err(Lacking::new(format!("a filter was installed, but the mode is {mode:?}"))),
        }
    })
}

fn needs_privilege(lacking: Lacking) -> Lacking {
    lacking.provide_or(provide::user_namespaces())
}
