//! The executor of `isolation = "none"`: plain processes on this host, each in a process group of its own.
//!
//! One thread, the caller's, does everything for a test: it polls the command's two pipes, its process descriptor
//! and the request to cancel. The group is killed while its dead leader is still unreaped, so that its number
//! cannot have become somebody else's. What leaves the group (`setsid`) is not found; the engine's environments
//! are for that.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, test_kill_process_group, waitid,
};
use testyard_linux::pause;
use testyard_linux::process::with_default_signals;
use testyard_model::{CommandStatus, Isolation, Problem, ProblemKind, Usage, microseconds};

use crate::cancel::{Cancel, CancelReason};
use crate::capture::{Capture, Stream};
use crate::job::{Ability, EnvironmentUsed, Executor, Finished, Job, JobEvent, JobOutcome, Refusal, SourceTree};
use crate::suite::TestUser;

/// Variables that a test gets from whoever runs Testyard.
const INHERITED: [&str; 9] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SHELL"];

/// Runs jobs as plain processes.
#[derive(Debug, Clone)]
pub struct ProcessExecutor {
    base: Vec<(String, String)>,
    grace: Duration,
}

impl ProcessExecutor {
    /// Tests get these of this process's variables: `PATH`, `HOME`, `USER`, `LOGNAME`, `LANG`, `LC_ALL`, `TZ`,
    /// `TMPDIR`, `SHELL`.
    #[must_use]
    pub fn new() -> Self {
        let inherited = |name: &&str| std::env::var(name).ok().map(|value| ((*name).to_owned(), value));
        Self::with_environment(INHERITED.iter().filter_map(inherited).collect())
    }

    /// Tests get these variables and their own.
    #[must_use]
    pub fn with_environment(base: Vec<(String, String)>) -> Self {
        Self { base, grace: Duration::from_secs(2) }
    }

    /// How long a test has between SIGTERM and SIGKILL; 2 s unless told otherwise.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    fn refuse(job: &Job) -> Option<Refusal> {
        if job.isolation > Isolation::None {
            return Some(Refusal {
                missing: format!("isolation {}", job.isolation),
                reason: "plain processes share everything with this host".to_owned(),
                hint: Some("write isolation = \"none\" if the test does no harm".to_owned()),
            });
        }
        if job.user == TestUser::Root && !rustix::process::geteuid().is_root() {
            return Some(Refusal {
                missing: "user root".to_owned(),
                reason: "plain processes run as the user who runs Testyard".to_owned(),
                hint: Some("run Testyard as root, or write isolation = \"namespace\"".to_owned()),
            });
        }
        None
    }
}

impl Default for ProcessExecutor {
    fn default() -> Self {
        Self::new()
    }
}

impl Executor for ProcessExecutor {
    fn abilities(&self, needs: &[String]) -> Vec<Ability> {
        let missing = |_| Ability::Missing {
            reason: "plain processes are not probed for abilities".to_owned(),
            hint: Some("testyard doctor shows what this host can do".to_owned()),
        };
        needs.iter().map(missing).collect()
    }

    fn source_tree(&self, _root: &Path) -> Result<SourceTree, Problem> {
        Ok(SourceTree::default())
    }

    fn source_changed(&self, _root: &Path) -> bool {
        false
    }

    fn run(&self, job: &Job, cancel: &Cancel, events: &dyn Fn(JobEvent)) -> JobOutcome {
        if let Some(refusal) = Self::refuse(job) {
            return JobOutcome::Skipped(refusal);
        }
        match Running::start(self, job) {
            Ok(running) => {
                events(JobEvent::Started { environment: "this host".to_owned() });
                running.finish(job, cancel, self.grace)
            }
            Err(problem) => JobOutcome::Infrastructure(problem),
        }
    }
}

struct Running {
    child: Child,
    pid: Pid,
    descriptor: OwnedFd,
    started: Instant,
}

impl Running {
    fn start(executor: &ProcessExecutor, job: &Job) -> Result<Self, Problem> {
        let (program, arguments) = job
            .argv
            .split_first()
            .ok_or_else(|| Problem::new(ProblemKind::Command, "the test has no command").hint("give it a `command`"))?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&job.cwd).env_clear();
        command.envs(executor.base.iter().map(|(name, value)| (name, value))).envs(&job.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let started = Instant::now();
        // The runner takes signals by itself: a test that inherited that could not.
        let mut child =
            with_default_signals(&mut command).spawn().map_err(|error| not_started(job, program, &error))?;
        let pid = Pid::from_child(&child);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => Ok(Self { child, pid, descriptor, started }),
            Err(error) => {
                // Without a descriptor nobody could watch it: it must not run on alone.
                let _ = kill_process_group(pid, Signal::KILL);
                let _ = child.wait();
                Err(Problem::new(ProblemKind::System, "cannot watch the test's process").because(error))
            }
        }
    }

    fn finish(mut self, job: &Job, cancel: &Cancel, grace: Duration) -> JobOutcome {
        let mut pipes = Pipes::new(&mut self.child, job);
        let watched = self.watch(&mut pipes, job.timeout, cancel, grace);
        let wall = self.started.elapsed();
        // The leader is dead but not reaped, so its group's number is still its own.
        let _ = kill_process_group(self.pid, Signal::KILL);
        let cpu_us = processor_time(self.pid);
        pipes.drain();
        let status = self.child.wait();
        self.await_empty_group();
        let (stdout, stderr) = pipes.finish();
        let timed_out = match watched {
            Ok(timed_out) => timed_out,
            Err(error) => {
                return JobOutcome::Infrastructure(
                    Problem::new(ProblemKind::System, "cannot wait for the test").because(error),
                );
            }
        };
        let status = match status {
            Ok(_) if timed_out => CommandStatus::TimedOut,
            Ok(status) => CommandStatus::from_wait_status(std::os::unix::process::ExitStatusExt::into_raw(status)),
            Err(error) => {
                let problem = Problem::new(ProblemKind::System, "cannot read how the test ended").because(error);
                return JobOutcome::Infrastructure(problem);
            }
        };
        let usage = Usage {
            wall_us: microseconds(wall),
            cpu_us: cpu_us.unwrap_or(0),
            unavailable: unavailable(job, cpu_us),
            ..Usage::default()
        };
        let environment = EnvironmentUsed { label: "this host".to_owned(), isolation: Isolation::None };
        let (aftermath, services) = (Box::default(), Vec::new());
        JobOutcome::Finished(Finished { status, usage, stdout, stderr, environment, aftermath, services })
    }

    /// Until the leader is dead; whether its deadline killed it.
    fn watch(&self, pipes: &mut Pipes, timeout: Duration, cancel: &Cancel, grace: Duration) -> io::Result<bool> {
        let request = cancel.descriptor().inspect_err(|_| self.signal(Signal::KILL))?;
        let mut deadline = self.started.checked_add(timeout);
        let mut timed_out = false;
        let mut asked = false;
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                timed_out |= cancel.reason().is_none();
                self.signal(if asked { Signal::KILL } else { Signal::TERM });
                // After SIGKILL only a process that the kernel cannot end is left; it is asked again, rarely.
                deadline = Instant::now().checked_add(if asked { Duration::from_secs(1) } else { grace });
                asked = true;
                continue;
            }
            let ready = pipes.wait(self.descriptor.as_fd(), request, left)?;
            if ready.cancelled {
                let mut count = [0_u8; 8];
                let _ = rustix::io::read(request, &mut count);
                match cancel.reason() {
                    Some(CancelReason::Killed) => self.signal(Signal::KILL),
                    Some(_) if !asked => {
                        self.signal(Signal::TERM);
                        asked = true;
                        deadline = Instant::now().checked_add(grace);
                    }
                    _ => {}
                }
            }
            if ready.ended {
                // Looks without reaping.
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
                if waitid(WaitId::Pid(self.pid), options)?.is_some() {
                    return Ok(timed_out);
                }
            }
        }
    }

    /// Processes die a moment after their SIGKILL: whoever hears that the test is over should not meet them.
    fn await_empty_group(&self) {
        for _ in 0..100 {
            if test_kill_process_group(self.pid).is_err() {
                return;
            }
            pause(Duration::from_millis(1));
        }
    }

    fn signal(&self, signal: Signal) {
        // It fails only when the group is empty, which is what is wanted.
        let _ = kill_process_group(self.pid, signal);
    }
}

struct Ready {
    ended: bool,
    cancelled: bool,
}

/// The reading ends of a command's output, while they are open.
struct Pipes {
    open: Vec<(File, Stream)>,
    stdout: Capture,
    stderr: Capture,
    buffer: Vec<u8>,
}

impl Pipes {
    fn new(child: &mut Child, job: &Job) -> Self {
        let stdout = child.stdout.take().map(|pipe| (File::from(OwnedFd::from(pipe)), Stream::Stdout));
        let stderr = child.stderr.take().map(|pipe| (File::from(OwnedFd::from(pipe)), Stream::Stderr));
        let open: Vec<_> = stdout.into_iter().chain(stderr).collect();
        for (pipe, _) in &open {
            // One that stays blocking is still read only when poll says so, except in the last drain.
            let _ = rustix::io::ioctl_fionbio(pipe, true);
        }
        Self {
            open,
            stdout: job.capture(Stream::Stdout),
            stderr: job.capture(Stream::Stderr),
            buffer: vec![0; 64 << 10],
        }
    }

    /// Waits for output, the end or a request, and takes what output there is.
    fn wait(&mut self, process: BorrowedFd<'_>, request: BorrowedFd<'_>, left: Option<Duration>) -> io::Result<Ready> {
        let mut watched =
            vec![PollFd::from_borrowed_fd(process, PollFlags::IN), PollFd::from_borrowed_fd(request, PollFlags::IN)];
        watched.extend(self.open.iter().map(|(pipe, _)| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
        // Rounded up: a poll that ends early would spin until the deadline.
        let left = left.map(|left| left + Duration::from_millis(1));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut watched, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(Ready { ended: false, cancelled: false }),
            other => other?,
        };
        let ready: Vec<bool> = watched.iter().map(|one| !one.revents().is_empty()).collect();
        let mut flags = ready[2..].iter();
        let (buffer, stdout, stderr) = (&mut self.buffer, &mut self.stdout, &mut self.stderr);
        self.open.retain(|(pipe, stream)| {
            let capture = if *stream == Stream::Stdout { &mut *stdout } else { &mut *stderr };
            !flags.next().is_some_and(|ready| *ready) || take(pipe, capture, buffer)
        });
        Ok(Ready { ended: ready[0], cancelled: ready[1] })
    }

    /// Takes what is left in the pipes, without waiting for whoever may still hold them open: at most what a
    /// pipe can hold, so that an escaped writer cannot keep us here.
    fn drain(&mut self) {
        let (buffer, stdout, stderr) = (&mut self.buffer, &mut self.stdout, &mut self.stderr);
        for (pipe, stream) in &self.open {
            let capture = if *stream == Stream::Stdout { &mut *stdout } else { &mut *stderr };
            let before = capture.bytes();
            while capture.bytes() - before < 1 << 20 {
                let seen = capture.bytes();
                if !take(pipe, capture, buffer) || capture.bytes() == seen {
                    break;
                }
            }
        }
        self.open.clear();
    }

    fn finish(self) -> (crate::capture::Captured, crate::capture::Captured) {
        (self.stdout.finish(), self.stderr.finish())
    }
}

/// One read; whether the pipe is still open.
fn take(pipe: &File, capture: &mut Capture, buffer: &mut [u8]) -> bool {
    match rustix::io::read(pipe, &mut *buffer) {
        Ok(0) => false,
        Ok(count) => {
            capture.write(&buffer[..count]);
            true
        }
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
        Err(_) => false,
    }
}

fn not_started(job: &Job, program: &str, error: &io::Error) -> Problem {
    let (kind, hint) = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(
            rustix::io::Errno::AGAIN | rustix::io::Errno::NOMEM | rustix::io::Errno::MFILE | rustix::io::Errno::NFILE,
        ) => (ProblemKind::Exhausted, "run with fewer --jobs, or raise the limit (ulimit -u, ulimit -n)"),
        _ if !job.cwd.is_dir() => (ProblemKind::Command, "its `cwd` does not exist"),
        Some(rustix::io::Errno::NOENT) => {
            (ProblemKind::Command, "check the name; a program beside the test is written with ./ before it")
        }
        Some(rustix::io::Errno::NOEXEC) => (ProblemKind::Command, "begin the file with a line such as #!/bin/sh"),
        _ => (ProblemKind::Command, "check that it is an executable file (chmod +x)"),
    };
    Problem::new(kind, format!("cannot run `{program}`")).because(error).hint(hint)
}

/// Processor time of a dead, unreaped process and of the children that it waited for, in microseconds.
fn processor_time(pid: Pid) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The program's name may hold anything, blanks and parentheses too.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ, which is 100 on every architecture that Testyard runs on.
    Some(ticks * 10_000)
}

/// Asked-for limits and readings that a plain process does not have.
fn unavailable(job: &Job, cpu_us: Option<u64>) -> Vec<String> {
    let limits = [
        ("memory", true),
        ("io", true),
        ("pids", job.limits.pids.is_some()),
        ("cpus", job.limits.cpus.is_some() || cpu_us.is_none()),
        ("disk", job.limits.disk.is_some()),
    ];
    limits.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests;
