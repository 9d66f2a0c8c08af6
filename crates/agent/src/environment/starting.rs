//! How an init starts a command: with the environment's only command it may wait until that runs, with others never.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::io::{Errno, FdFlags};
use rustix::process::Pid;
use testyard_linux::process::{self, CloneFlags, CloneOptions, Forked};
use testyard_linux::{Error, terminal};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::start::relay::FAILURE;
use testyard_protocol::{Exec, Linger, RawText};

use super::init::{MARK, Running, Server, Setup, source_view};
use super::order::{self, Answer};
use super::source::{SourceMount, SourcePlace, SourceView};
use crate::launch::{self, Launch, Ready, Streams};

impl Server<'_, '_> {
    pub(super) fn start(
        &mut self,
        number: u32,
        exec: &Exec,
        source: Option<SourceMount>,
        streams: Option<[OwnedFd; 3]>,
        once: bool,
    ) {
        if let Err(problem) = self.try_start(number, exec, source, streams, once) {
            let _ = order::send(self.init.control.as_fd(), &Answer::Failed { command: number, problem }, &[]);
            if once {
                process::exit_immediately(0);
            }
        }
    }

    fn try_start(
        &mut self,
        number: u32,
        exec: &Exec,
        source: Option<SourceMount>,
        streams: Option<[OwnedFd; 3]>,
        once: bool,
    ) -> Result<(), Problem> {
        if let Some(source) = source {
            self.mount_source(source)?;
        }
        let (streams, controller) = self.streams(exec, streams)?;
        self.inhabited = true;
        let mark = [(RawText::from(MARK), RawText::from(self.mark(number)))];
        let launch = self.launch_of(exec, &mark, streams);
        let (pid, failure) =
            if once && exec.linger == Linger::Never { self.start_only(launch)? } else { self.fork(launch)? };
        self.running.insert(pid, Running { number, once, linger: exec.linger, failure });
        // Where nobody waits for the word, the agent is not woken for it.
        if !exec.quiet || controller.is_some() {
            let attached = controller.as_ref().map(|fd| fd.as_fd());
            let answer = Answer::Started { command: number, pid: pid.as_raw_nonzero().get() };
            let _ = order::send(self.init.control.as_fd(), &answer, attached.as_slice());
        }
        Ok(())
    }

    /// Shows a source for somebody who is about to come in, and says so.
    pub(super) fn show(&mut self, tree: Option<OwnedFd>, place: SourcePlace) {
        let missing = || Problem::new(ProblemKind::Bug, "a source came without its descriptor");
        let shown = tree.ok_or_else(missing).and_then(|tree| self.mount_source(SourceMount { tree, place }));
        self.inhabited = true;
        let changes = self.kept.source.iter().filter(|_| shown.is_ok()).map(|fd| fd.as_fd());
        let attached: Vec<_> = changes.collect();
        let _ = order::send(self.init.control.as_fd(), &Answer::Shown { problem: shown.err() }, &attached);
    }

    /// Mounts the environment's one source.
    fn mount_source(&mut self, SourceMount { tree, place }: SourceMount) -> Result<(), Problem> {
        if self.source.is_some() {
            return Ok(());
        }
        let sealed = self.kept.sealed.take();
        let view = source_view(self.init.spec, self.init.hidden, &place);
        let view = SourceView { sealed: sealed.as_ref(), ..view };
        let shown = if self.inhabited { view.mount_unseen(tree.as_fd()) } else { view.mount(tree.as_fd()) };
        self.kept.source = Some(shown.map_err(|error| error.problem())?);
        self.source = Some(place.target.as_path().to_owned());
        Ok(())
    }

    /// Starts the command that the environment was made for. Nothing else is to be done until it runs, so this process
    /// may stand still until then; others could be kept waiting by a command whose folder or program hangs.
    fn start_only(&self, launch: Launch<'_>) -> Result<(Pid, Option<OwnedFd>), Problem> {
        if !launch.may_borrow() {
            return self.fork(launch);
        }
        let ready = Ready::prepare(launch)?;
        let (pid, failed) =
            process::run_borrowed(self.init.token, || ready.launch()).map_err(|error| self.no_process(&error))?;
        failed.map_or(Ok((pid, None)), Err)
    }

    /// Forks the command's process. Whatever it has to wait for, this process does not.
    fn fork(&self, launch: Launch<'_>) -> Result<(Pid, Option<OwnedFd>), Problem> {
        let (failure, child_failure) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK)
                .map_err(|error| Error::new("make", "a pipe", error).problem())?;
        let forked = process::clone3(self.init.token, CloneFlags::NONE, CloneOptions::default());
        match forked.map_err(|error| self.no_process(&error))? {
            Forked::Child => {
                let number = child_failure.as_raw_fd().to_string();
                let mut launch = launch;
                if let Some(pair) = launch.env.iter_mut().find(|pair| pair.0 == FAILURE.as_bytes()) {
                    // What runs in a command's stead says for itself why no command came to be.
                    pair.1 = number.as_bytes();
                    let _ = rustix::io::fcntl_setfd(&child_failure, FdFlags::empty());
                }
                let problem = launch::launch(launch);
                // The reader takes what fits the pipe; a problem's text is far smaller.
                let _ = rustix::io::write(&child_failure, &serde_json::to_vec(&problem).unwrap_or_default());
                process::exit_immediately(127)
            }
            Forked::Parent(child) => Ok((child.pid, Some(failure))),
        }
    }

    /// Why no process could be made; where it is the environment's own limit, says so.
    fn no_process(&self, error: &Error) -> Problem {
        match self.init.spec.limits.pids {
            Some(limit) if error.errno() == Errno::AGAIN => Problem::new(
                ProblemKind::Exhausted,
                format!("the environment's limit of {limit} processes leaves no room for the command"),
            )
            .hint("allow more: --pids N, or `pids` in the suite's resources"),
            _ => error.problem(),
        }
    }

    fn streams(&self, exec: &Exec, streams: Option<[OwnedFd; 3]>) -> Result<(Streams, Option<OwnedFd>), Problem> {
        match (exec.terminal, streams) {
            (Some(size), _) => {
                let size = terminal::Size { rows: size.rows, columns: size.columns };
                let (controller, terminal) = terminal::open_pty(size).map_err(|error| error.problem())?;
                Ok((Streams::Terminal(terminal), Some(controller)))
            }
            (None, Some(streams)) => Ok((Streams::Separate(streams), None)),
            (None, None) => Err(Problem::new(ProblemKind::Bug, "a command came without its streams")),
        }
    }

    fn launch_of<'c>(&'c self, exec: &'c Exec, mark: &'c [(RawText, RawText)], streams: Streams) -> Launch<'c> {
        let pair = |(name, value): &'c (RawText, RawText)| (name.0.as_slice(), value.0.as_slice());
        let own = self.init.machine_env.iter().chain(&self.init.own_env);
        let env = own.chain(mark).chain(&exec.env).map(pair).collect();
        Launch {
            argv: &exec.argv,
            cwd: exec.cwd.as_ref().map(RawText::as_path).or_else(|| self.default_folder()),
            folder: self.init.folder,
            env,
            user: exec.user.as_ref().unwrap_or(&self.init.spec.user),
            streams,
            single_id: self.init.single_id,
        }
    }

    /// Where commands start that do not say: in the working tree, else in the workspace, else where the image says or at
    /// home.
    fn default_folder(&self) -> Option<&Path> {
        self.source.as_deref().or(match &self.init.setup {
            Setup::Workspace { work, .. } => Some(work),
            _ => None,
        })
    }
}
