//! The far side: what a connection becomes there ([`attach`]), and the keeper, which outlives connections.
//!
//! ```text
//! sshd ── sh ── testyard far ── its standard streams ──► keeper ── machine.sock ── supervisor ── agent
//!                  (waits)                                 │
//!                                   session folder: keeper.sock, the home of the machine
//! ```
//!
//! The keeper has one folder for its session, with a home of its own in it. It ends when it is told to, or when there was
//! no connection for as long as the grace: then it removes the machine and the folder. A folder whose keeper was killed
//! is removed by the next session of that user.

use std::fs::{self, DirBuilder};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use testyard_linux::signal::{Signal, SignalFd};
use testyard_linux::socket;
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::frame::{Decoded, encode};
use testyard_protocol::{FrameDecoder, FrameHeader};

use crate::bringer::Bringer;
use crate::hub::{Arrival, Hub, Side};
use crate::message::{FarStart, Hello, LINK_VERSION, LinkMessage, WIRE, WireMessage};
use crate::wire::{Cut, Wire};

/// How long a connection may take to say hello.
const GREETING: Duration = Duration::from_secs(30);
/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Descriptor of the keeper's listening socket.
pub const LISTENING: i32 = 3;
/// Descriptor of what the keeper is told: a [`FarStart`].
pub const TOLD: i32 = 4;
const SOCKET: &str = "keeper.sock";

/// Where sessions are kept: a folder of this user's alone.
pub fn sessions_folder() -> Result<PathBuf, Problem> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    let uid = rustix::process::geteuid().as_raw();
    let mut places: Vec<PathBuf> = state.into_iter().map(|state| state.join(crate::SESSIONS)).collect();
    // A home on network storage can hold neither locks nor sockets.
    places.extend(["/var/tmp", "/dev/shm"].map(|folder| Path::new(folder).join(format!("{}-{uid}", crate::SESSIONS))));
    let mut why = Problem::new(ProblemKind::Unsupported, "no folder there can hold a machine's files");
    for place in places {
        match usable(&place) {
            Ok(()) => return Ok(place),
            Err(reason) => why = why.because(reason),
        }
    }
    Err(why.hint("give that user a home on a local disk"))
}

fn usable(place: &Path) -> Result<(), String> {
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    }
    let folder = testyard_linux::files::verified_private_directory(place)
        .map_err(|error| format!("{}: {}", place.display(), error.source))?;
    match testyard_linux::files::is_network_file_system(&folder) {
        Some(kind) => Err(format!("{} is on a {kind} file system", place.display())),
        None => Ok(()),
    }
}

/// Serves one connection over standard input and output: starts the session's keeper or finds it, and hands the
/// connection over. Returns when the keeper has let it go. `spawn` starts a keeper for a session's folder.
pub fn attach(spawn: impl FnOnce(&Path, OwnedFd, &FarStart) -> Result<(), Problem>) -> Result<(), Problem> {
    let outcome = read_hello().and_then(|(hello, read)| {
        let socket = if hello.resume.is_none() { begin(&hello, spawn) } else { find(&hello) }?;
        hand_over(&socket, &hello, &read).map(|()| socket)
    });
    match outcome {
        Ok(keeper) => match socket::receive(&keeper, &mut [0; 1], &mut Vec::new()) {
            Ok(1) => Ok(()),
            _ => Err(Problem::new(ProblemKind::Unavailable, "the machine's session was killed")),
        },
        Err(problem) => {
            let payload = serde_json::to_vec(&WireMessage::Refused(problem.clone())).unwrap_or_default();
            let mut bytes = Vec::new();
            encode(FrameHeader::message(WIRE), &payload, &mut bytes);
            // Where nobody listens any more, nobody needs to know.
            let _ = rustix::io::write(rustix::stdio::stdout(), &bytes);
            Err(problem)
        }
    }
}

fn read_hello() -> Result<(Hello, Vec<u8>), Problem> {
    let deadline = Instant::now() + GREETING;
    let mut decoder = FrameDecoder::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let decoded = decoder.next().map_err(|error| Problem::from_error(ProblemKind::Protocol, &error))?;
        if let Some(Decoded::Frame(frame)) = decoded {
            return match serde_json::from_slice(&frame.payload) {
                Ok(WireMessage::Hello(hello)) => Ok((*hello, decoder.pending().to_vec())),
                _ => Err(Problem::new(ProblemKind::Protocol, "the first word was no hello")),
            };
        }
        let left = deadline.saturating_duration_since(Instant::now()).try_into();
        let mut polled = [PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN)];
        let ready = left.ok().and_then(|left| rustix::event::poll(&mut polled, Some(&left)).ok());
        let count = match ready {
            Some(0) | None => return Err(Problem::new(ProblemKind::TimedOut, "nobody said hello")),
            Some(_) => rustix::io::read(rustix::stdio::stdin(), &mut buffer).unwrap_or(0),
        };
        if count == 0 {
            return Err(Problem::new(ProblemKind::Unavailable, "nobody said hello"));
        }
        decoder.feed(&buffer[..count]);
    }
}

fn folder_of(hello: &Hello) -> Result<PathBuf, Problem> {
    if hello.version != LINK_VERSION {
        let message = format!("the link's version is {LINK_VERSION} there, and {} here", hello.version);
        return Err(Problem::new(ProblemKind::Unsupported, message)
            .hint(format!("restart the machine with this version: testyard restart {}", hello.start.name)));
    }
    let named = (1..=32).contains(&hello.session.len())
        && hello.session.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !named {
        return Err(Problem::new(ProblemKind::Protocol, "a session's name is letters and digits"));
    }
    Ok(sessions_folder()?.join(&hello.session))
}

fn begin(
    hello: &Hello,
    spawn: impl FnOnce(&Path, OwnedFd, &FarStart) -> Result<(), Problem>,
) -> Result<OwnedFd, Problem> {
    let folder = folder_of(hello)?;
    let failed = |error: io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ProblemKind::Exhausted,
            io::ErrorKind::AlreadyExists => ProblemKind::AlreadyExists,
            _ => ProblemKind::System,
        };
        Problem::new(kind, format!("cannot make the session's folder {}", folder.display())).because(error)
    };
    DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
    let socket = folder.join(SOCKET);
    let unnamed = folder.join("keeper.new");
    let listener = socket::listen(&unnamed, 0o600).map_err(|error| error.problem())?;
    fs::rename(&unnamed, &socket).map_err(failed)?;
    spawn(&folder, listener, &hello.start)?;
    socket::connect(&socket).map_err(|error| error.problem())
}

fn find(hello: &Hello) -> Result<OwnedFd, Problem> {
    let folder = folder_of(hello)?;
    socket::connect(&folder.join(SOCKET)).map_err(|error| {
        // Not transient: nobody begins it again.
        Problem::new(ProblemKind::NotFound, "the other side has ended the session, or was started anew").because(error)
    })
}

/// Gives the keeper this process's standard streams, and what was read of them.
fn hand_over(keeper: &OwnedFd, hello: &Hello, read: &[u8]) -> Result<(), Problem> {
    let mut bytes = Vec::new();
    let payload = serde_json::to_vec(&WireMessage::Hello(Box::new(hello.clone()))).unwrap_or_default();
    encode(FrameHeader::message(WIRE), &payload, &mut bytes);
    bytes.extend_from_slice(read);
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout()];
    let mut sent = 0;
    while sent < bytes.len() {
        let attached = if sent == 0 { &streams[..] } else { &[] };
        sent += socket::send(keeper, &[IoSlice::new(&bytes[sent..])], attached).map_err(|error| error.problem())?;
    }
    Ok(())
}

/// Removes what keepers left that were killed. `reap` finishes what is in a session's folder first.
pub fn sweep(own: &Path, reap: impl Fn(&Path) -> Result<(), Problem>) {
    let Some(entries) = own.parent().and_then(|folder| fs::read_dir(folder).ok()) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let socket = path.join(SOCKET);
        if path != own && is_deserted(&socket) && reap(&path).is_ok() {
            // What stays is met again by the next session.
            let _ = remove(&path);
        }
    }
}

/// Whether a keeper's socket is there, and certainly nobody behind it: it gets its name once it listens.
fn is_deserted(socket: &Path) -> bool {
    // Any other error, as of descriptors that have run out, says nothing of the keeper.
    socket.exists() && socket::connect(socket).is_err_and(|error| error.errno() == Errno::CONNREFUSED)
}

/// Removes a session's folder; nothing that is mounted in it.
pub fn remove(folder: &Path) -> Result<(), Problem> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return Ok(()) };
    let parent = fs::File::open(parent)
        .map_err(|error| Problem::new(ProblemKind::System, "cannot open the sessions' folder").because(error))?;
    testyard_linux::files::remove_tree(parent.as_fd(), name).map(drop).map_err(|error| error.problem())
}

/// A machine as its keeper has it.
#[derive(Debug)]
pub struct Made {
    /// What it cannot isolate or limit.
    pub limits: Vec<String>,
    /// Where its clients connect.
    pub socket: PathBuf,
    /// A connection that ends when the machine does.
    pub watch: OwnedFd,
}

type Making = JoinHandle<Result<Made, Problem>>;

/// Keeps one session.
pub struct Keeper {
    hub: Hub,
    listener: OwnedFd,
    signals: SignalFd,
    grace: Duration,
    alive: Duration,
    /// The connection, and the process that brought it, which waits.
    wire: Option<(Wire, Bringer)>,
    /// How many connections there were.
    connections: u64,
    /// Since when there is none.
    alone: Instant,
    /// Connections that are being handed over.
    newcomers: Vec<(OwnedFd, FrameDecoder, Vec<OwnedFd>, Instant)>,
    making: Option<(Making, OwnedFd)>,
    made: Option<Made>,
    ending: bool,
}

impl Keeper {
    /// With a thread that makes the machine, and a descriptor that is ready once it has.
    pub fn new(listener: OwnedFd, start: &FarStart, making: (Making, OwnedFd)) -> Result<Self, Problem> {
        rustix::io::ioctl_fionbio(&listener, true)
            .map_err(|errno| Problem::new(ProblemKind::System, "cannot listen").because(errno))?;
        let signals = SignalFd::new(&[Signal::TERM, Signal::INT]).map_err(|error| error.problem())?;
        Ok(Self {
            hub: Hub::new(Side::Far),
            listener,
            signals,
            grace: Duration::from_millis(start.grace_ms),
            alive: Duration::from_millis(start.alive_ms),
            wire: None,
            connections: 0,
            alone: Instant::now(),
            newcomers: Vec::new(),
            making: Some(making),
            made: None,
            ending: false,
        })
    }

    /// Serves until the session is over; the caller then calls [`Keeper::finish`].
    pub fn serve(&mut self) {
        while !self.ending {
            let Some(happened) = self.wait() else { return };
            self.turn(&happened);
            let now = Instant::now();
            if let Some(Err(cut)) = self.wire.as_mut().map(|(wire, _)| wire.keep_alive(now)) {
                self.cut(&cut);
            }
            self.newcomers.retain(|(.., until)| now < *until);
            self.ending |= self.wire.is_none() && now >= self.alone + self.grace;
        }
    }

    /// Has the machine and the session's folder removed, and says the last word.
    pub fn finish(mut self, remove: impl FnOnce() -> Result<(), Problem>) -> Result<(), Problem> {
        if let Some((thread, _)) = self.making.take() {
            // It was being made while everything ended; its maker's error is nobody's any more.
            drop(thread.join());
        }
        self.made = None;
        let removed = remove();
        self.say_goodbye();
        removed
    }

    fn say_goodbye(mut self) {
        self.hub.say(&LinkMessage::Ended);
        let deadline = Instant::now() + LAST_WORDS;
        while let Some((wire, _)) = &mut self.wire {
            if wire.send(&mut self.hub).is_err() || wire.is_done(&self.hub) || Instant::now() >= deadline {
                return;
            }
            let [_, (output, _)] = wire.interests(&self.hub);
            let mut polled = [PollFd::from_borrowed_fd(output, PollFlags::OUT)];
            let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            // The deadline above bounds the turns.
            let _ = rustix::event::poll(&mut polled, Some(&moment));
        }
    }

    fn wait(&self) -> Option<Vec<(Source, PollFlags)>> {
        let deadline = match &self.wire {
            Some((wire, _)) => wire.deadline(),
            None => self.alone + self.grace,
        };
        let deadline = self.newcomers.iter().map(|(.., until)| *until).chain([deadline]).min()?;
        let Self { hub, wire, listener, signals, newcomers, making, made, .. } = self;
        let mut sources = vec![
            (Source::Listener, listener.as_fd(), PollFlags::IN),
            (Source::Signals, signals.as_fd(), PollFlags::IN),
        ];
        sources.extend(making.iter().map(|(_, done)| (Source::Made, done.as_fd(), PollFlags::IN)));
        sources.extend(made.iter().map(|made| (Source::Watch, made.watch.as_fd(), PollFlags::IN)));
        let greeting = newcomers.iter().enumerate();
        sources.extend(greeting.map(|(index, (fd, ..))| (Source::Newcomer(index), fd.as_fd(), PollFlags::IN)));
        if let Some((wire, bringer)) = wire {
            let [input, output] = wire.interests(hub);
            sources.push((Source::Input, input.0, input.1));
            sources.push((Source::Output, output.0, output.1));
            sources.push((Source::Bringer, bringer.as_fd(), PollFlags::IN));
        }
        sources.extend(hub.interests().into_iter().map(|(id, fd, flags)| (Source::Channel(id), fd, flags)));
        let mut polled: Vec<_> = sources.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(3600));
        match rustix::event::poll(&mut polled, left.try_into().ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
        let happened = sources.iter().zip(&polled).map(|((source, ..), fd)| (*source, fd.revents()));
        Some(happened.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn turn(&mut self, happened: &[(Source, PollFlags)]) {
        let mut readable = false;
        let before = self.connections;
        for (source, flags) in happened {
            match source {
                // They are those of a connection that a newcomer has just replaced.
                Source::Input | Source::Output | Source::Bringer if self.connections != before => {}
                Source::Listener => self.accept(),
                // Told to end by the host (a job that is called off): everything goes.
                Source::Signals => self.ending = true,
                Source::Made => self.see_what_was_made(),
                Source::Watch => self.machine_ended(),
                Source::Newcomer(index) => self.greet(*index),
                Source::Input => readable = true,
                Source::Output if flags.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) => {
                    self.cut(&Cut::Closed);
                }
                Source::Output => {}
                Source::Bringer => self.cut(&Cut::Closed),
                Source::Channel(id) => self.hub.serve(*id, *flags),
            }
        }
        let now = Instant::now();
        self.newcomers.retain(|(.., until)| *until > now);
        self.exchange(readable);
    }

    fn accept(&mut self) {
        while let Ok(socket) = socket::accept(&self.listener) {
            let own = rustix::process::geteuid().as_raw();
            if socket::peer(&socket).is_ok_and(|peer| peer.uid == own) {
                self.newcomers.push((socket, FrameDecoder::new(), Vec::new(), Instant::now() + GREETING));
            }
        }
    }

    /// Reads a newcomer's hello, and makes its streams the connection.
    fn greet(&mut self, index: usize) {
        let Some((socket, decoder, streams, until)) = self.newcomers.get_mut(index) else { return };
        let mut buffer = [0; 16 * 1024];
        match socket::try_receive(&*socket, &mut buffer, streams) {
            Ok(Some(count)) if count > 0 => decoder.feed(&buffer[..count]),
            Ok(None) => return,
            _ => {
                *until = Instant::now();
                return;
            }
        }
        let Ok(Some(Decoded::Frame(frame))) = decoder.next() else { return };
        let Ok(WireMessage::Hello(hello)) = serde_json::from_slice(&frame.payload) else { return };
        let read = decoder.pending().to_vec();
        let (Some(output), Some(input), Ok(bringer)) = (streams.pop(), streams.pop(), socket.try_clone()) else {
            *until = Instant::now();
            return;
        };
        *until = Instant::now();
        self.take_connection(&hello, (input, output), &read, bringer);
    }

    fn take_connection(&mut self, hello: &Hello, (input, output): (OwnedFd, OwnedFd), read: &[u8], bringer: OwnedFd) {
        let Ok(mut wire) = Wire::new(input, output, read, self.alive) else { return };
        if let Err(mismatch) = self.hub.resume(hello.resume.unwrap_or(0)) {
            wire.say(WireMessage::Refused(Problem::from_error(ProblemKind::NotFound, &mismatch)));
            // It ends with what could be said.
            let _ = wire.send(&mut Hub::new(Side::Far));
            return;
        }
        let server = concat!("testyard far side ", env!("CARGO_PKG_VERSION")).to_owned();
        wire.say(WireMessage::Welcome { received: self.hub.inbox().tell(), server });
        // An older connection is dead, or is about to find out.
        self.wire = Some((wire, Bringer(bringer)));
        self.connections += 1;
        let mut arrivals = Vec::new();
        let outcome = match &mut self.wire {
            Some((wire, _)) => wire
                .decode(&mut self.hub, &mut |hub, arrival| arrivals.extend(arrive(hub, self.made.as_ref(), arrival))),
            None => Ok(()),
        };
        self.hear(&arrivals);
        match outcome {
            Ok(()) => self.exchange(false),
            Err(cut) => self.cut(&cut),
        }
    }

    fn exchange(&mut self, readable: bool) {
        let Some((wire, _)) = &mut self.wire else { return };
        let made = self.made.as_ref();
        let mut words = Vec::new();
        let mut outcome = Ok(());
        if readable {
            outcome = wire.receive(&mut self.hub, |hub, arrival| words.extend(arrive(hub, made, arrival)));
        }
        let outcome = outcome.and_then(|()| wire.send(&mut self.hub));
        self.hear(&words);
        if let Err(cut) = outcome {
            self.cut(&cut);
        }
    }

    fn hear(&mut self, words: &[LinkMessage]) {
        self.ending |= words.contains(&LinkMessage::End);
    }

    fn cut(&mut self, cut: &Cut) {
        self.ending |= matches!(cut, Cut::Breach(_));
        if self.wire.take().is_some() {
            self.alone = Instant::now();
        }
    }

    fn see_what_was_made(&mut self) {
        let Some((thread, _)) = self.making.take() else { return };
        match thread.join() {
            Ok(Ok(made)) => {
                self.hub.say(&LinkMessage::Ready { limits: made.limits.clone() });
                self.made = Some(made);
            }
            Ok(Err(problem)) => self.broken(problem),
            Err(_) => self.broken(Problem::new(ProblemKind::Bug, "making the machine there panicked")),
        }
    }

    fn machine_ended(&mut self) {
        self.made = None;
        self.broken(Problem::new(ProblemKind::Unavailable, "the machine there has ended"));
    }

    fn broken(&mut self, problem: Problem) {
        self.hub.say(&LinkMessage::Broken(problem));
        self.ending = true;
    }
}

/// Connects a client; any other word is its keeper's.
fn arrive(hub: &mut Hub, made: Option<&Made>, arrival: Arrival) -> Option<LinkMessage> {
    match arrival {
        Arrival::Word(word) => Some(word),
        Arrival::Client(id) => {
            let connected = match made {
                Some(made) => socket::connect(&made.socket).map_err(|error| {
                    Problem::from_error(ProblemKind::Unavailable, &error).because("the machine there does not answer")
                }),
                None => Err(Problem::new(ProblemKind::Unavailable, "the machine there is not ready")),
            };
            hub.connected(id, connected);
            None
        }
    }
}

/// What woke the keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Listener,
    Signals,
    Made,
    Watch,
    Newcomer(usize),
    Input,
    Output,
    Bringer,
    Channel(u32),
}
