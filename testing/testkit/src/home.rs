//! A Testyard of the test's own: its state, its environment, and the proof that it left nothing.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::lock::{Hold, HostLock};
use crate::output::Output;
use crate::snapshot::{HostSnapshot, leftovers};
use crate::user::User;
use crate::{programs, wait_until};

/// How long the command line may take unless a test says otherwise.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);
/// Teardown is off the hot path: this long after a reaper has passed, nothing may be left.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// A temporary `TESTYARD_HOME` with its own `HOME` and `TMPDIR`, owned by one user.
///
/// On drop it deletes the machines that are left, reaps, and panics if a process, mount, socket or machine folder
/// of this home is still there.
#[derive(Debug)]
pub struct TestHome {
    folder: tempfile::TempDir,
    programs: PathBuf,
    user: User,
    before: Option<HostSnapshot>,
    finished: bool,
    // Last: the next test must find this one's remains gone.
    _lock: HostLock,
}

impl TestHome {
    /// A home of whoever runs this test, beside those of other tests.
    ///
    /// # Panics
    ///
    /// Where it cannot be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes folders and takes a lock")]
    pub fn new() -> Self {
        Self::make(User::current(), Hold::Shared)
    }

    /// A home of another user; only root can make one.
    ///
    /// # Panics
    ///
    /// As [`TestHome::new`].
    #[must_use]
    pub fn of(user: User) -> Self {
        Self::make(user, Hold::Shared)
    }

    /// A home while no other test runs. What the whole host shows is compared before and after.
    ///
    /// The test's name must contain `alone`: by that word `.config/nextest.toml` keeps away also those tests that
    /// have no home.
    ///
    /// # Panics
    ///
    /// As [`TestHome::new`], and where the name does not say `alone`.
    #[must_use]
    pub fn alone() -> Self {
        Self::alone_of(User::current())
    }

    /// [`TestHome::alone`] for another user.
    ///
    /// # Panics
    ///
    /// As [`TestHome::new`].
    #[must_use]
    pub fn alone_of(user: User) -> Self {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        assert!(name.contains("alone"), "`{name}` has the host alone, so its name must contain `alone`");
        let mut home = Self::make(user, Hold::Alone);
        home.before = Some(HostSnapshot::take());
        home
    }

    fn make(user: User, hold: Hold) -> Self {
        let lock = HostLock::acquire(hold);
        // Not in TMPDIR: sockets below must fit into 108 bytes.
        let folder = made(tempfile::Builder::new().prefix("ty-").tempdir_in("/tmp"));
        for name in ["state", "home", "tmp", "work"] {
            let path = folder.path().join(name);
            made(std::fs::create_dir(&path));
            made(std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)));
            own(&path, user);
        }
        own(folder.path(), user);
        let programs = if !programs::are_built() {
            PathBuf::new()
        } else if user == User::current() || programs::is_open_to_all(&programs::folder()) {
            programs::folder()
        } else {
            let copy = folder.path().join("bin");
            made(programs::copy_into(&copy));
            copy
        };
        Self { folder, programs, user, before: None, finished: false, _lock: lock }
    }

    /// Everything of this home is below here.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What `TESTYARD_HOME` says.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    /// Where commands run unless they say otherwise; empty at first.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    /// Whose home this is.
    #[must_use]
    pub fn user(&self) -> User {
        self.user
    }

    /// Gives a file that the test made to the home's user.
    ///
    /// # Panics
    ///
    /// Where that is not permitted.
    pub fn give(&self, path: &Path) {
        own(path, self.user);
    }

    /// Writes a file of the home's user so that all of it is there at once, for tests of who watches.
    ///
    /// # Panics
    ///
    /// Where its folder is not there, or not below this home.
    pub fn save(&self, path: &Path, text: &str) {
        let beside = self.work().join("beside");
        std::fs::write(&beside, text).expect("a home can be written to");
        self.give(&beside);
        std::fs::rename(beside, path).expect("a folder of this home");
    }

    /// Any program in this home's environment: nothing of the caller's, own `HOME`, `TMPDIR` and state.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_clear().current_dir(self.work()).stdin(Stdio::null());
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        command.env("PATH", path).env("LANG", "C.UTF-8").env("RUST_BACKTRACE", "1");
        command.env("HOME", self.path().join("home")).env("TMPDIR", self.path().join("tmp"));
        command.env("TESTYARD_HOME", self.state());
        self.user.apply(&mut command);
        command
    }

    /// Where the real `testyard` or `testyard-agent` is that this home's user runs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The real `testyard` with these arguments, not yet started.
    ///
    /// # Panics
    ///
    /// Where the programs are not built.
    #[must_use]
    pub fn cli(&self, arguments: &[&str]) -> Command {
        assert!(programs::are_built(), "build the programs first: cargo build -p testyard-cli -p testyard-agent");
        let mut command = self.command(self.program("testyard"));
        command.args(arguments);
        command
    }

    /// Runs the real `testyard` to its end.
    ///
    /// # Panics
    ///
    /// As [`Output::of`].
    #[must_use]
    #[track_caller]
    pub fn run_cli(&self, arguments: &[&str]) -> Output {
        Output::of(&mut self.cli(arguments), COMMAND_DEADLINE)
    }

    /// Runs the real `testyard`, which must exit with 0; its standard output.
    ///
    /// # Panics
    ///
    /// Where it does not.
    #[track_caller]
    pub fn must_run(&self, arguments: &[&str]) -> String {
        self.run_cli(arguments).expect_success().stdout
    }

    /// Deletes what machines are left, reaps, and says what of this home is still there then.
    fn clean_up(&self) -> Vec<String> {
        if programs::are_built() && self.state().join("registry.sqlite").exists() {
            let mut report = Vec::new();
            for name in self.machines() {
                let output = self.run_cli(&["delete", &name, "--force"]);
                // What a supervisor rolls back may go by itself at this moment.
                if output.code != 0 && self.machines().contains(&name) {
                    report.push(format!("delete {name} --force: {output}"));
                }
            }
            let reap = self.run_cli(&["reap"]);
            if reap.code != 0 {
                report.push(format!("reap: {reap}"));
            }
            if !report.is_empty() {
                return report;
            }
        }
        let mut left = Vec::new();
        wait_until(SETTLED_WITHIN, || {
            left = leftovers(self.path());
            left.extend(machine_folders(&self.state()));
            left.is_empty()
        });
        if let Some(before) = &self.before
            && left.is_empty()
        {
            let difference = before.settled_difference(SETTLED_WITHIN);
            left.extend(difference.appeared().map(|thing| format!("on the host: {thing}")));
        }
        left
    }

    fn machines(&self) -> Vec<String> {
        let list = self.run_cli(&["list", "--json"]);
        names(&serde_json::from_str(&list.stdout).unwrap_or_default())
    }

    /// Where something is left the folder stays: removing it could follow a mount that is still there.
    fn clean_up_or_keep(&mut self) -> Vec<String> {
        let left = self.clean_up();
        self.folder.disable_cleanup(!left.is_empty());
        left
    }

    /// What the drop does, for tests that want to see it happen.
    ///
    /// # Panics
    ///
    /// Where something is left.
    #[track_caller]
    pub fn finish(mut self) {
        self.finished = true;
        let left = self.clean_up_or_keep();
        assert!(left.is_empty(), "left behind by {}:\n{}", self.path().display(), left.join("\n"));
    }
}

impl Drop for TestHome {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let left = self.clean_up_or_keep();
        if left.is_empty() {
            return;
        }
        let message = format!("left behind by {}:\n{}", self.path().display(), left.join("\n"));
        // A second panic would abort and hide the first.
        assert!(std::thread::panicking(), "{message}");
        eprintln!("{message}");
    }
}

fn made<T>(result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("a test's home in /tmp: {error}"))
}

fn own(path: &Path, user: User) {
    if user == User::current() {
        return;
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(user.uid), rustix::fs::Gid::from_raw(user.gid));
    rustix::fs::chown(path, Some(uid), Some(gid)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// The names in `list --json`, whether it is a list or an object that holds one.
fn names(list: &serde_json::Value) -> Vec<String> {
    let machines = list.as_array().or_else(|| list["machines"].as_array());
    let names = machines.into_iter().flatten().filter_map(|machine| machine["name"].as_str());
    names.map(str::to_owned).collect()
}

fn machine_folders(state: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(state.join("machines")).into_iter().flatten().flatten();
    entries.map(|entry| format!("folder {}", entry.path().display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_shares_nothing_with_its_caller() {
        let home = TestHome::new();
        let output = Output::of(&mut home.command("/usr/bin/env"), COMMAND_DEADLINE).expect_success();
        let names: Vec<&str> = output.stdout.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        for name in &names {
            let expected = ["PATH", "LANG", "RUST_BACKTRACE", "HOME", "TMPDIR", "TESTYARD_HOME"];
            assert!(expected.contains(name), "{name}");
        }
        assert!(output.stdout.contains(&format!("HOME={}/home\n", home.path().display())));
        home.finish();
    }

    #[test]
    fn a_process_that_stays_is_seen() {
        let home = TestHome::new();
        let mut child = home.command("/usr/bin/tail").args(["-f", "/dev/null"]).spawn().expect("tail starts");
        let left = leftovers(home.path());
        child.kill().expect("our child");
        child.wait().expect("our child");
        assert!(left.iter().any(|thing| thing.contains("tail")), "{left:?}");
        home.finish();
    }

    #[test]
    fn what_a_test_leaves_on_the_host_is_seen_alone() {
        let home = TestHome::alone();
        let mut child = Command::new("/usr/bin/tail").args(["-f", "/dev/null"]).spawn().expect("tail starts");
        let before = home.before.as_ref().expect("a home alone has looked");
        let appeared = before.difference(&HostSnapshot::take());
        child.kill().expect("our child");
        child.wait().expect("our child");
        let pid = format!("{} started", child.id());
        assert!(appeared.appeared().any(|thing| thing.identity.starts_with(&pid)), "{appeared}");
        home.finish();
    }

    #[test]
    fn machines_are_named_in_both_shapes() {
        for text in [r#"[{"name": "a"}]"#, r#"{"version": 1, "machines": [{"name": "a"}]}"#] {
            assert_eq!(names(&serde_json::from_str(text).expect("JSON")), ["a"]);
        }
    }

    #[test]
    fn a_home_can_belong_to_the_ordinary_user() {
        crate::require!(crate::Ability::OrdinaryUser);
        let user = User::ordinary().expect("just required");
        let home = TestHome::of(user);
        let mut command = home.command("/bin/sh");
        command.args(["-c", "echo x > file && cat file && id -u"]);
        let output = Output::of(&mut command, COMMAND_DEADLINE).expect_success();
        assert_eq!(output.stdout, format!("x\n{}\n", user.uid));
        home.finish();
    }
}
