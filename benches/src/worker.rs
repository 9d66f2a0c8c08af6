//! Forked processes that do one thing on demand and say how long it took.
//!
//! A probe that is measured inside this program would fork all of this program's memory; one that is forked off at the
//! start stays small. Several of them can also run side by side.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use testyard_linux::process::{self, CloneFlags, CloneOptions, Forked, SingleThreaded};
use testyard_linux::socket;
use testyard_model::{Problem, ProblemKind};

/// What a worker does.
pub trait Task {
    /// Does it once.
    ///
    /// # Errors
    /// What went wrong; the worker ends.
    fn once(&mut self) -> Result<(), Problem>;

    /// Cleans up.
    fn end(self: Box<Self>) {}
}

/// A forked process with a task.
pub struct Worker {
    socket: OwnedFd,
    pidfd: OwnedFd,
}

/// The kernel's problem in ours.
pub(crate) fn told(error: &testyard_linux::Error) -> Problem {
    error.problem()
}

fn lost(error: impl std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::System, "a measuring process was lost").because(error)
}

impl Worker {
    /// Forks one. `prepare` runs in it, before this returns.
    ///
    /// # Errors
    /// What clone or `prepare` says.
    pub fn start(
        proof: SingleThreaded,
        prepare: impl FnOnce() -> Result<Box<dyn Task>, Problem>,
    ) -> Result<Self, Problem> {
        let (ours, theirs) = socket::pair(socket::Kind::Stream).map_err(|error| told(&error))?;
        match process::clone3(proof, CloneFlags::NONE, CloneOptions::default()).map_err(|error| told(&error))? {
            Forked::Child => {
                drop(ours);
                serve(&theirs, prepare);
                process::exit_immediately(0)
            }
            Forked::Parent(child) => {
                drop(theirs);
                let worker = Self { socket: ours, pidfd: child.pidfd };
                worker.finish()?;
                Ok(worker)
            }
        }
    }

    /// Tells it to do its task so many times.
    ///
    /// # Errors
    /// When it has ended.
    pub fn begin(&self, rounds: u32) -> Result<(), Problem> {
        socket::send(&self.socket, &[IoSlice::new(&rounds.to_le_bytes())], &[]).map_err(lost)?;
        Ok(())
    }

    /// Waits until it has done so; how long that took.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn finish(&self) -> Result<Duration, Problem> {
        let mut text = [0; 4096];
        let length = rustix::io::read(&self.socket, &mut text).map_err(lost)?;
        match text[..length].split_first() {
            Some((b'+', nanoseconds)) => {
                let nanoseconds = nanoseconds.try_into().map_err(lost)?;
                Ok(Duration::from_nanos(u64::from_le_bytes(nanoseconds)))
            }
            Some((_, problem)) => Err(serde_json::from_slice(problem).map_err(lost)?),
            None => Err(lost("it ended")),
        }
    }

    /// Does the task once.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn once(&self) -> Result<Duration, Problem> {
        self.begin(1)?;
        self.finish()
    }

    /// Ends it and waits for that.
    pub fn stop(self) {
        let Self { socket, pidfd } = self;
        // Closing would not do: workers forked later have a copy of this end.
        let _ = socket::send(&socket, &[IoSlice::new(&0_u32.to_le_bytes())], &[]);
        // It is a child of this process, which waits for nobody else.
        let _ = process::pidfd_wait(pidfd.as_fd(), false);
    }
}

fn serve(socket: &OwnedFd, prepare: impl FnOnce() -> Result<Box<dyn Task>, Problem>) {
    // Whoever measures is gone: so is this.
    let _ = process::set_parent_death_signal(9);
    let mut task = match prepare() {
        Ok(task) => task,
        Err(problem) => return report(socket, Err(problem)),
    };
    report(socket, Ok(Duration::ZERO));
    let mut rounds = [0; 4];
    while rustix::io::read(socket, &mut rounds).is_ok_and(|length| length == 4) && rounds != [0; 4] {
        let start = Instant::now();
        let done = (0..u32::from_le_bytes(rounds)).try_for_each(|_| task.once());
        report(socket, done.map(|()| start.elapsed()));
    }
    task.end();
}

fn report(socket: &OwnedFd, outcome: Result<Duration, Problem>) {
    let text = match outcome {
        Ok(time) => [b"+".as_slice(), &(time.as_nanos() as u64).to_le_bytes()].concat(),
        Err(problem) => [b"-".as_slice(), &serde_json::to_vec(&problem).unwrap_or_default()].concat(),
    };
    // Nobody to report to: the next read ends this.
    let _ = socket::send(socket, &[IoSlice::new(&text)], &[]);
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(u32);

    impl Task for Fails {
        fn once(&mut self) -> Result<(), Problem> {
            self.0 += 1;
            if self.0 < 3 { Ok(()) } else { Err(Problem::new(ProblemKind::Bug, "the third time")) }
        }
    }

    #[test]
    fn a_worker_reports_times_and_problems() {
        // The test harness has threads; a child that only answers is safe all the same where libc's locks are not held.
        let Ok(proof) = SingleThreaded::check() else { return };
        let worker = Worker::start(proof, || Ok(Box::new(Fails(0)))).expect("it starts");
        assert!(worker.once().is_ok());
        assert!(worker.once().is_ok());
        assert_eq!(worker.once().expect_err("it fails").message, "the third time");
        worker.stop();
    }
}
