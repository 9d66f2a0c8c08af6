//! The answers of this boot, kept in the state folder, and what they depend on.
//!
//! What may change without a reboot is part of the key as it is: the switches that forbid namespaces, the
//! programs' files, the containers' covers over `/proc`. One that differs makes every probe run again.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use testyard_linux::mount::mount_table;

use crate::host::{HostFacts, status_field};
use crate::probes::programs::{PROGRAMS, find};
use crate::provide::read;
use crate::report::{Probe, REPORT_VERSION};

/// Raised when a probe changes what it does.
const PROBES_VERSION: u32 = 1;

/// Files whose content decides.
const SWITCHES: [&str; 13] = [
    "/proc/self/attr/current",
    "/proc/self/cgroup",
    "/proc/self/gid_map",
    "/proc/self/setgroups",
    "/proc/self/uid_map",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/user/max_mnt_namespaces",
    "/proc/sys/user/max_net_namespaces",
    "/proc/sys/user/max_pid_namespaces",
    "/proc/sys/user/max_user_namespaces",
    "/sys/fs/cgroup/cgroup.controllers",
    "/sys/module/apparmor/parameters/enabled",
];

/// Files of which it is enough to know that they are the same.
const FILES: [&str; 5] = ["/dev/kvm", "/dev/net/tun", "/etc/subgid", "/etc/subuid", "/etc/passwd"];

/// Everything that the answers depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key {
    version: (u32, u32),
    boot_id: String,
    kernel: String,
    uid: u32,
    groups: Vec<u32>,
    capabilities: Option<String>,
    filtered: Option<String>,
    no_new_privileges: Option<String>,
    namespaces: Vec<Option<PathBuf>>,
    switches: Vec<Option<String>>,
    files: Vec<(String, Option<Stamp>)>,
    covers: Vec<(PathBuf, String)>,
}

/// What changes when a file is replaced, changed, or given to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let facts = std::fs::metadata(path).ok()?;
        Some(Self {
            device: facts.dev(),
            inode: facts.ino(),
            mode: facts.mode(),
            owner: (facts.uid(), facts.gid()),
            size: facts.size(),
            // Opening a device or using a pty changes its times; a regular file's say that it was replaced.
            changed: if facts.is_file() { (facts.ctime(), facts.ctime_nsec()) } else { (0, 0) },
        })
    }
}

impl Key {
    /// Reads everything that the answers depend on; cheap enough for every start.
    pub(crate) fn now(host: &HostFacts) -> Self {
        let namespaces = ["user", "mnt", "pid", "net", "cgroup"];
        let programs = PROGRAMS.into_iter().map(|program| {
            let file = find(program);
            let shown = file.as_ref().map_or_else(|| program.to_owned(), |file| file.display().to_string());
            (shown, file.as_deref().and_then(Stamp::of))
        });
        let files = FILES.into_iter().map(|file| (file.to_owned(), Stamp::of(Path::new(file))));
        let this = std::env::current_exe().ok();
        let this = this.map(|file| (file.display().to_string(), Stamp::of(&file)));
        Self {
            version: (REPORT_VERSION, PROBES_VERSION),
            boot_id: host.boot_id.clone(),
            kernel: host.kernel.clone(),
            uid: host.uid,
            groups: rustix::process::getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect(),
            capabilities: status_field("CapEff"),
            filtered: status_field("Seccomp"),
            no_new_privileges: status_field("NoNewPrivs"),
            namespaces: namespaces.map(|kind| std::fs::read_link(format!("/proc/self/ns/{kind}")).ok()).into(),
            switches: SWITCHES.map(read).into(),
            files: programs.chain(files).chain(this).collect(),
            covers: covers(),
        }
    }

    /// The same for answers that no control group decides: each job of a cluster runs in another.
    pub(crate) fn deciding(host: &HostFacts) -> Self {
        let mut key = Self::now(host);
        let switches = SWITCHES.iter().zip(&mut key.switches);
        switches.filter(|(name, _)| **name == "/proc/self/cgroup").for_each(|(_, value)| *value = None);
        key
    }
}

/// Mounts that cover parts of `/proc` and `/sys`, and the file systems that those and the root are.
fn covers() -> Vec<(PathBuf, String)> {
    let table = mount_table(None).unwrap_or_default();
    table
        .into_iter()
        .filter(|entry| entry.point == *"/" || entry.point.starts_with("/proc") || entry.point.starts_with("/sys"))
        .map(|entry| (entry.point, format!("{} {} {}", entry.fs_type, entry.source.display(), entry.options)))
        .collect()
}

/// What is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    key: Key,
    probes: Vec<Probe>,
}

const FILE: &str = "probes.json";

/// The stored answers, if they are of this key.
pub(crate) fn load(state: &Path, key: &Key) -> Option<Vec<Probe>> {
    let text = std::fs::read(state.join(FILE)).ok()?;
    let stored: Stored = serde_json::from_slice(&text).ok()?;
    (stored.key == *key).then_some(stored.probes)
}

/// Keeps the answers, atomically: two at once, and the later one stays.
pub(crate) fn store(state: &Path, key: &Key, probes: &[Probe]) -> std::io::Result<()> {
    let text = serde_json::to_vec(&Stored { key: key.clone(), probes: probes.to_vec() })?;
    let fresh = state.join(format!("{FILE}.{}", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| std::fs::rename(&fresh, state.join(FILE)));
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::tests::report;

    #[test]
    fn answers_are_kept_for_their_key_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let report = report(0, &["kvm"]);
        let key = Key::now(&report.host);
        assert_eq!(load(folder.path(), &key), None);
        store(folder.path(), &key, &report.probes).expect("written");
        assert_eq!(load(folder.path(), &key).as_ref(), Some(&report.probes));
        assert_eq!(load(folder.path(), &Key::now(&report.host)).as_ref(), Some(&report.probes), "nothing changed");
        let deciding = Key::deciding(&report.host);
        assert!(deciding != key && deciding == Key::deciding(&report.host), "its control group is left out");
        let other = Key { boot_id: "another".to_owned(), ..key.clone() };
        assert_eq!(load(folder.path(), &other), None);
        std::fs::write(folder.path().join(FILE), "{\"key\":").expect("written");
        assert_eq!(load(folder.path(), &key), None, "a damaged file is no answer");
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let report = report(0, &[]);
        assert!(store(Path::new("/nonexistent"), &Key::now(&report.host), &report.probes).is_err());
    }
}
