//! Machines for tests, each in a folder of its own, ended and removed when dropped.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use testyard_linux::{process, socket};
use testyard_machine::backend::{AgentLink, Backend, MachinePlace};
use testyard_machine::client::{Captured, ClientError, Connection, Session, caller};
use testyard_machine::{MemoryRecorder, Recorder as _};
use testyard_model::{
    BackendName, CommandStatus, EnvironmentSpec, Isolation, MachineId, MachineName, MachineSpec, Problem, UserSpec,
};
use testyard_protocol::{Exec, FrameDecoder, FrameHeader, Order, Place, RawText, Report, Role};

/// A machine without a supervisor.
pub(crate) struct Machine {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) place: MachinePlace,
    recorder: MemoryRecorder,
    link: Option<AgentLink>,
    pub(crate) limits: Vec<String>,
    /// The first environment number that was not given yet.
    next_slot: u64,
    /// Holds the machine's folder; last, as fields are dropped in order.
    _home: tempfile::TempDir,
}

/// Environment numbers are given to an agent in blocks of so many.
const SLOTS: u64 = 100_000;

/// The next machine's number in this process.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Machine {
    pub(crate) fn namespace() -> Self {
        Self::start(MachineSpec::new(BackendName::namespace()))
    }

    pub(crate) fn host() -> Self {
        Self::start(MachineSpec::new(BackendName::host()))
    }

    /// One of each backend.
    pub(crate) fn each() -> [Self; 2] {
        [Self::namespace(), Self::host()]
    }

    pub(crate) fn is_host(&self) -> bool {
        self.backend.name() == BackendName::host()
    }

    pub(crate) fn start(spec: MachineSpec) -> Self {
        let mut machine = Self::created(spec);
        machine.up();
        machine
    }

    /// As a user of the product would have it: refused with a problem, or running.
    pub(crate) fn named(spec: MachineSpec, name: MachineName) -> Result<Self, Problem> {
        let backend = backend(&spec);
        backend.check(&spec).map_err(|error| error.problem())?;
        let mut machine = Self::made(spec, Some(name))?;
        machine.up();
        Ok(machine)
    }

    pub(crate) fn created(spec: MachineSpec) -> Self {
        backend(&spec).check(&spec).expect("a possible machine");
        Self::made(spec, None).expect("created")
    }

    fn made(spec: MachineSpec, name: Option<MachineName>) -> Result<Self, Problem> {
        let home = tempfile::Builder::new().prefix("ty-").tempdir_in("/tmp").expect("a temporary folder");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = MachineId::from_bits(u64::from(std::process::id()) << 16 | number);
        let place = MachinePlace {
            id,
            name: name.unwrap_or_else(|| format!("m{number}").parse().expect("a name")),
            folder: home.path().join("m"),
            runtime: home.path().join("run/m"),
            images: home.path().join("images"),
            agent: agent(),
            masked: vec![home.path().to_owned()],
            spec,
        };
        for folder in [&place.folder, &place.runtime, &place.images] {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        let backend = backend(&place.spec);
        let mut machine = Self {
            backend,
            place,
            recorder: MemoryRecorder::default(),
            link: None,
            limits: Vec::new(),
            next_slot: 1,
            _home: home,
        };
        machine.backend.create(&machine.place, &mut machine.recorder).map_err(|error| error.problem())?;
        Ok(machine)
    }

    /// Starts the agent and waits until it serves.
    pub(crate) fn up(&mut self) {
        let link = self.backend.start(&self.place, &mut self.recorder).expect("started");
        match next_report(&link.socket) {
            Some(Report::Ready { limits }) => self.limits = limits,
            other => panic!("{other:?}; log: {}", self.log()),
        }
        // As many as no test uses up; a supervisor would count on from here.
        order(&link.socket, &Order::Slots { first: self.next_slot, count: SLOTS }, &[]);
        self.next_slot += SLOTS;
        self.link = Some(link);
    }

    pub(crate) fn agent_pid(&self) -> i32 {
        self.link.as_ref().expect("it runs").process.pid
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.place.log()).unwrap_or_default()
    }

    /// Ends the agent as a supervisor does; the machine's files stay.
    pub(crate) fn down(&mut self) {
        let Some(link) = self.link.take() else { return };
        order(&link.socket, &Order::Shutdown { grace_ms: 200 }, &[]);
        let ends = Duration::from_secs(10).try_into().expect("a short time");
        let mut watched = [PollFd::new(&link.pidfd, PollFlags::IN)];
        assert_eq!(poll(&mut watched, Some(&ends)), Ok(1), "the agent does not end; log: {}", self.log());
        process::pidfd_wait(link.pidfd.as_fd(), false).expect("reaped");
        self.backend.stopped(&self.place, &mut self.recorder).expect("stopped");
    }

    /// Kills the agent, as a crash would.
    pub(crate) fn crash(&mut self) {
        let link = self.link.take().expect("it runs");
        process::pidfd_signal(link.pidfd.as_fd(), 9).expect("killed");
        process::pidfd_wait(link.pidfd.as_fd(), false).expect("reaped");
        self.backend.stopped(&self.place, &mut self.recorder).expect("stopped");
    }

    pub(crate) fn copy_to(&self, other: &mut Self) {
        other.backend.copy(&self.place, &other.place, &mut other.recorder).expect("copied");
    }

    pub(crate) fn connect(&self) -> Connection {
        let (ours, theirs) = socket::pair(socket::Kind::Stream).expect("a pair");
        let link = self.link.as_ref().expect("it runs");
        order(&link.socket, &Order::Adopt { read: RawText::default() }, &[theirs]);
        Connection::over(ours, Role::Agent, self.place.name.as_str())
            .unwrap_or_else(|error| panic!("{error:?}; log: {}", self.log()))
    }

    /// As the product's client does: an error where the machine is stopped.
    pub(crate) fn try_connect(&self) -> Result<Connection, ClientError> {
        if self.link.is_some() {
            return Ok(self.connect());
        }
        Connection::open(&self.place.machine_socket(), Role::Agent, self.place.name.as_str())
    }

    pub(crate) fn session(&self) -> Session {
        Session::over(self.connect()).expect("a thread")
    }

    /// Runs a script on the machine or in a fresh environment, and returns what it printed.
    pub(crate) fn run(&self, place: Place, script: &str) -> Output {
        run(&mut self.connect(), place, script)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(link) = self.link.take() {
                let _ = process::pidfd_signal(link.pidfd.as_fd(), 9);
                let _ = process::pidfd_wait(link.pidfd.as_fd(), false);
            }
            let text = format!("log of {}: {}\n", self.place.name, self.log());
            let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
            let _ = self.backend.stopped(&self.place, &mut self.recorder);
            let _ = self.backend.remove(&self.place, &mut self.recorder);
            return;
        }
        self.down();
        self.backend.remove(&self.place, &mut self.recorder).expect("removed");
        assert!(!self.place.folder.join("store").exists(), "files are left");
        let left = self.recorder.all().expect("records in memory can be read");
        assert!(left.is_empty(), "records are left: {left:?}");
    }
}

fn backend(spec: &MachineSpec) -> Box<dyn Backend> {
    if spec.backend == BackendName::host() {
        Box::new(testyard_backends::Host)
    } else {
        Box::new(testyard_backends::Namespace)
    }
}

fn agent() -> PathBuf {
    let mut folders: Vec<PathBuf> = std::env::var_os("TESTYARD_TEST_BIN").map(PathBuf::from).into_iter().collect();
    folders.extend(std::env::current_exe().expect("this program").ancestors().skip(1).take(3).map(Path::to_owned));
    folders
        .into_iter()
        .map(|folder| folder.join("testyard-agent"))
        .find(|path| path.is_file())
        .expect("the agent is not built; hint: cargo build -p testyard-agent")
}

fn order(link: &OwnedFd, order: &Order, attached: &[OwnedFd]) {
    let payload = serde_json::to_vec(order).expect("an order is plain data");
    let header = FrameHeader { attached: attached.len() as u8, ..FrameHeader::message(0) };
    let mut bytes = Vec::new();
    testyard_protocol::frame::encode(header, &payload, &mut bytes);
    let attached: Vec<_> = attached.iter().map(|fd| fd.as_fd()).collect();
    socket::send(link.as_fd(), &[IoSlice::new(&bytes)], &attached).expect("the agent is there");
}

fn next_report(link: &OwnedFd) -> Option<Report> {
    let mut decoder = FrameDecoder::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(testyard_protocol::frame::Decoded::Frame(frame)) = decoder.next().expect("frames") {
            return Some(serde_json::from_slice(&frame.payload).expect("a report"));
        }
        match rustix::io::read(link, &mut buffer).ok()? {
            0 => return None,
            length => decoder.feed(&buffer[..length]),
        }
    }
}

/// What a script did.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) text: String,
    pub(crate) captured: Captured,
}

impl Output {
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.captured.finished.status.success(), "{self:?}");
        self.text
    }
}

pub(crate) fn exec(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|word| RawText::from(*word)).collect(), quiet: true, ..Exec::default() }
}

pub(crate) fn script(place: Place, script: &str) -> Exec {
    Exec { place, ..exec(&["/bin/sh", "-c", script]) }
}

#[track_caller]
pub(crate) fn capture(connection: &mut Connection, exec: Exec) -> Output {
    let captured = connection.capture(exec, &[]).unwrap_or_else(|error| panic!("{error:?}"));
    let text = String::from_utf8_lossy(&captured.stdout).trim().to_owned();
    Output { text, captured }
}

#[track_caller]
pub(crate) fn run(connection: &mut Connection, place: Place, text: &str) -> Output {
    capture(connection, script(place, text))
}

/// An ordinary user, for root's machines too.
pub(crate) fn ordinary() -> UserSpec {
    match caller() {
        UserSpec::Numbered { uid: 0, .. } => UserSpec::Numbered { uid: 1000, gid: 1000, groups: Vec::new() },
        other => other,
    }
}

pub(crate) fn spec(isolation: Isolation, user: UserSpec) -> EnvironmentSpec {
    EnvironmentSpec::new(isolation, user)
}

pub(crate) fn isolated(user: UserSpec) -> EnvironmentSpec {
    spec(Isolation::Namespace, user)
}

pub(crate) fn fresh(spec: &EnvironmentSpec) -> Place {
    Place::Fresh(Box::new(spec.clone()))
}

/// Whether the process is there and no zombie.
pub(crate) fn is_alive(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    status.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}

/// Waits, within reason, until something holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    assert!(testkit::wait::wait_until(Duration::from_secs(10), &mut holds), "{what}: not after {:?}", begin.elapsed());
}

#[track_caller]
pub(crate) fn assert_status(output: &Output, wanted: CommandStatus) {
    assert_eq!(output.captured.finished.status, wanted, "{output:?}");
}
