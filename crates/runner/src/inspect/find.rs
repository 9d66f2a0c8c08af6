//! Which processes are a test's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Bytes of a process's variables that are looked at.
const VARIABLES: u64 = 1 << 20;

/// How a test's processes are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Variables that they were started with, all of them.
    pub variables: Vec<(String, String)>,
    /// The test has a process namespace of its own: whatever is in it is the test's, whatever its variables are.
    pub own_processes: bool,
}

/// A process of the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) depth: usize,
}

/// The test's processes, each after its parent.
pub(super) fn processes(proc: &Path, mark: &Mark) -> Vec<Found> {
    let numbers = fs::read_dir(proc).into_iter().flatten().flatten();
    let numbers: Vec<u32> = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let parents: BTreeMap<u32, u32> = numbers.iter().filter_map(|pid| Some((*pid, parent_of(proc, *pid)?))).collect();
    let marked: BTreeSet<u32> = parents.keys().copied().filter(|pid| is_marked(proc, *pid, mark)).collect();
    let mut all = marked.clone();
    if mark.own_processes {
        let ours = namespace_of(proc, std::process::id());
        let theirs: BTreeSet<PathBuf> = marked.iter().filter_map(|pid| namespace_of(proc, *pid)).collect();
        let is_test = |pid: &u32| !is_init(proc, *pid);
        let inside = |pid: &u32| namespace_of(proc, *pid).is_some_and(|own| theirs.contains(&own)) && is_test(pid);
        if ours.is_none_or(|ours| !theirs.contains(&ours)) {
            all.extend(parents.keys().copied().filter(inside));
        }
    }
    let mut grown = true;
    while grown {
        let children = parents.iter().filter(|(pid, parent)| all.contains(parent) && !all.contains(pid));
        let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
        grown = !children.is_empty();
        all.extend(children);
    }
    let mut tree = Vec::with_capacity(all.len());
    let roots = all.iter().copied().filter(|pid| parents.get(pid).is_none_or(|parent| !all.contains(parent)));
    for root in roots.collect::<Vec<_>>() {
        plant(root, 0, &all, &parents, &mut tree);
    }
    tree
}

fn plant(pid: u32, depth: usize, all: &BTreeSet<u32>, parents: &BTreeMap<u32, u32>, tree: &mut Vec<Found>) {
    // Nobody is its own forebear, but numbers are used again while we read.
    if depth > 64 || tree.iter().any(|found| found.pid == pid) {
        return;
    }
    tree.push(Found { pid, parent: parents.get(&pid).copied().unwrap_or(0), depth });
    for (child, _) in parents.iter().filter(|(child, parent)| **parent == pid && all.contains(child)) {
        plant(*child, depth + 1, all, parents, tree);
    }
}

/// The fourth word of `stat`, counted from behind the name, which may hold anything.
fn parent_of(proc: &Path, pid: u32) -> Option<u32> {
    let stat = fs::read(proc.join(format!("{pid}/stat"))).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn namespace_of(proc: &Path, pid: u32) -> Option<PathBuf> {
    fs::read_link(proc.join(format!("{pid}/ns/pid"))).ok()
}

/// The first process of an environment is Testyard's own.
fn is_init(proc: &Path, pid: u32) -> bool {
    let status = fs::read_to_string(proc.join(format!("{pid}/status"))).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or("");
    numbers.split_whitespace().skip(1).last() == Some("1")
}

fn is_marked(proc: &Path, pid: u32, mark: &Mark) -> bool {
    let mut bytes = Vec::new();
    let file = fs::File::open(proc.join(format!("{pid}/environ")));
    if file.is_ok_and(|file| file.take(VARIABLES).read_to_end(&mut bytes).is_err()) || bytes.is_empty() {
        return false;
    }
    let has = |name: &str, value: &str| {
        bytes.split(|byte| *byte == 0).any(|variable| {
            let rest = variable.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
            rest == Some(value.as_bytes())
        })
    };
    mark.variables.iter().all(|(name, value)| has(name, value))
}
