//! The backends that Testyard comes with keep the contract of every machine. That of allocations is with the tests that
//! have a Slurm cluster, in the command line's.

use testkit::Sshd;
use testyard::{BackendName, Options};
use testyard_machine::backend::BackendTable;
use testyard_model::{AgentUse, Inside};

#[path = "../examples/third_party_backend.rs"]
#[expect(dead_code, reason = "a program of its own, of which only the backend is used here")]
mod third_party_backend;

#[expect(dead_code, reason = "shared with the tests that have a Slurm cluster")]
mod machines;

use machines::{Machines, keep_the_contract};

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

/// Over a real sshd.
fn keep_the_contract_over_ssh(name: &str, inside: Inside, agent: AgentUse) {
    if let Some(lack) = Sshd::lacks() {
        testkit::skip!(name, lack);
    }
    keep_the_contract(Machines::over_ssh(inside, agent));
}

#[test]
fn a_host_over_ssh_keeps_the_contract() {
    keep_the_contract_over_ssh("a_host_over_ssh_keeps_the_contract", Inside::Host, AgentUse::Auto);
}

#[test]
fn a_namespace_over_ssh_keeps_the_contract() {
    keep_the_contract_over_ssh("a_namespace_over_ssh_keeps_the_contract", Inside::Namespace, AgentUse::Auto);
}

#[test]
fn a_host_over_plain_ssh_keeps_the_contract() {
    keep_the_contract_over_ssh("a_host_over_plain_ssh_keeps_the_contract", Inside::Host, AgentUse::Never);
}

#[test]
fn a_third_partys_backend_keeps_the_contract() {
    let name: BackendName = "folder".parse().expect("a name");
    let program = testkit::programs::path("testyard").with_file_name("examples").join("third_party_backend");
    assert!(program.is_file(), "{} is not built: cargo build -p testyard --examples", program.display());
    let backends = BackendTable::new().with(&name, || Box::new(third_party_backend::Folder));
    keep_the_contract(Machines::of(name, |options| Options { program, backends, ..options }));
}
