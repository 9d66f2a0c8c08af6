//! Skips that nobody can overlook: a loud line, and a line in the log that `cargo xtask test` counts.

use std::io::Write;
use std::path::Path;

/// One skip.
#[derive(Debug, Clone, Copy)]
pub struct Skip<'a> {
    /// What was skipped.
    pub name: &'a str,
    /// Why, naming the missing ability.
    pub reason: &'a str,
    /// Whether the host truly lacks the ability; where not, continuous integration fails.
    pub forced_by_host: bool,
    /// Whether a whole test returned early; where not, a case of one that goes on.
    pub whole_test: bool,
}

impl Skip<'_> {
    /// Prints it and appends it to the file that `TESTYARD_SKIP_LOG` names.
    ///
    /// # Panics
    ///
    /// Where the log cannot be written: a skip that is not counted is what this module is against.
    pub fn record(self) {
        eprintln!("SKIPPED {}: {}", self.name, self.reason);
        if let Some(log) = std::env::var_os("TESTYARD_SKIP_LOG") {
            self.append_to(Path::new(&log)).unwrap_or_else(|error| panic!("{}: {error}", Path::new(&log).display()));
        }
    }

    fn append_to(self, log: &Path) -> std::io::Result<()> {
        let line = serde_json::json!({
            "name": self.name,
            "reason": self.reason,
            "forced_by_host": self.forced_by_host,
            "whole_test": self.whole_test,
        });
        // One write of one line: tests in other processes append to the same file.
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        file.write_all(format!("{line}\n").as_bytes())
    }
}

/// Skips the rest of the test: `skip!("name", "reason")`, or `skip!("name", host: "reason")` where the host truly
/// lacks the ability, so that continuous integration may pass without it.
#[macro_export]
macro_rules! skip {
    ($name:expr, host: $reason:expr) => {
        $crate::skip!(@ $name, $reason, true)
    };
    ($name:expr, $reason:expr) => {
        $crate::skip!(@ $name, $reason, false)
    };
    (@ $name:expr, $reason:expr, $forced:literal) => {{
        let (name, reason) = (&$name, &$reason);
        $crate::skip::Skip { name, reason, forced_by_host: $forced, whole_test: true }.record();
        return;
    }};
}

/// Records that one case of a test is skipped, and goes on with the next; arguments as for [`skip!`].
#[macro_export]
macro_rules! skip_case {
    ($name:expr, host: $reason:expr) => {
        $crate::skip::Skip { name: &$name, reason: &$reason, forced_by_host: true, whole_test: false }.record()
    };
    ($name:expr, $reason:expr) => {
        $crate::skip::Skip { name: &$name, reason: &$reason, forced_by_host: false, whole_test: false }.record()
    };
}

/// Skips the rest of the test unless the host has an [`Ability`](crate::Ability).
#[macro_export]
macro_rules! require {
    ($ability:expr) => {
        if let Err(lack) = $ability.check() {
            // The thread of a test carries the test's name.
            let thread = std::thread::current();
            let (name, reason) = (thread.name().unwrap_or(module_path!()), lack.reason.as_str());
            let forced_by_host = lack.forced_by_host;
            $crate::skip::Skip { name, reason, forced_by_host, whole_test: true }.record();
            return;
        }
    };
}

/// Skips the rest of the test where the programs under test are not there, since only the test's own crate was built.
#[macro_export]
macro_rules! require_programs {
    () => {
        if !$crate::programs::are_built() {
            $crate::skip!(module_path!(), "the agent is not built: cargo build -p testyard-agent");
        }
    };
}

/// Skips the rest of the test where nobody can make a Slurm cluster with the programs that were built.
#[macro_export]
macro_rules! require_cluster {
    () => {
        $crate::require_programs!();
        $crate::require!($crate::Ability::PlainRoot);
        for program in ["slurmctld", "slurmd", "srun", "munged", "sshd"] {
            $crate::require!($crate::Ability::Program(program));
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_appended_as_lines() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("log");
        for forced_by_host in [true, false] {
            let skip = Skip { name: "a \"b\"", reason: "c\nd", forced_by_host, whole_test: true };
            skip.append_to(&log).expect("the folder is ours");
        }
        let text = std::fs::read_to_string(&log).expect("just written");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["name"], "a \"b\"");
        assert_eq!(lines[0]["forced_by_host"], true);
        assert_eq!(lines[1]["forced_by_host"], false);
    }

    #[test]
    fn a_skipped_case_goes_on() {
        // Not recorded by the suite: the log is written only where the variable is set.
        if std::env::var_os("TESTYARD_SKIP_LOG").is_none() {
            skip_case!("case", host: "reason");
        }
    }
}
