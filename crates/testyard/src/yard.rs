//! A home and what is in it: the way to everything else.

use std::fs::{File, FileTimes};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use testyard_machine::backend::{Backend, MachinePlace};
use testyard_machine::client::{ClientError, Greeting};
use testyard_machine::supervisor::socket_of;
use testyard_model::{BackendName, MachineId, MachineInfo, MachineName, MachineSpec, Problem};
use testyard_probe::{Prober, Tier, choose_tier};
use testyard_registry::{MachineRow, Registry};

use crate::far::sessions_around;
use crate::machine::Machine;
use crate::machines::Machines;
use crate::options::Options;
use crate::reap::{ReapReport, Reaper};

/// A home: its machines, their records, its programs.
#[derive(Debug, Clone)]
pub struct Testyard {
    options: Options,
}

/// A machine that is being connected to.
#[derive(Debug)]
pub struct Connecting<'y> {
    yard: &'y Testyard,
    name: MachineName,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Greeted(Box<Greeting>),
    Connected(Box<Machine>),
}

impl Connecting<'_> {
    /// Waits until it is.
    pub fn finish(self) -> Result<Machine, Problem> {
        match self.stage {
            Stage::Connected(machine) => Ok(*machine),
            Stage::Greeted(greeting) => match greeting.answered() {
                Ok(connection) => Ok(Machine::over(connection, &self.name)),
                Err(error) => self.yard.connect_after(&self.name, &error),
            },
        }
    }
}

/// A client looks for what others left undone at most this often.
const PASS_EVERY: Duration = Duration::from_secs(5);

impl Testyard {
    /// Opens a home. Now and then this also finishes what killed processes left undone: see [`Testyard::reap`].
    pub fn open(options: Options) -> Result<Self, Problem> {
        let yard = Self { options };
        if yard.pass_is_due() {
            // What this cannot finish now is said by `testyard reap`; it is no reason to refuse the caller's work.
            let _ = Reaper::new(&yard).quick_pass();
        }
        Ok(yard)
    }

    /// For a process that must not look around: a supervisor.
    pub(crate) fn bare(options: Options) -> Self {
        Self { options }
    }

    /// As the process's environment says.
    pub fn from_process() -> Result<Self, Problem> {
        Self::open(Options::from_process()?)
    }

    /// With what it was opened.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Creating, listing and ending machines.
    #[must_use]
    pub fn machines(&self) -> Machines<'_> {
        Machines { yard: self }
    }

    /// Connects to a running machine's agent.
    pub fn connect(&self, name: &MachineName) -> Result<Machine, Problem> {
        self.begin_to_connect(name)?.finish()
    }

    /// As [`Testyard::connect`], and leaves the machine to answer while its client does something else. One that is not
    /// there is refused at once.
    pub fn begin_to_connect(&self, name: &MachineName) -> Result<Connecting<'_>, Problem> {
        let socket = socket_of(self.options.home.runtime(), name);
        let stage = match Machine::greet(&socket, name) {
            Ok(greeting) => Stage::Greeted(Box::new(greeting)),
            Err(error) => Stage::Connected(Box::new(self.connect_after(name, &error)?)),
        };
        Ok(Connecting { yard: self, name: name.clone(), stage })
    }

    /// Its supervisor may have been killed: then the machine gets another one here.
    fn connect_after(&self, name: &MachineName, error: &ClientError) -> Result<Machine, Problem> {
        let revived = matches!(error, ClientError::NotThere { .. } | ClientError::Lost { .. })
            && self.machines().is_revived(name);
        let socket = socket_of(self.options.home.runtime(), name);
        match revived.then(|| Machine::open(&socket, name)) {
            Some(Ok(machine)) => Ok(machine),
            _ => Err(self.machines().why_silent(name, error)),
        }
    }

    /// Finishes what killed processes left undone, and removes what nobody holds any more. Only what is written
    /// down, and proven by the kernel's own identity, is touched.
    pub fn reap(&self, dry_run: bool) -> Result<ReapReport, Problem> {
        Reaper::new(self).pass(dry_run)
    }

    /// The strongest backend that this host can give, from probes that are kept for the boot.
    pub fn tier(&self) -> Result<Tier, Problem> {
        let report = self.prober().load().map_err(|error| error.problem())?;
        Ok(choose_tier(&report))
    }

    /// What this host can do.
    #[must_use]
    pub fn prober(&self) -> Prober {
        Prober::new(&self.options.program, self.options.home.state())
    }

    pub(crate) fn registry(&self) -> Result<Registry, Problem> {
        Registry::open(&self.options.home).map_err(|error| error.problem())
    }

    pub(crate) fn backend(&self, name: &BackendName) -> Result<Box<dyn Backend>, Problem> {
        self.options.backends.get(name).map_err(|error| error.problem())
    }

    pub(crate) fn place(&self, id: &MachineId, name: &MachineName, spec: &MachineSpec) -> MachinePlace {
        let home = &self.options.home;
        let own = [home.state(), home.runtime()].map(PathBuf::from);
        // What all sessions of a user see of a host is the same then, and so is what is made of it once.
        let sessions = sessions_around(home.state()).map(|sessions| vec![sessions.to_path_buf()]);
        MachinePlace {
            id: id.clone(),
            name: name.clone(),
            spec: spec.clone(),
            folder: home.machine_folder(id),
            runtime: home.machine_runtime(id),
            images: home.images_folder(),
            agent: self.options.agent.clone(),
            masked: sessions.filter(|sessions| own[1].starts_with(&sessions[0])).unwrap_or_else(|| own.into()),
        }
    }

    pub(crate) fn place_of(&self, row: &MachineRow) -> MachinePlace {
        self.place(&row.id, &row.name, &row.spec)
    }

    pub(crate) fn place_of_info(&self, info: &MachineInfo) -> MachinePlace {
        self.place(&info.id, &info.name, &info.spec)
    }

    /// Whether nobody has looked around for a while; says so for the others.
    fn pass_is_due(&self) -> bool {
        let stamp = self.stamp();
        let now = SystemTime::now();
        let fresh = std::fs::metadata(&stamp)
            .and_then(|facts| facts.modified())
            .is_ok_and(|then| now.duration_since(then).is_ok_and(|age| age < PASS_EVERY));
        if fresh {
            return false;
        }
        let stamped = File::options().create(true).append(true).open(&stamp);
        stamped.and_then(|file| file.set_times(FileTimes::new().set_modified(now))).is_ok()
    }

    fn stamp(&self) -> PathBuf {
        self.options.home.runtime().join("reaped")
    }
}

/// Now, in milliseconds since 1970-01-01 UTC.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
