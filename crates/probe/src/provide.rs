//! The command that would provide what is missing.

use std::path::Path;

/// The command that installs a package, by its Debian name; elsewhere what to look for.
pub(crate) fn package(debian: &str, program: &str) -> String {
    if Path::new("/usr/bin/apt-get").exists() {
        as_root(&format!("apt-get install -y --no-install-recommends {debian}"))
    } else {
        format!("install the program {program} (on Debian it is in the package {debian})")
    }
}

/// A command that root must run, for who is not root.
pub(crate) fn as_root(command: &str) -> String {
    if rustix::process::geteuid().is_root() { command.to_owned() } else { format!("sudo {command}") }
}

/// What would let this user make user namespaces, from the switches that forbid them.
pub(crate) fn user_namespaces() -> Option<String> {
    let is = |path: &str, value: &str| read(path).is_some_and(|text| text == value);
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return Some(as_root("sysctl -w kernel.unprivileged_userns_clone=1"));
    }
    if is("/proc/sys/user/max_user_namespaces", "0") {
        return Some(as_root("sysctl -w user.max_user_namespaces=15000"));
    }
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        return Some(as_root("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"));
    }
    if is_filtered() {
        return Some("start the outer container with --security-opt seccomp=unconfined".to_owned());
    }
    None
}

/// What would give this user a range of ids.
pub(crate) fn subordinate_ids(user: &str) -> String {
    as_root(&testyard_linux::user::granting_command(user))
}

/// What makes the outer container leave its `/proc` whole.
pub(crate) const UNMASKED_PROC: &str = "start the outer container with --security-opt unmask=ALL (podman) or --security-opt systempaths=unconfined (docker)";

/// Whether a system call filter lies on this process: some container's.
pub(crate) fn is_filtered() -> bool {
    crate::host::status_field("Seccomp").is_some_and(|mode| mode == "2")
}

pub(crate) fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
