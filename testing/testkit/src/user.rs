//! Being an ordinary user, where root runs the tests.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// A user that commands can run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id; supplementary groups are always cleared.
    pub gid: u32,
}

/// The user whom `cargo xtask test` makes for the suite's second round.
const ORDINARY: &str = "tester";

impl User {
    /// Whoever runs this test.
    #[must_use]
    pub fn current() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// The ordinary user: this one, or for root the user `tester` if there is one.
    #[must_use]
    pub fn ordinary() -> Option<Self> {
        if !is_root() {
            return Some(Self::current());
        }
        find(&std::fs::read_to_string("/etc/passwd").ok()?, ORDINARY)
    }

    /// Makes a command run as this user. Only root can make it another than the one that runs this test.
    pub fn apply(self, command: &mut Command) {
        if self != Self::current() {
            // Also drops supplementary groups.
            command.uid(self.uid).gid(self.gid);
        }
    }
}

/// Whether this test runs as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this test runs as root of the host, not as that of a user namespace, who has few ids and can change nothing of
/// the host's.
#[must_use]
pub fn is_host_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    is_root() && map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

fn find(passwd: &str, name: &str) -> Option<User> {
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let fields = lines.find(|fields| fields.first() == Some(&name))?;
    Some(User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_from_a_passwd_file() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\ntester:x:1001:1002::/home/tester:/bin/sh\n";
        assert_eq!(find(passwd, "tester"), Some(User { uid: 1001, gid: 1002 }));
        assert_eq!(find(passwd, "test"), None);
    }

    #[test]
    fn a_command_runs_as_the_ordinary_user() {
        crate::require!(crate::Ability::OrdinaryUser);
        let user = User::ordinary().expect("just required");
        let mut command = Command::new("/usr/bin/id");
        command.arg("-u").current_dir("/");
        user.apply(&mut command);
        let output = command.output().expect("id starts");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), user.uid.to_string());
        assert_ne!(user.uid, 0);
    }
}
