//! Processes, the namespaces they are in or keep, and the mounts of those.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Kind;
use crate::processes::{self, Process};

type Things = BTreeMap<(Kind, String), String>;

const NAMESPACES: [&str; 7] = ["mnt", "net", "pid", "ipc", "uts", "user", "cgroup"];
/// Set for threads of the kernel in the flags of `/proc/PID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Adds every visible process with its namespaces.
pub(super) fn collect(things: &mut Things) {
    let mut mount_namespaces = BTreeSet::new();
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    for process in processes::all() {
        let folder = process.folder();
        let Some(stat) = Stat::read(&folder) else { continue };
        if stat.flags & KERNEL_THREAD != 0 {
            continue;
        }
        let identity = format!("{} started {}", stat.pid, stat.start_ticks);
        things.insert((Kind::Process, identity), shown(process, &stat.name));
        for kind in NAMESPACES {
            if let Ok(name) = std::fs::read_link(folder.join("ns").join(kind)) {
                things.insert((Kind::Namespace, name.display().to_string()), String::new());
                if kind == "mnt" && name != own && mount_namespaces.insert(name.clone()) {
                    add_mount_count(things, &folder, &name);
                }
            }
        }
        add_kept_namespaces(things, &folder);
    }
    add_own_mounts(things);
}

/// Processes that carry a home's path in their environment or command line, and mounts below it, anywhere.
pub(super) fn of_home(home: &str) -> Vec<String> {
    let mut left = Vec::new();
    let mut seen = BTreeSet::new();
    for process in processes::all() {
        let folder = process.folder();
        let Some(stat) = Stat::read(&folder) else { continue };
        // A zombie is its parent's to reap; the test may be that parent.
        if stat.state == 'Z' || stat.pid == std::process::id() {
            continue;
        }
        if process.environment_has(home) || process.command_line().contains(home) {
            left.push(format!("process {} ({})", stat.pid, shown(process, &stat.name)));
        }
        let Ok(namespace) = std::fs::read_link(folder.join("ns/mnt")) else { continue };
        if seen.insert(namespace.clone()) {
            let table = std::fs::read_to_string(folder.join("mountinfo")).unwrap_or_default();
            let below = table.lines().filter(|line| mount_point(line).is_some_and(|point| is_below(point, home)));
            left.extend(below.map(|line| format!("mount in {}: {line}", namespace.display())));
        }
    }
    left
}

fn is_below(point: &str, home: &str) -> bool {
    point.strip_prefix(home).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What is wanted of `/proc/PID/stat`.
struct Stat {
    pid: u32,
    name: String,
    state: char,
    flags: u64,
    start_ticks: u64,
}

impl Stat {
    fn read(folder: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(folder.join("stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name may hold spaces and parentheses; the last one ends it.
        let (head, rest) = text.rsplit_once(')')?;
        let (pid, name) = head.split_once('(')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some(Self {
            pid: pid.trim().parse().ok()?,
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            flags: fields.get(6)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

fn shown(process: Process, name: &str) -> String {
    let words = process.command_line();
    if words.is_empty() { format!("[{name}]") } else { words.chars().take(200).collect() }
}

/// Namespaces that only an open descriptor keeps alive.
fn add_kept_namespaces(things: &mut Things, folder: &Path) {
    let descriptors = std::fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    for target in descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok()) {
        let target = target.display().to_string();
        if NAMESPACES.iter().any(|kind| target.strip_prefix(kind).is_some_and(|rest| rest.starts_with(":["))) {
            things.entry((Kind::Namespace, target)).or_default();
        }
    }
}

fn add_own_mounts(things: &mut Things) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if let [_, _, device, root, point, ..] = fields[..] {
            things.insert((Kind::Mount, format!("{device} {root} on {point}")), line.to_owned());
        }
    }
}

fn add_mount_count(things: &mut Things, folder: &Path, namespace: &Path) {
    let table = std::fs::read_to_string(folder.join("mountinfo")).unwrap_or_default();
    let identity = format!("{} mounts in {}", table.lines().count(), namespace.display());
    things.insert((Kind::Mount, identity), String::new());
}

fn mount_point(line: &str) -> Option<&str> {
    line.split(' ').nth(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let stat = Stat::parse(text).expect("well formed");
        assert_eq!((stat.pid, stat.name.as_str(), stat.state), (42, "a) b (c", 'S'));
        assert_eq!((stat.flags, stat.start_ticks), (4_194_560, 987_654));
        assert!(Stat::parse("nonsense").is_none());
    }

    #[test]
    fn paths_are_compared_by_their_parts() {
        assert!(is_below("/tmp/a/b", "/tmp/a"));
        assert!(is_below("/tmp/a", "/tmp/a"));
        assert!(!is_below("/tmp/ab", "/tmp/a"));
    }

    #[test]
    fn this_process_is_there() {
        let mut things = Things::new();
        collect(&mut things);
        let pid = std::process::id();
        let ours = |(kind, identity): &(Kind, String)| {
            *kind == Kind::Process && identity.starts_with(&format!("{pid} started "))
        };
        assert!(things.keys().any(ours));
    }
}
