//! One command in an environment of its own, with services beside it.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use testyard_linux::step::{Step, reach};
use testyard_machine::client::{ClientError, Connection};
use testyard_model::{EnvironmentId, Problem, ProblemKind};
use testyard_protocol::{Exec, Linger, Place};

use super::company::{Company, Ground, Unready};
use super::{Service, ServiceFailure, ServiceRecord, State};
use crate::outcome::Ended;
use crate::warm::{Attendance, EnvironmentRun, GRACE, Link, Piped, WarmMachine, exec_of};

/// A command that ended, and what became of its services.
#[derive(Debug)]
pub struct Served {
    /// The command.
    pub ended: Ended,
    /// Its services, in the order of their start.
    pub services: Vec<ServiceRecord>,
}

/// What went wrong.
enum Fault {
    /// The machine could not be talked to, or refused.
    Client(ClientError),
    /// Anything else; the connections are sound.
    Problem(Problem),
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<Unready> for Fault {
    fn from(unready: Unready) -> Self {
        match unready {
            Unready::Client(error) => Self::Client(error),
            Unready::Service(problem) => Self::Problem(problem),
            Unready::Cancelled => {
                Self::Problem(Problem::new(ProblemKind::Interrupted, "asked to end before the services were ready"))
            }
        }
    }
}

impl WarmMachine {
    /// As [`WarmMachine::run`], with services in the same environment: started in order, each ready before the next and
    /// before the command, ended in reverse after it.
    ///
    /// # Errors
    /// As [`WarmMachine::run`]; a problem of kind `Service` where one did not get ready, with what it wrote.
    pub fn run_with_services(
        &self,
        run: EnvironmentRun<'_>,
        services: &[Service],
        attendance: Attendance<'_>,
    ) -> Result<Served, ServiceFailure> {
        let mut control = self.take()?;
        let linger = run.linger;
        let mut links = services.iter().map(|_| self.take()).collect::<Result<Vec<Link>, Problem>>()?;
        let states: Vec<Arc<State>> = services.iter().map(|service| State::new(&service.name)).collect();
        let records = || states.iter().map(|state| state.record()).collect::<Vec<_>>();
        // Where this fails, the connections may not be sound, and go.
        let source = control.source(run.spec, run.tree)?;
        let outcome = match control.connection.environment(run.spec) {
            Err(error) => Err(Fault::Client(error)),
            Ok(environment) => {
                reach(Step::ServiceEnvironment);
                let place = Where { source, environment };
                let outcome = serve(run, services, &states, &mut control.connection, &mut links, attendance, &place);
                match outcome {
                    // What cannot be talked to any more ends with its connections.
                    Err(Fault::Client(error)) if !matches!(error, ClientError::Refused(_)) => Err(Fault::Client(error)),
                    Ok(ended) if linger.applies_to(ended.status.success()) => {
                        Ok(Ended { lingering: Some(environment), ..ended })
                    }
                    outcome => control.connection.release(environment).map_err(Fault::Client).and(outcome),
                }
            }
        };
        let problem = match outcome {
            Ok(ended) => {
                links.into_iter().chain([control]).for_each(|link| self.put(link));
                reach(Step::ServicesEnded);
                return Ok(Served { ended, services: records() });
            }
            Err(Fault::Client(error)) => {
                if matches!(error, ClientError::Refused(_)) {
                    links.into_iter().chain([control]).for_each(|link| self.put(link));
                }
                error.problem()
            }
            Err(Fault::Problem(problem)) => {
                links.into_iter().chain([control]).for_each(|link| self.put(link));
                problem
            }
        };
        Err(ServiceFailure { problem, services: records() })
    }
}

struct Where {
    source: Option<u32>,
    environment: EnvironmentId,
}

fn serve(
    run: EnvironmentRun<'_>,
    services: &[Service],
    states: &[Arc<State>],
    control: &mut Connection,
    links: &mut [Link],
    attendance: Attendance<'_>,
    place: &Where,
) -> Result<Ended, Fault> {
    let mut company = Company::default();
    let ports = run.ports.clone();
    let ground = Ground {
        environment: place.environment,
        source: place.source,
        ports: &ports,
        cancel: attendance.cancel,
        cancelled: attendance.cancelled,
    };
    for ((service, state), link) in services.iter().zip(states).zip(links) {
        company.start(service, state, &mut link.connection, control, &ground)?;
        reach(Step::ServiceReady);
    }
    // The first service has mounted the tree.
    let source = place.source.filter(|_| services.is_empty());
    let deadline = run.timeout.map(|timeout| Instant::now() + timeout + GRACE);
    // Whether the environment outlives the command is for whoever holds it: us.
    let run = EnvironmentRun { linger: Linger::Never, ..run };
    let exec = exec_of(run, Place::Environment(place.environment), source);
    let ended = beside(&mut company, control, exec, attendance, deadline)?;
    if let Some(problem) = company.refusal() {
        return Err(Fault::Problem(problem));
    }
    company.stop()?;
    Ok(Ended { environment: Some(place.environment), ..ended })
}

/// Runs the command while watching the services.
fn beside(
    company: &mut Company<'_>,
    control: &mut Connection,
    exec: Exec,
    attendance: Attendance<'_>,
    deadline: Option<Instant>,
) -> Result<Ended, ClientError> {
    let machine = control.machine().to_owned();
    let Attendance { output, cancel, cancelled, started, running: _ } = attendance;
    let Piped { mut command, mut pipes } = Piped::start(control, exec)?;
    started();
    let mut watching = cancel;
    loop {
        let finished = command.look()?;
        if let Some(finished) = finished {
            pipes.drain(output);
            company.attend()?;
            return Ok(Ended {
                status: finished.status,
                usage: finished.usage,
                environment: finished.environment,
                lingering: None,
            });
        }
        let (outputs, kinds) = pipes.watched();
        let mut watched = vec![command.as_fd()];
        watched.extend(outputs);
        watched.extend(watching);
        let ready = company.watch(&watched, deadline)?;
        drop(watched);
        for (kind, _) in kinds.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            pipes.read(*kind, output);
        }
        if watching.is_some() && ready.last() == Some(&true) && cancelled() {
            watching = None;
            command.kill()?;
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(ClientError::Silent { machine, seconds: GRACE.as_secs() });
        }
    }
}
