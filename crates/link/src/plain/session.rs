//! A session over the keeper's connection: a shell on the other host that is told what to do.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use testyard_linux::process::with_default_signals;
use testyard_model::{Problem, ProblemKind};

use super::CONTROL;
use super::filter::{Filter, Piece};
use crate::connect::{random_word, reads};
use crate::transport::last_lines;

/// Where `ssh` is looked for: a command's own variables are none of its business.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The words that open a session. Where there is no connection it makes none of its own.
pub(super) fn ssh(terminal: bool, script: &[u8]) -> Command {
    let mut command = Command::new("ssh");
    command.args(["-F", "/dev/null", "-S", CONTROL]);
    for option in ["ProxyCommand=false", "BatchMode=yes", "LogLevel=ERROR", "EscapeChar=none"] {
        command.args(["-o", option]);
    }
    command.arg(if terminal { "-tt" } else { "-T" }).args(["--", "there"]);
    let line = [&b"exec sh -c "[..], &crate::shell::quoted(script)].concat();
    command.arg(OsStr::from_bytes(&line)).env_clear().env("PATH", PATH);
    with_default_signals(&mut command);
    command
}

/// A session that was begun.
pub(super) struct Session {
    child: Child,
    errors: OwnedFd,
    filter: Filter,
    word: String,
    /// Dropped or told once what the shell is to do has been read there: then its input follows.
    ready: Option<Sender<()>>,
    /// What was said before anything of the command's.
    said: Vec<u8>,
    begun: bool,
    ended: Option<i32>,
    /// Its own output, where that was asked for.
    pub(super) output: Option<ChildStdout>,
}

/// What a session says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The input is wanted: what was said with it.
    Ready(String),
    /// Why not, in a word of the script's.
    Refused(String),
}

impl Session {
    /// Begins one: `script` is told the word that its lines begin with, `input` what follows it.
    pub(super) fn begin(
        script: impl FnOnce(&str) -> Vec<u8>,
        input: impl FnOnce() -> Option<Box<dyn Read>> + Send + 'static,
        output: Stdio,
    ) -> Result<Self, Problem> {
        let system = |error: std::io::Error| Problem::new(ProblemKind::System, "cannot start ssh").because(error);
        let word = random_word();
        let script = script(&word);
        let mut command = ssh(false, reads(script.len()).as_bytes());
        command.stdin(Stdio::piped()).stdout(output).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(system)?;
        let (Some(mut stdin), Some(errors)) = (child.stdin.take(), child.stderr.take()) else {
            return Err(Problem::new(ProblemKind::Bug, "a process was started without its streams"));
        };
        let (ready, told) = mpsc::channel::<()>();
        std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || {
                // A session that ends early takes no more, and says why.
                if stdin.write_all(&script).is_ok()
                    && told.recv().is_ok()
                    && let Some(mut input) = input()
                {
                    let _ = std::io::copy(&mut input, &mut stdin);
                }
            })
            .map_err(system)?;
        let output = child.stdout.take();
        let filter = Filter::new(&word);
        let errors = errors.into();
        Ok(Self {
            child,
            errors,
            filter,
            word,
            ready: Some(ready),
            said: Vec::new(),
            begun: false,
            ended: None,
            output,
        })
    }

    /// Whether it has told how its command ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Ends a session whose command has ended, and which something that runs on there holds open.
    pub(super) fn cut(&mut self) {
        // One that has just ended is only waited for.
        let _ = self.child.kill();
    }

    /// The descriptor on which it says something.
    pub(super) fn errors(&self) -> BorrowedFd<'_> {
        self.errors.as_fd()
    }

    /// Reads what it says. The command's own is passed on to `to`, where there is one; none at the end.
    pub(super) fn hear(&mut self, mut to: Option<&mut File>) -> Option<Vec<Said>> {
        let mut buffer = [0; 16 * 1024];
        let count = match rustix::io::read(&self.errors, &mut buffer) {
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return Some(Vec::new()),
            Err(_) => 0,
        };
        let mut pieces = self.filter.feed(&buffer[..count]);
        if count == 0 {
            pieces.push(self.filter.rest());
        }
        let mut said = Vec::new();
        for piece in pieces {
            match (piece, &mut to) {
                (Piece::Word(word), _) => said.extend(self.word(&word)),
                // Where nobody reads it any more, it is written for nobody.
                (Piece::Other(bytes), Some(to)) if self.begun => drop(to.write_all(&bytes)),
                (Piece::Other(bytes), _) => {
                    self.said.extend(bytes);
                    let over = self.said.len().saturating_sub(8 * 1024);
                    self.said.drain(..over);
                }
            }
        }
        (count > 0).then_some(said)
    }

    fn word(&mut self, word: &str) -> Option<Said> {
        match word.split_once(' ') {
            Some(("ready", what)) => {
                self.begun = true;
                self.said.clear();
                let _ = self.ready.take().map(|ready| ready.send(()));
                Some(Said::Ready(what.to_owned()))
            }
            Some(("end", code)) => {
                self.ended = code.parse().ok();
                None
            }
            _ => Some(Said::Refused(word.to_owned())),
        }
    }

    /// Until it says that it is ready, or why not.
    pub(super) fn await_ready(&mut self, host: &str) -> Result<String, Result<String, Problem>> {
        while let Some(said) = self.hear(None) {
            match said.into_iter().next() {
                Some(Said::Ready(what)) => return Ok(what),
                Some(Said::Refused(why)) => return Err(Ok(why)),
                None => {}
            }
        }
        Err(Err(self.lost(host)))
    }

    /// Waits for the end of a session that says nothing to anybody; its code.
    pub(super) fn finish(mut self, host: &str) -> Result<(i32, Vec<String>), Problem> {
        while self.hear(None).is_some() {}
        self.end(host)
    }

    /// After its last word: the code that it told.
    pub(super) fn end(mut self, host: &str) -> Result<(i32, Vec<String>), Problem> {
        // It has closed its streams.
        let _ = self.child.wait();
        match self.ended {
            Some(code) => Ok((code, last_lines(&String::from_utf8_lossy(&self.said)))),
            None => Err(self.lost(host)),
        }
    }

    /// Why a session is over that told no end.
    fn lost(&self, host: &str) -> Problem {
        let said = String::from_utf8_lossy(&self.said);
        let problem = if self.begun {
            Problem::new(ProblemKind::Unavailable, format!("the connection to {host} broke while a command ran there"))
                .because("how it ended is not known")
        } else if said.contains("refused by peer") {
            let message = format!("{host} allows no more commands at once over one connection");
            Problem::new(ProblemKind::Exhausted, message)
                .hint("raise MaxSessions in its sshd_config (10 where it says nothing)")
        } else {
            Problem::new(ProblemKind::Unavailable, format!("{host} did not start the command"))
        };
        last_lines(&said).into_iter().filter(|line| !line.contains(&self.word)).fold(problem, Problem::because)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // One that ended is only waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until one of these can be read; which. None can at the deadline.
pub(super) fn wait_for<const COUNT: usize>(
    descriptors: [BorrowedFd<'_>; COUNT],
    deadline: Option<Instant>,
) -> Result<[bool; COUNT], Problem> {
    let mut polled = descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let left = deadline.and_then(|deadline| deadline.saturating_duration_since(Instant::now()).try_into().ok());
    match rustix::event::poll(&mut polled, left.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(std::array::from_fn(|index| !polled[index].revents().is_empty())),
        Err(errno) => Err(Problem::new(ProblemKind::System, "cannot wait for a session").because(errno)),
    }
}
