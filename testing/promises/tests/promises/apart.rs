//! A host of a test's own, as far as it looks at one: processes, mounts, networks and IPC that nobody else makes.
//!
//! What a test leaves can then be told from what others do meanwhile. Control groups are still everybody's; the ids
//! of machines tell them apart.

use std::path::Path;
use std::process::Command;

/// Set in the run that is apart.
const MARK: &str = "TESTYARD_TEST_APART";

/// Gives fresh folders to what is shared, starts the test, and reaps whatever loses its parent.
const INIT: &str = r#"
for folder in /tmp /run /var/tmp /dev/shm; do
    case "$1" in "$folder"/*) continue ;; esac
    mount -t tmpfs -o mode=1777 tmpfs "$folder"
done
"$@" & wait $!
"#;

/// Runs the test of this name again, apart; whether this is that run, so that it goes on.
pub(crate) fn is_apart(test: &str) -> bool {
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let program = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--ipc", "--"]);
    command.args(["sh", "-ec", INIT, "sh"]).arg(&program).args(["--exact", test, "--nocapture"]).env(MARK, "1");
    let status = command.current_dir(Path::new("/")).status().expect("unshare is in util-linux");
    assert!(status.success(), "{test}: it failed apart; what it printed is above");
    false
}
