//! Machines of one backend for the contract, in a home of the test's own, as users of the library make them.

use std::path::PathBuf;

use testkit::skip::Skip;
use testkit::{Sshd, TestHome};
use testyard::{BackendName, MachineName, MachineSpec, Options, Problem, Testyard};
use testyard_machine::client::{ClientError, Connection};
use testyard_machine::contract::{Ability, Fixture, run};
use testyard_machine::supervisor::socket_of;
use testyard_model::{AgentUse, HostKeys, Inside, Remote, SlurmJob, SshTransport, Transport};
use testyard_protocol::Role;

pub(crate) struct Machines {
    /// What leads to machines over SSH. First: its files are in the home.
    sshd: Option<Sshd>,
    home: TestHome,
    yard: Testyard,
    backend: BackendName,
    /// What machines of this home are in: that host, or a namespace of it.
    inside: Inside,
    /// How they are reached where that is not over SSH.
    transport: Option<Transport>,
    /// Whether programs of ours run where they are.
    agent: AgentUse,
    /// Where the other side keeps what it has of its machines.
    sessions: PathBuf,
}

impl Machines {
    /// Of this backend, with other options than a home has by itself.
    pub(crate) fn of(backend: BackendName, options: impl FnOnce(Options) -> Options) -> Self {
        let home = TestHome::new();
        let own = Options::at(&home.state()).expect("a fresh home");
        let programs = ["testyard", "testyard-agent"].map(testkit::programs::path);
        let [program, agent] = programs;
        let yard = Testyard::open(options(Options { program, agent, ..own })).expect("a fresh home");
        let inside = if backend == BackendName::namespace() { Inside::Namespace } else { Inside::Host };
        let sessions = home.path().join("far/.local/state/testyard-far");
        Self { sshd: None, home, yard, backend, inside, transport: None, agent: AgentUse::Auto, sessions }
    }

    pub(crate) fn built_in(backend: BackendName) -> Self {
        Self::of(backend, |options| options)
    }

    /// Machines behind a link, whose other side is another home of this host.
    pub(crate) fn elsewhere(inside: Inside) -> Self {
        let machines = Self::built_in(BackendName::command());
        let far = machines.home.path().join("far");
        std::fs::create_dir(&far).expect("a folder of the test's own");
        let home = format!("HOME={}", far.display());
        let words = ["env", "-u", "XDG_STATE_HOME", "-u", "XDG_CACHE_HOME", &home, "TESTYARD_HOME=/nowhere"];
        let transport = Some(Transport::Command(words.map(str::to_owned).to_vec()));
        Self { inside, transport, ..machines }
    }

    /// Machines over SSH, on a server of the test's own.
    pub(crate) fn over_ssh(inside: Inside, agent: AgentUse) -> Self {
        let machines = Self::built_in(BackendName::ssh());
        // Without an agent each command is a session there.
        let sshd = Sshd::start(&machines.home, "MaxSessions 200", "");
        let transport = SshTransport {
            host: "127.0.0.1".to_owned(),
            user: Some(Sshd::user()),
            port: Some(sshd.port()),
            identity: Some(sshd.file("user")),
            jump: None,
            config: Some(sshd.file("empty")),
            known_hosts: Some(sshd.file("known")),
            host_keys: HostKeys::Strict,
            password: None,
            agent,
        };
        Self { inside, agent, sshd: Some(sshd), transport: Some(Transport::Ssh(transport)), ..machines }
    }

    /// Machines that are jobs of the cluster whose commands are here.
    pub(crate) fn of_slurm(job: SlurmJob) -> Self {
        let machines = Self::built_in(BackendName::slurm_allocation());
        // A node has no home for it that is certainly its own.
        let sessions = format!("/var/tmp/testyard-far-{}", rustix::process::geteuid().as_raw()).into();
        Self { inside: Inside::Strongest, transport: Some(Transport::Slurm(job)), sessions, ..machines }
    }

    fn is_namespace(&self) -> bool {
        self.inside != Inside::Host
    }

    /// What a machine on another host lacks, whatever it is there.
    fn lacks_elsewhere(&self, ability: Ability) -> Option<&'static str> {
        self.transport.as_ref()?;
        let bare = self.agent == AgentUse::Never;
        match ability {
            Ability::Joining | Ability::Lasting => {
                Some("the machine is on another host, and made anew there by each start")
            }
            Ability::Root | Ability::OtherUsers if bare => Some("without an agent there is only who logged in"),
            Ability::OwnRoot | Ability::Environments | Ability::Workspaces | Ability::Limits if bare => {
                Some("without an agent nothing is kept apart there")
            }
            Ability::NoEscape if bare => Some("plain processes can hide"),
            Ability::Signals if bare => Some("a shell there tells of a signal by an exit code"),
            Ability::Terminals if bare && !testkit::user::is_root() => {
                Some("an ordinary user's sshd cannot give a terminal away")
            }
            _ => None,
        }
    }
}

impl Fixture for Machines {
    fn lacks(&self, ability: Ability) -> Option<String> {
        if let Some(reason) = self.lacks_elsewhere(ability) {
            return Some(reason.to_owned());
        }
        let (root, ids) = (testkit::user::is_root(), testkit::user::is_host_root());
        let plain = || Some("backend host runs plain processes".to_owned());
        match ability {
            Ability::Root if self.is_namespace() => None,
            Ability::OtherUsers if self.is_namespace() && ids => None,
            Ability::OtherUsers if self.is_namespace() => Some("there is one id to give".to_owned()),
            Ability::Root | Ability::OtherUsers if root => None,
            Ability::Root | Ability::OtherUsers => plain(),
            Ability::OwnRoot | Ability::Environments if self.is_namespace() => None,
            Ability::OwnRoot | Ability::Environments | Ability::NoEscape => plain(),
            Ability::Limits if self.is_namespace() && root => None,
            Ability::Limits if self.is_namespace() => Some("no cgroup is writable for an ordinary user".to_owned()),
            Ability::Limits => plain(),
            Ability::Workspaces
            | Ability::Joining
            | Ability::Lasting
            | Ability::Signals
            | Ability::Terminals
            | Ability::FramedTrees => None,
        }
    }

    fn spec(&self) -> MachineSpec {
        let remote = |transport: &Transport| Remote { transport: transport.clone(), inside: self.inside, grace: None };
        MachineSpec { remote: self.transport.as_ref().map(remote), ..MachineSpec::new(self.backend.clone()) }
    }

    fn create(&self, name: &MachineName, spec: &MachineSpec) -> Result<(), Problem> {
        self.yard.machines().create(name, spec).map(|_| ())
    }

    fn stop(&self, name: &MachineName) -> Result<(), Problem> {
        self.yard.machines().stop(name, true).map(|_| ())
    }

    fn start(&self, name: &MachineName) -> Result<(), Problem> {
        self.yard.machines().start(name).map(|_| ())
    }

    fn delete(&self, name: &MachineName) -> Result<(), Problem> {
        self.yard.machines().delete(name, true)
    }

    fn connect(&self, name: &MachineName) -> Result<Connection, ClientError> {
        let socket = socket_of(self.yard.options().home.runtime(), name);
        Connection::open(&socket, Role::Agent, name.as_str())
    }

    fn leftovers(&self) -> Vec<String> {
        let home = &self.yard.options().home;
        let known: Vec<_> = self.yard.machines().list().expect("readable").into_iter().map(|info| info.id).collect();
        let mut left = Vec::new();
        for folder in [home.machines_folder(), home.leases_folder()] {
            for entry in std::fs::read_dir(folder).expect("a folder of the home") {
                let name = entry.expect("readable").file_name().to_string_lossy().into_owned();
                if !known.iter().any(|id| name.starts_with(id.as_str())) {
                    left.push(name);
                }
            }
        }
        let sessions = std::fs::read_dir(&self.sessions).into_iter().flatten();
        left.extend(sessions.flatten().map(|entry| entry.path().display().to_string()));
        left
    }

    fn secrets(&self) -> Vec<PathBuf> {
        let mut secrets = vec![self.yard.options().home.state().to_path_buf()];
        if rustix::process::getuid().is_root() {
            secrets.extend(["/etc/shadow", "/root/.ssh", "/root/.bash_history"].map(PathBuf::from));
        }
        secrets
    }
}

pub(crate) fn keep_the_contract(machines: Machines) {
    let over = machines.transport.as_ref().map_or_else(String::new, |_| format!(" ({:?})", machines.inside));
    let name = format!("the contract of backend {}{over}", machines.backend);
    let report = run(&machines).expect("a machine can be made and removed");
    for (case, reason) in &report.skipped {
        let name = format!("{name}: {case}");
        Skip { name: &name, reason, forced_by_host: true, whole_test: false }.record();
    }
    assert!(report.is_kept(), "{name}: {report}");
    assert!(report.passed.len() > 10, "{name}: {report}");
    let Machines { sshd, home, .. } = machines;
    drop(sshd);
    home.finish();
}
