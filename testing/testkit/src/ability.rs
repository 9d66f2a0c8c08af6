//! What a test needs of the host, found out by doing it, without any of the code under test.

use std::path::Path;
use std::process::{Command, Stdio};

/// Something that a host may be unable to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// This test runs as root of the host.
    Root,
    /// This test runs as an ordinary user, or may become one.
    OrdinaryUser,
    /// `/` is no overlay: a machine's root can be one, and so can that of a machine inside it. The kernel makes no third.
    PlainRoot,
    /// A user namespace with one id can be made.
    UserNamespaces,
    /// The ordinary user has a range of ids, and programs that map it.
    GrantedIds,
    /// A program is installed.
    Program(&'static str),
    /// The archive of Debian can be reached: mmdebstrap by itself gets as far as a list of packages.
    DebianArchive,
    /// A cgroup of the memory controller can be made (version 1 or 2).
    MemoryCgroup,
    /// A network of its own can have a way out: pasta, a device for it, and a way out of this host.
    Outbound,
}

/// Why the host lacks an ability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What is missing and what would provide it.
    pub reason: String,
    /// Nothing that could be installed would provide it.
    pub forced_by_host: bool,
}

impl Ability {
    /// Whether this host has it.
    ///
    /// # Errors
    ///
    /// The [`Lack`], fit to be shown.
    pub fn check(self) -> Result<(), Lack> {
        let (has, reason, forced_by_host) = match self {
            // The suite runs as root and as an ordinary user: each round forces the other's skips.
            Self::Root => (crate::user::is_host_root(), "needs root of the host".to_owned(), true),
            Self::OrdinaryUser => {
                let found = !crate::user::is_root() || crate::User::ordinary().is_some();
                (found, "needs an ordinary user: useradd --create-home tester".to_owned(), false)
            }
            Self::PlainRoot => (plain_root(), "needs a root that is no overlay itself".to_owned(), true),
            Self::UserNamespaces => {
                let why =
                    "user namespaces cannot be made here (kernel.unprivileged_userns_clone, user.max_user_namespaces)";
                (quiet("unshare", &["--user", "--map-root-user", "true"]), why.to_owned(), true)
            }
            Self::GrantedIds => {
                let why = "the ordinary user has no range of ids (package uidmap, usermod --add-subuids --add-subgids)";
                // Root of a user namespace has too few to give some away.
                (granted_ids(), why.to_owned(), crate::user::is_root() && !crate::user::is_host_root())
            }
            Self::Program(name) => (has_program(name), format!("program `{name}` is not installed"), false),
            Self::DebianArchive => {
                let simulated = ["--simulate", "--variant=essential", "bookworm", "/dev/null"];
                (quiet("mmdebstrap", &simulated), "the archive of Debian cannot be reached".to_owned(), true)
            }
            Self::MemoryCgroup => {
                (memory_cgroup(), "no cgroup of the memory controller can be made here".to_owned(), true)
            }
            Self::Outbound if !has_program("pasta") => (false, "program `pasta` is not installed".to_owned(), false),
            Self::Outbound => (way_out(), "no default route, or no /dev/net/tun that this user opens".to_owned(), true),
        };
        if has { Ok(()) } else { Err(Lack { reason, forced_by_host }) }
    }
}

fn quiet(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn granted_ids() -> bool {
    let Some(user) = crate::User::ordinary() else { return false };
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--map-auto", "true"]).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    user.apply(&mut command);
    command.status().is_ok_and(|status| status.success())
}

fn has_program(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').any(|folder| Path::new(folder).join(name).is_file())
}

fn plain_root() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut types = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        (fields.next() == Some("/")).then(|| fields.next()).flatten()
    });
    types.next_back() != Some("overlay")
}

fn way_out() -> bool {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let device = std::fs::File::options().read(true).write(true).open("/dev/net/tun");
    device.is_ok() && routes.lines().any(|line| line.split_whitespace().nth(1) == Some("00000000"))
}

fn memory_cgroup() -> bool {
    let name = format!("testkit-{}", std::process::id());
    ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].into_iter().any(|mount| {
        let group = Path::new(mount).join(&name);
        let made = std::fs::create_dir(&group).is_ok();
        let has_memory = group.join("memory.limit_in_bytes").exists() || group.join("memory.max").exists();
        made && std::fs::remove_dir(&group).is_ok() && has_memory
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_can_be_installed() {
        assert_eq!(Ability::Program("sh").check(), Ok(()));
        let lack = Ability::Program("no-such-program").check().expect_err("nobody has it");
        assert!(lack.reason.contains("no-such-program"));
        assert!(!lack.forced_by_host);
    }

    #[test]
    fn the_root_is_an_overlay_or_not() {
        let said = Command::new("stat").args(["-f", "-c", "%T", "/"]).output().expect("stat starts");
        let overlay = String::from_utf8_lossy(&said.stdout).contains("overlay");
        assert_eq!(Ability::PlainRoot.check().is_err(), overlay);
    }

    #[test]
    fn root_is_what_the_kernel_says() {
        let uid = rustix::process::geteuid();
        assert!(uid.is_root() || Ability::Root.check().is_err());
        assert_eq!(Ability::Root.check().is_ok(), crate::user::is_host_root());
    }
}
