//! What a supervisor writes down, without knowing where.

use serde::{Deserialize, Serialize};
use testyard_linux::identity::ProcessIdentity;
use testyard_model::{MachineId, MachineInfo, MachineState, Problem};

use crate::backend::{RecordError, Recorder};

/// The registry as a supervisor and a reaper need it. Opened for a transition and closed again, so that an
/// idle supervisor keeps no database in memory.
pub trait Records {
    /// The machine as it is written down; none when its row is gone.
    fn load(&mut self, id: &MachineId) -> Result<Option<MachineInfo>, RecordError>;
    /// The agent that was last recorded, if any.
    fn agent(&mut self, id: &MachineId) -> Result<Option<AgentRecord>, RecordError>;
    /// Who supervises it now; none once that has ended.
    fn record_supervisor(&mut self, id: &MachineId, supervisor: Option<&ProcessIdentity>) -> Result<(), RecordError>;
    /// Its agent and what that says of itself.
    fn record_agent(&mut self, id: &MachineId, agent: &AgentRecord) -> Result<(), RecordError>;
    /// It goes from one state to the next.
    fn transition(&mut self, id: &MachineId, from: MachineState, to: MachineState) -> Result<(), RecordError>;
    /// It failed.
    fn record_failure(&mut self, id: &MachineId, from: MachineState, cause: &Problem) -> Result<(), RecordError>;
    /// It will be removed, whatever its state; again is no error.
    fn begin_deletion(&mut self, id: &MachineId) -> Result<(), RecordError>;
    /// Nothing of it is left: its row goes. No row is no error.
    fn destroy(&mut self, id: &MachineId) -> Result<(), RecordError>;
    /// Reserves the next `count` environment numbers; the first of them.
    fn reserve_slots(&mut self, id: &MachineId, count: u32) -> Result<u64, RecordError>;
    /// Whether anybody holds a lease on it, which keeps it from being idle.
    fn is_leased(&mut self, id: &MachineId) -> Result<bool, RecordError>;
    /// For its backend.
    fn recorder(&mut self, id: &MachineId) -> Box<dyn Recorder + '_>;
}

/// Opens the records.
pub type OpenRecords = Box<dyn Fn() -> Result<Box<dyn Records>, RecordError>>;

/// An agent as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Its process id, in the pid namespace below.
    pub pid: i32,
    /// When it started, in clock ticks since the boot.
    pub start_ticks: u64,
    /// Of which boot.
    pub boot_id: String,
    /// The inode of the pid namespace in which the process id counts.
    pub pid_namespace: u64,
    /// What the machine cannot isolate or limit.
    #[serde(default)]
    pub limits: Vec<String>,
}

impl AgentRecord {
    /// Of a process that has not said anything yet.
    #[must_use]
    pub fn new(process: &ProcessIdentity, limits: Vec<String>) -> Self {
        Self {
            pid: process.pid,
            start_ticks: process.start_ticks,
            boot_id: process.boot_id.clone(),
            pid_namespace: process.pid_namespace_inode,
            limits,
        }
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> ProcessIdentity {
        ProcessIdentity {
            pid: self.pid,
            start_ticks: self.start_ticks,
            boot_id: self.boot_id.clone(),
            pid_namespace_inode: self.pid_namespace,
        }
    }
}
