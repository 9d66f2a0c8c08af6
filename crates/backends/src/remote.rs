//! Backends `ssh` and `command`: a machine on another host, which is Testyard there. What is here is the process that
//! plays its agent ([`testyard_link::near`]).

use std::path::PathBuf;
use std::process::Command;

use testyard_link::{NearStart, PlainStart, Programs};
use testyard_machine::backend::{AgentLink, Backend, BackendError, MachinePlace, Recorder};
use testyard_machine::client::caller;
use testyard_model::{
    AgentUse, BackendName, ImageReference, Inside, MachineSpec, Problem, ProblemKind, Remote, Transport,
};
use testyard_protocol::start::{AgentMode, AgentStart};

use crate::agent_process;

/// How long making a connection may take, without what is delivered.
const CONNECT_MS: u64 = 20_000;
/// The file in a home with the sums of programs that are delivered.
const SUMS: &str = "programs.json";
/// A link is dead when nothing was heard for so long.
const ALIVE_MS: u64 = 30_000;

/// A machine elsewhere.
pub struct Elsewhere {
    name: BackendName,
}

impl Elsewhere {
    /// Over the system's OpenSSH.
    #[must_use]
    pub fn ssh() -> Self {
        Self { name: BackendName::ssh() }
    }

    /// Over any command's standard streams.
    #[must_use]
    pub fn command() -> Self {
        Self { name: BackendName::command() }
    }

    fn refuse(&self, ability: &str, hint: &str) -> BackendError {
        BackendError::NotOffered { backend: self.name.clone(), ability: ability.to_owned(), hint: hint.to_owned() }
    }

    /// How the other host is reached, which must be this backend's way.
    fn remote<'s>(&self, spec: &'s MachineSpec) -> Result<&'s Remote, BackendError> {
        let is_ssh = self.name == BackendName::ssh();
        let hint = if is_ssh { "say which host: --host USER@HOST" } else { "say through what: --through \"srun -N1\"" };
        let remote = spec.remote.as_ref().ok_or_else(|| self.refuse("that is nowhere", hint))?;
        match (&remote.transport, is_ssh) {
            (Transport::Ssh(_), true) | (Transport::Command(_), false) => Ok(remote),
            _ => Err(self.refuse("over another backend's way", hint)),
        }
    }

    /// What the machine is there: this specification, as its own host's backend sees it.
    fn there(&self, spec: &MachineSpec) -> Result<MachineSpec, BackendError> {
        let remote = self.remote(spec)?;
        let backend = match remote.inside {
            Inside::Host => BackendName::host(),
            Inside::Namespace => BackendName::namespace(),
            Inside::Strongest => return Err(self.refuse("of the strongest kind", "say --inside host or namespace")),
        };
        // Its life is decided here: there it ends with its session.
        Ok(MachineSpec { backend, remote: None, idle: None, ttl: None, pass_env: Vec::new(), ..spec.clone() })
    }
}

impl Backend for Elsewhere {
    fn name(&self) -> BackendName {
        self.name.clone()
    }

    fn check(&self, spec: &MachineSpec) -> Result<(), BackendError> {
        let remote = self.remote(spec)?;
        if spec.image != ImageReference::Host {
            return Err(
                self.refuse(&format!("from image {}", spec.image), "images are not on that host; leave --image out")
            );
        }
        let bare = remote.inside == Inside::Host;
        if matches!(&remote.transport, Transport::Ssh(ssh) if ssh.agent == AgentUse::Never) {
            let hint = "it takes Testyard's agent there: leave --agent out";
            if !bare {
                return Err(self.refuse("in a container of a host on which no agent runs", hint));
            }
            if let Some(user) = &spec.user {
                return Err(self.refuse(&format!("as user {user} of a host on which no agent runs"), hint));
            }
        }
        let namespace = "use --inside namespace";
        for (asked, ability) in [
            (spec.memory.is_some(), "a memory limit"),
            (spec.cpus.is_some(), "a processor limit"),
            (spec.disk.is_some(), "a disk limit"),
            (spec.privileged, "privileges"),
            (!spec.expose.is_empty(), "exposed paths"),
            (!spec.share.is_empty(), "shared folders"),
        ] {
            if asked && bare {
                return Err(self.refuse(&format!("with {ability}: its commands run on that host itself"), namespace));
            }
        }
        for (asked, ability, hint) in [
            (
                !spec.pass_env.is_empty(),
                "with variables of this host's",
                "pass them to each command: exec -e NAME=VALUE",
            ),
            (!spec.network.is_host(), "with a network of its own", "leave --network out"),
            (spec.docker, "with a docker of its own", "leave --docker out"),
        ] {
            if asked {
                return Err(self.refuse(ability, hint));
            }
        }
        check_architecture(&self.name, spec, "it is that of the host: leave --arch out")
    }

    fn create(&self, _place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        // Nothing of it is on this host but its folder.
        Ok(())
    }

    fn start(&self, place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<AgentLink, BackendError> {
        let remote = self.remote(&place.spec)?.clone();
        let plain = plain(place, &remote);
        near(place, remote, self.there(&place.spec)?, Vec::new(), plain)
    }

    fn stopped(&self, _place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        Ok(())
    }

    fn remove(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        agent_process::forget_records(place, recorder)
    }

    fn copy(&self, _from: &MachinePlace, to: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        // It has no files of its own: another session on the same host is the same machine.
        self.create(to, recorder)
    }
}

/// Refuses a chosen architecture: a machine elsewhere has that of its host.
pub(crate) fn check_architecture(backend: &BackendName, spec: &MachineSpec, hint: &str) -> Result<(), BackendError> {
    match &spec.arch {
        None => Ok(()),
        Some(arch) => Err(BackendError::Unsupported {
            backend: backend.clone(),
            ability: format!("of architecture {arch}"),
            hint: Some(hint.to_owned()),
        }),
    }
}

/// Starts the process that plays the agent of a machine which is `spec` on another host.
pub(crate) fn near(
    place: &MachinePlace,
    remote: Remote,
    spec: MachineSpec,
    notes: Vec<String>,
    plain: Option<PlainStart>,
) -> Result<AgentLink, BackendError> {
    let testyard = program(place)?;
    let start = NearStart {
        name: place.name.to_string(),
        session: session(),
        remote,
        spec,
        programs: Programs {
            testyard: testyard.clone(),
            agent: place.agent.clone(),
            sums: place.images.parent().map(|state| state.join(SUMS)),
        },
        plain,
        notes,
        asks: Some(place.asking_socket()).filter(|socket| socket.exists()),
        connect_ms: milliseconds("TESTYARD_CONNECT_MS", CONNECT_MS),
        alive_ms: milliseconds("TESTYARD_ALIVE_MS", ALIVE_MS),
    };
    let mut command = Command::new(testyard);
    command.arg("near");
    agent_process::spawn_as_agent(place, command, &start, None)
}

/// What the machine is where no program may run that is brought there: commands of that host itself, by whoever logged in.
fn plain(place: &MachinePlace, remote: &Remote) -> Option<PlainStart> {
    let can =
        matches!(remote.transport, Transport::Ssh(_)) && remote.inside == Inside::Host && place.spec.user.is_none();
    can.then(|| PlainStart {
        agent: AgentStart {
            machine: place.id.to_string(),
            mode: AgentMode::Process { workspaces: place.folder.join("workspaces") },
            user: caller(),
            env: Vec::new(),
            folder: Some(place.folder.clone().into()),
            cgroup: None,
            limits: Vec::new(),
            relay: Vec::new(),
        },
        folder: place.folder.clone(),
    })
}

/// A time that tests make shorter.
fn milliseconds(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// `testyard` itself, beside the agent.
fn program(place: &MachinePlace) -> Result<PathBuf, BackendError> {
    let path = place.agent.with_file_name("testyard");
    if path.is_file() {
        return Ok(path);
    }
    let message = format!("the program testyard is not at {}", path.display());
    Err(Problem::new(ProblemKind::NotFound, message).hint("install it: cargo xtask install").into())
}

/// A session's name, which nobody else has.
fn session() -> String {
    format!("{:013x}", u64::from_le_bytes(testyard_linux::random()) >> 12)
}
