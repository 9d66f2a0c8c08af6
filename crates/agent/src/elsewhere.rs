//! A machine on a host on which no agent may run. Its agent is here, and starts another program in the stead of each
//! command and transfer: the relay ([`testyard_protocol::start::relay`]), which knows the way there. So clients,
//! streams, terminals, limits of time and the machine's end are those of any machine. What takes an agent at the place
//! itself is refused.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use testyard_linux::{Error, process};
use testyard_model::{Isolation, Problem, ProblemKind, UserSpec};
use testyard_protocol::start::relay;
use testyard_protocol::{Exec, Place, RawText, Request, Transfer};

use crate::agent::Agent;
use crate::environment::MACHINE;

impl Agent {
    /// Whether what runs on this machine runs on another host.
    pub(crate) fn is_elsewhere(&self) -> bool {
        !self.relay.is_empty()
    }

    /// Refuses what a host without an agent cannot do.
    pub(crate) fn check_elsewhere(&self, request: &Request) -> Result<(), Problem> {
        if !self.is_elsewhere() {
            return Ok(());
        }
        match request {
            Request::Exec(exec) => {
                let plain = match &exec.place {
                    Place::Machine | Place::Environment(MACHINE) => true,
                    Place::Environment(_) => false,
                    Place::Fresh(spec) => spec.isolation == Isolation::None,
                };
                if !plain || exec.source.is_some() {
                    return Err(no_environments());
                }
                if let Place::Fresh(spec) = &exec.place {
                    own_user(Some(&spec.user))?;
                }
                own_user(exec.user.as_ref())
            }
            Request::Push(Transfer { environment, user, .. }) | Request::Pull(Transfer { environment, user, .. }) => {
                if environment.is_some() {
                    Err(no_environments())
                } else {
                    own_user(user.as_ref())
                }
            }
            Request::Source { .. } | Request::Sync(_) | Request::Synced(_) | Request::Present(_) => {
                Err(refused("a working tree is").hint("copy it: testyard push"))
            }
            Request::Namespaces | Request::Link { .. } => Err(refused("namespaces are")),
            Request::Environment(_)
            | Request::Release(_)
            | Request::Enter(_)
            | Request::EnterWith { .. }
            | Request::Listening { .. }
            | Request::Park(..)
            | Request::Keep { .. }
            | Request::Changes { .. }
            | Request::Fetch(_)
            | Request::Fork { .. }
            | Request::Seal { .. } => Err(no_environments()),
            _ => Ok(()),
        }
    }

    /// Puts the relay in the place of a command.
    pub(crate) fn hand_over(&self, exec: &mut Exec) -> Result<(), Problem> {
        if !self.is_elsewhere() {
            return Ok(());
        }
        let cwd = exec.cwd.take().unwrap_or_else(|| RawText::from(""));
        let terminal = if exec.terminal.is_some() { relay::TERMINAL } else { "" };
        let words = [RawText::from(relay::EXEC), cwd, RawText::from(terminal)];
        exec.argv = [&self.relay, &words[..], &exec.argv].concat();
        exec.user = None;
        exec.place = Place::Machine;
        for (name, _) in &mut exec.env {
            if name.0.is_empty() || name.0.contains(&b'=') {
                return Err(Problem::new(ProblemKind::Usage, "a variable's name is empty or contains `=`"));
            }
            name.0.splice(0..0, relay::VARIABLE.bytes());
        }
        exec.env.push((RawText::from(relay::FAILURE), RawText::from("")));
        Ok(())
    }

    /// In a file worker: becomes the relay, which says on `control` what went wrong.
    pub(crate) fn relay_files(
        &self,
        transfer: &Transfer,
        push: bool,
        pipe: &OwnedFd,
        control: &OwnedFd,
    ) -> Result<(), Problem> {
        let what = RawText::from(if push { relay::RECEIVE } else { relay::SEND });
        let words: Vec<RawText> = self.relay.iter().cloned().chain([what, transfer.path.clone()]).collect();
        self.become_relay(&words, pipe, control).map(|never| match never {})
    }

    fn become_relay(&self, words: &[RawText], pipe: &OwnedFd, control: &OwnedFd) -> Result<Infallible, Problem> {
        let system = |error: Error| error.problem();
        let text = |bytes: Vec<u8>| {
            CString::new(bytes).map_err(|_| Problem::new(ProblemKind::Usage, "a path contains a NUL byte"))
        };
        let words = words.iter().map(|word| text(word.0.clone())).collect::<Result<Vec<_>, _>>()?;
        let failure = text(format!("{}={}", relay::FAILURE, control.as_raw_fd()).into_bytes())?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::new("open", "/dev/null", error).problem())?;
        process::install_standard_streams([pipe.as_fd(), pipe.as_fd(), null.as_fd()]).map_err(system)?;
        rustix::io::fcntl_setfd(control, FdFlags::empty())
            .map_err(|error| Error::new("keep", "a descriptor", error).problem())?;
        let program = words.first().ok_or_else(|| Problem::new(ProblemKind::Bug, "there is no relay"))?;
        Err(system(process::execute(program, &words, &[failure])))
    }
}

/// Refuses whoever is not who the relay runs as, who logged in there.
fn own_user(user: Option<&UserSpec>) -> Result<(), Problem> {
    let other = match user {
        None | Some(UserSpec::Machine) => return Ok(()),
        Some(UserSpec::Numbered { uid, .. }) if *uid == rustix::process::getuid().as_raw() => return Ok(()),
        Some(UserSpec::Numbered { uid, .. }) => uid.to_string(),
        Some(UserSpec::Named(name)) => name.clone(),
        Some(UserSpec::Root) => "root".to_owned(),
    };
    Err(refused(&format!("user {other} is")).hint("commands run there as who logged in; leave the user out"))
}

fn no_environments() -> Problem {
    refused("environments are").hint("run plain commands there: testyard exec; nothing there keeps them apart")
}

fn refused(what: &str) -> Problem {
    let message = format!("{what} not to be had on a host on which Testyard's agent does not run");
    Problem::new(ProblemKind::Unsupported, message)
        .hint("`testyard info` tells why it does not, among the machine's limits")
}
