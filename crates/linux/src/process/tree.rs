//! Trees of processes: who is below whom, who carries a mark, and ending all of them.
//!
//! `/proc` is a moving target: a process may fork, end, or lend its pid to another between two reads. So ending a
//! tree means to stop what is there, look again until nothing new appears, and only then to kill; each signal goes
//! through a pidfd whose start time was compared with the one that was read.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use crate::error::{Context, Error, Result};
use crate::identity::{ProcessStat, read_process_file, read_stat};
use crate::process::attributes::no_such_process;
use crate::process::{pidfd_open, pidfd_signal};

/// How often a tree is looked at anew before its growth is called endless.
const ROUNDS: usize = 64;
/// How long killed processes may take to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// What [`kill_tree`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KillReport {
    /// How many processes were sent SIGKILL.
    pub killed: usize,
    /// How many had not ended when the function gave up waiting (in uninterruptible sleep).
    pub remaining: usize,
}

/// Every process below this one, nearest first; the process itself is not among them.
///
/// # Errors
/// What reading `/proc` says. Processes that end meanwhile are left out.
pub fn descendants(process: Pid) -> Result<Vec<Pid>> {
    Ok(below(process.as_raw_nonzero().get(), &all_processes()?)
        .iter()
        .filter_map(|stat| Pid::from_raw(stat.pid))
        .collect())
}

/// Ends a process and everything below it with SIGKILL, and waits until all have ended (not until their parents have
/// taken note of it: zombies stay). The caller, where it is in the tree itself, is spared. What has detached itself from the tree by a double fork is not found here.
///
/// # Errors
/// `ESRCH` when there is no such process, `EPERM` when one of them is not ours to signal.
pub fn kill_tree(process: Pid) -> Result<KillReport> {
    let root = read_stat(process.as_raw_nonzero().get())?;
    let root = root.ok_or_else(|| no_such_process(process.as_raw_nonzero().get()))?;
    end(&[process], vec![root])
}

/// As [`kill_tree`] for many processes at once, with no more looks at `/proc` than for one. Those that have ended are
/// passed over.
///
/// # Errors
/// `EPERM` when one of them is not ours to signal.
pub fn kill_trees(processes: &[Pid]) -> Result<KillReport> {
    let mut roots = Vec::with_capacity(processes.len());
    for process in processes {
        roots.extend(read_stat(process.as_raw_nonzero().get())?);
    }
    end(processes, roots)
}

/// Ends everything below a process, but not the process itself: what a subreaper does with its orphans.
///
/// # Errors
/// As [`kill_tree`].
pub fn kill_descendants(process: Pid) -> Result<KillReport> {
    end(&[process], Vec::new())
}

fn end(processes: &[Pid], roots: Vec<ProcessStat>) -> Result<KillReport> {
    let mut stopped: HashMap<i32, OwnedFd> = HashMap::new();
    let mut seen: HashSet<(i32, u64)> = HashSet::new();
    let own = rustix::process::getpid().as_raw_nonzero().get();
    for _ in 0..ROUNDS {
        let all = all_processes()?;
        let mut new: Vec<ProcessStat> =
            processes.iter().flat_map(|process| below(process.as_raw_nonzero().get(), &all)).collect();
        new.extend(&roots);
        new.retain(|stat| stat.pid != own && !stat.is_zombie() && seen.insert((stat.pid, stat.start_ticks)));
        if new.is_empty() {
            break;
        }
        for stat in new {
            if let Some(pidfd) = open_exactly(&stat)? {
                tolerate_absence(pidfd_signal(pidfd.as_fd(), libc::SIGSTOP))?;
                stopped.insert(stat.pid, pidfd);
            }
        }
    }
    for pidfd in stopped.values() {
        tolerate_absence(pidfd_signal(pidfd.as_fd(), libc::SIGKILL))?;
    }
    let killed = stopped.len();
    Ok(KillReport { killed, remaining: await_end(stopped.into_values().collect(), END_WITHIN)? })
}

/// The process that the line in `/proc` was about, unless it has ended.
fn open_exactly(stat: &ProcessStat) -> Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(stat.pid) else { return Ok(None) };
    match pidfd_open(pid) {
        Ok(pidfd) => {
            let now = read_stat(stat.pid)?;
            Ok(now.filter(|now| now.start_ticks == stat.start_ticks).map(|_| pidfd))
        }
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

fn tolerate_absence(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_absent() => Ok(()),
        other => other,
    }
}

/// Waits until the processes have ended; returns how many have not within the time.
pub(crate) fn await_end(mut pidfds: Vec<OwnedFd>, within: Duration) -> Result<usize> {
    let deadline = Instant::now() + within;
    while !pidfds.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let mut polled: Vec<PollFd<'_>> = pidfds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::new("wait for", "killed processes", errno)),
        }
        let ended: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ended = ended.into_iter();
        pidfds.retain(|_| !ended.next().unwrap_or(false));
    }
    Ok(pidfds.len())
}

/// Every process whose environment, as it was at its exec, holds `NAME=VALUE`; the caller too. Those of other users are not seen.
///
/// # Errors
/// What listing `/proc` says.
pub fn environment_marked(name: &str, value: &str) -> Result<Vec<Pid>> {
    environment_marked_any(name, &[value.to_owned()])
}

/// As [`environment_marked`] for any of these values.
///
/// # Errors
/// What listing `/proc` says.
pub fn environment_marked_any(name: &str, values: &[String]) -> Result<Vec<Pid>> {
    let marks: HashSet<Vec<u8>> = values.iter().map(|value| format!("{name}={value}").into_bytes()).collect();
    let mut found = Vec::new();
    for pid in process_numbers()? {
        let Ok(environment) = read_process_file(&format!("/proc/{pid}/environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|entry| marks.contains(entry)) {
            found.extend(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

fn below(root: i32, all: &[ProcessStat]) -> Vec<ProcessStat> {
    let mut children: HashMap<i32, Vec<&ProcessStat>> = HashMap::new();
    for stat in all {
        children.entry(stat.parent).or_default().push(stat);
    }
    let mut found: Vec<ProcessStat> = Vec::new();
    let mut parents = vec![root];
    let mut next = 0;
    while let Some(parent) = parents.get(next).copied() {
        next += 1;
        // Removed, not read: a torn view of /proc may hold a circle.
        for child in children.remove(&parent).unwrap_or_default() {
            parents.push(child.pid);
            found.push(*child);
        }
    }
    found
}

fn all_processes() -> Result<Vec<ProcessStat>> {
    let mut all = Vec::new();
    for pid in process_numbers()? {
        all.extend(read_stat(pid)?);
    }
    Ok(all)
}

fn process_numbers() -> Result<Vec<i32>> {
    let entries = fs::read_dir("/proc").context("list", || "/proc")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: i32, parent: i32) -> ProcessStat {
        ProcessStat { pid, parent, state: b'S', start_ticks: 1 }
    }

    #[test]
    fn descendants_are_found_through_generations_and_circles_end() {
        let all = [stat(1, 0), stat(2, 1), stat(3, 2), stat(4, 3), stat(9, 1), stat(20, 21), stat(21, 20)];
        let found = |root| below(root, &all).iter().map(|stat| stat.pid).collect::<Vec<_>>();
        assert_eq!(found(2), [3, 4]);
        assert_eq!(found(1), [2, 9, 3, 4]);
        assert_eq!(found(20), [21, 20]);
        assert_eq!(found(7), Vec::<i32>::new());
    }
}
