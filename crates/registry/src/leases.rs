//! Who still holds something: a lock that the kernel drops at the holder's death, and a row that says what it is for.
//!
//! The lock is `flock(2)` on a file in the state folder's `leases/`. A row is written only while its lock is held, and
//! a lock file is removed only by whoever holds its lock, so "no lock" always means "no holder". An inherited or passed
//! descriptor shares the lock; it is let go when the last of them is closed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, Row, params};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use testyard_model::{MachineId, Problem, ProblemKind};

use crate::error::RegistryError;
use crate::holders;
use crate::identity::HostIdentity;
use crate::lease_names::{LeaseId, LeaseKind};
use crate::registry::Registry;

/// How often a lock is tried for by one who wants to hold it, and the pause between.
const TRIES: usize = 20;
const RETRY_PAUSE: Duration = Duration::from_micros(500);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRequest {
    /// What for.
    pub kind: LeaseKind,
    /// Which machine it is about; an exclusive kind needs one.
    pub machine: Option<MachineId>,
    /// For people: the command or run that holds it.
    pub purpose: String,
    /// Until when it is meant, in milliseconds since 1970-01-01 UTC; the lock ends earlier if the holder does.
    pub expires_ms: Option<i64>,
}

/// A held lease. Dropping it lets the lock go but leaves its row and file to the reaper; call [`Lease::release`].
#[derive(Debug)]
pub struct Lease {
    id: LeaseId,
    lock: File,
}

/// A lease as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// Its id.
    pub id: LeaseId,
    /// What for.
    pub kind: LeaseKind,
    /// Which machine it is about.
    pub machine: Option<MachineId>,
    /// Where its holder runs, or ran.
    pub host: HostIdentity,
    /// For people.
    pub purpose: String,
    /// Until when it is meant, in milliseconds since 1970-01-01 UTC.
    pub expires_ms: Option<i64>,
}

impl LeaseRow {
    /// Whether the row is why its machine is to end once it is abandoned: it goes with the machine. Forgotten between the
    /// judging of machines and that of leases, it would leave a machine that nobody ends.
    #[must_use]
    pub fn goes_with_its_machine(&self) -> bool {
        self.kind.ends_its_machine() || (self.kind == LeaseKind::Run && self.machine.is_some())
    }
}

/// What can be said of a lease from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseStanding {
    /// A live process holds its lock.
    Held,
    /// Nobody does: the holder died, or is about to remove the row.
    Abandoned,
    /// Its holder is on another host or in another pid namespace; it must be left alone.
    Foreign,
}

/// Why a lease was not acquired, judged or released.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// An exclusive lease that somebody has.
    #[error("the {} lease of machine {machine} is held by another process", kind.as_str())]
    Held {
        /// Which.
        kind: LeaseKind,
        /// Of which machine.
        machine: MachineId,
    },
    /// An exclusive lease is always about a machine.
    #[error("a {} lease needs a machine", kind.as_str())]
    NoMachine {
        /// Which.
        kind: LeaseKind,
    },
    /// Its machine was destroyed.
    #[error("machine {machine} does not exist")]
    NotFound {
        /// The machine.
        machine: MachineId,
    },
    /// Its last holder has let it go, or it is being deleted: nobody can hold it any more.
    #[error("machine {machine} is ending: whoever held it last has let it go")]
    Ending {
        /// The machine.
        machine: MachineId,
    },
    /// The lock file could not be made, locked or removed.
    #[error("cannot {action} the lock file {}", file.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl LeaseError {
    /// The error as people see it, with what to do next.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Held { .. } => Problem::from_error(ProblemKind::WrongState, self).hint("testyard list"),
            Self::NoMachine { .. } => Problem::from_error(ProblemKind::Bug, self),
            Self::NotFound { .. } => Problem::from_error(ProblemKind::NotFound, self).hint("testyard list"),
            Self::Ending { .. } => Problem::from_error(ProblemKind::WrongState, self)
                .hint("wait until it is gone, then create it again: testyard list"),
            Self::File { .. } => Problem::from_error(ProblemKind::System, self),
            Self::Registry(error) => error.problem(),
        }
    }
}

impl Lease {
    /// Takes a lease: locks first, then writes it down. Waits 10 ms at most for another holder.
    ///
    /// # Errors
    /// It is exclusive and held, its machine is gone, or the lock or the registry failed.
    pub fn acquire(registry: &Registry, request: &LeaseRequest) -> Result<Self, LeaseError> {
        let id = match (&request.machine, request.kind) {
            (Some(machine), kind) if kind.is_exclusive() => LeaseId::exclusive(machine, kind),
            (None, kind) if kind.is_exclusive() => return Err(LeaseError::NoMachine { kind }),
            _ => LeaseId::shared(random_bits()),
        };
        let file = registry.leases_folder().join(id.as_str());
        let Some(lock) = lock_file(&file, Wanted::ToHold)? else {
            let machine = request.machine.clone().ok_or(LeaseError::NoMachine { kind: request.kind })?;
            return Err(LeaseError::Held { kind: request.kind, machine });
        };
        let lease = Self { id, lock };
        match lease.write_row(registry, request) {
            Ok(Written::Row) => Ok(lease),
            Ok(refused) => {
                remove_file(&file)?;
                let machine = request.machine.clone().ok_or(LeaseError::NoMachine { kind: request.kind })?;
                Err(match refused {
                    Written::Ending => LeaseError::Ending { machine },
                    _ => LeaseError::NotFound { machine },
                })
            }
            Err(error) => {
                // The reason that matters is the registry's; a file without a row is swept by `forget_abandoned`.
                let _ = fs::remove_file(&file);
                Err(error.into())
            }
        }
    }

    /// Whether a live process holds this lease, as far as this kernel knows; use [`Registry::judge`] for rows that
    /// may come from elsewhere.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn is_held(registry: &Registry, id: &LeaseId) -> Result<bool, LeaseError> {
        let path = registry.leases_folder().join(id.as_str());
        let failed = |source| LeaseError::File { action: "open", file: path.clone(), source };
        let file = match OpenOptions::new().read(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        // A shared lock, so that two observers do not take each other for the holder.
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &LeaseId {
        &self.id
    }

    /// The descriptor that carries the lock: a process that inherits or is sent it holds the lease too.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Removes row and file, then lets the lock go.
    ///
    /// # Errors
    /// The registry or the file system failed; the lock is let go all the same.
    pub fn release(self, registry: &Registry) -> Result<(), LeaseError> {
        registry.delete_lease(&self.id)?;
        remove_file(&registry.leases_folder().join(self.id.as_str()))
    }

    fn write_row(&self, registry: &Registry, request: &LeaseRequest) -> Result<Written, RegistryError> {
        let host = registry.host()?.clone();
        let machine = request.machine.as_ref().map(MachineId::as_str);
        registry.write_end("record a lease", |transaction| {
            let mut exists = transaction.prepare_cached("SELECT 1 FROM machine WHERE id = ?1")?;
            if let Some(machine) = machine
                && !exists.exists([machine])?
            {
                return Ok(Written::NoMachine);
            }
            if let (Some(machine), LeaseKind::Holder) = (machine, request.kind)
                && holders::is_ending(transaction, machine)?
            {
                return Ok(Written::Ending);
            }
            // Replaces the row of an exclusive lease whose holder died.
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO lease
                       (id, kind, machine, file, host_id, boot_id, pid_namespace, purpose, expires_ms)
                     VALUES (?1, ?2, ?3, ?1, ?4, ?5, ?6, ?7, ?8)",
                )?
                .execute(params![
                    self.id.as_str(),
                    request.kind.as_str(),
                    machine,
                    host.host_id,
                    host.boot_id,
                    host.pid_namespace.cast_signed(),
                    request.purpose,
                    request.expires_ms,
                ])?;
            Ok(Written::Row)
        })
    }
}

/// What became of a lease's row.
enum Written {
    Row,
    NoMachine,
    Ending,
}

impl Registry {
    /// Every lease written down, by id; of one machine where one is given.
    ///
    /// # Errors
    /// The registry failed, or a row cannot be read.
    pub fn list_leases(&self, machine: Option<&MachineId>) -> Result<Vec<LeaseRow>, RegistryError> {
        let raw = self.read("list the leases", |connection| raw_leases(connection, machine))?;
        raw.into_iter().map(|row| row.decode(self)).collect()
    }

    /// Whether a written lease is held, judged only where this process can.
    ///
    /// # Errors
    /// `/proc` or the lock file cannot be read.
    pub fn judge(&self, lease: &LeaseRow) -> Result<LeaseStanding, LeaseError> {
        if !lease.host.is_judged_by(self.host()?) {
            return Ok(LeaseStanding::Foreign);
        }
        Ok(if Lease::is_held(self, &lease.id)? { LeaseStanding::Held } else { LeaseStanding::Abandoned })
    }

    /// Removes rows and files of leases that nobody holds, and lock files without a row; gives the rows that went.
    /// Holders elsewhere are left alone.
    ///
    /// # Errors
    /// The registry or the file system failed.
    pub fn forget_abandoned_leases(&self) -> Result<Vec<LeaseRow>, LeaseError> {
        let mut gone = Vec::new();
        let rows = self.list_leases(None)?;
        for row in &rows {
            if row.goes_with_its_machine() || self.judge(row)? != LeaseStanding::Abandoned {
                continue;
            }
            let file = self.leases_folder().join(row.id.as_str());
            // Under the lock, so that a new holder of the same exclusive lease cannot lose its row or file.
            let Some(_lock) = lock_file(&file, Wanted::ToRemove)? else {
                if !fs::exists(&file).unwrap_or(true) {
                    self.delete_lease(&row.id)?;
                    gone.push(row.clone());
                }
                continue;
            };
            self.delete_lease(&row.id)?;
            remove_file(&file)?;
            gone.push(row.clone());
        }
        self.sweep_lock_files(&rows)?;
        Ok(gone)
    }

    /// Lock files whose row went with its machine, or was never written because its holder died before.
    fn sweep_lock_files(&self, rows: &[LeaseRow]) -> Result<(), LeaseError> {
        let folder = self.leases_folder();
        let failed = |source| LeaseError::File { action: "list", file: folder.to_owned(), source };
        for entry in fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(Ok(id)) = name.to_str().map(str::parse::<LeaseId>) else { continue };
            if rows.iter().any(|row| row.id == id) {
                continue;
            }
            let file = folder.join(name);
            if let Some(_lock) = lock_file(&file, Wanted::ToRemove)? {
                self.delete_lease(&id)?;
                remove_file(&file)?;
            }
        }
        Ok(())
    }

    pub(crate) fn delete_lease(&self, id: &LeaseId) -> Result<(), RegistryError> {
        self.read("remove a lease", |connection| {
            connection.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([id.as_str()])
        })?;
        Ok(())
    }
}

/// Who wants a lock file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// A holder: the file is made where it is absent, and a moment is given to a sweeper that has it.
    ToHold,
    /// A sweeper: only what exists and is free right now.
    ToRemove,
}

/// Opens and locks a lock file; `None` if another holds it, or it is absent and not to be made.
///
/// Another may remove the file between the opening and the locking: then the lock is on a file without a name and
/// counts for nothing, so the name is compared afterwards.
fn lock_file(path: &Path, wanted: Wanted) -> Result<Option<File>, LeaseError> {
    let failed = |action| move |source| LeaseError::File { action, file: path.to_owned(), source };
    let create = wanted == Wanted::ToHold;
    for _ in 0..TRIES {
        let opened = OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !create => return Ok(None),
            Err(error) => return Err(failed("open")(error)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) if wanted == Wanted::ToRemove => return Ok(None),
            Err(Errno::WOULDBLOCK) => {
                pause_for_sweeper();
                continue;
            }
            Err(errno) => return Err(failed("lock")(errno.into())),
        }
        let own = file.metadata().map_err(failed("look at"))?;
        match fs::symlink_metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (own.dev(), own.ino()) => return Ok(Some(file)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("look at")(error)),
            _ => {}
        }
    }
    Ok(None)
}

/// Observers and sweepers hold a lock for microseconds; a true holder stays for all tries.
#[expect(clippy::disallowed_methods, reason = "flock has no waiting with a deadline")]
fn pause_for_sweeper() {
    std::thread::sleep(RETRY_PAUSE);
}

pub(crate) fn remove_file(path: &Path) -> Result<(), LeaseError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LeaseError::File { action: "remove", file: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// 64 bits from the kernel, for ids.
pub(crate) fn random_bits() -> u64 {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("getrandom of 8 bytes neither fails nor falls short once the kernel has booted");
    u64::from_ne_bytes(bytes)
}

/// The rows of all leases, or of one machine's.
pub(crate) fn raw_leases(connection: &Connection, machine: Option<&MachineId>) -> rusqlite::Result<Vec<RawLease>> {
    connection
        .prepare_cached(
            "SELECT id, kind, machine, host_id, boot_id, pid_namespace, purpose, expires_ms FROM lease
             WHERE ?1 IS NULL OR machine = ?1 ORDER BY id",
        )?
        .query_map([machine.map(MachineId::as_str)], RawLease::read)?
        .collect()
}

/// A row's columns, before they are understood.
pub(crate) struct RawLease {
    id: String,
    kind: String,
    machine: Option<String>,
    host: HostIdentity,
    purpose: String,
    expires_ms: Option<i64>,
}

impl RawLease {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            kind: row.get(1)?,
            machine: row.get(2)?,
            host: HostIdentity::of_columns(row, 3)?,
            purpose: row.get(6)?,
            expires_ms: row.get(7)?,
        })
    }

    pub(crate) fn decode(self, registry: &Registry) -> Result<LeaseRow, RegistryError> {
        let unreadable =
            |column: &'static str, text: &str| registry.unreadable(format!("lease {}", self.id), column, text);
        Ok(LeaseRow {
            id: self.id.parse().map_err(|_| unreadable("id", &self.id))?,
            kind: LeaseKind::from_word(&self.kind).ok_or_else(|| unreadable("kind", &self.kind))?,
            machine: match &self.machine {
                Some(text) => Some(text.parse().map_err(|_| unreadable("machine", text))?),
                None => None,
            },
            host: self.host,
            purpose: self.purpose,
            expires_ms: self.expires_ms,
        })
    }
}
