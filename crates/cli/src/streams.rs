//! A command's standard streams, as the machine gets them.
//!
//! A pipe or a socket is passed itself. A terminal or a file never is, because the machine could do more with it
//! than read or write: it gets a pipe instead, and the bytes are relayed here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{Builder, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::{Exec, StreamTarget};

/// Bytes relayed at once.
const PIECE: usize = 64 * 1024;
/// The device number of `/dev/null`.
const NULL: (u32, u32) = (1, 3);

/// Our own standard streams.
pub(crate) struct Streams<'a> {
    stdin: BorrowedFd<'a>,
    /// The machine's ends of pipes, until they are sent.
    inside: Vec<OwnedFd>,
    feed: Option<OwnedFd>,
    relays: Vec<Relay<'a>>,
}

/// Bytes from a command's pipe to one of our streams.
struct Relay<'a> {
    /// None once the pipe's other end is closed, or our stream takes no more: the command learns by the closed pipe.
    from: Option<OwnedFd>,
    to: BorrowedFd<'a>,
    /// Why our stream took no more, where that is not just that nobody reads it.
    failure: Option<Errno>,
}

/// What the machine gets for one of our streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    Null,
    Itself,
    Pipe,
}

fn given(stat: &Stat) -> Given {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo | FileType::Socket => Given::Itself,
        FileType::CharacterDevice if (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == NULL => {
            Given::Null
        }
        _ => Given::Pipe,
    }
}

/// Whether a stream may be passed to a machine itself.
pub(crate) fn can_be_passed(stream: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(stream).is_ok_and(|stat| given(&stat) == Given::Itself)
}

impl<'a> Streams<'a> {
    /// Decides for each stream, and says so in `exec`. What is returned must be attached to it.
    pub(crate) fn prepare([stdin, stdout, stderr]: [BorrowedFd<'a>; 3], exec: &mut Exec) -> Result<Self, Problem> {
        let mut streams = Self { stdin, inside: Vec::new(), feed: None, relays: Vec::new() };
        let mut attached = 0;
        let mut next = || {
            attached += 1;
            StreamTarget::Attached(attached - 1)
        };
        let stat = |stream| rustix::fs::fstat(stream).map_err(|errno| failed("look at a standard stream", errno));
        let (out, err) = (stat(stdout)?, stat(stderr)?);
        exec.stdin = match given(&stat(stdin)?) {
            Given::Null => StreamTarget::Null,
            Given::Itself => {
                streams.inside.push(duplicate(stdin)?);
                next()
            }
            Given::Pipe => {
                let (inside, feed) = pipe()?;
                streams.inside.push(inside);
                streams.feed = Some(feed);
                next()
            }
        };
        exec.stdout = streams.output(stdout, given(&out), &mut next)?;
        // Through one pipe, what is written to both stays in its order.
        let same = given(&err) == Given::Pipe && (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino);
        exec.stderr = if same { exec.stdout } else { streams.output(stderr, given(&err), &mut next)? };
        Ok(streams)
    }

    fn output(
        &mut self,
        stream: BorrowedFd<'a>,
        given: Given,
        next: &mut impl FnMut() -> StreamTarget,
    ) -> Result<StreamTarget, Problem> {
        match given {
            Given::Null => return Ok(StreamTarget::Null),
            Given::Itself => self.inside.push(duplicate(stream)?),
            Given::Pipe => {
                let (from, inside) = pipe()?;
                self.inside.push(inside);
                self.relays.push(Relay { from: Some(from), to: stream, failure: None });
            }
        }
        Ok(next())
    }

    /// What to attach to the request, in order.
    pub(crate) fn attached(&self) -> Vec<BorrowedFd<'_>> {
        self.inside.iter().map(AsFd::as_fd).collect()
    }

    /// The request was sent: our copies of the machine's ends are closed, so that ends are seen.
    pub(crate) fn sent(&mut self) -> Result<Option<Feeder>, Problem> {
        self.inside.clear();
        let Some(feed) = self.feed.take() else { return Ok(None) };
        let nonblocking = rustix::fs::fcntl_setfl(&feed, rustix::fs::OFlags::NONBLOCK);
        nonblocking.map_err(|errno| failed("prepare standard input", errno))?;
        Feeder::start(duplicate(self.stdin)?, move |bytes, stop| feed_pipe(&feed, bytes, stop)).map(Some)
    }

    /// The pipes whose output is still awaited.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.relays.iter().filter_map(|relay| relay.from.as_ref().map(AsFd::as_fd))
    }

    /// Relays from the `index`th awaited pipe, which can be read.
    pub(crate) fn relay(&mut self, index: usize) {
        if let Some(relay) = self.relays.iter_mut().filter(|relay| relay.from.is_some()).nth(index) {
            relay.step();
        }
    }

    /// Relays what is there already. What still holds a pipe open was left behind, and is not waited for.
    pub(crate) fn drain(&mut self) {
        for relay in &mut self.relays {
            while relay.from.as_ref().is_some_and(|from| is_readable(from.as_fd())) {
                relay.step();
            }
        }
    }
}

impl Streams<'_> {
    /// What the command wrote and our own streams did not take.
    pub(crate) fn lost(&self) -> Option<Problem> {
        let errno = self.relays.iter().find_map(|relay| relay.failure)?;
        Some(failed("write what the command printed", errno).hint("free some space, or send its output elsewhere"))
    }
}

impl Relay<'_> {
    fn step(&mut self) {
        let Some(from) = &self.from else { return };
        let mut buffer = [0; PIECE];
        let written = match rustix::io::read(from, &mut buffer) {
            Err(Errno::INTR) => return,
            Ok(count) if count > 0 => write_whole(self.to, &buffer[..count]),
            _ => Err(Errno::PIPE),
        };
        if let Err(errno) = written {
            self.from = None;
            self.failure = (errno != Errno::PIPE).then_some(errno);
        }
    }
}

/// A thread that passes our standard input on, or reacts to signals, and ends when this is dropped.
pub(crate) struct Feeder {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Feeder {
    /// `give` gets each piece, and a descriptor that is readable once nothing more is wanted; it says
    /// whether to go on.
    pub(crate) fn start(
        from: OwnedFd,
        mut give: impl FnMut(&[u8], BorrowedFd<'_>) -> bool + Send + 'static,
    ) -> Result<Self, Problem> {
        let readable = duplicate(from.as_fd())?;
        let mut buffer = vec![0; PIECE];
        Self::spawn(readable, move |stop| match rustix::io::read(&from, &mut buffer) {
            Err(Errno::INTR | Errno::AGAIN) => true,
            Ok(count) => count > 0 && give(&buffer[..count], stop),
            Err(_) => false,
        })
    }

    /// Calls `react` each time the descriptor can be read; it says whether to go on.
    pub(crate) fn watch(on: OwnedFd, mut react: impl FnMut() -> bool + Send + 'static) -> Result<Self, Problem> {
        Self::spawn(on, move |_| react())
    }

    fn spawn(on: OwnedFd, mut react: impl FnMut(BorrowedFd<'_>) -> bool + Send + 'static) -> Result<Self, Problem> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| failed("make an event", errno))?;
        let stopped = duplicate(stop.as_fd())?;
        let body = move || {
            while await_either(on.as_fd(), PollFlags::IN, stopped.as_fd()) && react(stopped.as_fd()) {}
        };
        let thread = Builder::new().spawn(body);
        let thread =
            thread.map_err(|error| Problem::new(ProblemKind::Exhausted, "cannot start a thread").because(error))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        // Eight bytes always fit into a fresh event.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn feed_pipe(pipe: &OwnedFd, mut bytes: &[u8], stop: BorrowedFd<'_>) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(pipe, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if await_either(pipe.as_fd(), PollFlags::OUT, stop) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Waits until the first is ready (true) or the other one can be read (false).
fn await_either(descriptor: BorrowedFd<'_>, ready: PollFlags, stop: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, ready), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
    loop {
        match poll(&mut polled, None) {
            Ok(_) if !polled[1].revents().is_empty() => return false,
            Ok(_) if !polled[0].revents().is_empty() => return true,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    poll(&mut polled, Some(&rustix::event::Timespec::default())).is_ok_and(|count| count > 0)
}

/// Writes everything, also to a stream that somebody else made non-blocking.
pub(crate) fn write_whole(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut polled = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                match poll(&mut polled, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

pub(crate) fn duplicate(descriptor: BorrowedFd<'_>) -> Result<OwnedFd, Problem> {
    rustix::io::fcntl_dupfd_cloexec(descriptor, 3).map_err(|errno| failed("duplicate a descriptor", errno))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Problem> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed("make a pipe", errno))
}

fn failed(operation: &str, errno: Errno) -> Problem {
    Problem::new(ProblemKind::System, format!("cannot {operation}")).because(errno)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    fn null() -> File {
        File::options().read(true).write(true).open("/dev/null").expect("always there")
    }

    #[test]
    fn pipes_are_passed_and_files_are_relayed() {
        let (reader, _writer) = std::io::pipe().expect("a pipe");
        let file = tempfile::tempfile().expect("a file");
        let null = null();
        let mut exec = Exec::default();
        let mut streams =
            Streams::prepare([reader.as_fd(), file.as_fd(), null.as_fd()], &mut exec).expect("descriptors are left");
        assert_eq!(exec.stdin, StreamTarget::Attached(0));
        assert_eq!(exec.stdout, StreamTarget::Attached(1));
        assert_eq!(exec.stderr, StreamTarget::Null);
        assert_eq!(streams.attached().len(), 2);

        let inside = duplicate(streams.attached()[1]).expect("open");
        assert!(streams.sent().expect("nothing to feed").is_none());
        File::from(inside).write_all(b"output").expect("there is room");
        streams.drain();
        let mut text = [0; 16];
        let length = std::os::unix::fs::FileExt::read_at(&file, &mut text, 0).expect("a file");
        assert_eq!(&text[..length], b"output");
        assert_eq!(streams.awaited().count(), 0, "its end was seen");
    }

    #[test]
    fn one_file_for_both_outputs_is_one_pipe() {
        let null = null();
        let file = tempfile::tempfile().expect("a file");
        let mut exec = Exec::default();
        let streams =
            Streams::prepare([null.as_fd(), file.as_fd(), file.as_fd()], &mut exec).expect("descriptors are left");
        assert_eq!((exec.stdin, exec.stdout), (StreamTarget::Null, StreamTarget::Attached(0)));
        assert_eq!(exec.stderr, exec.stdout);
        assert_eq!(streams.attached().len(), 1);
    }

    #[test]
    fn input_is_fed_until_its_end_or_until_nobody_wants_it() {
        let null = null();
        let mut file = tempfile::tempfile().expect("a file");
        let data = vec![7; 1 << 20];
        file.write_all(&data).expect("room");
        file.rewind().expect("a file");
        for whole in [true, false] {
            file.rewind().expect("a file");
            let mut exec = Exec::default();
            let mut streams =
                Streams::prepare([file.as_fd(), null.as_fd(), null.as_fd()], &mut exec).expect("descriptors are left");
            let mut inside = File::from(duplicate(streams.attached()[0]).expect("open"));
            let feeder = streams.sent().expect("a thread").expect("a file is fed");
            if whole {
                let mut read = Vec::new();
                inside.read_to_end(&mut read).expect("fed");
                assert!(read == data);
            }
            drop(feeder);
        }
    }
}
