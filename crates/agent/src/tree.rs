//! Files in and out: each transfer is a forked worker that joins the root and user it is for, and blocks as it likes.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use testyard_linux::namespace;
use testyard_linux::process::{self, CloneFlags};
use testyard_linux::signal::Signal;
use testyard_linux::{Error, signal};
use testyard_model::{Problem, ProblemKind, UserSpec};
use testyard_protocol::start::IdRange;
use testyard_protocol::{Carrier, Transfer};
use testyard_transfer::{Oversight, UnpackOptions};

use crate::account;
use crate::agent::Agent;
use crate::command::Command;
use crate::environment::MACHINE;
use crate::environment::joining::{Files, Joining};
use crate::place::PlaceKind;
use crate::relay::{Input, Output};
use crate::worker::{self, Task};

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
        let Files { connection, stream, transfer, attached, push } = files;
        let (pipe, relayed) = match transfer.carrier {
            Carrier::Attached | Carrier::Pipe => (attached.into_iter().next(), None),
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
        let place = transfer.environment.unwrap_or(MACHINE);
        let task = if push { Task::Push } else { Task::Pull };
        let pid = self.fork_worker((connection, stream), place, task, |agent, parent, control| {
            agent.work(&transfer, parent, &pipe, control, push)
        })?;
        if let Some(ours) = relayed {
            let mut command = Command::of_worker((connection, stream), place, pid);
            if push {
                command.input = Some(Input::new(ours));
            } else {
                command.outputs.push(Output::new(0, ours));
            }
            self.relay_worker(pid, command);
        }
        Ok(())
    }

    /// Relays between a stream and its worker.
    pub(crate) fn relay_worker(&mut self, pid: Pid, command: Command) {
        let number = self.number();
        self.track(number, command, None);
        if let Some(worker) = self.worker(pid) {
            worker.relay = Some(number);
        }
    }

    /// In the child: joins the place, becomes the user, moves the bytes.
    fn work(
        &self,
        transfer: &Transfer,
        agent: Pid,
        pipe: &OwnedFd,
        control: &OwnedFd,
        push: bool,
    ) -> Result<(), Problem> {
        let system = |error: Error| error.problem();
        signal::restore_default(Signal::PIPE).map_err(system)?;
        signal::unblock_all().map_err(system)?;
        self.enter_for_files(transfer)?;
        // Other clients' sockets must close when they do.
        process::close_range_from(3, &[pipe.as_fd(), control.as_fd()]).map_err(system)?;
        let account = account::resolve(self.whose(transfer), Path::new("/"))?;
        if !matches!(&self.place.kind, PlaceKind::Namespace(place) if place.ids == IdRange::Single) {
            process::become_user(&account.credentials, account.capable).map_err(system)?;
            if !account.capable {
                process::drop_all_capabilities().map_err(system)?;
            }
        }
        let home = account.home.unwrap_or_else(|| "/".into());
        let path = home.join(transfer.path.as_path());
        worker::tie_to(agent)?;
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::new("open", "/", error).problem())?;
        if self.is_elsewhere() {
            return self.relay_files(transfer, push, pipe, control);
        }
        let oversight = Oversight { stop: Some(control.as_fd()), moved: None };
        // Sums are for what leaves the kernel's memory.
        let local = transfer.carrier == Carrier::Pipe;
        let moved = if push {
            // Nothing else is made here, and every mode is asked for.
            rustix::process::umask(Mode::empty());
            let options = UnpackOptions { mask: Some(0), checked: !local, ..UnpackOptions::default() };
            testyard_transfer::unpack_from(pipe.as_fd(), root.as_fd(), &path, &options, oversight)
        } else if local {
            testyard_transfer::pack_into(root.as_fd(), &path, pipe.as_fd(), oversight)
        } else {
            testyard_transfer::widen(pipe.as_fd());
            let pipe = pipe.try_clone().map_err(|error| Error::new("copy", "a descriptor", error).problem())?;
            testyard_transfer::pack(root.as_fd(), &path, &mut File::from(pipe))
        };
        moved.map(drop).map_err(|error| error.problem())
    }

    /// Whose files a transfer means: as a command in the same place would run, unless it says so itself.
    fn whose<'t>(&'t self, transfer: &'t Transfer) -> &'t UserSpec {
        let own = transfer.environment.and_then(|id| self.environments.get(&id)).map(|one| &one.spec.user);
        self.whom(transfer.user.as_ref().or(own))
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
