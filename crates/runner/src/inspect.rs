//! What a test that is about to run out of time is doing: its processes, and where each of their threads is.
//!
//! Everything is read from this host's `/proc`, as far as this user may: the kernel shows its stacks to root only.
//! A test's processes are known by the variables that they were started with, and where the test has a process
//! namespace of its own, by that.

mod debugger;
mod find;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use debugger::Debugger;
pub use find::Mark;

/// Processes of which more than the number is told.
const PROCESSES: usize = 64;
/// Threads of one process.
const THREADS: usize = 16;
/// Frames of one stack.
const FRAMES: usize = 32;
/// Characters of a command line.
const COMMAND: usize = 200;

/// A test's processes at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Inspection {
    /// The processes, each after its parent.
    pub processes: Vec<InspectedProcess>,
    /// How many more there were.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_none(count: &usize) -> bool {
    *count == 0
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedProcess {
    /// Its number on this host.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// How deep it stands below the first.
    pub depth: usize,
    /// Its arguments, perhaps cut; its name in brackets where it has none.
    pub command: String,
    /// Its threads, the first one first.
    pub threads: Vec<InspectedThread>,
    /// Its stacks outside the kernel, as a debugger of this host tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_stack: Option<String>,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedThread {
    /// Its number on this host.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// The kernel's letter and word: `S (sleeping)`.
    pub state: String,
    /// The function of the kernel in which it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_in: Option<String>,
    /// Its stack in the kernel, innermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_stack: Vec<String>,
}

impl Inspection {
    /// Looks at the processes of a test. Without any, there is nothing to tell.
    #[must_use]
    pub fn take(mark: &Mark) -> Option<Self> {
        let found = find::processes(Path::new("/proc"), mark);
        if found.is_empty() {
            return None;
        }
        let more = found.len().saturating_sub(PROCESSES);
        let look = |found: &find::Found| InspectedProcess {
            pid: found.pid,
            parent: found.parent,
            depth: found.depth,
            command: command_of(found.pid),
            threads: threads_of(found.pid),
            user_stack: None,
        };
        Some(Self { processes: found.iter().take(PROCESSES).map(look).collect(), more })
    }

    /// Asks a debugger for the stacks of the processes, the last made first, for as long as there is time.
    pub fn add_user_stacks(&mut self, debugger: &Debugger, until: Instant) {
        for process in self.processes.iter_mut().rev() {
            let left = until.saturating_duration_since(Instant::now());
            if left < Duration::from_millis(10) {
                return;
            }
            process.user_stack = debugger.stack_of(process.pid, left);
        }
    }

    /// For people, a line each.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for process in &self.processes {
            let indent = "  ".repeat(process.depth);
            // Writing to memory does not fail.
            let _ = writeln!(text, "{indent}{} {}", process.pid, process.command);
            for thread in &process.threads {
                let waits = thread.waits_in.as_deref().map_or(String::new(), |place| format!(" in {place}"));
                let _ = writeln!(text, "{indent}  | {} {} {}{waits}", thread.tid, thread.name, thread.state);
                for frame in &thread.kernel_stack {
                    let _ = writeln!(text, "{indent}  |     {frame}");
                }
            }
            for line in process.user_stack.iter().flat_map(|stack| stack.lines()) {
                let _ = writeln!(text, "{indent}  : {line}");
            }
        }
        if self.more > 0 {
            let _ = writeln!(text, "and {} more processes", self.more);
        }
        text
    }
}

fn command_of(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = words.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let line = words.join(" ");
    if line.trim().is_empty() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        return format!("[{}]", name.trim());
    }
    line.trim().chars().take(COMMAND).collect()
}

fn threads_of(pid: u32) -> Vec<InspectedThread> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    let numbers = entries.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    numbers.truncate(THREADS);
    numbers.into_iter().filter_map(|tid| thread(pid, tid)).collect()
}

/// None where it has just ended.
fn thread(pid: u32, tid: u32) -> Option<InspectedThread> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/task/{tid}/{file}"));
    let status = read("status").ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim().to_owned();
    let waits_in = read("wchan").ok().filter(|place| !place.is_empty() && place != "0");
    let stack = read("stack").unwrap_or_default();
    let frames = stack.lines().map(|line| line.trim_start_matches("[<0>] ").to_owned());
    Some(InspectedThread {
        tid,
        name: field("Name:"),
        state: field("State:"),
        waits_in,
        kernel_stack: frames.take(FRAMES).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_child_is_found_by_its_variables_and_shown_with_its_place() {
        let own = format!("inspect-{}", std::process::id());
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 1000 & exec env -i sleep 1000"])
            .env("TESTYARD_RUN", &own)
            .env("TESTYARD_TEST", "t")
            .spawn()
            .expect("a shell");
        let mark = Mark {
            variables: vec![("TESTYARD_RUN".to_owned(), own), ("TESTYARD_TEST".to_owned(), "t".to_owned())],
            own_processes: false,
        };
        // The second one clears its variables, and is still the first one's child or parent.
        let deadline = Instant::now() + Duration::from_secs(10);
        let inspection = loop {
            let inspection = Inspection::take(&mark).unwrap_or_default();
            // Both have become what they execute, and have nothing left to do.
            if inspection.text().matches("S (sleeping)").count() == 2 || Instant::now() > deadline {
                break inspection;
            }
            std::thread::yield_now();
        };
        for process in &inspection.processes {
            let pid = rustix::process::Pid::from_raw(process.pid.cast_signed()).expect("a number");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = child.kill();
        child.wait().expect("our child");
        let text = inspection.text();
        assert!(text.contains("sleep 1000") && text.contains("S (sleeping)"), "{text}");
        assert_eq!(Inspection::take(&Mark { variables: vec![("TESTYARD_RUN".into(), "none".into())], ..mark }), None);
    }
}
