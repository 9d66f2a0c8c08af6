//! The backends that Testyard comes with keep the contract of every machine.

use std::path::PathBuf;

use testkit::TestHome;
use testkit::skip::Skip;
use testyard::{BackendName, MachineName, MachineSpec, Options, Problem, Testyard};
use testyard_machine::backend::BackendTable;
use testyard_machine::client::{ClientError, Connection};
use testyard_machine::contract::{Ability, Fixture, run};
use testyard_machine::supervisor::socket_of;
use testyard_model::{Inside, Remote, Transport};
use testyard_protocol::Role;

#[path = "../examples/third_party_backend.rs"]
#[expect(dead_code, reason = "a program of its own, of which only the backend is used here")]
mod third_party_backend;

struct Machines {
    home: TestHome,
    yard: Testyard,
    backend: BackendName,
    /// What machines of this home are in: that host, or a namespace of it.
    inside: Inside,
}

impl Machines {
    fn of(backend: BackendName, program: PathBuf, backends: BackendTable) -> Self {
        let home = TestHome::new();
        let options = Options::at(&home.state()).expect("a fresh home");
        let agent = testkit::programs::path("testyard-agent");
        let yard = Testyard::open(Options { program, agent, backends, ..options }).expect("a fresh home");
        let inside = if backend == BackendName::namespace() { Inside::Namespace } else { Inside::Host };
        Self { home, yard, backend, inside }
    }

    /// Machines behind a link, whose other side is another home of this host.
    fn elsewhere(inside: Inside) -> Self {
        Self { inside, ..Self::built_in(BackendName::command()) }
    }

    fn far_home(&self) -> PathBuf {
        self.home.path().join("far")
    }

    fn built_in(backend: BackendName) -> Self {
        Self::of(backend, testkit::programs::path("testyard"), testyard_backends::built_in())
    }

    fn is_namespace(&self) -> bool {
        self.inside == Inside::Namespace
    }
}

impl Fixture for Machines {
    fn lacks(&self, ability: Ability) -> Option<String> {
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
            Ability::Joining | Ability::Lasting if self.backend == BackendName::command() => {
                Some("the machine is on another host, and made anew there by each start".to_owned())
            }
            Ability::Workspaces | Ability::Joining | Ability::Lasting => None,
            Ability::FramedTrees => Some("a tree to a machine of this host goes through a passed pipe".to_owned()),
        }
    }

    fn spec(&self) -> MachineSpec {
        let mut spec = MachineSpec::new(self.backend.clone());
        if self.backend == BackendName::command() {
            std::fs::create_dir_all(self.far_home()).expect("a folder of the test's own");
            let home = format!("HOME={}", self.far_home().display());
            let words = ["env", "-u", "XDG_STATE_HOME", "-u", "XDG_CACHE_HOME", &home, "TESTYARD_HOME=/nowhere"];
            let transport = Transport::Command(words.map(str::to_owned).to_vec());
            spec.remote = Some(Remote { transport, inside: self.inside, grace: None });
        }
        spec
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
        let sessions = std::fs::read_dir(self.far_home().join(".local/state/testyard-far")).into_iter().flatten();
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

fn keep_the_contract(machines: Machines) {
    let name = format!("the contract of backend {}", machines.backend);
    let report = run(&machines).expect("a machine can be made and removed");
    for (case, reason) in &report.skipped {
        let name = format!("{name}: {case}");
        Skip { name: &name, reason, forced_by_host: true, whole_test: false }.record();
    }
    assert!(report.is_kept(), "{name}: {report}");
    machines.home.finish();
}

#[test]
fn host_keeps_the_contract() {
    keep_the_contract(Machines::built_in(BackendName::host()));
}

#[test]
fn namespace_keeps_the_contract() {
    keep_the_contract(Machines::built_in(BackendName::namespace()));
}

#[test]
fn a_host_behind_a_link_keeps_the_contract() {
    keep_the_contract(Machines::elsewhere(Inside::Host));
}

#[test]
fn a_namespace_behind_a_link_keeps_the_contract() {
    keep_the_contract(Machines::elsewhere(Inside::Namespace));
}

#[test]
fn a_third_partys_backend_keeps_the_contract() {
    let name: BackendName = "folder".parse().expect("a name");
    let program = testkit::programs::path("testyard").with_file_name("examples").join("third_party_backend");
    assert!(program.is_file(), "{} is not built: cargo build -p testyard --examples", program.display());
    let backends = BackendTable::new().with(&name, || Box::new(third_party_backend::Folder));
    keep_the_contract(Machines::of(name, program, backends));
}
