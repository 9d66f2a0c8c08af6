//! Rows over a machine behind SSH: a real sshd on this host, and `ssh` itself as the peer.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testyard_model::{Problem, ProblemKind};

use crate::Options;
use crate::programs::{Compared, Testyard, compared, failed, or_skip, timed};
use crate::report::{Goal, Row};

/// Commands, one after the other.
const COMMANDS: usize = 100;
/// A server that has not answered by then does not.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server of the run's own, with one key that it lets in; it ends with this.
struct Server {
    folder: PathBuf,
    port: u16,
    process: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended by itself is only waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(folder: PathBuf) -> Result<Self, Problem> {
        fs::create_dir(&folder).map_err(failed)?;
        for key in ["host", "user"] {
            let mut command = Command::new("ssh-keygen");
            timed(command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(key)))?;
        }
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).map_err(failed)?.port();
        let key = fs::read_to_string(folder.join("host.pub")).map_err(failed)?;
        fs::write(folder.join("known"), format!("[127.0.0.1]:{port} {key}")).map_err(failed)?;
        fs::write(folder.join("empty"), "").map_err(failed)?;
        let configuration = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\nPidFile none\n\
             StrictModes no\nUsePAM no\nPermitRootLogin yes\nSetEnv HOME={0} XDG_CACHE_HOME={0}/cache XDG_STATE_HOME={0}/state\n",
            folder.display()
        );
        fs::write(folder.join("config"), configuration).map_err(failed)?;
        let serve = format!("exec /usr/sbin/sshd -D -f {}/config", folder.display());
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("unshare");
            // Where it keeps what it needs, the host may have nothing.
            let words = format!("mount -t tmpfs none /run && mkdir /run/sshd && {serve}");
            command.args(["--mount", "--propagation", "private", "sh", "-c", &words]);
            command
        } else {
            let mut command = Command::new("sh");
            command.args(["-c", &serve]);
            command
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self { process: command.spawn().map_err(failed)?, folder, port };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if begin.elapsed() > PATIENCE {
                return Err(Problem::new(ProblemKind::NotFound, "sshd does not answer")
                    .hint("install it: apt-get install openssh-server"));
            }
            // Nothing tells that it listens.
            testyard_linux::pause(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// `ssh` as people call it: a connection for each command.
    fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", &self.file("empty"), "-i", &self.file("user"), "-p", &self.port.to_string()]);
        command.args(["-o", &format!("UserKnownHostsFile={}", self.file("known")), "127.0.0.1", "true"]);
        command
    }

    fn create(&self, name: &str, more: &str) -> String {
        format!(
            "create {name} --backend ssh --host 127.0.0.1:{} --identity {} --known-hosts {} --ssh-config {} {more}",
            self.port,
            self.file("user"),
            self.file("known"),
            self.file("empty")
        )
    }
}

fn times(count: usize, one: impl Fn() -> Result<Duration, Problem>) -> Result<Duration, Problem> {
    (0..count).map(|_| one()).sum()
}

/// Measures them all.
pub(crate) fn rows(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    let names = [
        ("100 commands over one SSH machine: how many times faster than 100 ssh processes", Goal::AtLeast(10.0)),
        ("the same where no agent may run: how many times faster than 100 ssh processes", Goal::AtLeast(1.0)),
    ];
    let server = Server::start(options.folder.join("ssh"));
    let machines = [("agent", ""), ("plain", "--agent never")];
    for ((name, goal), (machine, more)) in names.into_iter().zip(machines) {
        let measured = server.as_ref().map_err(Clone::clone).and_then(|server| {
            testyard.run(&server.create(machine, more))?;
            beside_ssh(options, testyard, server, machine)
        });
        or_skip(name, goal, "×", row, measured);
    }
    for (machine, _) in machines {
        // The server is about to go, with which it could not be deleted in good order.
        let _ = testyard.run(&format!("delete {machine} --force"));
    }
}

fn beside_ssh(
    options: &Options,
    testyard: &Testyard,
    server: &Server,
    machine: &str,
) -> Result<(f64, String), Problem> {
    let exec = format!("exec {machine} -- true");
    let theirs = || times(COMMANDS, || timed(&mut server.ssh()));
    let ours = || times(COMMANDS, || testyard.run(&exec));
    let (figure, detail) = compared(options.rounds(5), "ssh", theirs, ours, Compared::Faster)?;
    Ok((figure, format!("{detail}, whole processes")))
}
