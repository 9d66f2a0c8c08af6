//! For this crate's tests: an agent that is a thread, a backend that starts it, and records in memory.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use rustix::process::Pid;
use testyard_linux::identity::ProcessIdentity;
use testyard_linux::socket::{self, Kind};
use testyard_linux::{process, signal};
use testyard_model::{
    BackendName, CommandStatus, MachineId, MachineInfo, MachineName, MachineSpec, MachineState, Problem, ProblemKind,
    Usage,
};
use testyard_protocol::{
    AgentStatus, Credit, Event, Exec, FrameHeader, FrameKind, Order, Report, Request, StreamTarget, VERSION, Welcome,
};

use crate::MemoryRecorder;
use crate::backend::{
    AgentLink, Backend, BackendError, KernelIdentity, MachinePlace, RecordError, Recorder, ResourceId, ResourceKind,
};
use crate::supervisor::{AgentRecord, Records};
use crate::wire::{FrameReader, send_frame};

/// A process that stands for an agent's: pidfds and kills are real.
pub(crate) struct Body {
    child: Mutex<Child>,
    pub(crate) identity: ProcessIdentity,
}

impl Body {
    pub(crate) fn new() -> Arc<Self> {
        let mut program = Program::new("sleep");
        program.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = program.spawn().expect("sleep is everywhere");
        let identity = ProcessIdentity::of(Pid::from_child(&child)).expect("it runs");
        Arc::new(Self { child: Mutex::new(child), identity })
    }

    pub(crate) fn end(&self) {
        let mut child = self.child.lock().expect("no panics under it");
        // The supervisor may have killed it and seen it end: it is our common child.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.end();
    }
}

fn send_report(link: &OwnedFd, report: &Report) {
    let payload = serde_json::to_vec(report).expect("plain data");
    // A supervisor that has gone needs no reports.
    let _ = send_frame(link, FrameHeader::message(0), &payload, &[]);
}

/// Serves a supervisor's link as an agent would, until told to end.
pub(crate) fn serve_link(link: OwnedFd, body: Arc<Body>, ready: bool) {
    std::thread::spawn(move || {
        let link = Arc::new(link);
        let report = |report: &Report| send_report(&link, report);
        if ready {
            report(&Report::Ready { limits: vec!["no real isolation".to_owned()] });
        }
        let mut reader = FrameReader::new(4096);
        while let Ok(received) = reader.receive(&link) {
            match serde_json::from_slice(&received.frame.payload).expect("an order") {
                Order::Adopt { .. } => {
                    let client = received.descriptors.into_iter().next().expect("a client");
                    report(&Report::Activity { open: 1 });
                    let link = Arc::clone(&link);
                    std::thread::spawn(move || {
                        serve_client(client);
                        send_report(&link, &Report::Activity { open: 0 });
                    });
                }
                Order::Shutdown { .. } => body.end(),
                Order::Slots { .. } | Order::Rename(_) => {}
            }
        }
        body.end();
    });
}

/// Serves one client whose hello was read, as an agent would.
pub(crate) fn serve_client(socket: OwnedFd) {
    let say = |stream, event: &Event| {
        let payload = serde_json::to_vec(event).expect("plain data");
        let _ = send_frame(&socket, FrameHeader::message(stream), &payload, &[]);
    };
    say(0, &Event::Welcome(Welcome { version: VERSION, server: "fake".to_owned(), generation: 0, elsewhere: false }));
    let mut echoes = HashMap::<u32, u64>::new();
    let mut reader = FrameReader::new(4096);
    while let Ok(received) = reader.receive(&socket) {
        let FrameHeader { kind, stream, .. } = received.frame.header;
        let frame = |kind, channel, payload: &[u8]| {
            let _ = send_frame(&socket, FrameHeader { kind, channel, attached: 0, stream }, payload, &[]);
        };
        match kind {
            FrameKind::Data => {
                let credit = echoes.get_mut(&stream).expect("data only where it was asked for");
                let count = received.frame.payload.len() as u64;
                *credit = credit.checked_sub(count).expect("a client sends no more than its credit");
                frame(FrameKind::Data, 1, &received.frame.payload);
                // As a pipe would: the reader's credit is what lets the writer go on.
            }
            FrameKind::Credit => {
                let granted = received.frame.payload.clone();
                *echoes.get_mut(&stream).expect("an open stream") +=
                    u64::from(u32::from_le_bytes(granted.clone().try_into().expect("four bytes")));
                frame(FrameKind::Credit, 0, &granted);
            }
            FrameKind::End => {
                frame(FrameKind::End, 1, &[]);
                say(
                    stream,
                    &Event::Exited { status: CommandStatus::Exited(0), usage: Usage::default(), environment: None },
                );
                echoes.remove(&stream);
            }
            FrameKind::Message => {
                let Ok(request) = serde_json::from_slice::<Request>(&received.frame.payload) else { continue };
                match request {
                    Request::Exec(exec) if exec.stdin == StreamTarget::Frames => {
                        say(stream, &Event::Started { pid: 7, environment: None });
                        echoes.insert(stream, Credit::INITIAL);
                    }
                    Request::Exec(exec) => run(&exec, received.descriptors, |event| say(stream, &event)),
                    Request::Status => say(stream, &Event::Status(AgentStatus::default())),
                    Request::Push(_) => say(stream, &take_tree(received.descriptors)),
                    Request::Pull(_) => {
                        let file = received.descriptors.into_iter().next().expect("a pipe");
                        std::fs::File::from(file).write_all(b"tree").expect("it is read");
                        say(stream, &Event::Done);
                    }
                    _ => say(stream, &Event::Failed(Problem::new(ProblemKind::NotFound, "there is no such thing"))),
                }
            }
        }
    }
}

/// Reads a tree, which is whole when it ends in `end`.
fn take_tree(descriptors: Vec<OwnedFd>) -> Event {
    let mut bytes = Vec::new();
    let file = descriptors.into_iter().next().expect("a pipe");
    std::fs::File::from(file).read_to_end(&mut bytes).expect("a pipe");
    if bytes.ends_with(b"end") {
        Event::Done
    } else {
        Event::Failed(Problem::new(ProblemKind::Protocol, "the tree stops short"))
    }
}

/// Prints its arguments, and exits with 3.
fn run(exec: &Exec, descriptors: Vec<OwnedFd>, say: impl Fn(Event)) {
    if exec.argv.first().is_some_and(|program| program.0 == b"missing") {
        return say(Event::Failed(Problem::new(ProblemKind::Command, "there is no program `missing`")));
    }
    say(Event::Started { pid: 42, environment: None });
    if let StreamTarget::Attached(index) = exec.stdout {
        let words: Vec<_> = exec.argv.iter().map(|word| word.lossy()).collect();
        let file = descriptors.into_iter().nth(index.into()).expect("as many as promised");
        std::fs::File::from(file).write_all(words.join(" ").as_bytes()).expect("it is read");
    }
    say(Event::Exited { status: CommandStatus::Exited(3), usage: Usage::default(), environment: None });
}

/// What a fake backend should do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Create,
    Start,
    NeverReady,
    /// It says that it is ready, and is dead by the time that this is read.
    DiesReady,
    Broken,
}

/// Starts [`serve_link`] agents.
pub(crate) struct FakeBackend {
    pub(crate) fault: Fault,
    /// Gets each started body.
    pub(crate) bodies: Sender<Arc<Body>>,
}

impl Backend for FakeBackend {
    fn name(&self) -> BackendName {
        "fake".parse().expect("a name")
    }

    fn check(&self, _spec: &MachineSpec) -> Result<(), BackendError> {
        Ok(())
    }

    fn create(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        let folder = place.folder.join("upper");
        let ids = recorder.intend(&[(ResourceKind::Folder, &folder)])?;
        std::fs::create_dir(&folder).expect("it is new");
        let identity = KernelIdentity::of_path(&folder).expect("readable").expect("just made");
        recorder.made(&[(ids[0], identity)])?;
        match self.fault {
            Fault::Create => Err(Problem::new(ProblemKind::Exhausted, "no room for the machine").into()),
            _ => Ok(()),
        }
    }

    fn start(&self, _place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<AgentLink, BackendError> {
        if self.fault == Fault::Start {
            return Err(Problem::new(ProblemKind::Unsupported, "no namespaces here").into());
        }
        let (outside, inside) = socket::pair(Kind::Stream).expect("sockets are to be had");
        let body = Body::new();
        if self.fault == Fault::Broken {
            let payload = serde_json::to_vec(&Report::Broken(Problem::new(ProblemKind::System, "no /proc")));
            send_frame(&inside, FrameHeader::message(0), &payload.expect("plain data"), &[]).expect("it fits");
        }
        serve_link(inside, Arc::clone(&body), matches!(self.fault, Fault::None | Fault::DiesReady));
        let pidfd = body.identity.open_pidfd().expect("no error").expect("it runs");
        let process = body.identity.clone();
        if matches!(self.fault, Fault::NeverReady | Fault::DiesReady) {
            body.end();
        }
        let _ = self.bodies.send(body);
        Ok(AgentLink { socket: outside, process, pidfd })
    }

    fn stopped(&self, _place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        Ok(())
    }

    fn remove(&self, _place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        let gone: Vec<_> = recorder.all()?.iter().map(|resource| resource.id).collect();
        Ok(recorder.gone(&gone)?)
    }

    fn copy(&self, from: &MachinePlace, to: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        assert!(from.folder.join("upper").is_dir());
        self.create(to, recorder)
    }
}

/// Records in memory, shared by all who open them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Book {
    pages: Arc<Mutex<Pages>>,
}

#[derive(Debug, Default)]
struct Pages {
    info: Option<MachineInfo>,
    agent: Option<AgentRecord>,
    resources: MemoryRecorder,
    slots: u64,
    leased: bool,
}

impl Book {
    pub(crate) fn of(info: MachineInfo) -> Self {
        Self { pages: Arc::new(Mutex::new(Pages { info: Some(info), ..Pages::default() })) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Pages) -> T) -> T {
        act(&mut self.pages.lock().expect("no panics under it"))
    }

    pub(crate) fn info(&self) -> Option<MachineInfo> {
        self.with(|pages| pages.info.clone())
    }

    pub(crate) fn slots(&self) -> u64 {
        self.with(|pages| pages.slots)
    }
}

impl Records for Book {
    fn load(&mut self, _id: &MachineId) -> Result<Option<MachineInfo>, RecordError> {
        Ok(self.info())
    }

    fn agent(&mut self, _id: &MachineId) -> Result<Option<AgentRecord>, RecordError> {
        Ok(self.with(|pages| pages.agent.clone()))
    }

    fn record_supervisor(&mut self, _id: &MachineId, process: Option<&ProcessIdentity>) -> Result<(), RecordError> {
        self.with(|pages| {
            pages.info.as_mut().expect("a row").supervisor_pid = process.map(|process| process.pid);
        });
        Ok(())
    }

    fn record_agent(&mut self, _id: &MachineId, agent: &AgentRecord) -> Result<(), RecordError> {
        self.with(|pages| pages.agent = Some(agent.clone()));
        Ok(())
    }

    fn transition(&mut self, _id: &MachineId, from: MachineState, to: MachineState) -> Result<(), RecordError> {
        self.with(|pages| {
            let info = pages.info.as_mut().expect("a row");
            assert_eq!(info.state, from);
            assert!(from.may_become(to), "{from} to {to}");
            info.state = to;
        });
        Ok(())
    }

    fn record_failure(&mut self, id: &MachineId, from: MachineState, cause: &Problem) -> Result<(), RecordError> {
        self.transition(id, from, MachineState::Failed)?;
        self.with(|pages| pages.info.as_mut().expect("a row").cause = Some(cause.clone()));
        Ok(())
    }

    fn begin_deletion(&mut self, _id: &MachineId) -> Result<(), RecordError> {
        self.with(|pages| {
            if let Some(info) = &mut pages.info {
                info.state = MachineState::Deleting;
            }
        });
        Ok(())
    }

    fn destroy(&mut self, _id: &MachineId) -> Result<(), RecordError> {
        self.with(|pages| {
            assert!(pages.resources == MemoryRecorder::default(), "{:?}", pages.resources);
            pages.info = None;
        });
        Ok(())
    }

    fn reserve_slots(&mut self, _id: &MachineId, count: u32) -> Result<u64, RecordError> {
        Ok(self.with(|pages| {
            pages.slots += u64::from(count);
            pages.slots - u64::from(count) + 1
        }))
    }

    fn is_leased(&mut self, _id: &MachineId) -> Result<bool, RecordError> {
        Ok(self.with(|pages| pages.leased))
    }

    fn recorder(&mut self, _id: &MachineId) -> Box<dyn Recorder + '_> {
        Box::new(self.clone())
    }
}

impl Recorder for Book {
    fn intend(&mut self, resources: &[(ResourceKind, &Path)]) -> Result<Vec<ResourceId>, RecordError> {
        self.with(|pages| pages.resources.intend(resources))
    }

    fn made(&mut self, made: &[(ResourceId, KernelIdentity)]) -> Result<(), RecordError> {
        self.with(|pages| pages.resources.made(made))
    }

    fn gone(&mut self, gone: &[ResourceId]) -> Result<(), RecordError> {
        self.with(|pages| pages.resources.gone(gone))
    }

    fn all(&self) -> Result<Vec<crate::backend::RecordedResource>, RecordError> {
        self.with(|pages| pages.resources.all())
    }
}

/// A new machine's description.
pub(crate) fn info(name: &str) -> MachineInfo {
    MachineInfo {
        id: MachineId::from_bits(u64::from(std::process::id())),
        name: name.parse::<MachineName>().expect("a name"),
        state: MachineState::Creating,
        spec: MachineSpec::new("fake".parse().expect("a name")),
        backend_reason: None,
        created_ms: 0,
        cause: None,
        supervisor_pid: None,
        limits: Vec::new(),
    }
}

/// Its place below `home`, with the folders that are there before a supervisor is.
pub(crate) fn place(home: &Path, info: &MachineInfo) -> MachinePlace {
    let place = MachinePlace {
        id: info.id.clone(),
        name: info.name.clone(),
        spec: info.spec.clone(),
        folder: home.join("machines").join(info.id.as_str()),
        runtime: home.join("run").join(info.id.as_str()),
        images: home.join("images"),
        agent: PathBuf::from("/nonexistent"),
        masked: Vec::new(),
    };
    std::fs::create_dir_all(&place.folder).expect("a new folder");
    std::fs::create_dir_all(home.join("run")).expect("a new folder");
    place
}

/// A connected pair whose far end is served as an agent's client connection, hello included.
pub(crate) fn agent_connection() -> OwnedFd {
    let (outside, inside) = socket::pair(Kind::Stream).expect("sockets are to be had");
    std::thread::spawn(move || {
        let mut reader = FrameReader::new(4096);
        reader.receive(&inside).expect("a hello");
        serve_client(inside);
    });
    outside
}

/// Signals that a supervisor in a thread may read; nobody sends them.
pub(crate) fn signals() -> signal::SignalFd {
    signal::SignalFd::new(&[signal::Signal::USR2]).expect("descriptors are to be had")
}

/// Sends SIGKILL through a pidfd, as something from outside would.
pub(crate) fn kill(body: &Body) {
    let pidfd = body.identity.open_pidfd().expect("no error").expect("it runs");
    process::pidfd_signal(pidfd.as_fd(), libc::SIGKILL).expect("it runs");
}
