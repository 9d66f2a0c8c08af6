//! What is read from this host rather than probed: always of this moment.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use testyard_linux::cgroup::Hierarchy;
use testyard_linux::{files, identity, user};

use crate::finding::Lacking;
use crate::provide::read;

/// How control groups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupLayout {
    /// Version 1 alone.
    V1,
    /// Version 2 alone.
    V2,
    /// Controllers in version 1, beside a version 2 tree.
    Hybrid,
    /// Not at all.
    None,
}

/// Facts about the host, the user and where Testyard keeps its state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's architecture: `x86_64`, `aarch64`.
    pub architecture: String,
    /// The distribution, as `/etc/os-release` names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<String>,
    /// The boot's id.
    pub boot_id: String,
    /// The user's id.
    pub uid: u32,
    /// The user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether this process may administer the system (`CAP_SYS_ADMIN`) as user 0.
    pub is_full_root: bool,
    /// How many user ids this user namespace knows; 4294967295 on a host.
    pub user_ids: u64,
    /// The container that this seems to be: the word that it says of itself, or why it seems so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// How control groups are mounted.
    pub cgroups: CgroupLayout,
    /// Processors that this process may run on.
    pub processors: u32,
    /// All memory, in bytes; the control group's limit where that is lower.
    pub memory_bytes: u64,
    /// Memory that can still be had, in bytes.
    pub memory_available_bytes: u64,
    /// Where Testyard keeps its state.
    pub state_folder: PathBuf,
    /// Bytes that may still be written there; nothing when it cannot be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_free_bytes: Option<u64>,
    /// The network file system it is on, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_network_file_system: Option<String>,
}

impl HostFacts {
    /// Looks around; nothing that cannot be read is an error.
    #[must_use]
    pub fn collect(state: &Path) -> Self {
        let system = rustix::system::uname();
        let uid = rustix::process::geteuid().as_raw();
        let folder = nearest_existing(state);
        let open = folder.and_then(|folder| std::fs::File::open(folder).ok());
        let (memory_bytes, memory_available_bytes) = memory();
        Self {
            kernel: system.release().to_string_lossy().into_owned(),
            architecture: system.machine().to_string_lossy().into_owned(),
            distribution: read("/etc/os-release").and_then(|text| os_release_name(&text)),
            boot_id: identity::boot_id().unwrap_or_default(),
            uid,
            user: user::account_of(uid).map(|account| account.name),
            is_full_root: is_full_root(),
            user_ids: user_ids(&read("/proc/self/uid_map").unwrap_or_default()),
            container: container(),
            cgroups: cgroup_layout(),
            processors: std::thread::available_parallelism()
                .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            memory_bytes,
            memory_available_bytes,
            state_folder: state.to_owned(),
            state_free_bytes: open
                .as_ref()
                .and_then(|folder| files::free_space(folder).ok())
                .map(|space| space.free_bytes),
            state_network_file_system: open.as_ref().and_then(files::is_network_file_system).map(str::to_owned),
        }
    }
}

fn nearest_existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|ancestor| ancestor.is_dir())
}

/// Whether this is user 0 with `CAP_SYS_ADMIN`.
pub(crate) fn is_full_root() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    let effective = status_field("CapEff").and_then(|text| u64::from_str_radix(&text, 16).ok()).unwrap_or(0);
    rustix::process::geteuid().is_root() && effective & SYS_ADMIN != 0
}

/// Says what is missing to [`is_full_root`].
pub(crate) fn need_full_root() -> Result<(), Lacking> {
    if is_full_root() {
        Ok(())
    } else if rustix::process::geteuid().is_root() {
        Err(Lacking::new("this is user 0 without the right to administer the system (CAP_SYS_ADMIN)")
            .provide("start the outer container with --privileged, or with --cap-add SYS_ADMIN"))
    } else {
        let uid = rustix::process::geteuid().as_raw();
        Err(Lacking::new(format!("this is user {uid}, not root")).provide("sudo testyard doctor"))
    }
}

/// A field of `/proc/self/status`.
pub(crate) fn status_field(name: &str) -> Option<String> {
    let status = read("/proc/self/status")?;
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

fn user_ids(uid_map: &str) -> u64 {
    uid_map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}

fn os_release_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

fn container() -> Option<String> {
    if let Ok(word) = std::env::var("container")
        && !word.is_empty()
    {
        return Some(word);
    }
    for (path, word) in [("/run/.containerenv", "podman"), ("/.dockerenv", "docker")] {
        if Path::new(path).exists() {
            return Some(word.to_owned());
        }
    }
    if let Some(word) = read("/run/systemd/container") {
        return Some(word);
    }
    let ids = user_ids(&read("/proc/self/uid_map").unwrap_or_default());
    (ids < u64::from(u32::MAX)).then(|| format!("a user namespace with {ids} ids"))
}

fn cgroup_layout() -> CgroupLayout {
    let has_v2 = matches!(Hierarchy::detect_v2(), Ok(Hierarchy::V2(_)));
    match Hierarchy::detect() {
        Ok(Hierarchy::V1(_)) if has_v2 => CgroupLayout::Hybrid,
        Ok(Hierarchy::V1(_)) => CgroupLayout::V1,
        Ok(Hierarchy::V2(_)) => CgroupLayout::V2,
        _ => CgroupLayout::None,
    }
}

/// All and available memory in bytes, of the host or of what the own control group leaves of it.
fn memory() -> (u64, u64) {
    let table = read("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
    };
    let (total, available) = (field("MemTotal").unwrap_or(0), field("MemAvailable").unwrap_or(0));
    let (limit, used) = group_memory();
    let limit = limit.unwrap_or(u64::MAX);
    (total.min(limit), available.min(limit.saturating_sub(used.unwrap_or(0))))
}

fn group_memory() -> (Option<u64>, Option<u64>) {
    use testyard_linux::cgroup::Controller;
    let number = |folder: &Path, file: &str| read(folder.join(file).to_str()?)?.parse::<u64>().ok();
    match Hierarchy::detect() {
        Ok(Hierarchy::V1(mounts)) => mounts
            .iter()
            .find(|mount| mount.controllers.contains(&Controller::Memory))
            .map(|mount| (number(&mount.own, "memory.limit_in_bytes"), number(&mount.own, "memory.usage_in_bytes")))
            .unwrap_or_default(),
        Ok(Hierarchy::V2(mount)) => (number(&mount.own, "memory.max"), number(&mount.own, "memory.current")),
        _ => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_and_names_are_read() {
        assert_eq!(user_ids("         0          0 4294967295"), 4_294_967_295);
        assert_eq!(user_ids("0 1000 1\n1 100000 65536"), 65537);
        assert_eq!(os_release_name("ID=debian\nPRETTY_NAME=\"Debian 12\"\n").as_deref(), Some("Debian 12"));
    }

    #[test]
    fn this_host_has_facts() {
        let facts = HostFacts::collect(Path::new("/nonexistent/state"));
        assert!(!facts.kernel.is_empty() && !facts.boot_id.is_empty());
        assert!(facts.processors > 0 && facts.memory_bytes >= facts.memory_available_bytes);
        assert!(facts.state_free_bytes.is_some(), "of the nearest folder that exists");
    }
}
