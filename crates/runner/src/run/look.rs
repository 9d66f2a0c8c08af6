//! Looking at tests whose time is nearly up, in threads of their own: `/proc` and debuggers may take their time.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use testyard_model::Isolation;

use super::Event;
use crate::inspect::{Debugger, Inspection, Mark};
use crate::job::Job;

/// Starts looks, and sends what they find to the run.
#[derive(Debug)]
pub(super) struct Looker {
    events: Sender<Event>,
    debugger: Option<Debugger>,
}

impl Looker {
    pub(super) fn new(events: Sender<Event>) -> Self {
        let debugger = std::env::var("PATH").ok().and_then(|path| Debugger::find(&path));
        Self { events, debugger }
    }

    /// Looks at the processes of this job, which is ended when the time that is left has passed. The thread ends
    /// then too; where there is none to be had, nobody looks.
    pub(super) fn look(&self, test: usize, attempt: u32, job: &Job, left: Duration) {
        let names = ["TESTYARD_RUN", "TESTYARD_SUITE", "TESTYARD_TEST", "TESTYARD_ATTEMPT"];
        let variable = |name: &str| Some((name.to_owned(), job.env.get(name)?.clone()));
        let mark = Mark {
            variables: names.into_iter().filter_map(variable).collect(),
            own_processes: job.isolation >= Isolation::Namespace,
        };
        let (events, debugger) = (self.events.clone(), self.debugger.clone());
        let until = Instant::now() + left;
        let look = move || {
            let Some(mut inspection) = Inspection::take(&mark) else { return };
            let tell = |inspection| {
                // A run that is over does not listen.
                let _ = events.send(Event::Inspected { test, attempt, inspection: Box::new(inspection) });
            };
            tell(inspection.clone());
            if let Some(debugger) = debugger {
                inspection.add_user_stacks(&debugger, until);
                tell(inspection);
            }
        };
        let _ = std::thread::Builder::new().name("look".to_owned()).spawn(look);
    }
}
