//! A supervisor's and a backend's records, kept in the registry.

use std::path::Path;

use testyard_linux::identity::ProcessIdentity;
use testyard_machine::backend::{KernelIdentity, RecordError, RecordedResource, Recorder, ResourceId, ResourceKind};
use testyard_machine::supervisor::{AgentRecord, Records};
use testyard_model::{MachineId, MachineInfo, MachineState, Problem};
use testyard_registry as registry;
use testyard_registry::{Home, LeaseKind, LeaseStanding, Registry, RegistryError, TransitionError};

/// The registry of one home, opened.
pub(crate) struct RegistryRecords {
    registry: Registry,
    home: Home,
}

impl RegistryRecords {
    pub(crate) fn open(home: &Home) -> Result<Self, RegistryError> {
        Ok(Self { registry: Registry::open(home)?, home: home.clone() })
    }

    /// As a supervisor opens it.
    pub(crate) fn open_boxed(home: &Home) -> Result<Box<dyn Records>, RecordError> {
        match Self::open(home) {
            Ok(records) => Ok(Box::new(records)),
            Err(error) => Err(failed("open", error)),
        }
    }
}

fn failed(operation: &'static str, error: RegistryError) -> RecordError {
    let problem = error.problem();
    RecordError::new(operation, error, problem)
}

fn not_changed(operation: &'static str, error: TransitionError) -> RecordError {
    let problem = error.problem();
    RecordError::new(operation, error, problem)
}

/// What a row says of its machine.
pub(crate) fn info_of(row: registry::MachineRow) -> MachineInfo {
    let limits = agent_of(&row).map(|agent| agent.limits).unwrap_or_default();
    row.into_info(limits)
}

/// The agent that a row speaks of.
pub(crate) fn agent_of(row: &registry::MachineRow) -> Option<AgentRecord> {
    row.agent.as_ref().and_then(|value| serde_json::from_value(value.clone()).ok())
}

impl Records for RegistryRecords {
    fn load(&mut self, id: &MachineId) -> Result<Option<MachineInfo>, RecordError> {
        Ok(self.registry.load(id).map_err(|error| failed("find the machine", error))?.map(info_of))
    }

    fn agent(&mut self, id: &MachineId) -> Result<Option<AgentRecord>, RecordError> {
        let row = self.registry.load(id).map_err(|error| failed("find the machine", error))?;
        Ok(row.as_ref().and_then(agent_of))
    }

    fn record_supervisor(&mut self, id: &MachineId, supervisor: Option<&ProcessIdentity>) -> Result<(), RecordError> {
        let process =
            supervisor.map(|process| registry::ProcessIdentity { pid: process.pid, start_ticks: process.start_ticks });
        self.registry.record_supervisor(id, process).map_err(|error| not_changed("record the supervisor", error))
    }

    fn record_agent(&mut self, id: &MachineId, agent: &AgentRecord) -> Result<(), RecordError> {
        let value = serde_json::to_value(agent).expect("an agent's record is plain data");
        self.registry.record_agent(id, &value).map_err(|error| not_changed("record the agent", error))
    }

    fn transition(&mut self, id: &MachineId, from: MachineState, to: MachineState) -> Result<(), RecordError> {
        self.registry.transition(id, from, to).map_err(|error| not_changed("change the machine's state", error))
    }

    fn record_failure(&mut self, id: &MachineId, from: MachineState, cause: &Problem) -> Result<(), RecordError> {
        self.registry
            .record_failure(id, from, cause)
            .map_err(|error| not_changed("record the machine's failure", error))
    }

    fn begin_deletion(&mut self, id: &MachineId) -> Result<(), RecordError> {
        match self.registry.begin_deletion(id) {
            // Somebody has finished it before.
            Ok(_) | Err(TransitionError::NotFound { .. }) => Ok(()),
            Err(error) => Err(not_changed("begin the deletion", error)),
        }
    }

    fn destroy(&mut self, id: &MachineId) -> Result<(), RecordError> {
        self.registry.destroy(id).map_err(|error| {
            let problem = error.problem();
            RecordError::new("remove the machine's row", error, problem)
        })?;
        // Our own lock's file: we hold it, and its row went with the machine's. Where this fails a reaper sweeps it.
        let _ = std::fs::remove_file(self.home.leases_folder().join(format!("{id}.supervisor")));
        Ok(())
    }

    fn reserve_slots(&mut self, id: &MachineId, count: u32) -> Result<u64, RecordError> {
        let first = self.registry.reserve_slots(id, count);
        first.map_err(|error| not_changed("reserve environment numbers", error))
    }

    fn is_leased(&mut self, id: &MachineId) -> Result<bool, RecordError> {
        let leases = self.registry.list_leases(Some(id)).map_err(|error| failed("list the leases", error))?;
        // A lease that cannot be judged counts: what is used must not be stopped.
        Ok(leases
            .iter()
            .filter(|lease| lease.kind != LeaseKind::Supervisor)
            .any(|lease| self.registry.judge(lease).map_or(true, |standing| standing != LeaseStanding::Abandoned)))
    }

    fn recorder(&mut self, id: &MachineId) -> Box<dyn Recorder + '_> {
        Box::new(MachineRecorder { registry: &self.registry, machine: id.clone() })
    }
}

/// One machine's resources.
struct MachineRecorder<'r> {
    registry: &'r Registry,
    machine: MachineId,
}

impl Recorder for MachineRecorder<'_> {
    fn intend(&mut self, resources: &[(ResourceKind, &Path)]) -> Result<Vec<ResourceId>, RecordError> {
        let resources: Vec<_> =
            resources.iter().map(|(kind, place)| (kind_in_registry(*kind), place.to_path_buf())).collect();
        let ids = self.registry.record_intents(&self.machine, &resources);
        let ids = ids.map_err(|error| not_changed("record what is to be made", error))?;
        Ok(ids.into_iter().map(|id| ResourceId(id.0)).collect())
    }

    fn made(&mut self, made: &[(ResourceId, KernelIdentity)]) -> Result<(), RecordError> {
        let made: Vec<_> =
            made.iter().map(|(id, identity)| (registry::ResourceId(id.0), identity_in_registry(*identity))).collect();
        self.registry.record_made(&made).map_err(|error| failed("record what was made", error))
    }

    fn gone(&mut self, gone: &[ResourceId]) -> Result<(), RecordError> {
        let gone: Vec<_> = gone.iter().map(|id| registry::ResourceId(id.0)).collect();
        self.registry.forget_resources(&gone).map_err(|error| failed("forget what is gone", error))
    }

    fn all(&self) -> Result<Vec<RecordedResource>, RecordError> {
        let all = self.registry.load_resources(&self.machine);
        let all = all.map_err(|error| failed("list the machine's resources", error))?;
        Ok(all.into_iter().map(from_registry).collect())
    }
}

fn kind_in_registry(kind: ResourceKind) -> registry::ResourceKind {
    match kind {
        ResourceKind::Cgroup => registry::ResourceKind::Cgroup,
        ResourceKind::Folder => registry::ResourceKind::Folder,
        ResourceKind::NetworkNamespace => registry::ResourceKind::NetworkNamespace,
        ResourceKind::Interface => registry::ResourceKind::Interface,
        ResourceKind::Process => registry::ResourceKind::Process,
        ResourceKind::Mount => registry::ResourceKind::Mount,
        ResourceKind::File => registry::ResourceKind::File,
    }
}

fn identity_in_registry(identity: KernelIdentity) -> registry::KernelIdentity {
    match identity {
        KernelIdentity::Inode { device, inode } => registry::KernelIdentity::Inode { device, inode },
        KernelIdentity::Process { pid, start_ticks } => {
            registry::KernelIdentity::Process(registry::ProcessIdentity { pid, start_ticks })
        }
        KernelIdentity::Mount { id } => registry::KernelIdentity::Mount { id },
        KernelIdentity::Interface { index, address } => registry::KernelIdentity::Interface { index, address },
    }
}

fn from_registry(resource: registry::Resource) -> RecordedResource {
    let kind = match resource.kind {
        registry::ResourceKind::Cgroup => ResourceKind::Cgroup,
        registry::ResourceKind::Folder => ResourceKind::Folder,
        registry::ResourceKind::NetworkNamespace => ResourceKind::NetworkNamespace,
        registry::ResourceKind::Interface => ResourceKind::Interface,
        registry::ResourceKind::Process => ResourceKind::Process,
        registry::ResourceKind::Mount => ResourceKind::Mount,
        registry::ResourceKind::File => ResourceKind::File,
    };
    let identity = match resource.state {
        registry::ResourceState::Intended => None,
        registry::ResourceState::Made(identity) => Some(match identity {
            registry::KernelIdentity::Inode { device, inode } => KernelIdentity::Inode { device, inode },
            registry::KernelIdentity::Process(process) => {
                KernelIdentity::Process { pid: process.pid, start_ticks: process.start_ticks }
            }
            registry::KernelIdentity::Mount { id } => KernelIdentity::Mount { id },
            registry::KernelIdentity::Interface { index, address } => KernelIdentity::Interface { index, address },
        }),
    };
    RecordedResource { id: ResourceId(resource.id.0), kind, place: resource.place, identity }
}
