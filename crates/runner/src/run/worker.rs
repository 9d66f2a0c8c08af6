//! Worker threads: each runs one job after another and never prints.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use testyard_model::step::Step;
use testyard_model::{Problem, ProblemKind};

use super::Event;
use crate::cancel::Cancel;
use crate::capture::{CaptureOptions, Stream};
use crate::dispatch::End;
use crate::job::{Executor, Finished, Job, JobOutcome};
use crate::service::{ServiceResult, died};

/// Captured output of tests that did not pass is held in memory up to this, all tests together; beyond it goes to files.
const HELD: usize = 16 << 20;

/// One attempt for a worker.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) test: usize,
    pub(super) attempt: u32,
    pub(super) job: Job,
    pub(super) cancel: Cancel,
}

/// What an attempt gave.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(super) end: End,
    pub(super) finished: Option<Finished>,
    /// What is known of services that kept the command from being started.
    pub(super) unserved: Vec<ServiceResult>,
    pub(super) source_changed: bool,
}

struct Worker {
    assignments: Sender<Assignment>,
    thread: JoinHandle<()>,
}

/// The workers of a run. A new one is started only when all are busy.
pub(super) struct Workers {
    executor: Arc<dyn Executor>,
    events: Sender<Event>,
    step: fn(Step),
    held: Arc<AtomicUsize>,
    all: HashMap<usize, Worker>,
    next: usize,
    idle: Vec<usize>,
    busy: HashMap<usize, usize>,
}

impl Workers {
    pub(super) fn new(executor: Arc<dyn Executor>, events: Sender<Event>, step: fn(Step)) -> Self {
        let held = Arc::new(AtomicUsize::new(0));
        Self { executor, events, step, held, all: HashMap::new(), next: 0, idle: Vec::new(), busy: HashMap::new() }
    }

    /// Hands an attempt to an idle worker, or to a new one, and says to which. Where no thread can be had, that is how
    /// the attempt ends; a repetition may find an idle worker.
    pub(super) fn start(&mut self, assignment: Assignment) -> Option<u32> {
        let (test, attempt) = (assignment.test, assignment.attempt);
        match self.idle.pop().map_or_else(|| self.spawn(), Ok) {
            Ok(worker) => {
                self.busy.insert(test, worker);
                // A worker takes assignments for as long as its sender lives.
                let _ = self.all[&worker].assignments.send(assignment);
                u32::try_from(worker).ok()
            }
            Err(error) => {
                let problem = Problem::new(ProblemKind::Unavailable, "cannot start a worker thread")
                    .because(error)
                    .hint("run with fewer --jobs, or raise the limit of processes (ulimit -u)");
                let end = End::Infrastructure(problem);
                let payload = Box::new(Payload { end, finished: None, unserved: Vec::new(), source_changed: false });
                // The run that listens is our caller.
                let _ = self.events.send(Event::Ended { worker: usize::MAX, test, attempt, payload });
                None
            }
        }
    }

    /// A worker has reported an end.
    pub(super) fn free(&mut self, worker: usize) {
        // One that was given up and came back after all is not asked again.
        if self.all.contains_key(&worker) {
            self.busy.retain(|_, busy| *busy != worker);
            self.idle.push(worker);
        }
    }

    /// The worker of this test does not come back. Its thread ends by itself, if it ever does.
    pub(super) fn abandon(&mut self, test: usize) {
        if let Some(worker) = self.busy.remove(&test) {
            self.all.remove(&worker);
        }
    }

    /// Waits for the threads; all are idle.
    pub(super) fn join(self) {
        for worker in self.all.into_values() {
            drop(worker.assignments);
            // Its panics were caught and reported one by one.
            let _ = worker.thread.join();
        }
    }

    fn spawn(&mut self) -> Result<usize, std::io::Error> {
        let number = self.next;
        let (assignments, receiver) = channel();
        let body = Body {
            number,
            executor: self.executor.clone(),
            events: self.events.clone(),
            step: self.step,
            held: self.held.clone(),
        };
        let builder = std::thread::Builder::new().name(format!("worker-{number}"));
        let thread = builder.spawn(move || body.work(&receiver))?;
        self.all.insert(number, Worker { assignments, thread });
        self.next += 1;
        Ok(number)
    }
}

struct Body {
    number: usize,
    executor: Arc<dyn Executor>,
    events: Sender<Event>,
    step: fn(Step),
    held: Arc<AtomicUsize>,
}

impl Body {
    fn work(&self, assignments: &Receiver<Assignment>) {
        while let Ok(assignment) = assignments.recv() {
            let (test, attempt) = (assignment.test, assignment.attempt);
            let payload = Box::new(self.attempt(&assignment));
            // A run that was killed listens no more.
            let _ = self.events.send(Event::Ended { worker: self.number, test, attempt, payload });
        }
    }

    fn attempt(&self, assignment: &Assignment) -> Payload {
        let Assignment { test, attempt, job, cancel } = assignment;
        (self.step)(Step::RunnerStarted);
        let tell = |event| {
            let _ = self.events.send(Event::Job { test: *test, attempt: *attempt, event });
        };
        let run = || {
            let outcome = self.executor.run(job, cancel, &tell);
            (outcome, self.executor.source_changed(&job.root))
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok((JobOutcome::Finished(mut finished), source_changed)) => {
                self.make_room(job, &mut finished);
                let end = match died(&job.services, &finished.services) {
                    Some((service, died)) => {
                        End::ServiceDied { service: service.to_owned(), died, status: finished.status }
                    }
                    None => End::Status(finished.status),
                };
                Payload { end, finished: Some(finished), unserved: Vec::new(), source_changed }
            }
            Ok((JobOutcome::Unserved { problem, services }, source_changed)) => {
                Payload { end: End::Infrastructure(problem), finished: None, unserved: services, source_changed }
            }
            Ok((JobOutcome::Infrastructure(problem), source_changed)) => {
                Payload { end: End::Infrastructure(problem), finished: None, unserved: Vec::new(), source_changed }
            }
            Ok((JobOutcome::Lost(problem), _)) => {
                Payload { end: End::Lost(problem), finished: None, unserved: Vec::new(), source_changed: false }
            }
            Ok((JobOutcome::Skipped(refusal), _)) => {
                Payload { end: End::Refused(refusal), finished: None, unserved: Vec::new(), source_changed: false }
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                let problem = Problem::new(ProblemKind::Bug, "a bug in Testyard ended the test's worker")
                    .because(text)
                    .hint("report it with the command you ran");
                Payload {
                    end: End::Infrastructure(problem),
                    finished: None,
                    unserved: Vec::new(),
                    source_changed: false,
                }
            }
        }
    }

    /// Nobody looks at what a passed test wrote; of the others not everything can stay in memory.
    fn make_room(&self, job: &Job, finished: &mut Finished) {
        if finished.status.success() && died(&job.services, &finished.services).is_none() {
            finished.stdout.discard();
            finished.stderr.discard();
            finished.services.iter_mut().for_each(|service| service.log.discard());
            return;
        }
        let outputs = [(&mut finished.stdout, Stream::Stdout), (&mut finished.stderr, Stream::Stderr)];
        let outputs = outputs.map(|(captured, stream)| (captured, stream, job.capture.clone()));
        let logs = finished.services.iter_mut().map(|service| {
            let stem = format!("{}.service-{}", job.capture.stem, service.name.replace('/', "_"));
            (&mut service.log, Stream::Stdout, CaptureOptions { stem, ..job.capture.clone() })
        });
        for (captured, stream, options) in outputs.into_iter().chain(logs) {
            let before = self.held.fetch_add(captured.held(), Ordering::Relaxed);
            if before + captured.held() > HELD {
                let held = captured.held();
                captured.spill(&options, stream);
                self.held.fetch_sub(held - captured.held(), Ordering::Relaxed);
            }
        }
    }
}
