//! The program under its other name, in a home that holds a Debian.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use testkit::{Ability, Output, TestHome};
use testyard_linux::lock::{FileLock, Mode, Patience};

/// Longer than a slow host needs to import a root file system.
const DEADLINE: Duration = Duration::from_secs(240);

/// What clients take for a passing error, and then try again for many seconds.
pub(crate) const RETRIED: [&str; 15] = [
    "timeout",
    "connection",
    "network",
    "tls",
    "handshake",
    "download",
    "cdn",
    "http",
    "https",
    "tcp",
    "dns",
    "missing ip address",
    "didn't start",
    "setup",
    "machine",
];

/// A home whose commands are given by words that follow `orbctl`.
pub(crate) struct Orb {
    pub(crate) home: TestHome,
    link: PathBuf,
}

/// A home with `debian:12` stored, or a skip.
macro_rules! with_debian {
    () => {{
        testkit::require_programs!();
        testkit::require!(testkit::Ability::UserNamespaces);
        match $crate::orb::debian() {
            Ok(archive) => {
                let orb = $crate::orb::Orb::new();
                orb.store(&archive);
                orb
            }
            Err(reason) => testkit::skip!(module_path!(), host: reason),
        }
    }};
}
pub(crate) use with_debian;

impl Orb {
    pub(crate) fn new() -> Self {
        let home = TestHome::new();
        let folder = home.work().join("bin");
        std::fs::create_dir(&folder).expect("the home is ours");
        let link = folder.join("orbctl");
        std::os::unix::fs::symlink(home.program("testyard"), &link).expect("the home is ours");
        Self { home, link }
    }

    pub(crate) fn store(&self, archive: &Path) {
        self.home.must_run(&["image", "import", "debian:12", archive.to_str().expect("text")]);
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.home.command(&self.link);
        command.args(words);
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        Output::of(&mut self.command(words), DEADLINE)
    }

    /// Standard output of a call that must succeed.
    #[track_caller]
    pub(crate) fn must(&self, words: &[&str]) -> String {
        self.run(words).expect_success().stdout
    }

    #[track_caller]
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        self.run(words).expect_success().json()
    }

    /// A call that must fail for good: with this on standard error, and no word that makes clients try again.
    #[track_caller]
    pub(crate) fn refused(&self, words: &[&str], told: &str) {
        let output = self.run(words);
        assert_ne!(output.code, 0, "{words:?}: {output}");
        assert!(output.stdout.is_empty(), "{words:?}: {output}");
        assert!(output.stderr.contains(told), "{words:?} does not tell {told:?}: {output}");
        let said = output.stderr.to_lowercase();
        let retried = RETRIED.iter().find(|word| said.contains(*word));
        assert_eq!(retried, None, "{words:?}: {output}");
        assert_eq!(output.stderr.matches("error:").count(), 1, "{words:?}: {output}");
    }

    /// The names and states in `list`.
    #[track_caller]
    pub(crate) fn states(&self) -> Vec<(String, String)> {
        let list = self.json(&["list", "-f", "json"]);
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        list.as_array().expect("an array").iter().map(|one| (text(&one["name"]), text(&one["state"]))).collect()
    }
}

/// Whether a machine here has more ids than its root's, so that another user in it can become root.
pub(crate) fn has_many_ids() -> bool {
    testkit::user::is_host_root()
}

/// An archive of Debian 12 with sudo, made once and kept beside what is built.
pub(crate) fn debian() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let archive = folder.join("debian-12.tar");
    if archive.is_file() {
        return Ok(archive);
    }
    Ability::Program("mmdebstrap").check().map_err(|lack| lack.reason)?;
    if !testkit::user::is_host_root() {
        return Err("only root can build a Debian; it is kept for this test then".to_owned());
    }
    let lock = FileLock::acquire(&folder.join("debian-12.lock"), Mode::Exclusive, Patience::Wait);
    let _lock = lock.map_err(|error| error.to_string())?;
    if archive.is_file() {
        return Ok(archive);
    }
    let beside = folder.join("debian-12.new");
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--include=sudo,procps,iproute2", "--format=tar", "bookworm"]);
    let built = Output::of(command.arg(&beside), Duration::from_secs(600));
    if built.code != 0 {
        return Err(format!("the archive of Debian cannot be reached: {}", built.stderr.lines().last().unwrap_or("")));
    }
    std::fs::rename(&beside, &archive).map_err(|error| error.to_string())?;
    Ok(archive)
}
