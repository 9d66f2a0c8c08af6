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
use testyard_linux::process::{self, Pid};
use testyard_linux::signal::{self, Mask, Signal, SignalFd};
use testyard_linux::socket;
use testyard_model::{Problem, ProblemKind};

/// A login that asks somebody may take so much longer: as long as OpenSSH's server waits by default.
pub(crate) const THINKING: Duration = Duration::from_secs(120);
/// A question is at most so long, in bytes.
const MOST: u64 = 64 * 1024;
/// Who has connected says at once what it wants to know.
const SAID_WITHIN: Duration = Duration::from_secs(5);
/// What is sent to a process that is to end.
const ENDING: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];

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

/// Whether somebody is asked something while a connection is made: who asks them leaves a mark beside the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Questions(PathBuf);

impl Questions {
    /// Those from now on that go to who listens there.
    pub(crate) fn from_now(listens: &Path) -> Self {
        let mark = mark(listens);
        // Of an earlier connection, if there is one; what stays gives this one more time than it needs.
        let _ = std::fs::remove_file(&mark);
        Self(mark)
    }

    /// Whether there was one.
    pub(crate) fn came(&self) -> bool {
        self.0.exists()
    }
}

fn mark(listens: &Path) -> PathBuf {
    listens.with_extension("asked")
}

/// What was answered so far.
#[derive(Debug, Default)]
struct Known {
    given: HashMap<String, Vec<Given>>,
    /// Somebody did not want to answer: `ssh` takes that for an empty password, and would ask as often as it may.
    unwilling: bool,
}

/// An answer, and to which process.
#[derive(Debug)]
struct Given {
    by: i32,
    asker: Option<OwnedFd>,
    answer: String,
}

impl Given {
    /// Whether its process has ended. One of which that cannot be told has not.
    fn is_over(&self) -> bool {
        let Some(asker) = &self.asker else { return false };
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut [PollFd::new(asker, PollFlags::IN)], Some(&now)).is_ok_and(|count| count > 0)
    }
}

impl Known {
    /// Takes the answer that let an earlier connection in. While its process is there, who asks the same asks for another
    /// host: a jump host's `ssh` lives as long as the one to the target. And where two of them asked, nobody knows whose
    /// answer it is.
    fn take(&mut self, text: &str) -> Option<String> {
        let given = self.given.get_mut(text)?;
        let lone = matches!(given.as_slice(), [one] if one.is_over());
        given.pop_if(|_| lone).map(|given| given.answer)
    }

    /// Whether this process has an answer to it already, which was refused then.
    fn was_refused(&self, text: &str, by: i32) -> bool {
        self.given.get(text).is_some_and(|given| given.iter().any(|one| one.by == by && !one.is_over()))
    }

    fn add(&mut self, text: String, given: Given) {
        let all = self.given.entry(text).or_default();
        all.retain(|one| one.by != given.by);
        all.push(given);
    }
}

/// Answers questions as long as a machine is being started: until it is dropped. Then a question that is open is given up.
#[derive(Debug)]
pub struct Asking {
    listens: PathBuf,
    /// The end of a pipe and the thread that stops once it is closed; none once it has.
    attending: Option<(OwnedFd, JoinHandle<()>)>,
    /// What the thread that began it had blocked.
    before: Mask,
}

impl Asking {
    /// Listens there, in place of what somebody left who was killed. Until it is dropped, which is for the same thread to
    /// do, a signal that ends this process does so only once an open question was given up: whoever asks at a terminal
    /// has changed it.
    pub fn begin(listens: &Path, answer: Answer) -> Result<Self, Problem> {
        let failed = |error: std::io::Error| {
            Problem::new(ProblemKind::System, "cannot wait for what the other host may ask").because(error)
        };
        Self::forget(listens);
        let listener = socket::listen(listens, 0o600).map_err(|error| error.problem())?;
        let (stopped, stop) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let before = Mask::current().map_err(|error| error.problem())?;
        // What somebody has blocked already, they wait for themselves.
        let ending: Vec<_> = ENDING.into_iter().filter(|signal| !before.has(*signal)).collect();
        let mark = mark(listens);
        // The new thread has the mask of this one.
        let thread = SignalFd::new(&ending).map_err(|error| error.problem()).and_then(|signals| {
            let attend = move || Attended { stopped, signals, answer, mark, known: Known::default() }.attend(&listener);
            std::thread::Builder::new().name("asked".to_owned()).spawn(attend).map_err(failed)
        });
        match thread {
            Ok(thread) => Ok(Self { listens: listens.to_owned(), attending: Some((stop, thread)), before }),
            Err(problem) => {
                // What was blocked a moment ago can be unblocked.
                let _ = before.restore();
                Err(problem)
            }
        }
    }

    /// Removes what is left there of somebody who was killed.
    pub fn forget(listens: &Path) {
        // They may have gone with the machine's folder; what stays, refuses.
        let _ = std::fs::remove_file(listens);
        let _ = std::fs::remove_file(mark(listens));
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.attending.take() {
            drop(stop);
            // It answers questions: one that panicked answered none.
            let _ = thread.join();
        }
        Self::forget(&self.listens);
        // What came last acts now.
        let _ = self.before.restore();
    }
}

/// What the thread has.
struct Attended {
    stopped: OwnedFd,
    signals: SignalFd,
    answer: Answer,
    mark: PathBuf,
    known: Known,
}

impl Attended {
    fn attend(mut self, listener: &OwnedFd) {
        loop {
            let mut polled = [listener.as_fd(), self.stopped.as_fd(), self.signals.as_fd()]
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match rustix::event::poll(&mut polled, None) {
                Err(Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            let happened = polled.map(|fd| !fd.revents().is_empty());
            if happened[2] {
                while let Ok(Some(received)) = self.signals.read() {
                    // Nothing is asked now. What is ignored, or has a handler, lets this go on.
                    let _ = signal::let_act(received.signal);
                }
            }
            if happened[1] {
                return;
            }
            if happened[0] {
                let Ok(asker) = socket::accept(listener) else { return };
                let own = rustix::process::getuid().as_raw();
                if socket::peer(&asker).is_ok_and(|peer| peer.uid == own) {
                    self.answer_one(&asker.into());
                }
            }
        }
    }

    fn answer_one(&mut self, stream: &UnixStream) {
        let mut line = String::new();
        // One that says nothing is answered nothing.
        let _ = stream.set_read_timeout(Some(SAID_WITHIN));
        if BufReader::new(stream.take(MOST)).read_line(&mut line).is_err() {
            return;
        }
        let Ok(Asked { text, by }) = serde_json::from_str(&line) else { return };
        let asker = Pid::from_raw(by).and_then(|by| process::pidfd_open(by).ok());
        let given = match self.known.take(&text) {
            Some(given) => Some(given),
            None if self.known.unwilling => None,
            None => self.ask(&text, by, stream),
        };
        self.known.unwilling |= given.is_none();
        let mut bytes = serde_json::to_vec(&given).unwrap_or_default();
        bytes.push(b'\n');
        if let Some(answer) = given {
            self.known.add(text, Given { by, asker, answer });
        }
        let mut stream = stream;
        // Who has given up needs no answer.
        let _ = stream.write_all(&bytes);
    }

    fn ask(&self, text: &str, by: i32, stream: &UnixStream) -> Option<String> {
        // Without it there is less time to think.
        let _ = std::fs::File::create(&self.mark);
        let question = Question { text, again: self.known.was_refused(text, by) };
        (self.answer)(&question, &[self.stopped.as_fd(), self.signals.as_fd(), stream.as_fd()])
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::process::{Child, Command, Stdio};

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
        drop(asking);
        assert!(!path.exists());
        assert_eq!(ask(&path, "word? ").expect_err("nobody is there").kind, ProblemKind::Denied);
    }

    /// A process that asks, as long as it is there.
    fn asker() -> Child {
        Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat is everywhere")
    }

    fn end(mut asker: Child) {
        drop(asker.stdin.take());
        asker.wait().expect("ours");
    }

    /// Who answers with how often they were asked.
    fn counting(_: &Question<'_>, _: &[BorrowedFd<'_>]) -> Option<String> {
        thread_local!(static TIMES: Cell<u32> = const { Cell::new(0) });
        TIMES.set(TIMES.get() + 1);
        Some(TIMES.get().to_string())
    }

    fn attended() -> (Attended, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let (stopped, _) = rustix::pipe::pipe().expect("a pipe");
        let signals = SignalFd::new(&[]).expect("no error");
        let mark = folder.path().join("ask.asked");
        (Attended { stopped, signals, answer: counting, mark, known: Known::default() }, folder)
    }

    #[track_caller]
    fn check(attended: &mut Attended, by: &Child, expected: &str) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (&ours).write_all(format!("{{\"text\":\"word? \",\"by\":{}}}\n", by.id()).as_bytes()).expect("room");
        attended.answer_one(&theirs);
        let mut line = String::new();
        BufReader::new(ours).read_line(&mut line).expect("an answer");
        assert_eq!(line, format!("{expected}\n"));
    }

    #[test]
    fn a_second_connection_gets_what_let_the_first_one_in() {
        let (mut attended, _folder) = attended();
        let (first, second) = (asker(), asker());
        check(&mut attended, &first, "\"1\"");
        end(first);
        attended.known.unwilling = true;
        check(&mut attended, &second, "\"1\"");
        check(&mut attended, &second, "null");
        end(second);
    }

    #[test]
    fn one_host_is_not_told_what_is_for_another() {
        let (mut attended, _folder) = attended();
        let (jump, target) = (asker(), asker());
        check(&mut attended, &jump, "\"1\"");
        check(&mut attended, &target, "\"2\"");
        check(&mut attended, &target, "\"3\"");
        end(target);
        end(jump);
        // Nor is a second connection, of which nobody knows which host asks first.
        let (jump, target) = (asker(), asker());
        check(&mut attended, &jump, "\"4\"");
        check(&mut attended, &target, "\"5\"");
        end(target);
        end(jump);
    }

    #[test]
    fn it_is_seen_whether_somebody_was_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ask.sock");
        let asking = Asking::begin(&path, somebody).expect("it listens");
        let questions = Questions::from_now(&path);
        assert!(!questions.came());
        ask(&path, "word? ").expect("an answer");
        assert!(questions.came());
        assert!(!Questions::from_now(&path).came());
        ask(&path, "word? ").expect("an answer");
        drop(asking);
        assert!(!questions.came(), "nothing is left");
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
        drop(asking);
        assert!(asks.join().expect("it ends").is_err());
    }
}
