//! Running the probes: a process each, a deadline each, and a report from all of them.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testyard_linux::process::{
    Pid, exit_immediately, kill_descendants, kill_tree, set_parent_death_signal, set_subreaper,
};
use testyard_linux::signal::Signal;
use testyard_model::{BackendName, Problem, ProblemKind, milliseconds};

use crate::ability::{Ability, How, abilities};
use crate::finding::{Finding, Lacking, Outcome};
use crate::host::HostFacts;
use crate::probes::cgroups;
use crate::report::{Answer, Probe, REPORT_VERSION, Report};
use crate::tier::{RootKind, Tier, choose_tier, decides};
use crate::{cache, scratch};

/// How many probes run at once: they wait for processes more than they compute.
const AT_ONCE: usize = 4;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The program that should make the probes cannot be started.
    #[error("cannot start {} to probe this host", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The answers cannot be kept in the state folder.
    #[error("cannot keep the probes' answers in {}", folder.display())]
    Store {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl ProbeError {
    /// As it is shown to people.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let problem = Problem::from_error(ProblemKind::System, self);
        match self {
            Self::Start { .. } => problem.hint("install testyard anew: cargo xtask install"),
            Self::Store { .. } => problem.hint("use another folder: export TESTYARD_HOME=FOLDER"),
        }
    }
}

/// Makes reports, and keeps the answers for the boot.
#[derive(Debug, Clone)]
pub struct Prober {
    program: PathBuf,
    arguments: Vec<OsString>,
    state: PathBuf,
}

impl Prober {
    /// Probes by running `program probe-child NAME`, which must call [`probe_child`], and keeps the answers in the
    /// folder `state`.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: vec!["probe-child".into()], state: state.into() }
    }

    /// The report, from the answers of this boot where nothing that they depend on has changed, else probed now.
    ///
    /// An answer that could not be kept is no error: the next caller probes again.
    ///
    /// # Errors
    /// When the probing program cannot be started.
    pub fn load(&self) -> Result<Report, ProbeError> {
        let host = HostFacts::collect(&self.state);
        let key = cache::Key::now(&host);
        if let Some(probes) = cache::load(&self.state, &key) {
            return Ok(complete(host, &probes));
        }
        let probes = self.probe_all()?;
        let _ = cache::store(&self.state, &key, &probes);
        Ok(complete(host, &probes))
    }

    /// The backend that `auto` is, without probing what says nothing about that: for a home that is used once. Where the
    /// answers make it a container, they are kept in this folder for the boot, if one is named.
    ///
    /// # Errors
    /// When the probing program cannot be started.
    pub fn backend(&self, kept: Option<&Path>) -> Result<BackendName, ProbeError> {
        let host = HostFacts::collect(&self.state);
        let key = cache::Key::deciding(&host);
        if let Some(probes) = kept.and_then(|folder| cache::load(folder, &key)) {
            return Ok(choose_tier(&complete(host, &probes)).backend);
        }
        let probes = self.probe_those(decides)?;
        let backend = choose_tier(&complete(host, &probes)).backend;
        // What is missing may have been missing for a moment, and nobody could ask again.
        if let Some(folder) = kept.filter(|_| backend != BackendName::host()) {
            let _ = cache::store(folder, &key, &probes);
        }
        Ok(backend)
    }

    /// Probes now, whatever is stored, and keeps the answers.
    ///
    /// # Errors
    /// When the probing program cannot be started, or the state folder exists and takes no file.
    pub fn probe(&self) -> Result<Report, ProbeError> {
        let host = HostFacts::collect(&self.state);
        let key = cache::Key::now(&host);
        let probes = self.probe_all()?;
        if self.state.is_dir() {
            cache::store(&self.state, &key, &probes)
                .map_err(|source| ProbeError::Store { folder: self.state.clone(), source })?;
        }
        Ok(complete(host, &probes))
    }

    /// Every ability that takes a process, some at a time.
    fn probe_all(&self) -> Result<Vec<Probe>, ProbeError> {
        self.probe_those(|_| true)
    }

    fn probe_those(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Probe>, ProbeError> {
        let processes = abilities().iter().filter(|ability| matches!(ability.how, How::Process(_)));
        let wanted: Vec<&Ability> = processes.filter(|ability| wanted(ability.name)).collect();
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<Probe>, ProbeError> {
            let mut done = Vec::new();
            while let Some(ability) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                done.push(self.probe_one(ability)?);
            }
            Ok(done)
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            let mut probes = Vec::new();
            for worker in workers {
                match worker.join() {
                    Ok(done) => probes.extend(done?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(probes)
        })
    }

    fn probe_one(&self, ability: &Ability) -> Result<Probe, ProbeError> {
        let start = Instant::now();
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .arg(ability.name)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| ProbeError::Start { program: self.program.clone(), source })?;
        let said = child.stdout.take().map(|output| read_line(output, start + ability.deadline));
        let is_late = matches!(said, Some(Heard::TooLate));
        let finding = match said {
            Some(Heard::Line(line)) => serde_json::from_slice(&line).ok(),
            Some(Heard::TooLate) => {
                let reason = format!("it did not end within {:?}: it hangs here", ability.deadline);
                Some(Err(Lacking::new(reason)).into())
            }
            None => None,
        };
        let status = end(&mut child, !is_late);
        let finding = finding.unwrap_or_else(|| Err(Lacking::new(format!("its probe ended early: {status}"))).into());
        Ok(named(ability, finding, start.elapsed()))
    }
}

enum Heard {
    /// Up to the end of the line or of the output.
    Line(Vec<u8>),
    /// The deadline came first.
    TooLate,
}

/// Reads a line until the deadline. Not to the end of the output: something that the probe started may keep it open.
fn read_line(mut output: ChildStdout, deadline: Instant) -> Heard {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else { return Heard::TooLate };
        match poll(&mut [PollFd::new(&output.as_fd(), PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Heard::TooLate,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return Heard::Line(line),
        }
        match output.read(&mut buffer) {
            Ok(length) if length > 0 => line.extend_from_slice(&buffer[..length]),
            _ => return Heard::Line(line),
        }
        if line.ends_with(b"\n") {
            return Heard::Line(line);
        }
    }
}

/// Ends the probe's process and all below it, and removes what a killed one left. Says how it ended.
fn end(child: &mut Child, has_spoken: bool) -> String {
    // One that has said something, or no more will, ends by itself, after ending what it started.
    let patience = if has_spoken { Duration::from_secs(2) } else { Duration::ZERO };
    let ended_by_itself = wait_until(child, Instant::now() + patience);
    if !ended_by_itself && let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_tree(pid);
        let _ = child.kill();
    }
    // Before it is waited for: until then its pid, and so its names, are its own.
    scratch::sweep(child.id());
    if !ended_by_itself {
        cgroups::sweep(child.id());
    }
    match child.wait() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Whether the child has ended by this time; it is not waited for.
fn wait_until(child: &Child, deadline: Instant) -> bool {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let Some(Ok(pidfd)) = pid.map(testyard_linux::process::pidfd_open) else { return false };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else { return false };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}

fn named(ability: &Ability, finding: Finding, took: Duration) -> Probe {
    Probe {
        name: ability.title.to_owned(),
        ability: ability.name.to_owned(),
        answer: if finding.yes { Answer::Yes } else { Answer::No },
        reason: finding.reason,
        provide: finding.provide,
        detail: finding.detail,
        millis: milliseconds(took),
    }
}

/// Puts facts and answers in their order, and decides.
fn complete(host: HostFacts, probed: &[Probe]) -> Report {
    let probes = abilities()
        .iter()
        .map(|ability| match ability.how {
            How::Fact(look) => named(ability, look(&host).into(), Duration::ZERO),
            How::Process(_) => {
                let stored = probed.iter().find(|probe| probe.ability == ability.name);
                let unprobed = || named(ability, Err(Lacking::new("it was not probed")).into(), Duration::ZERO);
                stored.cloned().unwrap_or_else(unprobed)
            }
        })
        .collect();
    let undecided =
        Tier { backend: BackendName::host(), root: RootKind::None, reason: String::new(), limits: Vec::new() };
    let mut report = Report { version: REPORT_VERSION, host, probes, tier: undecided };
    report.tier = choose_tier(&report);
    report
}

/// Makes one probe and writes its answer to standard output: what `testyard probe-child NAME` does, before it starts
/// a thread or opens anything.
pub fn probe_child(name: &str) -> ! {
    // Dies with the prober, and so do the processes that it makes; theirs that lose their parent become its own.
    let _ = set_parent_death_signal(Signal::KILL.number());
    let _ = set_subreaper(true);
    let outcome = match abilities().iter().find(|ability| ability.name == name) {
        Some(Ability { how: How::Process(run), .. }) => run(),
        Some(Ability { how: How::Fact(look), .. }) => look(&HostFacts::collect(Path::new("/"))),
        None => unknown(name),
    };
    let _ = kill_descendants(rustix::process::getpid());
    let mut line = serde_json::to_vec(&Finding::from(outcome)).unwrap_or_default();
    line.push(b'\n');
    let written = rustix::io::write(rustix::stdio::stdout(), &line);
    exit_immediately(if written.is_ok() { 0 } else { 1 });
}

fn unknown(name: &str) -> Outcome {
    Err(Lacking::new(format!("there is no probe {name:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABILITY: Ability = Ability {
        name: "test",
        title: "a test",
        deadline: Duration::from_millis(300),
        how: How::Process(|| Err(Lacking::new("never called"))),
    };

    /// What becomes of a probe whose process is this shell script.
    fn probe(script: &str, deadline: Duration) -> Probe {
        let arguments = ["-c", script, "sh"].map(OsString::from).into();
        let prober = Prober { program: "/bin/sh".into(), arguments, state: "/nonexistent".into() };
        prober.probe_one(&Ability { deadline, ..ABILITY }).expect("there is always a shell")
    }

    #[test]
    fn a_hang_is_an_answer_and_ends_with_all_below_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let script = format!("sleep 1000 & echo $! > {}/pid; sleep 1000", folder.path().display());
        let probe = probe(&script, Duration::from_secs(2));
        assert_eq!((probe.answer, probe.reason.as_str()), (Answer::No, "it did not end within 2s: it hangs here"));
        let pid = std::fs::read_to_string(folder.path().join("pid")).expect("written before the deadline");
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }

    #[test]
    fn a_death_is_an_answer() {
        let patient = Duration::from_secs(30);
        for (script, reason) in [
            ("kill -9 $$", "its probe ended early: signal: 9 (SIGKILL)"),
            ("exit 3", "its probe ended early: exit status: 3"),
            ("echo nonsense", "its probe ended early: exit status: 0"),
        ] {
            let probe = probe(script, patient);
            assert_eq!((probe.answer, probe.reason.as_str()), (Answer::No, reason), "{script}");
        }
        let probe = probe(r#"echo '{"yes":true,"reason":"it works"}'; sleep 0"#, patient);
        assert_eq!((probe.answer, probe.reason.as_str()), (Answer::Yes, "it works"));
    }

    #[test]
    fn what_cannot_be_started_is_named() {
        let prober = Prober::new("/nonexistent/testyard", "/nonexistent");
        let error = prober.load().expect_err("it does not exist");
        assert_eq!(error.to_string(), "cannot start /nonexistent/testyard to probe this host");
        assert!(!error.problem().hints.is_empty());
    }
}
