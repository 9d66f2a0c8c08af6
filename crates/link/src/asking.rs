//! What `ssh` asks, for the person who starts a machine. The `ssh` of a machine is not in their session any more, so its
//! questions travel to the process that waits for the machine, and the answers back. They are kept nowhere.
//!
//! ```text
//! near ── ssh ── starts ──► testyard (SSH_ASKPASS) ══ a socket in the machine's folder ══► who starts it ── terminal
//! ```

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use testyard_linux::socket;
use testyard_model::{Problem, ProblemKind};

/// A login that asks somebody may take so much longer: as long as OpenSSH's server waits by default.
pub(crate) const THINKING: Duration = Duration::from_secs(120);
/// A question is at most so long, in bytes.
const MOST: u64 = 64 * 1024;
/// Who has connected says at once what it wants to know.
const SAID_WITHIN: Duration = Duration::from_secs(5);

/// What somebody is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The words, which may come from the other host.
    pub text: &'a str,
    /// The answer that was given before was refused.
    pub again: bool,
}

/// Asks somebody, whose answer is not shown; none where there is none, or once one of the descriptors can be read.
pub type Answer = fn(&Question<'_>, &[BorrowedFd<'_>]) -> Option<String>;

/// What the program that `ssh` starts passes on.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    text: String,
    /// The process of `ssh` that asks.
    by: i32,
}

/// Passes a question on to who listens there.
pub(crate) fn ask(listens: &Path, text: &str) -> Result<String, Problem> {
    let nobody = || Problem::new(ProblemKind::Denied, format!("nobody is there to be asked: {text}"));
    let by = rustix::process::getppid().map_or(0, |asking| asking.as_raw_nonzero().get());
    let mut line = serde_json::to_vec(&Asked { text: text.to_owned(), by })
        .map_err(|error| Problem::from_error(ProblemKind::Bug, &error))?;
    line.push(b'\n');
    let mut stream = UnixStream::from(socket::connect(listens).map_err(|error| nobody().because(error))?);
    stream.write_all(&line).map_err(|error| nobody().because(error))?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(|error| nobody().because(error))?;
    serde_json::from_str::<Option<String>>(&answer).ok().flatten().ok_or_else(nobody)
}

/// What was answered so far.
#[derive(Debug, Default)]
struct Known {
    /// The answers, and to which process. Another one that asks the same has got in by it, and is a second connection;
    /// the same one was refused.
    given: HashMap<String, (i32, String)>,
    /// Somebody did not want to answer: `ssh` takes that for an empty password, and would ask as often as it may.
    unwilling: bool,
}

/// Answers questions as long as a machine is being started.
#[derive(Debug)]
pub struct Asking {
    listens: PathBuf,
    stop: OwnedFd,
    thread: JoinHandle<()>,
}

impl Asking {
    /// Listens there, in place of what somebody left who was killed.
    pub fn begin(listens: &Path, answer: Answer) -> Result<Self, Problem> {
        let failed = |error: std::io::Error| {
            Problem::new(ProblemKind::System, "cannot wait for what the other host may ask").because(error)
        };
        Self::forget(listens);
        let listener = socket::listen(listens, 0o600).map_err(|error| error.problem())?;
        let (stopped, stop) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let attend = move || attend(&listener, &stopped, answer);
        let thread = std::thread::Builder::new().name("asked".to_owned()).spawn(attend).map_err(failed)?;
        Ok(Self { listens: listens.to_owned(), stop, thread })
    }

    /// Nothing more is asked; a question that is open is given up.
    pub fn end(self) {
        let Self { listens, stop, thread } = self;
        drop(stop);
        // It answers questions: one that panicked answered none.
        let _ = thread.join();
        Self::forget(&listens);
    }

    /// Removes what is left there of somebody who was killed.
    pub fn forget(listens: &Path) {
        // It may have gone with the machine's folder; what stays, refuses.
        let _ = std::fs::remove_file(listens);
    }
}

fn attend(listener: &OwnedFd, stopped: &OwnedFd, answer: Answer) {
    let mut known = Known::default();
    loop {
        let mut polled = [PollFd::new(listener, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        match rustix::event::poll(&mut polled, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        if !polled[1].revents().is_empty() {
            return;
        }
        let Ok(asker) = socket::accept(listener) else { return };
        let own = rustix::process::getuid().as_raw();
        if socket::peer(&asker).is_ok_and(|peer| peer.uid == own) {
            answer_one(&asker.into(), stopped, answer, &mut known);
        }
    }
}

fn answer_one(stream: &UnixStream, stopped: &OwnedFd, answer: Answer, known: &mut Known) {
    let mut line = String::new();
    // One that says nothing is answered nothing.
    let _ = stream.set_read_timeout(Some(SAID_WITHIN));
    if BufReader::new(stream.take(MOST)).read_line(&mut line).is_err() {
        return;
    }
    let Ok(Asked { text, by }) = serde_json::from_str(&line) else { return };
    let given = match known.given.get(&text) {
        Some((asker, given)) if *asker != by => Some(given.clone()),
        _ if known.unwilling => None,
        refused => {
            let question = Question { text: &text, again: refused.is_some() };
            answer(&question, &[stopped.as_fd(), stream.as_fd()])
        }
    };
    known.unwilling |= given.is_none();
    let mut bytes = serde_json::to_vec(&given).unwrap_or_default();
    bytes.push(b'\n');
    if let Some(given) = given {
        known.given.insert(text, (by, given));
    }
    let mut stream = stream;
    // Who has given up needs no answer.
    let _ = stream.write_all(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody who knows one word, and notices a second question.
    fn somebody(question: &Question<'_>, _: &[BorrowedFd<'_>]) -> Option<String> {
        match (question.text, question.again) {
            ("word? ", false) => Some("sesame".to_owned()),
            ("word? ", true) => Some("open".to_owned()),
            _ => None,
        }
    }

    /// Somebody who never answers.
    fn nobody(_: &Question<'_>, until: &[BorrowedFd<'_>]) -> Option<String> {
        let mut polled: Vec<_> = until.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        rustix::event::poll(&mut polled, None).expect("descriptors");
        None
    }

    #[test]
    fn a_question_is_answered_and_a_refused_answer_asked_for_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ask.sock");
        std::fs::write(&path, "left by somebody").expect("a file");
        let asking = Asking::begin(&path, somebody).expect("it listens");
        assert_eq!(ask(&path, "word? ").expect("an answer"), "sesame");
        assert_eq!(ask(&path, "word? ").expect("an answer"), "open", "the same process asks again");
        let refused = ask(&path, "how are you? ").expect_err("nobody knows");
        assert!(refused.kind == ProblemKind::Denied && refused.message.contains("how are you?"), "{refused}");
        assert!(ask(&path, "word? ").is_err(), "who does not want to answer is asked no more");
        asking.end();
        assert!(!path.exists());
        assert_eq!(ask(&path, "word? ").expect_err("nobody is there").kind, ProblemKind::Denied);
    }

    #[test]
    fn another_process_gets_what_let_the_first_one_in() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (stopped, _stop) = rustix::pipe::pipe().expect("a pipe");
        let given = HashMap::from([("word? ".to_owned(), (7, "sesame".to_owned()))]);
        let mut known = Known { given, unwilling: true };
        (&ours).write_all(b"{\"text\":\"word? \",\"by\":8}\n").expect("room");
        answer_one(&theirs, &stopped, |_, _| None, &mut known);
        let mut line = String::new();
        BufReader::new(ours).read_line(&mut line).expect("an answer");
        assert_eq!(line, "\"sesame\"\n");
    }

    #[test]
    fn an_open_question_does_not_hold_the_end_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ask.sock");
        let asking = Asking::begin(&path, nobody).expect("it listens");
        let asks = {
            let path = path.clone();
            std::thread::spawn(move || ask(&path, "word? "))
        };
        // It has been heard once it is no longer waiting to be accepted, or is refused by the end: both are answers.
        asking.end();
        assert!(asks.join().expect("it ends").is_err());
    }
}
