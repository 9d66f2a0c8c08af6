//! The way to machines: the `testyard` crate, opened as this process's environment says.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use testyard::run::{SourceMode, TestBench, Where};
use testyard::{Machine, Options, Testyard};
use testyard_images::{Digest, HostOptions, HostView, Store};
use testyard_machine::client::ClientError;
use testyard_machine::supervisor::socket_of;
use testyard_model::{BackendName, ImageReference, MachineInfo, MachineName, MachineState, Problem};
use testyard_runner::plan::{Plan, PlanError};

/// Opens this home.
pub(crate) fn open() -> Result<Testyard, Problem> {
    Testyard::from_process()
}

/// Opens this home to start machines in it: whoever sits at our terminal is asked what their logins want to know.
pub(crate) fn open_to_start() -> Result<Testyard, Problem> {
    Testyard::open(Options { ask: crate::asking::answer(), ..Options::from_process()? })
}

/// The home as it is, for a process that is to become something else.
pub(crate) fn options() -> Result<Options, Problem> {
    Options::from_process()
}

/// A connection to a machine's agent, found by its name alone: no registry is opened while it answers.
pub(crate) fn connect(name: &MachineName) -> Result<Machine, Problem> {
    open()?.connect(name)
}

/// A machine for programs, with the socket at which it listens while it runs.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Reachable<'a> {
    #[serde(flatten)]
    machine: &'a MachineInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,
}

/// Where a machine that runs listens, told to programs that speak the protocol themselves.
pub(crate) fn with_socket(machine: &MachineInfo) -> Result<Reachable<'_>, Problem> {
    let socket = match machine.state {
        MachineState::Running => Some(socket_of(options()?.home.runtime(), &machine.name)),
        _ => None,
    };
    Ok(Reachable { machine, socket })
}

/// As people see it.
pub(crate) fn told(error: ClientError) -> Problem {
    error.problem()
}

/// The store of images.
pub(crate) fn images(yard: &Testyard) -> Result<Store, Problem> {
    Store::open(&yard.options().home.images_folder()).map_err(|error| error.problem())
}

/// This host as a machine of this home sees it, with nothing exposed.
pub(crate) fn host_view(yard: &Testyard) -> Result<HostView, Problem> {
    let home = &yard.options().home;
    let own = vec![home.state().to_path_buf(), home.runtime().to_path_buf()];
    HostView::load(&HostOptions { own, ..HostOptions::default() }).map_err(|error| error.problem())
}

/// The images that machines stand on.
pub(crate) fn images_in_use(yard: &Testyard, store: &Store) -> Result<BTreeSet<Digest>, Problem> {
    let used = yard.machines().list()?.into_iter().filter_map(|machine| store.find(&machine.spec.stands_on()).ok());
    Ok(used.map(|image| image.record.digest).collect())
}

/// Refuses a plan of which a suite names a backend or an image that is not there.
pub(crate) fn check_places(yard: &Testyard, plan: &Plan) -> Result<(), PlanError> {
    let backend = |name: &BackendName| {
        let found = yard.options().backends.get(name).map(drop);
        found.map_err(|error| error.problem())
    };
    let image = |reference: &ImageReference| match reference {
        ImageReference::Host => Ok(()),
        reference => images(yard)?.find(reference).map(drop).map_err(|error| error.problem()),
    };
    plan.suites.iter().try_for_each(|suite| suite.check_place(backend, image))
}

/// What runs tests.
pub(crate) fn test_bench(
    yard: &Testyard,
    source: SourceMode,
    place: &Where,
    suite: Option<&Path>,
    stop: BorrowedFd<'_>,
) -> Result<TestBench, Problem> {
    TestBench::prepare(yard, source, place, suite, Some(stop))
}
