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
fn shared_memory_counts_as_disk_and_ends_before_the_hosts_does() {
    let machine = Machine::namespace();
    let mut limited = isolated(ordinary());
    limited.limits.disk = Some(ByteSize::mebibytes(8));
    let fill =
        "head -c 16777216 /dev/zero > /dev/shm/full 2>/dev/null; stat -c %s /dev/shm/full; : > /dev/null && echo fine";
    assert_eq!(machine.run(fresh(&limited), fill).ok(), "8388608\nfine");
    let size = "stat -f -c '%b %S' /dev/shm";
    let said = machine.run(testyard_protocol::Place::Machine, size).ok();
    let bytes: u64 = said.split_whitespace().map(|word| word.parse::<u64>().expect("a number")).product();
    assert_eq!(bytes, testyard_model::EnvironmentLimits::DEFAULT_DISK.0);
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
    refused(&|spec| spec.disk = Some(ByteSize::mebibytes(1)), &namespace);
    refused(&|spec| spec.cpus = Some(0.0), &namespace);
    refused(&|spec| spec.arch = Some("s390x".into()), &namespace);
    if !testkit::user::is_root() {
        refused(&|spec| spec.disk = Some(ByteSize::mebibytes(100)), &namespace);
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

/// Files behind loop devices.
fn loop_files() -> String {
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices.filter_map(|device| std::fs::read_to_string(device.path().join("loop/backing_file")).ok()).collect()
}

#[test]
fn a_machines_disk_holds_what_it_was_given_and_no_more() {
    let mut spec = MachineSpec::new(BackendName::namespace());
    spec.disk = Some(ByteSize::mebibytes(64));
    if let Err(error) = testyard_machine::backend::Backend::check(&testyard_backends::Namespace, &spec) {
        testkit::skip!("a machine's disk", host: error.problem().hints.join("; "));
    }
    let mut machine = Machine::start(spec.clone());
    let as_root = |machine: &Machine, text: &str| {
        let exec =
            testyard_protocol::Exec { user: Some(UserSpec::Root), ..script(testyard_protocol::Place::Machine, text) };
        crate::fixture::capture(&mut machine.connect(), exec).ok()
    };
    let fill = "head -c 104857600 /dev/zero > /var/tmp/full 2>/dev/null; stat -c %s /var/tmp/full; rm /var/tmp/full";
    let written: u64 = as_root(&machine, fill).parse().expect("a number");
    assert!((60 << 20..72 << 20).contains(&written), "{written}");
    as_root(&machine, "echo kept > /var/tmp/kept; chown 1234:4321 /var/tmp/kept; rm /etc/hostname");
    let look = "stat -c %u:%g /var/tmp/kept; cat /var/tmp/kept; test ! -e /etc/hostname && echo gone";
    machine.down();
    let mut clone = Machine::created(spec);
    machine.copy_to(&mut clone);
    machine.up();
    clone.up();
    for machine in [&machine, &clone] {
        assert_eq!(as_root(machine, look), "1234:4321\nkept\ngone");
        assert_eq!(machine.run(fresh(&isolated(ordinary())), look).ok(), "1234:4321\nkept\ngone");
    }
    let folders = [machine.place.folder.clone(), clone.place.folder.clone()];
    drop((machine, clone));
    for folder in folders {
        let name = folder.display().to_string();
        crate::fixture::eventually("the loop device is free", || !loop_files().contains(&name));
    }
}
