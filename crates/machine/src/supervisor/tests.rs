use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::socket;
use testyard_model::{MachineInfo, MachineState, Problem, ProblemKind};
use testyard_protocol::{Exec, Request, Role, StreamTarget};

use super::*;
use crate::client::{ClientError, Connection};
use crate::trial::{self, Body, Book, FakeBackend, Fault, serve_link};

struct Bench {
    home: tempfile::TempDir,
    book: Book,
    info: MachineInfo,
    place: MachinePlace,
}

struct Supervised {
    thread: JoinHandle<Result<(), SupervisorError>>,
    announcement: Result<Box<MachineInfo>, Problem>,
    bodies: Receiver<Arc<Body>>,
}

impl Bench {
    fn new() -> Self {
        Self::with(trial::info("web"))
    }

    fn with(info: MachineInfo) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let place = trial::place(home.path(), &info);
        std::fs::write(home.path().join("lock"), "").expect("a new file");
        Self { book: Book::of(info.clone()), home, info, place }
    }

    fn runtime(&self) -> PathBuf {
        self.home.path().join("run")
    }

    fn lock_file(&self) -> PathBuf {
        self.home.path().join("lock")
    }

    fn supervise(&self, task: Task, fault: Fault) -> Supervised {
        let (heard, told) = pipe_with(PipeFlags::CLOEXEC).expect("pipes are to be had");
        let (thread, bodies) = self.spawn(task, fault, told);
        let announcement = await_announcement(heard, Path::new("/log"));
        Supervised { thread, announcement, bodies }
    }

    fn spawn(
        &self,
        task: Task,
        fault: Fault,
        told: OwnedFd,
    ) -> (JoinHandle<Result<(), SupervisorError>>, Receiver<Arc<Body>>) {
        let (sender, bodies) = channel();
        let (book, place, runtime, lock_file) =
            (self.book.clone(), self.place.clone(), self.runtime(), self.lock_file());
        let thread = std::thread::spawn(move || {
            let lock = std::fs::File::open(&lock_file).expect("it was made").into();
            let info = book.info().expect("a row");
            let backend = Box::new(FakeBackend { fault, bodies: sender });
            let open_records: OpenRecords = Box::new(move || match lock_file.exists() {
                true => Ok(Box::new(book.clone())),
                false => Err(RecordError::new("open", "it is gone", Problem::new(ProblemKind::System, "gone"))),
            });
            supervise(Setup {
                place,
                info,
                runtime,
                backend,
                open_records,
                task,
                lock,
                creator: Creator::new(Some(told)),
                signals: trial::signals(),
                own_process: false,
            })
        });
        (thread, bodies)
    }

    fn connect(&self, role: Role) -> Connection {
        Connection::open(&socket_of(&self.runtime(), &self.info.name), role, "web").expect("it listens")
    }

    fn state(&self) -> Option<MachineState> {
        self.book.info().map(|info| info.state)
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.book.info(), None);
        assert!(!self.place.folder.exists());
        assert!(!self.place.runtime.exists());
        let names = std::fs::read_dir(name_folder(&self.runtime()));
        assert_eq!(names.map_or(0, Iterator::count), 0);
    }
}

#[test]
fn a_machine_is_created_used_and_stopped() {
    let bench = Bench::new();
    let supervised = bench.supervise(Task::Create, Fault::None);
    let info = supervised.announcement.expect("it comes up");
    assert_eq!((info.state, bench.state()), (MachineState::Running, Some(MachineState::Running)));
    assert_eq!(info.limits, ["no real isolation"]);
    assert_eq!(bench.book.slots(), 4096);

    let mut agent = bench.connect(Role::Agent);
    let exec = Exec { argv: vec!["echo".into(), "a b".into()], ..Exec::default() };
    let captured = agent.capture(exec, &[]).expect("it runs");
    assert_eq!((captured.stdout.as_slice(), captured.finished.status.shell_code()), (&b"echo a b"[..], 3));

    let mut supervisor = bench.connect(Role::Supervisor);
    assert_eq!(supervisor.info().expect("it answers"), *info);
    let refused = supervisor.ask(&Request::Delete { force: false }, &[]).expect_err("somebody is in it");
    assert_eq!(refused.problem().kind, ProblemKind::WrongState);
    supervisor.ask(&Request::Stop { force: false }, &[]).expect("it stops");
    supervised.thread.join().expect("no panic").expect("it was asked to");
    assert_eq!(bench.state(), Some(MachineState::Stopped));
    assert!(bench.place.folder.join("upper").is_dir());
    assert!(!bench.place.machine_socket().exists());
    let gone = Connection::open(&socket_of(&bench.runtime(), &bench.info.name), Role::Agent, "web");
    assert_eq!(gone.expect_err("nobody listens").problem().kind, ProblemKind::Unavailable);
}

#[test]
fn a_stopped_machine_starts_again_and_is_deleted() {
    let mut info = trial::info("web");
    info.state = MachineState::Stopped;
    let bench = Bench::with(info);
    let supervised = bench.supervise(Task::Start, Fault::None);
    supervised.announcement.expect("it comes up");
    let mut supervisor = bench.connect(Role::Supervisor);
    let name = "db".parse().expect("a name");
    supervisor.ask(&Request::Renamed(name), &[]).expect("it is renamed");
    assert!(!socket_of(&bench.runtime(), &bench.info.name).exists());
    assert!(socket_of(&bench.runtime(), &"db".parse().expect("a name")).exists());
    supervisor.ask(&Request::Delete { force: false }, &[]).expect("nobody is in it");
    supervised.thread.join().expect("no panic").expect("it was asked to");
    bench.assert_nothing_left();
}

#[test]
fn what_cannot_be_created_leaves_nothing() {
    for (fault, kind) in [
        (Fault::Create, ProblemKind::Exhausted),
        (Fault::Start, ProblemKind::Unsupported),
        (Fault::Broken, ProblemKind::System),
        (Fault::NeverReady, ProblemKind::Unavailable),
        (Fault::DiesReady, ProblemKind::Unavailable),
    ] {
        let bench = Bench::new();
        let supervised = bench.supervise(Task::Create, fault);
        assert_eq!(supervised.announcement.expect_err("it cannot").kind, kind, "{fault:?}");
        supervised.thread.join().expect("no panic").expect_err("it failed");
        bench.assert_nothing_left();
    }
}

#[test]
fn what_cannot_be_started_is_marked_and_keeps_its_files() {
    let mut info = trial::info("web");
    info.state = MachineState::Stopped;
    let bench = Bench::with(info);
    let supervised = bench.supervise(Task::Start, Fault::Broken);
    supervised.announcement.expect_err("it cannot");
    supervised.thread.join().expect("no panic").expect_err("it failed");
    let info = bench.book.info().expect("its row stays");
    assert_eq!((info.state, info.cause.map(|cause| cause.message)), (MachineState::Failed, Some("no /proc".into())));
    assert!(bench.place.folder.exists());
}

#[test]
fn a_machine_whose_creator_went_away_is_removed_again() {
    let bench = Bench::new();
    let (heard, told) = pipe_with(PipeFlags::CLOEXEC).expect("pipes are to be had");
    drop(heard);
    let (thread, _bodies) = bench.spawn(Task::Create, Fault::None, told);
    let error = thread.join().expect("no panic").expect_err("nobody wants it");
    assert!(matches!(error, SupervisorError::CreatorGone));
    bench.assert_nothing_left();
}

#[test]
fn a_killed_agent_makes_the_machine_failed() {
    let bench = Bench::new();
    let supervised = bench.supervise(Task::Create, Fault::None);
    supervised.announcement.expect("it comes up");
    trial::kill(&supervised.bodies.recv().expect("one was started"));
    supervised.thread.join().expect("no panic").expect_err("nobody asked for it");
    let info = bench.book.info().expect("its row stays");
    assert_eq!((info.state, info.supervisor_pid), (MachineState::Failed, None));
    let cause = info.cause.expect("failed machines have a cause");
    assert!(cause.message.contains("signal 9"), "{}", cause.message);
}

#[test]
fn an_idle_machine_stops_and_an_expired_one_goes() {
    let mut info = trial::info("web");
    info.spec.idle = "1ms".parse().ok();
    let bench = Bench::with(info);
    let supervised = bench.supervise(Task::Create, Fault::None);
    supervised.announcement.expect("it comes up");
    supervised.thread.join().expect("no panic").expect("it is as it was asked for");
    assert_eq!(bench.state(), Some(MachineState::Stopped));

    let mut info = trial::info("web");
    info.spec.ttl = "1h".parse().ok(); // and it was created in 1970
    let bench = Bench::with(info);
    let supervised = bench.supervise(Task::Create, Fault::None);
    supervised.announcement.expect("it comes up");
    supervised.thread.join().expect("no panic").expect("it is as it was asked for");
    bench.assert_nothing_left();
}

#[test]
fn a_machine_whose_home_was_removed_ends_when_it_is_idle() {
    let mut info = trial::info("web");
    info.spec.idle = "300ms".parse().ok();
    let bench = Bench::with(info);
    let supervised = bench.supervise(Task::Create, Fault::None);
    supervised.announcement.expect("it comes up");
    std::fs::remove_file(bench.lock_file()).expect("it was there");
    // It ends; that this cannot be written down is an error, which nobody is left to read.
    drop(supervised.thread.join().expect("no panic"));
}

#[test]
fn a_living_agent_is_adopted_and_a_dead_one_is_not() {
    let mut info = trial::info("web");
    info.state = MachineState::Running;
    let bench = Bench::with(info);
    testyard_linux::files::verified_private_directory(&bench.place.runtime).expect("a new folder");
    let body = Body::new();
    let identity = body.identity.clone();
    bench.book.clone().record_agent(&bench.info.id, &AgentRecord::new(&identity, Vec::new())).expect("in memory");
    let listener = socket::listen(&bench.place.agent_socket(), 0o600).expect("nobody listens there");
    let agent = std::thread::spawn(move || serve_link(socket::accept(&listener).expect("one comes"), body, true));
    let supervised = bench.supervise(Task::Adopt, Fault::Start);
    assert_eq!(supervised.announcement.expect("it is adopted").state, MachineState::Running);
    agent.join().expect("no panic");
    let mut supervisor = bench.connect(Role::Supervisor);
    supervisor.ask(&Request::Stop { force: true }, &[]).expect("it stops");
    supervised.thread.join().expect("no panic").expect("it was asked to");
    assert!(!identity.is_alive().expect("readable"));

    let mut info = trial::info("web");
    info.state = MachineState::Running;
    let bench = Bench::with(info);
    bench.book.clone().record_agent(&bench.info.id, &AgentRecord::new(&identity, Vec::new())).expect("in memory");
    let supervised = bench.supervise(Task::Adopt, Fault::Start);
    supervised.announcement.expect_err("it is dead");
    supervised.thread.join().expect("no panic").expect_err("it is dead");
    assert_eq!(bench.state(), Some(MachineState::Failed));
}

#[test]
fn a_machine_held_still_lets_nobody_in_until_it_is_let_go() {
    let bench = Bench::new();
    let supervised = bench.supervise(Task::Create, Fault::None);
    supervised.announcement.expect("it comes up");
    let mut quiet = bench.connect(Role::Supervisor);
    quiet.ask(&Request::Quiesce, &[]).expect("nobody is in it");
    let path = socket_of(&bench.runtime(), &bench.info.name);
    let (sender, connected) = channel();
    let visitor = std::thread::spawn(move || {
        let mut connection = Connection::open(&path, Role::Agent, "web")?;
        sender.send(()).expect("somebody waits");
        connection.status().map(|_| ())
    });
    quiet.info().expect("it still answers");
    assert!(connected.try_recv().is_err());
    drop(quiet);
    visitor.join().expect("no panic").expect("it was let in");
    bench.connect(Role::Supervisor).ask(&Request::Stop { force: true }, &[]).expect("it stops");
    supervised.thread.join().expect("no panic").expect("it was asked to");
}

#[test]
fn who_wants_a_machine_to_be_free_waits_for_those_who_are_leaving() {
    let bench = Bench::new();
    let supervised = bench.supervise(Task::Create, Fault::None);
    supervised.announcement.expect("it comes up");
    let mut agent = bench.connect(Role::Agent);
    agent.status().expect("it is served");
    let mut supervisor = bench.connect(Role::Supervisor);
    let deleting = std::thread::spawn(move || supervisor.ask(&Request::Delete { force: false }, &[]));
    // Another visitor is served in the meantime.
    bench.connect(Role::Supervisor).info().expect("it answers");
    drop(agent);
    deleting.join().expect("no panic").expect("nobody is in it any more");
    supervised.thread.join().expect("no panic").expect("it was asked to");
    bench.assert_nothing_left();
}

#[test]
fn a_program_that_cannot_start_is_refused_with_its_reason() {
    let mut connection = Connection::over(trial::agent_connection(), Role::Agent, "web").expect("it welcomes");
    let exec = Exec { argv: vec!["missing".into()], stdin: StreamTarget::Null, ..Exec::default() };
    let Err(ClientError::Refused(problem)) = connection.exec(exec, &[]).expect("it is sent").wait() else {
        panic!("there is no such program")
    };
    assert_eq!(problem.kind, ProblemKind::Command);
    connection.status().expect("the connection goes on");
}
