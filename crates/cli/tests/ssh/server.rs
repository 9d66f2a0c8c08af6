//! A real sshd of the test's own, and a client's home beside it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use testkit::output::Output;
use testkit::wait::wait_until;
use testkit::{Sshd, TestHome};

/// How long one command of the tests may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs, and a client's home beside it.
pub(crate) struct Server {
    // First: its files are in the home.
    sshd: Sshd,
    pub(crate) home: TestHome,
    pub(crate) port: u16,
}

/// Skips where a server cannot run.
macro_rules! ready {
    () => {
        if let Some(lack) = testkit::Sshd::lacks() {
            testkit::skip!(module_path!(), lack);
        }
    };
}
pub(crate) use ready;

/// A server; skips where none can run.
macro_rules! server {
    () => {{
        $crate::server::ready!();
        $crate::server::Server::new()
    }};
}
pub(crate) use server;

impl Server {
    pub(crate) fn new() -> Self {
        Self::with("", "")
    }

    /// A sleep there that no other test has.
    pub(crate) fn nap(number: u32) -> String {
        format!("sleep {}.{number}", 900_000 + std::process::id())
    }

    /// Whether that sleeps.
    pub(crate) fn sleeps(number: u32) -> bool {
        testkit::processes::runs(&Self::nap(number))
    }

    /// With lines of its configuration, and a shell's words before it starts (root only).
    pub(crate) fn with(lines: &str, prepare: &str) -> Self {
        let home = TestHome::new();
        let sshd = Sshd::start(&home, lines, prepare);
        Self { port: sshd.port(), sshd, home }
    }

    /// With a user `guest` of its own, whose password is `open sesame`; root only.
    pub(crate) fn with_guest() -> Self {
        let accounts = "cd \"$TMPDIR\" && hash=$(openssl passwd -6 'open sesame') \
            && { cat /etc/passwd; echo guest:x:0:0::/root:/bin/sh; } > passwd \
            && { cat /etc/shadow; echo \"guest:$hash:19000:0:99999:7:::\"; } > shadow \
            && mount --bind passwd /etc/passwd && mount --bind shadow /etc/shadow";
        Self::with("", accounts)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.sshd.file(name)
    }

    /// The home of whoever logs in.
    pub(crate) fn far(&self) -> PathBuf {
        self.sshd.far()
    }

    /// Writes down a host key as the server's.
    pub(crate) fn know(&self, key: &str) {
        self.sshd.know(key);
    }

    pub(crate) fn stop(&mut self) {
        self.sshd.stop();
    }

    /// The words that create a machine on it.
    pub(crate) fn words(&self, name: &str) -> Vec<String> {
        let text = |path: PathBuf| path.display().to_string();
        let mut words = vec!["create".to_owned(), name.to_owned(), "--backend".to_owned(), "ssh".to_owned()];
        words.extend(["--host".to_owned(), format!("{}@127.0.0.1:{}", Sshd::user(), self.port)]);
        words.extend(["--identity".to_owned(), text(self.file("user"))]);
        words.extend(["--known-hosts".to_owned(), text(self.file("known"))]);
        words.extend(["--ssh-config".to_owned(), text(self.file("empty"))]);
        words
    }

    pub(crate) fn create(&self, name: &str) {
        let _ = self.cli(&self.words(name), &[]).expect_success();
    }

    pub(crate) fn cli(&self, words: &[String], variables: &[(&str, &str)]) -> Output {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.home.cli(&words);
        command.envs(variables.iter().copied());
        Output::of(&mut command, PATIENCE)
    }

    /// A command on a machine, in a shell.
    pub(crate) fn sh(&self, machine: &str, script: &str) -> Output {
        Output::of(&mut self.script(machine, script), PATIENCE)
    }

    /// The same, not yet started. Commands get the home of the user's entry; these get the test's.
    pub(crate) fn script(&self, machine: &str, script: &str) -> Command {
        let script = format!("HOME={}; export HOME; {script}", self.far().display());
        self.home.cli(&["exec", machine, "--", "sh", "-c", &script])
    }

    /// What Testyard has on the other side, but for the cache of programs.
    pub(crate) fn sessions(&self) -> Vec<PathBuf> {
        self.sshd.sessions()
    }

    /// The folders of programs in the cache.
    pub(crate) fn programs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.far().join(".cache/testyard-programs")).into_iter().flatten();
        entries.flatten().map(|entry| entry.path()).collect()
    }

    /// Processes with these words, of this test: its folder is among their words.
    pub(crate) fn processes(&self, words: &str) -> Vec<i32> {
        let mark = self.home.path().display().to_string();
        let is_ours = |line: String| line.contains(&mark) && line.contains(words);
        testkit::processes::all().filter(|process| is_ours(process.command_line())).map(|process| process.pid).collect()
    }

    /// Ends the server; nothing of the machines is left anywhere.
    pub(crate) fn finish(mut self) {
        assert!(wait_until(PATIENCE, || self.sessions().is_empty()), "left there: {:?}", self.sessions());
        let gone = wait_until(PATIENCE, || self.processes("testyard far").is_empty());
        assert!(gone, "processes are left: {:?}", self.processes("testyard far"));
        self.stop();
        self.home.finish();
    }
}
