//! Services that several commands share: an environment of their own, whose network the commands' environments join.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::step::{Step, reach};
use testyard_machine::client::ClientError;
use testyard_model::{EnvironmentId, EnvironmentSpec, Problem, ProblemKind};

use super::company::{Company, Ground, Unready, shown};
use super::{Service, ServiceFailure, ServiceRecord, State};
use crate::warm::{Link, WarmMachine, local};

/// Services that run until they are ended. Where this is dropped before, they are asked to end and nobody waits.
#[derive(Debug)]
pub struct SharedServices {
    environment: EnvironmentId,
    states: Vec<Arc<State>>,
    /// Closed, it asks for the end.
    hold: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread of the services owns.
struct Watch {
    control: Link,
    links: Vec<Link>,
    services: Vec<Service>,
    states: Vec<Arc<State>>,
    environment: EnvironmentId,
    source: Option<u32>,
    hold: OwnedFd,
    told: SyncSender<Result<(), Problem>>,
}

impl WarmMachine {
    /// Starts services in an environment of their own, in order, each ready before the next.
    ///
    /// # Errors
    /// As [`WarmMachine::run_with_services`].
    pub fn share_services(
        &self,
        spec: &EnvironmentSpec,
        tree: Option<&std::path::Path>,
        services: &[Service],
    ) -> Result<SharedServices, ServiceFailure> {
        let client = |error: ClientError| ServiceFailure::from(error.problem());
        let mut control = self.take()?;
        let links = services.iter().map(|_| self.take()).collect::<Result<Vec<Link>, Problem>>()?;
        let source = control.source(spec, tree)?;
        let environment = control.connection.environment(spec).map_err(client)?;
        let states: Vec<Arc<State>> = services.iter().map(|service| State::new(&service.name)).collect();
        let (held, hold) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| client(local("make a pipe")(error)))?;
        let (told, telling) = sync_channel(1);
        let watch = Watch {
            control,
            links,
            services: services.to_vec(),
            states: states.clone(),
            environment,
            source,
            hold: held,
            told,
        };
        let thread = std::thread::Builder::new()
            .name("services".to_owned())
            .spawn(move || watch.run())
            .map_err(|error| client(ClientError::Local { operation: "start a thread for services", source: error }))?;
        let shared = SharedServices { environment, states, hold: Some(hold), thread: Some(thread) };
        match telling.recv() {
            Ok(Ok(())) => {
                reach(Step::SharedServicesReady);
                Ok(shared)
            }
            Ok(Err(problem)) => {
                let services = shared.records();
                shared.end();
                Err(ServiceFailure { problem, services })
            }
            Err(_) => Err(Problem::new(ProblemKind::Bug, "the thread of the services ended").into()),
        }
    }
}

impl SharedServices {
    /// The environment whose network others join to reach them.
    #[must_use]
    pub fn environment(&self) -> EnvironmentId {
        self.environment
    }

    /// What is known of them by now.
    #[must_use]
    pub fn records(&self) -> Vec<ServiceRecord> {
        self.states.iter().map(|state| state.record()).collect()
    }

    /// Whether all of them still run.
    ///
    /// # Errors
    /// A problem of kind `Service` that names the first which does not.
    pub fn check(&self) -> Result<(), ServiceFailure> {
        let dead = self.states.iter().find_map(|state| Some((&state.name, state.known().died?)));
        let Some((name, status)) = dead else { return Ok(()) };
        let message = format!("service `{name}` of the suite died in an earlier test: {}", shown(status));
        let problem =
            Problem::new(ProblemKind::Service, message).hint("see its log, and the tests that ran at that time");
        Err(ServiceFailure { problem, services: self.records() })
    }

    /// Ends them, the last one first, and waits for that.
    pub fn end(mut self) {
        self.hold = None;
        if let Some(thread) = self.thread.take() {
            // It holds no lock of ours, and what it held ends with its connections.
            let _ = thread.join();
        }
        reach(Step::SharedServicesEnded);
    }
}

impl Watch {
    fn run(mut self) {
        let cancel = self.hold.as_fd();
        let cancelled = || is_closed(cancel);
        let ground = Ground {
            environment: self.environment,
            source: self.source,
            ports: &[],
            cancel: Some(cancel),
            cancelled: &cancelled,
        };
        let mut company = Company::default();
        let control = &mut self.control.connection;
        let parts = self.services.iter().zip(&self.states).zip(&mut self.links);
        for ((service, state), link) in parts {
            if let Err(unready) = company.start(service, state, &mut link.connection, control, &ground) {
                let problem = match unready {
                    Unready::Client(error) => error.problem(),
                    Unready::Service(problem) => problem,
                    Unready::Cancelled => Problem::new(ProblemKind::Interrupted, "asked to end"),
                };
                // Whoever asked may be gone. The environment ends with the connections, which are dropped here.
                let _ = self.told.send(Err(problem));
                return;
            }
        }
        if self.told.send(Ok(())).is_err() {
            return;
        }
        while !cancelled() {
            if company.watch(&[cancel], None).is_err() {
                return;
            }
        }
        // What does not end in time, or cannot be talked to, ends with the environment.
        let _ = company.stop();
        let _ = control.release(self.environment);
    }
}

/// Whether the other end of a pipe was closed. Nothing is ever written to it.
fn is_closed(pipe: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(pipe, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
}
