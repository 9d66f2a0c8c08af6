//! What the cases stand on: a machine, connections to it, and short ways to say what is expected.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use testyard_model::{EnvironmentSpec, Isolation, MachineName, Problem, ProblemKind, UserSpec};
use testyard_protocol::{Exec, Place};

use super::{Ability, Fixture};
use crate::client::{Captured, ClientError, Connection, Session};

/// A broken promise: what was seen instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    seen: String,
}

impl Broken {
    pub(super) fn new(seen: impl Into<String>) -> Self {
        Self { seen: seen.into() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.seen)
    }
}

impl From<ClientError> for Broken {
    fn from(error: ClientError) -> Self {
        error.problem().into()
    }
}

impl From<Problem> for Broken {
    fn from(problem: Problem) -> Self {
        let mut seen = format!("an error: {problem}");
        for cause in &problem.causes {
            seen.push_str(&format!(", because {cause}"));
        }
        Self { seen }
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::new(format!("an error on our own side: {error}"))
    }
}

impl From<rustix::io::Errno> for Broken {
    fn from(errno: rustix::io::Errno) -> Self {
        std::io::Error::from(errno).into()
    }
}

/// That two things are equal.
pub(super) fn same<T: PartialEq + fmt::Debug>(what: &str, seen: T, wanted: T) -> Result<(), Broken> {
    if seen == wanted { Ok(()) } else { Err(Broken::new(format!("{what} is {seen:?}, not {wanted:?}"))) }
}

/// That something holds.
pub(super) fn holds(what: impl Into<String>, truth: bool) -> Result<(), Broken> {
    if truth { Ok(()) } else { Err(Broken::new(format!("it is not so that {}", what.into()))) }
}

/// That a request was refused, with this kind of problem.
pub(super) fn refused<T>(
    what: &str,
    outcome: Result<T, ClientError>,
    kinds: &[ProblemKind],
) -> Result<Problem, Broken> {
    match outcome {
        Ok(_) => Err(Broken::new(format!("{what} was not refused"))),
        Err(error) => {
            let problem = error.problem();
            if kinds.contains(&problem.kind) {
                Ok(problem)
            } else {
                Err(Broken::new(format!("{what} was refused as {:?} ({problem}), not as {kinds:?}", problem.kind)))
            }
        }
    }
}

/// Of the whole process: machines of plain processes see each other's.
static MARKS: AtomicU32 = AtomicU32::new(0);

/// A machine and ways to use it.
pub(super) struct Ground<'f> {
    pub(super) fixture: &'f dyn Fixture,
    pub(super) machine: MachineName,
}

impl<'f> Ground<'f> {
    pub(super) fn new(fixture: &'f dyn Fixture, machine: MachineName) -> Self {
        Self { fixture, machine }
    }

    pub(super) fn has(&self, ability: Ability) -> bool {
        self.fixture.lacks(ability).is_none()
    }

    pub(super) fn connect(&self) -> Result<Connection, Broken> {
        Ok(self.fixture.connect(&self.machine)?)
    }

    pub(super) fn session(&self) -> Result<Session, Broken> {
        Ok(Session::over(self.connect()?)?)
    }

    /// Runs a shell script on the machine.
    pub(super) fn sh(&self, script: &str) -> Result<Captured, Broken> {
        self.run(shell(script))
    }

    pub(super) fn run(&self, exec: Exec) -> Result<Captured, Broken> {
        Ok(self.connect()?.capture(exec, &[])?)
    }

    /// Runs a shell script that must succeed; what it printed, trimmed.
    pub(super) fn told(&self, exec: Exec) -> Result<String, Broken> {
        said(&self.run(exec)?)
    }

    /// An argument for `sleep` that no other process on the host has.
    #[expect(clippy::unused_self, reason = "reads as what the ground gives")]
    pub(super) fn mark(&self) -> String {
        let count = MARKS.fetch_add(1, Ordering::Relaxed);
        format!("{}.{count:04}", 100_000 + std::process::id())
    }

    /// How many processes with this mark the machine sees.
    pub(super) fn marked(&self, mark: &str) -> Result<usize, Broken> {
        Ok(self.told(find_marked(mark, "cat"))?.lines().count())
    }

    /// Ends the processes with this mark.
    pub(super) fn end_marked(&self, mark: &str) -> Result<(), Broken> {
        let end = "while IFS=/ read -r _ _ pid _; do kill -9 $pid; done";
        self.run(find_marked(mark, end)).map(|_| ())
    }

    /// Waits until a path of the machine is gone: a command's end is told before its environment's is.
    pub(super) fn await_gone(&self, path: &str) -> Result<(), Broken> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.sh(&format!("test -e {path}"))?.finished.status.success() {
            if Instant::now() >= deadline {
                return Err(Broken::new(format!("{path} is still there")));
            }
        }
        Ok(())
    }

    /// Waits until so many processes with this mark are there.
    pub(super) fn await_marked(&self, mark: &str, wanted: usize) -> Result<(), Broken> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let seen = self.marked(mark)?;
            if seen == wanted {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Broken::new(format!("{seen} of its processes are there, not {wanted}")));
            }
        }
    }
}

/// Lists the processes that have the mark as an argument of their own, for `then` to read. The mark comes to grep by
/// its standard input, so that none of these processes has it.
fn find_marked(mark: &str, then: &str) -> Exec {
    let find = r#"printf '%s\n' "$MARK" | grep -alzxF -f - /proc/[0-9]*/cmdline 2>/dev/null"#;
    let mut exec = shell(&format!("{find} | {then}; :"));
    exec.env.push(("MARK".into(), mark.into()));
    exec
}

/// A shell script as a command.
pub(super) fn shell(script: &str) -> Exec {
    Exec { argv: vec!["sh".into(), "-c".into(), script.into()], ..Exec::default() }
}

/// What a command that must have succeeded printed, trimmed.
pub(super) fn said(captured: &Captured) -> Result<String, Broken> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if captured.finished.status.success() {
        Ok(text(&captured.stdout))
    } else {
        Err(Broken::new(format!("the command ended with {:?}: {}", captured.finished.status, text(&captured.stderr))))
    }
}

/// An environment's specification, everything else default.
pub(super) fn environment(isolation: Isolation, user: UserSpec) -> EnvironmentSpec {
    EnvironmentSpec::new(isolation, user)
}

/// A shell script in an environment of its own.
pub(super) fn fresh(script: &str, spec: &EnvironmentSpec) -> Exec {
    Exec { place: Place::Fresh(Box::new(spec.clone())), ..shell(script) }
}
