//! A real OpenSSH server of the test's own, on 127.0.0.1: its configuration, keys, and the home that a login gets.

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{TestHome, programs, user, wait_until};

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
const PROGRAM: &str = "/usr/sbin/sshd";

/// A server that runs until it is stopped or dropped. Its files are in a home, which must be finished after it.
#[derive(Debug)]
pub struct Sshd {
    home: PathBuf,
    port: u16,
    process: Option<Child>,
    /// Said in its own mount namespace before it starts, for root.
    prepare: String,
    lines: String,
}

impl Sshd {
    /// Why no server can run that leads to the programs under test; none where one can.
    #[must_use]
    pub fn lacks() -> Option<&'static str> {
        if !programs::are_built() {
            return Some("the agent is not built: cargo build -p testyard-agent");
        }
        (!Path::new(PROGRAM).exists()).then_some("there is no sshd: apt-get install openssh-server")
    }

    /// Starts one in a home, with more lines of configuration, and a shell's words before it starts (root only). The key
    /// `user` is let in, `other` is not, and `known` has the server's own.
    ///
    /// # Panics
    ///
    /// Where it cannot be started or does not answer.
    #[must_use]
    pub fn start(home: &TestHome, lines: &str, prepare: &str) -> Self {
        let folder = home.path().join("ssh");
        made(fs::create_dir(&folder));
        made(fs::create_dir(home.path().join("far")));
        for (name, comment) in [("host", "server"), ("user", "client"), ("other", "stranger")] {
            make_key(&folder.join(name), comment);
        }
        made(fs::copy(folder.join("user.pub"), folder.join("authorized")));
        made(fs::write(folder.join("empty"), ""));
        let port = made(TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr())).port();
        let (prepare, lines) = (prepare.to_owned(), lines.to_owned());
        let mut server = Self { home: home.path().to_owned(), port, process: None, prepare, lines };
        server.serve(home);
        server.know("host");
        server
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A file of it: a key, `known`, `empty` (a client's configuration that says nothing), `log`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.join("ssh").join(name)
    }

    /// The home of whoever logs in.
    #[must_use]
    pub fn far(&self) -> PathBuf {
        self.home.join("far")
    }

    /// What Testyard has on the other side, but for the cache of programs.
    #[must_use]
    pub fn sessions(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.far().join(".local/state/testyard-far")).into_iter().flatten();
        entries.flatten().map(|entry| entry.path()).collect()
    }

    /// Writes down a host key as the server's.
    ///
    /// # Panics
    ///
    /// Where there is no such key.
    pub fn know(&self, key: &str) {
        let key = made(fs::read_to_string(self.file(&format!("{key}.pub"))));
        made(fs::write(self.file("known"), format!("[127.0.0.1]:{} {key}", self.port)));
    }

    /// Whom it lets in: whoever runs the test.
    ///
    /// # Panics
    ///
    /// Where nobody knows that name.
    #[must_use]
    pub fn user() -> String {
        let output = made(Command::new("id").arg("-un").output());
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Ends it, and with it every connection.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // One that could not be ended shows as left behind.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn serve(&mut self, home: &TestHome) {
        let configuration = format!(
            "ListenAddress 127.0.0.1\nPort {}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             UsePAM no\nPermitRootLogin yes\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\n\
             Subsystem sftp internal-sftp\nSetEnv HOME={} XDG_CACHE_HOME= XDG_STATE_HOME= XDG_RUNTIME_DIR= TESTYARD_HOME=\n{}\n",
            self.port,
            self.file("host").display(),
            self.file("authorized").display(),
            self.far().display(),
            self.lines,
        );
        made(fs::write(self.file("config"), configuration));
        let serve = format!("exec {PROGRAM} -D -e -f {}", self.file("config").display());
        let log = made(fs::File::options().create(true).append(true).open(self.file("log")));
        let mut command = home.command("/bin/sh");
        if user::is_root() {
            // Where it keeps what it needs, the host has nothing.
            let words = format!("mount -t tmpfs none /run && mkdir /run/sshd && {{ {}\n:; }} && {serve}", self.prepare);
            command = home.command("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c", &words]);
        } else {
            command.args(["-c", &serve]);
        }
        command.stdout(Stdio::null()).stderr(log).current_dir("/");
        self.process = Some(made(command.spawn()));
        let port = self.port;
        let log = || fs::read_to_string(self.file("log")).unwrap_or_default();
        assert!(wait_until(PATIENCE, || greets(port)), "{}", log());
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    made(stream.set_read_timeout(Some(Duration::from_secs(5))));
    let mut banner = [0; 4];
    stream.read_exact(&mut banner).is_ok() && &banner == b"SSH-"
}

fn make_key(path: &Path, comment: &str) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"]).arg(path);
    assert!(made(command.status()).success(), "ssh-keygen made no key");
    made(fs::set_permissions(path, fs::Permissions::from_mode(0o600)));
}

fn made<T>(result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("a server of the test's own: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_lets_its_key_in_and_no_other() {
        if let Some(lack) = Sshd::lacks() {
            crate::skip!("a_server_lets_its_key_in_and_no_other", lack);
        }
        let home = TestHome::new();
        let mut server = Sshd::start(&home, "", "");
        let logs_in = |server: &Sshd, key: &str| {
            let mut ssh = home.command("ssh");
            ssh.arg("-F").arg(server.file("empty")).arg("-i").arg(server.file(key));
            ssh.args(["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o"]);
            ssh.arg(format!("UserKnownHostsFile={}", server.file("known").display()));
            ssh.args(["-p", &server.port().to_string(), "-l", &Sshd::user(), "127.0.0.1", "echo $HOME"]);
            crate::Output::of(&mut ssh, PATIENCE)
        };
        assert_eq!(logs_in(&server, "user").stdout.trim(), server.far().display().to_string());
        assert_eq!(logs_in(&server, "other").code, 255);
        server.stop();
        assert_eq!(logs_in(&server, "user").code, 255);
        drop(server);
        home.finish();
    }
}
