//! Making a connection: the transport's process, the shell behind it, the programs where they are missing, and the
//! hello. Waits, with a deadline; whoever does not want to runs it in a thread, and ends the process to end it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::frame::{Decoded, encode};
use testyard_protocol::{FrameDecoder, FrameHeader};

use crate::asking::{Questions, THINKING};
use crate::bootstrap::{Bundle, Said, answer};
use crate::message::{Hello, WIRE, WireMessage};
use crate::transport::{Dialled, Why, last_lines};

/// A login may print so much before the shell answers.
const MOST_NOISE: usize = 256 * 1024;
/// So much of what the transport's process says as errors is kept.
const MOST_SAID: usize = 8 * 1024;
/// While programs are delivered, each piece of them must have been taken within this time.
const STALLED: Duration = Duration::from_secs(30);

/// A connection that is up.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) child: Child,
    pub(crate) input: OwnedFd,
    pub(crate) output: OwnedFd,
    pub(crate) errors: Option<OwnedFd>,
    /// What was read beyond the welcome.
    pub(crate) read: Vec<u8>,
    /// How many frames the other side has.
    pub(crate) received: u64,
}

/// The transport's process, for whoever gives up waiting.
pub(crate) type Handle = Arc<Mutex<Option<Child>>>;

/// Connects. `handle` holds the process meanwhile.
pub(crate) fn connect(
    dialled: &Dialled,
    bundle: &Bundle,
    hello: &Hello,
    patience: Duration,
    handle: &Handle,
) -> Result<Connected, Problem> {
    let word = random_word();
    dial(dialled, &bundle.script(&word), patience, handle, |talk| {
        talk.shell(&word, bundle)?;
        talk.delivered = true;
        talk.greet(hello)
    })
}

/// Connects to a shell that does what `text` says, whose first line to count is `expected`.
pub(crate) fn connect_shell(
    dialled: &Dialled,
    text: &str,
    expected: &str,
    patience: Duration,
) -> Result<Connected, Problem> {
    let handle = Arc::new(Mutex::new(None));
    dial(dialled, &reads(text.len()), patience, &handle, |talk| {
        File::from(talk.output.try_clone()?).write_all(text.as_bytes())?;
        while talk.line()?.trim_end() != expected {}
        Ok(0)
    })
}

/// The script that takes this text from its standard input and does what it says: so nobody sees it in a list of processes.
pub(crate) fn reads(length: usize) -> String {
    format!("eval \"$(head -c {length})\"")
}

fn dial(
    dialled: &Dialled,
    script: &str,
    patience: Duration,
    handle: &Handle,
    agree: impl FnOnce(&mut Talk) -> Result<u64, Broken>,
) -> Result<Connected, Problem> {
    let mut command = Command::new(&dialled.program);
    command.args(&dialled.words).args(dialled.behind(script));
    command.envs(dialled.variables.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| dialled.not_started(&error))?;
    let (input, output, errors) = match (child.stdout.take(), child.stdin.take(), child.stderr.take()) {
        (Some(input), Some(output), Some(errors)) => (input.into(), output.into(), Some(errors.into())),
        _ => return Err(Problem::new(ProblemKind::Bug, "a process was started without its streams")),
    };
    if let Ok(mut held) = handle.lock() {
        *held = Some(child);
    }
    let mut talk = Talk {
        input,
        output,
        errors,
        read: Vec::new(),
        said: Vec::new(),
        deadline: Instant::now() + patience,
        questions: dialled.questions().cloned(),
        noise: 0,
        delivered: false,
    };
    let agreed = agree(&mut talk);
    let child = handle.lock().ok().and_then(|mut held| held.take());
    match (agreed, child) {
        (Ok(received), Some(child)) => Ok(Connected {
            child,
            input: talk.input,
            output: talk.output,
            errors: talk.errors,
            read: talk.read,
            received,
        }),
        (Ok(_), None) => Err(Problem::new(ProblemKind::Interrupted, "the connection was called off")),
        (Err(broken), child) => {
            talk.hear_errors();
            let exit = child.and_then(end);
            if let (Broken::Closed, true, Some(126 | 127)) = (&broken, talk.delivered, exit) {
                return Err(not_run(dialled, &talk.said));
            }
            Err(broken.problem(dialled, &talk.said, exit, patience))
        }
    }
}

/// Ends a transport's process; its exit code where it ended by itself.
pub(crate) fn end(mut child: Child) -> Option<i32> {
    // What has just closed its output may be about to say its code.
    let pidfd = rustix::process::Pid::from_raw(child.id().cast_signed()).map(testyard_linux::process::pidfd_open);
    if let Some(Ok(pidfd)) = &pidfd {
        let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
        let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
        // Whether it ended is asked below.
        let _ = rustix::event::poll(&mut polled, Some(&moment));
    }
    if let Ok(Some(status)) = child.try_wait() {
        return status.code();
    }
    // One that has ended meanwhile cannot be killed, and is waited for all the same.
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// What tells answers from what a login prints.
pub(crate) fn random_word() -> String {
    format!("link-{:016x}", u64::from_le_bytes(testyard_linux::random()))
}

/// Why there is no connection.
#[derive(Debug)]
enum Broken {
    /// The other end closed it.
    Closed,
    /// The time is up.
    Late,
    /// Nobody took what was sent.
    Stalled,
    /// Our own side.
    System(io::Error),
    /// The shell or the far side says why.
    Said(Problem),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Closed } else { Self::System(error) }
    }
}

impl Broken {
    fn problem(self, dialled: &Dialled, said: &[u8], exit: Option<i32>, patience: Duration) -> Problem {
        let said = String::from_utf8_lossy(said).into_owned();
        match self {
            Self::Said(problem) => problem,
            Self::Closed => dialled.explain(Why::Closed { exit }, &said),
            Self::Late => dialled.explain(Why::Late { seconds: patience.as_secs() }, &said),
            Self::Stalled => dialled.explain(Why::Late { seconds: STALLED.as_secs() }, &said),
            Self::System(error) => {
                Problem::new(ProblemKind::System, format!("cannot talk to {}", dialled.name)).because(error)
            }
        }
    }
}

struct Talk {
    input: OwnedFd,
    output: OwnedFd,
    errors: Option<OwnedFd>,
    read: Vec<u8>,
    said: Vec<u8>,
    deadline: Instant,
    /// What puts the deadline off, once.
    questions: Option<Questions>,
    noise: usize,
    /// The programs are there, and were about to be started.
    delivered: bool,
}

impl Talk {
    /// Until the shell there has become our program.
    fn shell(&mut self, word: &str, bundle: &Bundle) -> Result<(), Broken> {
        loop {
            let line = self.line()?;
            match answer(&line, word) {
                None => {}
                Some(Said::Go) => return Ok(()),
                Some(Said::Want(system, architecture)) => {
                    if (system.as_str(), architecture.as_str()) != ("Linux", std::env::consts::ARCH) {
                        let message = format!("there is no program of testyard's for {system} on {architecture}");
                        return Err(Broken::Said(Problem::new(ProblemKind::Unsupported, message)));
                    }
                    self.deliver(bundle, 0)?;
                }
                Some(Said::One) => self.deliver(bundle, 1)?,
                Some(refusal) => return Err(Broken::Said(why_not(refusal))),
            }
        }
    }

    fn line(&mut self) -> Result<String, Broken> {
        loop {
            if let Some(at) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=at).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if self.noise > MOST_NOISE {
                let message = "the login there prints without end";
                return Err(Broken::Said(Problem::new(ProblemKind::Protocol, message)));
            }
            self.noise += self.receive_in_time()?;
        }
    }

    /// Waits until the deadline, which is later once somebody was asked something, and reads what is there.
    fn receive_in_time(&mut self) -> Result<usize, Broken> {
        match self.receive(PollFlags::empty(), self.deadline) {
            Err(Broken::Late) if self.questions.take_if(|questions| questions.came()).is_some() => {
                self.deadline += THINKING;
                self.receive(PollFlags::empty(), self.deadline)
            }
            received => received,
        }
    }

    /// Waits, and reads what is there; 0 where only `wanted` of the output has come.
    fn receive(&mut self, wanted: PollFlags, deadline: Instant) -> Result<usize, Broken> {
        loop {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return Err(Broken::Late) };
            let left = left.try_into().map_err(|_| Broken::Late)?;
            // What is not waited for is asked for nothing.
            let errors = self.errors.as_ref().unwrap_or(&self.input);
            let mut polled = vec![PollFd::new(&self.input, PollFlags::IN), PollFd::new(errors, PollFlags::IN)];
            if !wanted.is_empty() {
                polled.push(PollFd::new(&self.output, wanted));
            }
            match rustix::event::poll(&mut polled, Some(&left)) {
                Ok(0) => return Err(Broken::Late),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Broken::System(errno.into())),
            }
            let happened: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            if happened[1] && !self.hear_errors() {
                // Closed early: only its other streams matter from here on.
                self.errors = None;
            }
            if happened[0] {
                return self.read_once();
            }
            if happened.get(2) == Some(&true) {
                return Ok(0);
            }
        }
    }

    fn read_once(&mut self) -> Result<usize, Broken> {
        let mut buffer = [0; 64 * 1024];
        match rustix::io::read(&self.input, &mut buffer) {
            Ok(0) => Err(Broken::Closed),
            Ok(count) => {
                self.read.extend_from_slice(&buffer[..count]);
                Ok(count)
            }
            Err(Errno::INTR) => Ok(0),
            Err(errno) => Err(Broken::System(errno.into())),
        }
    }

    /// Keeps what the process says as errors; false at its end.
    fn hear_errors(&mut self) -> bool {
        self.errors.as_ref().is_none_or(|errors| hear(errors.as_fd(), &mut self.said))
    }

    /// Sends a program.
    fn deliver(&mut self, bundle: &Bundle, index: usize) -> Result<(), Broken> {
        let Some((file, length)) = bundle.file(index) else { return Ok(()) };
        rustix::io::ioctl_fionbio(&self.output, true).map_err(|errno| Broken::System(errno.into()))?;
        let (mut at, mut buffer) = (0, vec![0; 256 * 1024]);
        while at < length {
            let count = file.read_at(&mut buffer, at)?;
            if count == 0 {
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, "a program became shorter");
                return Err(Broken::System(error));
            }
            if !self.send(&buffer[..count])? {
                break;
            }
            at += count as u64;
        }
        // It took its time, which the answers to come get anew.
        self.deadline = self.deadline.max(Instant::now() + STALLED);
        Ok(())
    }

    /// False where the other side does not take it: its reason comes, or has come.
    fn send(&mut self, mut bytes: &[u8]) -> Result<bool, Broken> {
        let mut deadline = Instant::now() + STALLED;
        while !bytes.is_empty() {
            match rustix::io::write(&self.output, bytes) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    deadline = Instant::now() + STALLED;
                }
                Err(Errno::AGAIN) => match self.receive(PollFlags::OUT, deadline) {
                    Ok(0) => {}
                    Ok(_) => return Ok(false),
                    Err(Broken::Late) => return Err(Broken::Stalled),
                    Err(error) => return Err(error),
                },
                Err(Errno::INTR) => {}
                Err(Errno::PIPE) => return Ok(false),
                Err(errno) => return Err(Broken::System(errno.into())),
            }
        }
        Ok(true)
    }

    /// Says hello; how many frames of the session the far side has.
    fn greet(&mut self, hello: &Hello) -> Result<u64, Broken> {
        let payload = serde_json::to_vec(&WireMessage::Hello(Box::new(hello.clone()))).map_err(io::Error::from)?;
        let mut bytes = Vec::new();
        encode(FrameHeader::message(WIRE), &payload, &mut bytes);
        rustix::io::ioctl_fionbio(&self.output, false).map_err(|errno| Broken::System(errno.into()))?;
        let output = self.output.try_clone()?;
        File::from(output).write_all(&bytes)?;
        let mut decoder = FrameDecoder::new();
        decoder.feed(&std::mem::take(&mut self.read));
        loop {
            let decoded = decoder.next().map_err(|error| {
                Broken::Said(Problem::from_error(ProblemKind::Protocol, &error).because("the other side's first word"))
            })?;
            if let Some(Decoded::Frame(frame)) = decoded {
                let word = serde_json::from_slice(&frame.payload);
                match word {
                    Ok(WireMessage::Welcome { received, .. }) => {
                        self.read = decoder.pending().to_vec();
                        return Ok(received);
                    }
                    Ok(WireMessage::Refused(problem)) => return Err(Broken::Said(problem)),
                    _ => {
                        let message = "the other side's first word is not a welcome";
                        return Err(Broken::Said(Problem::new(ProblemKind::Protocol, message)));
                    }
                }
            }
            self.receive_in_time()?;
            decoder.feed(&std::mem::take(&mut self.read));
        }
    }
}

/// Keeps the end of what is said; false at its end.
pub(crate) fn hear(errors: BorrowedFd<'_>, said: &mut Vec<u8>) -> bool {
    // One that would wait is not heard.
    if rustix::io::ioctl_fionbio(errors, true).is_err() {
        return true;
    }
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(errors, &mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                said.extend_from_slice(&buffer[..count]);
                let over = said.len().saturating_sub(MOST_SAID);
                said.drain(..over);
            }
            Err(Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

/// The shell there could not become the program that it has.
fn not_run(dialled: &Dialled, said: &[u8]) -> Problem {
    let message = format!("programs that are brought to {} cannot be run there", dialled.name);
    let lines = last_lines(&String::from_utf8_lossy(said));
    lines.into_iter().fold(Problem::new(ProblemKind::Unsupported, message), Problem::because)
}

fn why_not(refusal: Said) -> Problem {
    match refusal {
        Said::Full(folder) => {
            Problem::new(ProblemKind::Exhausted, format!("there is no room for testyard's programs in {folder} there"))
                .hint(format!("free some space there, or name another folder: XDG_CACHE_HOME (now {folder})"))
        }
        Said::Damaged => Problem::new(ProblemKind::Protocol, "the programs arrived with other contents than were sent")
            .hint("what carries the connection changes bytes: use one that does not"),
        Said::Nowhere(why) => {
            let mut problem =
                Problem::new(ProblemKind::Unsupported, "no folder there can hold programs that may be run");
            for reason in why.split_ascii_whitespace() {
                problem = problem.because(match reason.split_once(':') {
                    Some(("noexec", folder)) => format!("programs in {folder} may not be run"),
                    Some(("foreign", folder)) => format!("{folder} is not a folder of that user's alone (mode 700)"),
                    Some((_, folder)) => format!("{folder} cannot be made"),
                    None => reason.to_owned(),
                });
            }
            problem.hint("give that user one: XDG_CACHE_HOME=FOLDER")
        }
        _ => Problem::new(ProblemKind::Protocol, "the shell there answered out of turn"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A login that says this by itself and no more, which is waited for only where somebody was asked.
    fn log_in(asked: bool) -> Result<Connected, Problem> {
        let folder = tempfile::tempdir().expect("a folder");
        let listens = folder.path().join("ask.sock");
        let dialled = Dialled::asking(&["sh", "-c", "echo up; exec cat"], &listens);
        if asked {
            std::fs::write(listens.with_extension("asked"), "").expect("a folder");
        }
        connect_shell(&dialled, "", "up", Duration::ZERO)
    }

    #[test]
    fn a_login_that_hangs_is_waited_for_longer_only_where_somebody_was_asked() {
        assert_eq!(log_in(false).expect_err("there is no time").kind, ProblemKind::TimedOut);
        assert_eq!(end(log_in(true).expect("there is time").child), None);
    }
}
