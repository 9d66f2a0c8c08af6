//! Which ids a machine has: a range of the host's where this user can give one, else the user's own.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::OnceLock;

use testyard_linux::mount::{self, Attributes};
use testyard_linux::namespace::{self, IdMap};
use testyard_machine::backend::MachinePlace;
use testyard_model::ImageReference;
use testyard_protocol::start::IdRange;

/// The first of the host's ids that machines made by root have, and how many. Far above those of people, and
/// apart from what distributions hand out in `/etc/subuid`.
const FIRST_ID: u32 = 0x6000_0000;
/// How many ids a machine has.
const ID_COUNT: u32 = 65_536;

/// Which ids a machine has.
pub(super) fn of(place: &MachinePlace) -> IdRange {
    match (rustix::process::geteuid().is_root(), place.spec.privileged) {
        (true, true) => IdRange::Host,
        (true, false) if why_single(&place.spec.image).is_none() => IdRange::Range { first: FIRST_ID, count: ID_COUNT },
        _ => IdRange::Single,
    }
}

/// What a machine of root's lacks with one id.
pub(super) fn limit(place: &MachinePlace) -> Option<String> {
    let one = rustix::process::geteuid().is_root() && of(place) == IdRange::Single;
    why_single(&place.spec.image).filter(|_| one).map(|reason| format!("one id, as an ordinary user has: {reason}"))
}

/// The machines of this user, as an error calls them.
pub(super) fn whose_machine() -> &'static str {
    if rustix::process::geteuid().is_root() {
        "a machine of root inside a container"
    } else {
        "an ordinary user's machine"
    }
}

/// Why root's machines have one id, as an ordinary user's have: inside somebody else's container root may have no
/// ids to give, or a root whose file system maps none.
fn why_single(image: &ImageReference) -> Option<&'static str> {
    static ROOT: OnceLock<Option<&'static str>> = OnceLock::new();
    if !namespace::knows_every_id() {
        return Some("root is that of a user namespace, which has too few ids");
    }
    if *image != ImageReference::Host {
        return None;
    }
    *ROOT.get_or_init(|| (!maps_root()).then_some("the file system of / maps no ids"))
}

/// Done rather than asked: no file system tells.
fn maps_root() -> bool {
    let map = [IdMap { inside: 0, outside: FIRST_ID, count: ID_COUNT }];
    let mapped = || {
        let user = namespace::new_user_namespace(&map, &map, false)?;
        let root = mount::clone_tree(Path::new("/"), false)?;
        let attributes = Attributes { idmap: Some(user.as_fd()), ..Attributes::default() };
        mount::set_attributes(root.as_fd(), &attributes, false)
    };
    mapped().is_ok()
}
