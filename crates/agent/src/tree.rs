//! Files in and out: each transfer is a forked worker that joins the root and user it is for, and blocks as it likes.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::namespace;
use testyard_linux::process::{self, CloneFlags, CloneOptions, Forked};
use testyard_linux::signal::Signal;
use testyard_linux::{Error, signal, socket};
use testyard_model::{EnvironmentId, Problem, ProblemKind};
use testyard_protocol::start::IdRange;
use testyard_protocol::{Carrier, Event, Transfer};

use crate::account;
use crate::agent::{Agent, ChildKind};
use crate::command::{Command, Worker};
use crate::environment::MACHINE;
use crate::environment::joining::{Files, Joining};
use crate::place::PlaceKind;
use crate::relay::{Input, Output};

impl Agent {
    /// Receives or sends a tree, once its place can be entered.
    pub(crate) fn begin_transfer(&mut self, files: Files) -> Result<(), Problem> {
        match files.transfer.environment {
            Some(id) => self.join(id, Joining::Files(Box::new(files))),
            None => self.transfer(files),
        }
    }

    /// Forks the worker.
    pub(crate) fn transfer(&mut self, files: Files) -> Result<(), Problem> {
        let Files { connection, stream, transfer, attached, push, early: _ } = files;
        let system = |error: Error| error.problem();
        let (pipe, relayed) = match transfer.carrier {
            Carrier::Attached => (attached.into_iter().next(), None),
            Carrier::Frames => {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)
                    .map_err(|error| Error::new("make", "a pipe for a transfer", error).problem())?;
                let (theirs, ours) = if push { (reader, writer) } else { (writer, reader) };
                rustix::io::ioctl_fionbio(&ours, true)
                    .map_err(|error| Error::new("prepare", "a pipe for a transfer", error).problem())?;
                (Some(theirs), Some(ours))
            }
        };
        let pipe = pipe.ok_or_else(|| Problem::new(ProblemKind::Protocol, "a transfer came without its descriptor"))?;
        if push && transfer.environment.is_none() {
            self.generations.touch();
        }
        let (failure, theirs) = socket::pair(socket::Kind::Stream).map_err(system)?;
        match process::clone3(self.place.token, CloneFlags::NONE, CloneOptions::default()).map_err(system)? {
            Forked::Parent(child) => {
                rustix::io::ioctl_fionbio(&failure, true)
                    .map_err(|error| Error::new("prepare", "a socket", error).problem())?;
                let place = transfer.environment.unwrap_or(MACHINE);
                let relay =
                    relayed.map(|ours| self.relay_transfer((connection, stream), place, ours, push, child.pidfd));
                let worker = Worker { connection, stream, failure, relay };
                self.children.insert(child.pid, ChildKind::Worker(worker));
                Ok(())
            }
            Forked::Child => {
                let status = match self.work(&transfer, pipe, &theirs, push) {
                    Ok(()) => 0,
                    Err(problem) => {
                        let _ = rustix::io::write(&theirs, &serde_json::to_vec(&problem).unwrap_or_default());
                        1
                    }
                };
                process::exit_immediately(status)
            }
        }
    }

    /// Relays a transfer's bytes between its stream and its worker, as if it were a command's input or output.
    fn relay_transfer(
        &mut self,
        (connection, stream): (u64, u32),
        place: EnvironmentId,
        pipe: OwnedFd,
        push: bool,
        worker: OwnedFd,
    ) -> u32 {
        let number = self.number();
        let (input, outputs) =
            if push { (Some(Input::new(pipe, false)), Vec::new()) } else { (None, vec![Output::new(0, pipe)]) };
        let command = Command {
            connection,
            stream,
            place,
            detach: false,
            quiet: true,
            started: Instant::now(),
            timed_out: false,
            terminal: false,
            input,
            outputs,
            ended: None,
            worker: Some(worker),
        };
        self.track(number, command, None);
        number
    }

    /// A worker has ended.
    pub(crate) fn worker_ended(&mut self, worker: Worker, status: i32) {
        let mut text = [0; 8192];
        let told = rustix::io::read(&worker.failure, &mut text).unwrap_or(0);
        let event = match serde_json::from_slice::<Problem>(&text[..told]) {
            Ok(problem) => Event::Failed(problem),
            Err(_) if status == 0 => Event::Done,
            // The client stopped reading; it knows why.
            Err(_) if status & 0x7f == Signal::PIPE.number() => {
                Event::Failed(Problem::new(ProblemKind::Unavailable, "the stream of files was closed before its end"))
            }
            Err(_) => Event::Failed(Problem::new(
                ProblemKind::System,
                format!("the file worker ended with status {status:#x}"),
            )),
        };
        match worker.relay {
            Some(number) => self.finish(number, event),
            None => self.answer(worker.connection, worker.stream, &event),
        }
    }

    /// In the child: joins the place, becomes the user, moves the bytes.
    fn work(&self, transfer: &Transfer, pipe: OwnedFd, failure: &OwnedFd, push: bool) -> Result<(), Problem> {
        let system = |error: Error| error.problem();
        signal::restore_default(Signal::PIPE).map_err(system)?;
        signal::unblock_all().map_err(system)?;
        self.enter_for_files(transfer)?;
        // Other clients' sockets must close when they do.
        process::close_range_from(3, &[pipe.as_fd(), failure.as_fd()]).map_err(system)?;
        let account = account::resolve(transfer.user.as_ref().unwrap_or(&self.user), Path::new("/"))?;
        if !matches!(&self.place.kind, PlaceKind::Namespace(place) if place.ids == IdRange::Single) {
            process::become_user(&account.credentials, account.capable).map_err(system)?;
            if !account.capable {
                process::drop_all_capabilities().map_err(system)?;
            }
        }
        let home = account.home.unwrap_or_else(|| "/".into());
        let path = home.join(transfer.path.as_path());
        testyard_transfer::widen(pipe.as_fd());
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::new("open", "/", error).problem())?;
        let mut stream = File::from(pipe);
        let moved = if push {
            let options = testyard_transfer::UnpackOptions::default();
            testyard_transfer::unpack(&mut stream, root.as_fd(), &path, &options)
        } else {
            testyard_transfer::pack(root.as_fd(), &path, &mut stream)
        };
        moved.map(drop).map_err(|error| error.problem())
    }

    fn enter_for_files(&self, transfer: &Transfer) -> Result<(), Problem> {
        let PlaceKind::Namespace(place) = &self.place.kind else { return Ok(()) };
        match transfer.environment {
            None => match &place.mounts {
                Some(mounts) => namespace::enter(mounts.as_fd(), CloneFlags::NEWNS).map_err(|error| error.problem()),
                None => Err(Problem::new(ProblemKind::Bug, "the machine has no root yet")),
            },
            Some(id) => {
                let environment = self.environments.get(&id);
                let namespaces = environment.and_then(|one| one.namespaces.as_deref()).unwrap_or_default();
                let [user, mounts, ..] = namespaces else {
                    return Err(Problem::new(ProblemKind::NotFound, format!("environment {id} is not there")));
                };
                // A workspace's init is in the machine's user namespace, as this process is.
                if place.ids != IdRange::Host && environment.is_some_and(|one| one.workspace.is_none()) {
                    namespace::enter(user.as_fd(), CloneFlags::NEWUSER).map_err(|error| error.problem())?;
                }
                namespace::enter(mounts.as_fd(), CloneFlags::NEWNS).map_err(|error| error.problem())
            }
        }
    }
}
