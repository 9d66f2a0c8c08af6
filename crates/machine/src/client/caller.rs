//! Who asks.

use testyard_model::UserSpec;

/// Whoever runs this process, with the same groups: whom commands run as unless somebody else is named.
#[must_use]
pub fn caller() -> UserSpec {
    let groups = rustix::process::getgroups().unwrap_or_default();
    UserSpec::Numbered {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: groups.into_iter().map(rustix::process::Gid::as_raw).collect(),
    }
}
