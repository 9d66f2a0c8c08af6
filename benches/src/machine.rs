//! A machine without a supervisor: what is measured over it is the agent's alone.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use testyard_linux::{process, socket};
use testyard_machine::MemoryRecorder;
use testyard_machine::backend::{AgentLink, Backend as _, BackendError, MachinePlace};
use testyard_machine::client::{ClientError, Connection};
use testyard_model::{BackendName, EnvironmentSpec, Isolation, MachineId, MachineSpec, Problem, ProblemKind, UserSpec};
use testyard_protocol::{Exec, FrameHeader, Order, Place, RawText, Role, StreamTarget, frame};

/// A namespace machine of this process's user.
pub struct Machine {
    place: MachinePlace,
    recorder: MemoryRecorder,
    link: AgentLink,
}

fn refused(error: &BackendError) -> Problem {
    error.problem()
}

/// A client's problem.
pub(crate) fn client(error: &ClientError) -> Problem {
    error.problem()
}

impl Machine {
    /// Makes and starts one in an existing, empty folder.
    ///
    /// # Errors
    /// What the backend says.
    pub fn start(folder: &Path, agent: PathBuf, number: u64) -> Result<Self, Problem> {
        let name = "bench".parse().map_err(|error| Problem::from_error(ProblemKind::Bug, &error))?;
        let place = MachinePlace {
            id: MachineId::from_bits(number),
            name,
            spec: MachineSpec::new(BackendName::namespace()),
            folder: folder.to_owned(),
            runtime: folder.to_owned(),
            images: folder.join("images"),
            agent,
            masked: vec![folder.to_owned()],
        };
        let mut recorder = MemoryRecorder::default();
        let backend = testyard_backends::Namespace;
        backend.create(&place, &mut recorder).map_err(|error| refused(&error))?;
        let link = backend.start(&place, &mut recorder).map_err(|error| refused(&error))?;
        let machine = Self { place, recorder, link };
        // A supervisor would give more whenever these run low; more than any run makes.
        machine.order(&Order::Slots { first: 1, count: 1 << 40 }, &[])?;
        Ok(machine)
    }

    fn order(&self, order: &Order, attached: &[BorrowedFd<'_>]) -> Result<(), Problem> {
        let order = serde_json::to_vec(order).map_err(|error| Problem::from_error(ProblemKind::Bug, &error))?;
        let mut bytes = Vec::new();
        let count = u8::try_from(attached.len()).unwrap_or(u8::MAX);
        frame::encode(FrameHeader { attached: count, ..FrameHeader::message(0) }, &order, &mut bytes);
        socket::send(&self.link.socket, &[IoSlice::new(&bytes)], attached).map_err(|error| error.problem())?;
        Ok(())
    }

    /// A new client.
    ///
    /// # Errors
    /// What the agent says, also of why it never came to be.
    pub fn connect(&self) -> Result<Connection, Problem> {
        let system = |error: testyard_linux::Error| error.problem();
        let (ours, theirs) = socket::pair(socket::Kind::Stream).map_err(system)?;
        self.order(&Order::Adopt { read: RawText::default() }, &[theirs.as_fd()])?;
        drop(theirs);
        Connection::over(ours, Role::Agent, "bench").map_err(|error| {
            let mut said = [0; 4096];
            let length = rustix::io::read(&self.link.socket, &mut said).unwrap_or(0);
            client(&error).because(String::from_utf8_lossy(&said[..length]).into_owned())
        })
    }

    /// The agent's process id on the host.
    #[must_use]
    pub fn agent_pid(&self) -> i32 {
        self.link.process.pid
    }

    /// The cgroup that the machine was given, where there is one.
    #[must_use]
    pub fn group_name(&self) -> String {
        format!("testyard-{}", self.place.id)
    }

    /// Ends and removes it.
    ///
    /// # Errors
    /// What the backend says.
    pub fn remove(mut self) -> Result<(), Problem> {
        process::pidfd_signal(self.link.pidfd.as_fd(), 15).map_err(|error| error.problem())?;
        process::pidfd_wait(self.link.pidfd.as_fd(), false).map_err(|error| error.problem())?;
        let backend = testyard_backends::Namespace;
        backend.stopped(&self.place, &mut self.recorder).map_err(|error| refused(&error))?;
        backend.remove(&self.place, &mut self.recorder).map_err(|error| refused(&error))
    }
}

/// The strongest level, with a network of its own, as whoever measures.
#[must_use]
pub fn strongest() -> EnvironmentSpec {
    EnvironmentSpec::new(
        Isolation::Namespace,
        match rustix::process::geteuid().is_root() {
            true => UserSpec::Root,
            false => UserSpec::Numbered {
                uid: rustix::process::getuid().as_raw(),
                gid: rustix::process::getgid().as_raw(),
                groups: Vec::new(),
            },
        },
    )
}

/// A client that runs one program again and again.
pub struct Client {
    connection: Connection,
    null: OwnedFd,
    exec: Exec,
}

impl Client {
    /// Of this program, in this place.
    ///
    /// # Errors
    /// Where `/dev/null` cannot be opened.
    pub fn new(connection: Connection, program: &str, place: Place) -> Result<Self, Problem> {
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(|error| Problem::from_error(ProblemKind::System, &error))?.into();
        let exec = Exec {
            argv: vec![RawText::from(program)],
            stdin: StreamTarget::Attached(0),
            stdout: StreamTarget::Attached(1),
            stderr: StreamTarget::Attached(2),
            quiet: true,
            user: Some(strongest().user),
            place,
            ..Exec::default()
        };
        Ok(Self { connection, null, exec })
    }

    /// Runs it once, from request to status and usage.
    ///
    /// # Errors
    /// What the machine says; a status other than success.
    pub fn once(&mut self) -> Result<(), Problem> {
        let null = self.null.as_fd();
        let running = self.connection.exec(self.exec.clone(), &[null, null, null]).map_err(|error| client(&error))?;
        let finished = running.wait().map_err(|error| client(&error))?;
        match finished.status.success() {
            true => Ok(()),
            false => Err(Problem::new(ProblemKind::Command, format!("the command ended with {:?}", finished.status))),
        }
    }

    /// The connection, for other requests.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

impl crate::worker::Task for Client {
    fn once(&mut self) -> Result<(), Problem> {
        Self::once(self)
    }
}
