//! The contract that every backend passes, on machines without a supervisor.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;

use testyard_machine::client::{ClientError, Connection};
use testyard_machine::contract::{Ability, Fixture};
use testyard_model::{BackendName, MachineName, MachineSpec, Problem, ProblemKind};

use crate::fixture::Machine;

struct Built {
    backend: BackendName,
    machines: RefCell<HashMap<MachineName, Machine>>,
}

impl Built {
    fn of(backend: BackendName) -> Self {
        Self { backend, machines: RefCell::default() }
    }

    fn is_host(&self) -> bool {
        self.backend == BackendName::host()
    }
}

impl Fixture for Built {
    fn lacks(&self, ability: Ability) -> Option<String> {
        let (root, ids) = (testkit::user::is_root(), testkit::user::is_host_root());
        let reason = match ability {
            Ability::Root if self.is_host() && !root => "plain processes are those of an ordinary user",
            Ability::OtherUsers if self.is_host() && !root => "an ordinary user can become nobody else",
            Ability::OtherUsers if !self.is_host() && !ids => "there is one id to give",
            Ability::OwnRoot | Ability::Environments if self.is_host() => "backend `host` has no root of its own",
            Ability::Limits if self.is_host() => "backend `host` sets no limits",
            Ability::Limits if !root => "no cgroup is writable for this user",
            Ability::NoEscape if self.is_host() => "plain processes can hide",
            _ => return None,
        };
        Some(reason.to_owned())
    }

    fn spec(&self) -> MachineSpec {
        MachineSpec::new(self.backend.clone())
    }

    fn create(&self, name: &MachineName, spec: &MachineSpec) -> Result<(), Problem> {
        if self.machines.borrow().contains_key(name) {
            // Names are the supervisor's; here only that there is one of each.
            return Err(Problem::new(ProblemKind::AlreadyExists, format!("machine {name} is there")));
        }
        let machine = Machine::named(spec.clone(), name.clone())?;
        self.machines.borrow_mut().insert(name.clone(), machine);
        Ok(())
    }

    fn stop(&self, name: &MachineName) -> Result<(), Problem> {
        self.machines.borrow_mut().get_mut(name).expect("it was created").down();
        Ok(())
    }

    fn start(&self, name: &MachineName) -> Result<(), Problem> {
        self.machines.borrow_mut().get_mut(name).expect("it was created").up();
        Ok(())
    }

    fn delete(&self, name: &MachineName) -> Result<(), Problem> {
        self.machines.borrow_mut().remove(name);
        Ok(())
    }

    fn connect(&self, name: &MachineName) -> Result<Connection, ClientError> {
        self.machines.borrow().get(name).expect("it was created").try_connect()
    }

    fn leftovers(&self) -> Vec<String> {
        self.machines.borrow().keys().map(ToString::to_string).collect()
    }

    fn secrets(&self) -> Vec<PathBuf> {
        vec!["/root/.bashrc".into(), "/etc/ssh/ssh_host_ed25519_key".into()]
    }
}

fn check(backend: BackendName) {
    let report = testyard_machine::contract::run(&Built::of(backend.clone())).expect("a machine");
    for (name, reason) in &report.skipped {
        testkit::skip_case!(format!("{backend}: {name}"), host: reason.as_str());
    }
    assert!(report.is_kept(), "{report}");
    assert!(report.passed.len() > 10, "{report}");
}

#[test]
fn both_backends_keep_the_contract() {
    // One after the other: the cases count processes by the same marks.
    check(BackendName::namespace());
    check(BackendName::host());
}
