//! What the kernel itself says something is: the only proof on which anything is ever deleted.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use rusqlite::Row;
use serde::{Deserialize, Serialize};

use crate::stable_hash::stable_hash;

/// Which host, which boot of it, and which pid namespace: where a pid or a held lock means anything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostIdentity {
    /// `/etc/machine-id`, or where there is none a hash of the host name.
    pub host_id: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The inode of the pid namespace.
    pub pid_namespace: u64,
}

impl HostIdentity {
    /// Reads this process's own.
    ///
    /// # Errors
    /// `/proc` is not mounted or not readable.
    pub fn load() -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let pid_namespace = fs::metadata("/proc/self/ns/pid")?.ino();
        let host_id = ["/etc/machine-id", "/var/lib/dbus/machine-id"]
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok())
            .map(|text| text.trim().to_owned())
            .find(|text| !text.is_empty() && text != "uninitialized")
            .unwrap_or_else(|| format!("{:016x}", stable_hash(rustix::system::uname().nodename().to_bytes())));
        Ok(Self { host_id, boot_id, pid_namespace })
    }

    /// From three columns of a row, of which this is the first.
    pub(crate) fn of_columns(row: &Row<'_>, first: usize) -> rusqlite::Result<Self> {
        Ok(Self {
            host_id: row.get(first)?,
            boot_id: row.get(first + 1)?,
            pid_namespace: row.get::<_, i64>(first + 2)?.cast_unsigned(),
        })
    }

    /// Whether a lock held or a pid recorded under `self` can be judged from `observer`.
    ///
    /// An earlier boot of the same host can: nothing of it is left, whatever its pid namespace was.
    #[must_use]
    pub fn is_judged_by(&self, observer: &Self) -> bool {
        self.host_id == observer.host_id
            && (self.boot_id != observer.boot_id || self.pid_namespace == observer.pid_namespace)
    }
}

/// A process that cannot be confused with a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number in the recording pid namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
    pub start_ticks: u64,
}

/// What the kernel said a resource is, right after it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum KernelIdentity {
    /// A folder, file, cgroup or pinned namespace.
    Inode {
        /// Device number as `stat` gives it.
        device: u64,
        /// Inode number.
        inode: u64,
    },
    /// A process.
    Process(ProcessIdentity),
    /// A mount, by its unique id (`STATX_MNT_ID_UNIQUE`, else `STATX_MNT_ID`).
    Mount {
        /// The id.
        id: u64,
    },
    /// A network interface.
    Interface {
        /// Its index in its network namespace.
        index: u32,
        /// Its hardware address, as the index alone is reused.
        address: [u8; 6],
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_namespace_or_an_earlier_boot_is_judged() {
        let own = HostIdentity::load().expect("/proc");
        assert!(own.is_judged_by(&own));
        let container = HostIdentity { pid_namespace: own.pid_namespace + 1, ..own.clone() };
        assert!(!container.is_judged_by(&own));
        let earlier = HostIdentity { boot_id: "earlier".to_owned(), ..container };
        assert!(earlier.is_judged_by(&own));
        let elsewhere = HostIdentity { host_id: "elsewhere".to_owned(), ..earlier };
        assert!(!elsewhere.is_judged_by(&own));
    }
}
