//! Passwords that somebody types at a terminal.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Pid;
use rustix::termios::{LocalModes, tcgetattr};
use testkit::wait::wait_until;
use testyard_linux::signal::Signal;
use testyard_linux::terminal::{Size, open_pty};

use crate::refusals::replaced;
use crate::server::{PATIENCE, Server, ready};

const ASKED: &str = "guest@127.0.0.1's password: ";

/// Somebody at a terminal of their own.
struct Person {
    controller: File,
    child: Child,
    seen: String,
}

impl Person {
    fn runs(command: &Command) -> Self {
        let (controller, terminal) = open_pty(Size { rows: 30, columns: 90 }).expect("devpts is mounted");
        let stdio = || Stdio::from(terminal.try_clone().expect("descriptors are left"));
        // A session of its own, so that the terminal can be its controlling one.
        let mut outer = Command::new("setsid");
        outer.args(["-c", "-w"]).arg(command.get_program()).args(command.get_args()).env_clear();
        outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        outer.current_dir(command.get_current_dir().expect("a home's command has a folder"));
        let child = outer.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().expect("setsid is everywhere");
        Self { controller: controller.into(), child, seen: String::new() }
    }

    /// Reads what is shown next; false once nothing can be any more.
    #[track_caller]
    fn looks(&mut self) -> bool {
        let mut polled = [PollFd::new(&self.controller, PollFlags::IN)];
        let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        let shown = rustix::event::poll(&mut polled, Some(&patience)).expect("a terminal");
        assert!(shown > 0, "nothing more is shown than {:?}", self.seen);
        let mut buffer = [0; 1024];
        // The end of a terminal is an error.
        let count = self.controller.read(&mut buffer).unwrap_or(0);
        self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        count > 0
    }

    /// Reads until this was shown, which is then behind us.
    #[track_caller]
    fn sees(&mut self, text: &str) {
        while !self.seen.contains(text) {
            assert!(self.looks(), "no {text:?} in {:?}", self.seen);
        }
        let behind = self.seen.find(text).map_or(0, |at| at + text.len());
        self.seen.drain(..behind);
    }

    fn types(&mut self, keys: &str) {
        self.controller.write_all(keys.as_bytes()).expect("the terminal is open");
    }

    /// How it ended, and what was shown since.
    #[track_caller]
    fn leaves(mut self) -> (ExitStatus, String) {
        while self.looks() {}
        (self.child.wait().expect("ours"), self.seen)
    }
}

/// A server that lets its guest in by password alone, and the words that create a machine there.
fn ground(name: &str) -> (Server, Vec<String>) {
    let server = Server::with_guest();
    let stranger = server.file("other").display().to_string();
    let words = replaced(server.words(name), "--identity", &stranger);
    let words = replaced(words, "--host", &format!("guest@127.0.0.1:{}", server.port));
    (server, words)
}

fn cli(server: &Server, words: &[String]) -> Command {
    server.home.cli(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Whether any file or process of this test has the password.
fn is_kept_somewhere(server: &Server) -> Option<String> {
    let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("sesame");
    let mut folders = vec![server.home.state(), server.far()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && has(&fs::read(entry.path()).unwrap_or_default()) {
                return Some(entry.path().display().to_string());
            }
        }
    }
    let ours = server.home.path().display().to_string();
    for entry in fs::read_dir("/proc").expect("a proc").flatten() {
        let read = |name| fs::read(entry.path().join(name)).unwrap_or_default();
        let told = [read("environ"), read("cmdline")].concat();
        if String::from_utf8_lossy(&told).contains(&ours) && has(&told) {
            return Some(entry.path().display().to_string());
        }
    }
    None
}

#[test]
fn a_password_is_asked_for_at_a_terminal() {
    if !testkit::user::is_host_root() {
        testkit::skip!("a_password_is_asked_for_at_a_terminal", "only root's sshd can look passwords up");
    }
    ready!();
    let (server, words) = ground("gpu");
    let mut person = Person::runs(&cli(&server, &words));
    person.sees(ASKED);
    person.types("wrong\r");
    person.sees("Permission denied, please try again.");
    person.sees(ASKED);
    // What is typed may be mended.
    person.types("open sesamy\u{7f}e\r");
    let (status, shown) = person.leaves();
    assert!(status.success(), "{shown}");
    assert!(!shown.contains("sesam") && !shown.contains("wrong"), "it was shown: {shown}");
    assert_eq!(server.sh("gpu", "echo there").stdout, "there\n");
    assert_eq!(is_kept_somewhere(&server), None);
    // Nobody is asked where there is no terminal, and somebody is where there is one.
    server.home.must_run(&["stop", "gpu"]);
    let unasked = server.home.run_cli(&["start", "gpu"]);
    assert!(unasked.code == 69 && unasked.stderr.contains("there is no terminal at which to ask for it"), "{unasked}");
    let mut person = Person::runs(&server.home.cli(&["start", "gpu"]));
    person.sees(ASKED);
    person.types("open sesame\r");
    let (status, shown) = person.leaves();
    assert!(status.success(), "{shown}");
    server.home.must_run(&["delete", "gpu"]);
    server.finish();
}

#[test]
fn a_host_without_an_agent_asks_once() {
    if !testkit::user::is_host_root() {
        testkit::skip!("a_host_without_an_agent_asks_once", "only root's sshd can look passwords up");
    }
    ready!();
    let (server, words) = ground("login");
    let words = [words, ["--agent", "never"].map(str::to_owned).to_vec()].concat();
    let mut person = Person::runs(&cli(&server, &words));
    person.sees(ASKED);
    person.types("open sesame\r");
    let (status, shown) = person.leaves();
    assert!(status.success() && !shown.contains(ASKED), "{shown}");
    assert_eq!(server.sh("login", "echo there").stdout, "there\n");
    assert_eq!(is_kept_somewhere(&server), None);
    server.home.must_run(&["delete", "login"]);
    server.finish();
}

/// Ends it while it asks: the terminal is as it was, and it ends as by that signal.
#[track_caller]
fn ended(server: &Server, words: &[String], by: Signal, end: impl FnOnce(&mut Person)) {
    let mut person = Person::runs(&cli(server, words));
    let controller = person.controller.try_clone().expect("descriptors are left");
    let modes = || tcgetattr(controller.as_fd()).expect("a terminal").local_modes;
    person.sees(ASKED);
    assert!(!modes().intersects(LocalModes::ECHO | LocalModes::ISIG));
    end(&mut person);
    person.sees("\n");
    assert!(wait_until(PATIENCE, || modes().contains(LocalModes::ECHO | LocalModes::ISIG | LocalModes::ICANON)));
    let (status, shown) = person.leaves();
    assert!(status.signal() == Some(by.number()) && !shown.contains("half"), "{status}: {shown}");
}

#[test]
fn who_gives_no_password_leaves_nothing() {
    if !testkit::user::is_host_root() {
        testkit::skip!("who_gives_no_password_leaves_nothing", "only root's sshd can look passwords up");
    }
    ready!();
    let (server, words) = ground("gpu");
    let gone = || wait_until(PATIENCE, || server.home.run_cli(&["list", "--names"]).stdout.is_empty());
    // Three wrong ones, as with ssh.
    let mut person = Person::runs(&cli(&server, &words));
    for _ in 0..3 {
        person.sees(ASKED);
        person.types("wrong\r");
    }
    let (status, shown) = person.leaves();
    assert!(status.code() == Some(69) && shown.contains("does not let this user in"), "{shown}");
    assert!(!shown.contains("there is no terminal"), "{shown}");
    assert!(gone());
    // None at all.
    let mut person = Person::runs(&cli(&server, &words));
    person.sees(ASKED);
    person.types("\u{4}");
    let (status, shown) = person.leaves();
    assert!(status.code() == Some(69) && shown.contains("does not let this user in"), "{shown}");
    assert!(gone());
    // Whoever ends it, at the terminal or from outside.
    ended(&server, &words, Signal::INT, |person| person.types("half\u{3}"));
    assert!(gone());
    ended(&server, &words, Signal::TERM, |person| {
        person.types("half");
        Signal::TERM.send_to(Pid::from_child(&person.child)).expect("it asks");
    });
    assert!(gone());
    // Without a terminal: why, and what to do.
    let output = server.cli(&words, &[]);
    let told = ["does not let this user in", "there is no terminal at which to ask for it", "--password-file"];
    assert!(output.code == 69 && told.iter().all(|text| output.stderr.contains(text)), "{output}");
    assert!(gone());
    server.finish();
}
