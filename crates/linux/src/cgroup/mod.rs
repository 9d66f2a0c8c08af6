//! Control groups, of both versions: limits on and accounts of whole trees of processes.
//!
//! A [`Hierarchy`] is where this process may make groups; a [`Group`] is one of ours, held by descriptors of its
//! folders, so that a process which can no longer see `/sys/fs/cgroup` can still use it.
//!
//! Version 1 has a tree for each controller, and a process is in one group of each; version 2 has one tree, in which
//! only groups without children hold processes. Where the controllers are mounted as v1 beside an empty v2 tree
//! ("hybrid"), v1 is used.

mod group;
mod hierarchy;
mod removal;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

pub use group::{Group, GroupUsage};
pub use hierarchy::{Hierarchy, V1Mount, V2Mount};

/// What a control group may limit or count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Controller {
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// Shares and quotas of processor time.
    Cpu,
    /// Accounts of processor time; in version 2 they are part of every group.
    CpuAccounting,
    /// Reading and writing block devices.
    BlockIo,
    /// Stopping everything; in version 2 part of every group.
    Freezer,
}

impl Controller {
    /// Every one that Testyard uses.
    pub const ALL: [Self; 6] = [Self::Memory, Self::Pids, Self::Cpu, Self::CpuAccounting, Self::BlockIo, Self::Freezer];

    /// Its name in version 1.
    #[must_use]
    pub const fn v1_name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
            Self::CpuAccounting => "cpuacct",
            Self::BlockIo => "blkio",
            Self::Freezer => "freezer",
        }
    }

    /// Its name in version 2; nothing for what every group of that version does.
    #[must_use]
    pub const fn v2_name(self) -> Option<&'static str> {
        match self {
            Self::Memory => Some("memory"),
            Self::Pids => Some("pids"),
            Self::Cpu => Some("cpu"),
            Self::BlockIo => Some("io"),
            Self::CpuAccounting | Self::Freezer => None,
        }
    }
}
