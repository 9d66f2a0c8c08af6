//! Cgroups, IPC objects, entries of shared folders, and the files of the host that tests like to rewrite.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Kind;

type Things = BTreeMap<(Kind, String), String>;

/// Folders in which everybody leaves things.
const SHARED: [&str; 4] = ["/tmp", "/run", "/dev/shm", "/var/tmp"];
/// Files whose change would be felt by everybody.
const HOST_FILES: [&str; 8] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/hostname",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/core_pattern",
    "/usr/bin",
];
/// Cgroup trees are a few levels deep; a bound all the same.
const CGROUP_DEPTH: usize = 12;

/// Adds them.
pub(super) fn collect(things: &mut Things) {
    for mount in cgroup_mounts() {
        add_cgroups(things, &mount, 0);
    }
    for table in ["shm", "sem", "msg"] {
        let text = std::fs::read_to_string(format!("/proc/sysvipc/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let key: Vec<&str> = line.split_whitespace().take(2).collect();
            things.insert((Kind::Ipc, format!("{table} {}", key.join(" "))), line.to_owned());
        }
    }
    for entry in std::fs::read_dir("/dev/mqueue").into_iter().flatten().flatten() {
        things.insert((Kind::Ipc, format!("mqueue {}", entry.file_name().display())), String::new());
    }
    let own_lock = crate::lock::path();
    for folder in SHARED {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten().filter(|e| e.path() != own_lock) {
            things.insert((Kind::Entry, entry.path().display().to_string()), String::new());
        }
    }
    for path in HOST_FILES {
        things.insert((Kind::HostFile, identity(Path::new(path))), String::new());
    }
}

/// What changes when a file is written, replaced or removed. Files of `/proc` have no size: their text counts.
fn identity(path: &Path) -> String {
    let shown = path.display();
    if path.starts_with("/proc") {
        return format!("{shown} {:?}", std::fs::read_to_string(path).unwrap_or_default());
    }
    match std::fs::metadata(path) {
        Ok(meta) => {
            format!("{shown} inode {} size {} changed {}.{}", meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec())
        }
        Err(error) => format!("{shown} {}", error.kind()),
    }
}

fn cgroup_mounts() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_cgroup = |line: &&str| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup"));
    let points = table.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4));
    points.map(PathBuf::from).collect()
}

fn add_cgroups(things: &mut Things, folder: &Path, depth: usize) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let path = entry.path();
        things.insert((Kind::Cgroup, path.display().to_string()), String::new());
        if depth < CGROUP_DEPTH {
            add_cgroups(things, &path, depth + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewritten_file_has_another_identity() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("file");
        assert!(identity(&path).ends_with("entity not found"));
        std::fs::write(&path, "one").expect("ours");
        let one = identity(&path);
        std::fs::write(&path, "three").expect("ours");
        assert_ne!(identity(&path), one);
    }
}
