//! Hosts that cannot do everything, built with the programs that containers are built with.
//!
//! They take root, and the programs; without them a test says so and passes.

use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use testyard_probe::{Answer, Report, RootKind};

/// The report that this program makes below a command, which gets it and its arguments at its end.
fn report_below(command: &mut Command) -> Option<Report> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = std::env::current_exe().expect("this program has a path");
    let output = command.arg(program).arg("json").arg(folder.path()).stdin(Stdio::null()).output();
    let name = command.get_program().display().to_string();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return skipped(&format!("{name} is missing"), false);
        }
        output => output.expect("it can be started"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !is_root() {
        return skipped(&format!("{name} takes root: {said}"), true);
    }
    Some(serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}")))
}

fn skipped(reason: &str, forced_by_host: bool) -> Option<Report> {
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let name = asked.unwrap_or_else(|| "a constructed host".to_owned());
    testkit::skip::Skip { name: &name, reason, forced_by_host, whole_test: true }.record();
    None
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]);
    command
}

/// The reason of an ability that must be missing, and the command that would provide it.
fn missing<'a>(report: &'a Report, ability: &str) -> (&'a str, &'a str) {
    let probe = report.probe(ability).expect("a known ability");
    assert_eq!(probe.answer, Answer::No, "{probe:?}");
    (&probe.reason, probe.provide.as_deref().unwrap_or_default())
}

pub(crate) fn root_without_the_right_to_administer() {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]);
    let Some(report) = report_below(&mut command) else { return };
    if !is_root() {
        return;
    }
    assert!(missing(&report, "root").0.contains("CAP_SYS_ADMIN"));
    missing(&report, "overlay-root");
    missing(&report, "idmapped-mount");
    if report.has("user-namespace") {
        assert_eq!(report.tier.backend.as_str(), "namespace", "{:?}", report.tier);
        assert_ne!(report.tier.root, RootKind::IdmappedLayers);
    }
}

pub(crate) fn a_container_that_covers_parts_of_proc() {
    let covers =
        "mount --make-rprivate /; mount -t tmpfs none /proc/irq; mount --bind /dev/null /proc/version; exec \"$@\"";
    let Some(report) = report_below(&mut shell(covers)) else { return };
    let (reason, provide) = missing(&report, "fresh-proc");
    assert!(reason.contains("covers /proc/irq, /proc/version"), "{reason}");
    assert!(provide.contains("unmask"), "{provide}");
    assert!(report.has("user-namespace") && report.has("pid-namespace"));
    assert_eq!(report.tier.backend.as_str(), "host");
    assert!(report.tier.reason.contains("fresh-proc"), "{}", report.tier.reason);
}

pub(crate) fn a_container_without_user_namespaces() {
    let mut command = Command::new("unshare");
    // In a user namespace of its own, so that the limit is nobody else's.
    let limit = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"";
    command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", limit, "sh"]);
    let Some(report) = report_below(&mut command) else { return };
    let (reason, provide) = missing(&report, "user-namespace");
    assert!(reason.contains("No space left on device"), "{reason}");
    assert!(provide.contains("sysctl -w user.max_user_namespaces="), "{provide}");
    assert_eq!((report.tier.backend.as_str(), report.tier.root), ("host", RootKind::None));
    assert!(report.tier.reason.contains("user-namespace"), "{}", report.tier.reason);
    assert!(report.host.container.is_some());
}

pub(crate) fn a_container_with_few_devices() {
    let mut command = Command::new("bwrap");
    command.args(["--bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "--"]);
    let Some(report) = report_below(&mut command) else { return };
    assert_eq!(missing(&report, "kvm").0, "there is no /dev/kvm");
    // Root of a container that was handed its control groups keeps them in another inside.
    if !is_root() || testkit::user::is_host_root() {
        missing(&report, "cgroup-memory");
    }
    assert!(!report.tier.reason.is_empty());
}

pub(crate) fn a_container_whose_filter_hides_clone3() {
    let filter = filter();
    let mut command = Command::new("bwrap");
    let descriptor = filter.as_raw_fd().to_string();
    command.args(["--dev-bind", "/", "/", "--seccomp", &descriptor, "--"]);
    let Some(report) = report_below(&mut command) else { return };
    let (reason, provide) = missing(&report, "user-namespace");
    assert!(reason.contains("a system call filter of the outer container"), "{reason}");
    assert!(provide.contains("seccomp=unconfined"), "{provide}");
    assert_eq!(report.tier.backend.as_str(), "host");
}

/// A filter as bubblewrap reads it: clone3 is ENOSYS, everything else is allowed. Its descriptor is inheritable.
fn filter() -> OwnedFd {
    const CLONE3: u32 = 435;
    const ENOSYS: u32 = 38;
    // Load the number; is it clone3; no: allow; yes: an error. Code, jumps, constant.
    let program: [(u16, u8, u8, u32); 4] =
        [(0x20, 0, 0, 0), (0x15, 0, 1, CLONE3), (0x06, 0, 0, 0x0005_0000 | ENOSYS), (0x06, 0, 0, 0x7fff_0000)];
    let mut file = tempfile::tempfile().expect("a temporary file");
    for (code, yes, no, constant) in program {
        let mut instruction = code.to_ne_bytes().to_vec();
        instruction.extend([yes, no]);
        instruction.extend(constant.to_ne_bytes());
        file.write_all(&instruction).expect("written");
    }
    file.rewind().expect("a regular file");
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).expect("open");
    file.into()
}
