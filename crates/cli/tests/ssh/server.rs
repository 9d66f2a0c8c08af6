//! A real sshd of the test's own: its configuration, keys, and the home that a login gets.

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testkit::TestHome;
use testkit::output::Output;
use testkit::wait::wait_until;

/// How long one command of the tests may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs, and a client's home beside it.
pub(crate) struct Server {
    pub(crate) home: TestHome,
    pub(crate) port: u16,
    sshd: Option<Sshd>,
    /// Said in its own mount namespace before it starts, for root.
    prepare: String,
    lines: String,
}

/// Skips where a server cannot run.
macro_rules! ready {
    () => {
        testkit::require_programs!();
        if !std::path::Path::new("/usr/sbin/sshd").exists() {
            testkit::skip!(module_path!(), "there is no sshd: apt-get install openssh-server");
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

/// A server's process, which ends with the test.
struct Sshd(Child);

impl Drop for Sshd {
    fn drop(&mut self) {
        // One that could not be ended shows as left behind.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    pub(crate) fn new() -> Self {
        Self::with("", "")
    }

    /// With lines of its configuration, and a shell's words before it starts (root only).
    pub(crate) fn with(lines: &str, prepare: &str) -> Self {
        let home = TestHome::new();
        let folder = home.path().join("ssh");
        fs::create_dir(&folder).expect("a new folder");
        fs::create_dir(home.path().join("far")).expect("a new folder");
        for (name, comment) in [("host", "server"), ("user", "client"), ("other", "stranger")] {
            make_key(&folder.join(name), comment);
        }
        fs::copy(folder.join("user.pub"), folder.join("authorized")).expect("a key");
        fs::write(folder.join("empty"), "").expect("a file");
        let mut server = Self { home, port: 0, sshd: None, prepare: prepare.to_owned(), lines: lines.to_owned() };
        server.start();
        server.know("host");
        server
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.home.path().join("ssh").join(name)
    }

    /// The home of whoever logs in.
    pub(crate) fn far(&self) -> PathBuf {
        self.home.path().join("far")
    }

    /// Writes down a host key as the server's.
    pub(crate) fn know(&self, key: &str) {
        let key = fs::read_to_string(self.file(&format!("{key}.pub"))).expect("a key");
        fs::write(self.file("known"), format!("[127.0.0.1]:{} {key}", self.port)).expect("a file");
    }

    pub(crate) fn start(&mut self) {
        self.port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let (far, folder) = (self.far(), self.home.path().join("ssh"));
        let configuration = format!(
            "ListenAddress 127.0.0.1\nPort {}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             UsePAM no\nPermitRootLogin yes\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\n\
             Subsystem sftp internal-sftp\nSetEnv HOME={} XDG_CACHE_HOME= XDG_STATE_HOME= XDG_RUNTIME_DIR= TESTYARD_HOME=\n{}\n",
            self.port,
            folder.join("host").display(),
            folder.join("authorized").display(),
            far.display(),
            self.lines,
        );
        fs::write(self.file("config"), configuration).expect("a file");
        let serve = format!("exec /usr/sbin/sshd -D -e -f {}", self.file("config").display());
        let log = fs::File::options().create(true).append(true).open(self.file("log")).expect("a file");
        let mut command = self.home.command("/bin/sh");
        if testkit::user::is_root() {
            // Where it keeps what it needs, the host has nothing.
            let words = format!("mount -t tmpfs none /run && mkdir /run/sshd && {{ {}\n:; }} && {serve}", self.prepare);
            command = self.home.command("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c", &words]);
        } else {
            command.args(["-c", &serve]);
        }
        command.stdout(Stdio::null()).stderr(log).current_dir("/");
        self.sshd = Some(Sshd(command.spawn().expect("sshd can be started")));
        let port = self.port;
        assert!(wait_until(PATIENCE, || greets(port)), "{}", fs::read_to_string(self.file("log")).unwrap_or_default());
    }

    pub(crate) fn stop(&mut self) {
        self.sshd = None;
    }

    /// The words that create a machine on it.
    pub(crate) fn words(&self, name: &str) -> Vec<String> {
        let user = String::from_utf8(Command::new("id").arg("-un").output().expect("a user").stdout).expect("text");
        let text = |path: PathBuf| path.display().to_string();
        let mut words = vec!["create".to_owned(), name.to_owned(), "--backend".to_owned(), "ssh".to_owned()];
        words.extend(["--host".to_owned(), format!("{}@127.0.0.1:{}", user.trim(), self.port)]);
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
        let entries = fs::read_dir(self.far().join(".local/state/testyard-far")).into_iter().flatten();
        entries.flatten().map(|entry| entry.path()).collect()
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
        // Its drop asks for the home, which is moved out here.
        let Self { home, .. } = self;
        home.finish();
    }
}

fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time is allowed");
    let mut banner = [0; 4];
    stream.read_exact(&mut banner).is_ok() && &banner == b"SSH-"
}

fn make_key(path: &Path, comment: &str) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
        .arg(path)
        .status()
        .expect("ssh-keygen is there");
    assert!(made.success());
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("ours");
}
