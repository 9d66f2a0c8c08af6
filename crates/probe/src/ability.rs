//! The list of abilities: their stable names, and how each is found out.

use std::time::Duration;

use crate::finding::Outcome;
use crate::host::HostFacts;
use crate::probes::{cgroups, facts, machines, namespaces, overlays, programs, services};

/// Something that a host may be able to do. Its name is stable: suites write it in `needs`.
#[derive(Debug, Clone, Copy)]
pub struct Ability {
    /// The word that suites use.
    pub name: &'static str,
    /// What it is, for people.
    pub title: &'static str,
    /// How long its probe may take before that is the answer.
    pub deadline: Duration,
    pub(crate) how: How,
}

/// How an ability is found out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum How {
    /// By doing it, in a process of its own.
    Process(fn() -> Outcome),
    /// From what is known of this moment; too cheap and too short-lived to be kept.
    Fact(fn(&HostFacts) -> Outcome),
}

/// Longer than anything takes on a busy host; a process that needs so long hangs.
const SHORT: Duration = Duration::from_secs(10);
/// For programs that start others.
const LONG: Duration = Duration::from_secs(20);

const fn process(name: &'static str, title: &'static str, deadline: Duration, run: fn() -> Outcome) -> Ability {
    Ability { name, title, deadline, how: How::Process(run) }
}

const fn fact(name: &'static str, title: &'static str, look: fn(&HostFacts) -> Outcome) -> Ability {
    Ability { name, title, deadline: SHORT, how: How::Fact(look) }
}

static ABILITIES: [Ability; 35] = [
    fact("root", "root of the host", facts::root),
    process("user-namespace", "user namespaces with one id", SHORT, namespaces::user),
    process("user-namespace-range", "user namespaces with a range of ids", SHORT, namespaces::user_range),
    process("newuidmap", "newuidmap and newgidmap", SHORT, namespaces::newuidmap),
    process("mount-namespace", "mount namespaces", SHORT, namespaces::mount),
    process("pid-namespace", "pid namespaces", SHORT, namespaces::pid),
    process("network-namespace", "network namespaces", SHORT, namespaces::network),
    process("machine-network", "networks of machines", SHORT, namespaces::machine_network),
    process("ipc-namespace", "IPC namespaces", SHORT, namespaces::ipc),
    process("uts-namespace", "host name namespaces", SHORT, namespaces::uts),
    process("cgroup-namespace", "cgroup namespaces", SHORT, namespaces::cgroup),
    process("fresh-proc", "a fresh /proc in a user namespace", SHORT, namespaces::fresh_proc),
    process("seccomp", "system call filters", SHORT, namespaces::seccomp),
    process("overlay-root", "overlays as root", SHORT, overlays::root),
    process("overlay-user", "overlays as an ordinary user", SHORT, overlays::user),
    process("overlay-data-only", "overlays with data-only layers", SHORT, overlays::data_only),
    process("idmapped-mount", "idmapped mounts of the root", SHORT, overlays::idmapped),
    process("cgroup-memory", "memory limits", SHORT, cgroups::memory),
    process("cgroup-pids", "limits of processes", SHORT, cgroups::pids),
    process("cgroup-cpu", "limits of processor time", SHORT, cgroups::cpu),
    process("cgroup-io", "accounts of disk traffic", SHORT, cgroups::io),
    process("kvm", "virtual processors", SHORT, machines::kvm),
    process("qemu", "QEMU for this processor", LONG, machines::qemu),
    process("oci-runtime", "an OCI runtime", LONG, machines::oci_runtime),
    process("sshd", "an SSH server", LONG, services::sshd),
    process("ssh", "an SSH client", SHORT, services::ssh),
    process("slurm", "Slurm's daemons", LONG, services::slurm),
    process("nftables", "nftables", SHORT, services::nftables),
    process("pasta", "pasta: a network without privilege", LONG, services::pasta),
    process("mmdebstrap", "mmdebstrap: Debian images", LONG, programs::mmdebstrap),
    process("git", "git", SHORT, programs::git),
    process("bubblewrap", "bubblewrap, to compare with", SHORT, programs::bubblewrap),
    fact("disk", "1 GiB free for Testyard's state", facts::disk),
    fact("local-state", "state on a local file system", facts::local_state),
    fact("memory", "512 MiB of memory available", facts::memory),
];

/// Every ability, in the order in which people read them.
#[must_use]
pub fn abilities() -> &'static [Ability] {
    &ABILITIES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_lists_them_all_in_their_order() {
        let page = include_str!("../../../docs/doctor.md");
        let listed: Vec<(&str, &str)> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
            .map(|(name, rest)| (name, rest.split(" | ").next().unwrap_or_default()))
            .collect();
        let known: Vec<(&str, &str)> = abilities().iter().map(|ability| (ability.name, ability.title)).collect();
        assert_eq!(listed, known);
    }

    #[test]
    fn names_are_words_and_unique() {
        for (index, ability) in abilities().iter().enumerate() {
            let is_word = ability.name.split('-').all(|word| {
                !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            });
            assert!(is_word, "{}", ability.name);
            assert!(abilities()[..index].iter().all(|other| other.name != ability.name), "{}", ability.name);
        }
    }
}
