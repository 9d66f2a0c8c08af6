//! Becoming somebody else, and giving capabilities up.

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
pub use rustix::thread::CapabilitySet;
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

use crate::error::{Context, Result};

/// Whom a process runs as, in numbers of its user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Credentials {
    /// The user.
    pub uid: u32,
    /// The main group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// Makes this thread's user and groups those, real, effective and saved: there is no way back. With
/// `keep_capabilities` what was permitted stays permitted and effective (not across an exec), else a change from
/// root to another user clears it.
///
/// Only the calling thread changes, as for every raw call: for single-threaded processes.
///
/// # Errors
/// `EPERM` without the capabilities, `EINVAL` for a number that is not mapped in the user namespace. Where the
/// namespace denies setgroups (one made by an ordinary user), an empty list of groups is not an error, and never are
/// those that this process has already: so an ordinary user may stay who it is.
pub fn become_user(user: &Credentials, keep_capabilities: bool) -> Result<()> {
    let permitted = if keep_capabilities {
        rustix::thread::set_keep_capabilities(true).context("keep the capabilities of", || "this process")?;
        Some(capabilities(None).context("read the capabilities of", || "this process")?.permitted)
    } else {
        None
    };
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        Err(Errno::PERM) if groups.is_empty() || has_groups(&groups) => {}
        other => other.context("set", || format!("the groups {:?}", user.groups))?,
    }
    let gid = Gid::from_raw(user.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).context("become", || format!("group {}", user.gid))?;
    let uid = Uid::from_raw(user.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).context("become", || format!("user {}", user.uid))?;
    if let Some(permitted) = permitted {
        let sets = CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).context("keep the capabilities of", || "this process")?;
        rustix::thread::set_keep_capabilities(false).context("stop keeping the capabilities of", || "this process")?;
    }
    Ok(())
}

/// Whether these are this process's groups, in whatever order.
fn has_groups(wanted: &[Gid]) -> bool {
    let sorted = |groups: &[Gid]| {
        let mut numbers: Vec<u32> = groups.iter().map(|group| group.as_raw()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    };
    rustix::process::getgroups().is_ok_and(|own| sorted(&own) == sorted(wanted))
}

/// Leaves only these in the bounding set: what no exec in this process or below it can ever give again. Also lowers
/// the inheritable set. Needs `CAP_SETPCAP`, so it comes before [`become_user`].
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP`.
pub fn limit_bounding_set(keep: CapabilitySet) -> Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // One past the last that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error).context("remove from the bounding set capability", || number),
        }
    }
    let mut sets = capabilities(None).context("read the capabilities of", || "this process")?;
    sets.inheritable = sets.inheritable.intersection(keep);
    set_capabilities(None, sets).context("lower the inheritable capabilities of", || "this process")
}

/// Gives up every capability: bounding, ambient, effective, permitted and inheritable. The bounding set can be
/// emptied only by who has `CAP_SETPCAP`; others should have called [`limit_bounding_set`] before they lost it.
///
/// # Errors
/// None is expected.
pub fn drop_all_capabilities() -> Result<()> {
    let sets = capabilities(None).context("read the capabilities of", || "this process")?;
    if sets.effective.contains(CapabilitySet::SETPCAP) {
        limit_bounding_set(CapabilitySet::empty())?;
    }
    rustix::thread::clear_ambient_capability_set().context("clear the ambient capabilities of", || "this process")?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, sets).context("give up the capabilities of", || "this process")
}
