//! Limits: what holds, what a host cannot give, and what is said of either.

use testyard_machine::client::ClientError;
use testyard_model::{BackendName, ByteSize, EnvironmentSpec, MachineSpec, ProblemKind, UserSpec};

use crate::fixture::{Machine, fresh, isolated, ordinary, run, script};

fn can_limit(machine: &Machine) -> bool {
    !machine.limits.iter().any(|limit| limit.contains("no cgroup"))
}

#[test]
fn a_memory_limit_holds_and_is_told() {
    let machine = Machine::namespace();
    if !can_limit(&machine) {
        testkit::skip!("a memory limit holds", "no cgroup is writable for this user");
    }
    let mut limited = isolated(ordinary());
    limited.limits.memory = Some(ByteSize::mebibytes(40));
    let mut connection = machine.connect();
    let said = run(&mut connection, fresh(&limited), "python3 -c 'x = b\"1\" * (200 << 20)'");
    assert!(!said.captured.finished.status.success() && said.captured.finished.usage.out_of_memory, "{said:?}");
    let said = run(&mut connection, fresh(&limited), "echo fine");
    assert!(said.captured.finished.usage.unavailable.iter().all(|name| name == "io"), "{said:?}");
    assert!(!said.captured.finished.usage.out_of_memory);
    assert_eq!(said.ok(), "fine");
}

#[test]
fn a_limit_on_processes_holds() {
    let machine = Machine::namespace();
    if !can_limit(&machine) {
        testkit::skip!("a limit on processes holds", "no cgroup is writable for this user");
    }
    let mut limited = isolated(ordinary());
    limited.limits.pids = Some(12);
    let text = "python3 -c '
import os
for count in range(100):
    try:
        if os.fork() == 0:
            os.execv(\"/bin/sleep\", [\"sleep\", \"100\"])
    except OSError as error:
        print(count < 12, error.errno)
        break
'";
    assert_eq!(machine.run(fresh(&limited), text).ok(), "True 11");
}

#[test]
fn limits_that_cannot_be_set_are_told_or_refused() {
    let machine = Machine::namespace();
    if can_limit(&machine) {
        testkit::skip!("limits that cannot be set are told", host: "every limit can be set here");
    }
    let mut limited = isolated(ordinary());
    limited.limits.memory = Some(ByteSize::mebibytes(40));
    limited.limits.pids = Some(10);
    let said = machine.run(fresh(&limited), "echo fine");
    assert_eq!(said.captured.finished.usage.unavailable, ["memory", "pids", "io"], "{said:?}");
    limited.strict_limits = true;
    let refused = machine.connect().capture(script(fresh(&limited), "echo never"), &[]);
    let Err(ClientError::Refused(problem)) = refused else { panic!("{refused:?}") };
    assert_eq!(problem.kind, ProblemKind::Unsupported);
    assert!(problem.message.contains("memory") && problem.message.contains("pids"), "{problem:?}");
}

fn small(user: UserSpec) -> EnvironmentSpec {
    let mut small = isolated(user);
    small.limits.disk = Some(ByteSize::mebibytes(4));
    small
}

#[test]
fn a_full_disk_is_an_error_inside_and_nothing_more() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    for user in [ordinary(), UserSpec::Root] {
        let text =
            "head -c 9000000 /dev/zero > /tmp/big 2>&1; echo $?; stat -c %s /tmp/big | grep -vq 9000000 && echo full";
        let said = run(&mut connection, fresh(&small(user.clone())), text).ok();
        assert!(said.ends_with("1\nfull"), "{said}");
        assert_eq!(run(&mut connection, fresh(&small(user)), "echo a > /tmp/a; cat /tmp/a").ok(), "a");
    }
}

#[test]
fn usage_is_measured() {
    let machine = Machine::namespace();
    let said = machine.run(fresh(&isolated(ordinary())), "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done");
    let usage = said.captured.finished.usage;
    assert!(usage.cpu_us > 1000 && usage.wall_us >= 1000, "{usage:?}");
    assert!(usage.memory_peak.is_some_and(|bytes| bytes > 100_000), "{usage:?}");
}

#[test]
fn machines_refuse_what_they_cannot_give() {
    let refused = |change: &dyn Fn(&mut MachineSpec), backend: &BackendName| {
        let mut spec = MachineSpec::new(backend.clone());
        change(&mut spec);
        let checked = if *backend == BackendName::host() {
            testyard_machine::backend::Backend::check(&testyard_backends::Host, &spec)
        } else {
            testyard_machine::backend::Backend::check(&testyard_backends::Namespace, &spec)
        };
        let problem = checked.expect_err("refused").problem();
        assert!(!problem.hints.is_empty(), "{problem:?}");
    };
    let namespace = BackendName::namespace();
    refused(&|spec| spec.disk = Some(ByteSize::mebibytes(100)), &namespace);
    refused(&|spec| spec.cpus = Some(0.0), &namespace);
    refused(&|spec| spec.arch = Some("s390x".into()), &namespace);
    if !testkit::user::is_root() {
        refused(&|spec| spec.privileged = true, &namespace);
        refused(&|spec| spec.memory = Some(ByteSize::mebibytes(100)), &namespace);
    }
    refused(&|spec| spec.memory = Some(ByteSize::mebibytes(100)), &BackendName::host());
    refused(&|spec| spec.image = "debian:12".parse().expect("an image"), &BackendName::host());
}

#[test]
fn a_machines_own_limits_hold_for_all_in_it() {
    if !testkit::user::is_root() {
        testkit::skip!("a machine's own limits", "no cgroup is writable for this user");
    }
    let mut spec = MachineSpec::new(BackendName::namespace());
    spec.memory = Some(ByteSize::mebibytes(60));
    let machine = Machine::start(spec);
    let mut connection = machine.connect();
    let eat = "python3 -c 'x = b\"1\" * (300 << 20)'";
    assert!(!run(&mut connection, fresh(&isolated(ordinary())), eat).captured.finished.status.success());
    let said = run(&mut connection, testyard_protocol::Place::Machine, &format!("{eat}; echo $?"));
    assert!(said.text == "137" || !said.captured.finished.status.success(), "{said:?}");
    assert_eq!(run(&mut connection, testyard_protocol::Place::Machine, "echo alive").ok(), "alive");
}
