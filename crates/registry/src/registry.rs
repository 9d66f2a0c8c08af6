//! Opening the registry's file, and the one way in which everything else here talks to it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use rustix::fs::FlockOperation;

use crate::error::{DamageSign, RegistryError};
use crate::home::Home;
use crate::identity::HostIdentity;
use crate::reserve;
use crate::schema;

/// The size of the file's pages; the file only ever grows by whole ones.
pub(crate) const PAGE: u64 = 4096;

/// How long a writer waits for another one, in seconds.
pub(crate) const BUSY_SECONDS: u64 = 5;

/// After so many pages of 4 KiB the write-ahead log is folded into the file. Smaller than SQLite's 1,000, because
/// the first opener after all others have gone reads the whole log.
const CHECKPOINT_PAGES: i64 = 200;

/// The durable record, open. May be shared between threads; each call is one short transaction.
///
/// Opening writes nothing and closing folds nothing: a command that lives for a millisecond pays only for what it
/// asks. Open after a fork, not before one: SQLite's locks do not survive it.
#[derive(Debug)]
pub struct Registry {
    connection: Mutex<Connection>,
    file: PathBuf,
    leases: PathBuf,
    host: OnceLock<HostIdentity>,
}

impl Registry {
    /// Opens the registry of this home, and makes it where the home is new.
    ///
    /// # Errors
    /// The file is damaged, missing beside machines' folders, of a newer format, or cannot be read. It is never
    /// replaced: what it describes would be lost to the reaper.
    pub fn open(home: &Home) -> Result<Self, RegistryError> {
        let file = home.registry_file();
        match fs::metadata(&file) {
            Ok(found) if found.len() == 0 => return Err(RegistryError::Damaged { file, source: DamageSign::Empty }),
            // SQLite would read zeros in place of what is cut from the last page.
            Ok(found) if found.len() % PAGE != 0 => {
                return Err(RegistryError::Damaged { file, source: DamageSign::Cut(found.len()) });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(home, &file)?,
            Err(source) => return Err(RegistryError::File { action: "look at", file, source }),
        }
        let mut connection = connect(&file, OpenFlags::SQLITE_OPEN_READ_WRITE)
            .map_err(|error| RegistryError::from_sqlite(&file, "open", error))?;
        check_format(&mut connection, &file)?;
        fold_if_long(&connection, &file);
        reserve::keep(&file);
        Ok(Self { connection: Mutex::new(connection), file, leases: home.leases_folder(), host: OnceLock::new() })
    }

    /// The file, for messages.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// This host, boot and pid namespace, as rows record them; read once.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn host(&self) -> Result<&HostIdentity, RegistryError> {
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let host = HostIdentity::load().map_err(|source| RegistryError::File {
            action: "read this host's identity from /proc for",
            file: self.file.clone(),
            source,
        })?;
        Ok(self.host.get_or_init(|| host))
    }

    /// Lets SQLite read every page and index: milliseconds for thousands of rows. For `doctor`.
    ///
    /// # Errors
    /// The file is damaged, or cannot be read.
    pub fn verify(&self) -> Result<(), RegistryError> {
        let report: String = self.read("check the file", |connection| {
            connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        })?;
        if report == "ok" {
            return Ok(());
        }
        Err(RegistryError::Damaged { file: self.file.clone(), source: DamageSign::Check(report) })
    }

    /// The folder of the leases' lock files.
    pub(crate) fn leases_folder(&self) -> &Path {
        &self.leases
    }

    /// Runs statements that need no transaction of their own.
    pub(crate) fn read<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, RegistryError> {
        work(&self.lock()).map_err(|error| RegistryError::from_sqlite(&self.file, action, error))
    }

    /// Runs statements in one transaction that holds the write lock from its start, so that what is read in it
    /// stays true until what is written in it is committed.
    pub(crate) fn write<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, RegistryError> {
        let mut connection = self.lock();
        connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .and_then(|transaction| {
                let value = work(&transaction)?;
                transaction.commit()?;
                Ok(value)
            })
            .map_err(|error| RegistryError::from_sqlite(&self.file, action, error))
    }

    /// As [`Registry::write`], for what ends something: must also work on a full disk.
    pub(crate) fn write_end<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, RegistryError> {
        reserve::release_if_full(&self.file);
        self.write(action, work)
    }

    /// A row that this version cannot read.
    pub(crate) fn unreadable(&self, row: String, column: &'static str, text: impl Into<String>) -> RegistryError {
        RegistryError::Damaged { file: self.file.clone(), source: DamageSign::Value { row, column, text: text.into() } }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic under the lock rolled its transaction back when the transaction was dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection with this crate's settings, none of which writes to the file.
pub(crate) fn connect(file: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(file, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_handler(Some(wait_for_writer))?;
    // Else the last one out folds the log into the file and unlinks two files, and the next one in makes them again.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Folds the log into the file and empties it. Whoever opens a file that nobody has open reads its whole log, and does not
/// know that it was folded before: then it only ever grows.
///
/// Best effort: while somebody else reads, it stays as it is.
pub(crate) fn fold(connection: &Connection) {
    let _ = connection.busy_handler(None);
    let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    let _ = connection.busy_handler(Some(wait_for_writer));
}

/// [`fold`] where the log has grown long, in bytes.
fn fold_if_long(connection: &Connection, file: &Path) {
    const LONG: u64 = 2 << 20;
    if fs::metadata(companion(file, "-wal")).is_ok_and(|log| log.len() > LONG) {
        fold(connection);
    }
}

/// Waits a little for the writer; false once the busy timeout has passed.
///
/// SQLite's own handler grows to 100 ms between tries, a thousand times a transaction of ours.
#[expect(clippy::disallowed_methods, reason = "SQLite's locks can only be tried for again")]
fn wait_for_writer(tries: i32) -> bool {
    const LONGEST_MICROS: u64 = 1_000;
    let tries = u64::try_from(tries).unwrap_or(0);
    if tries > BUSY_SECONDS * 1_000_000 / LONGEST_MICROS {
        return false;
    }
    std::thread::sleep(Duration::from_micros((50 << tries.min(5)).min(LONGEST_MICROS)));
    true
}

/// Refuses what is not ours or newer; brings older formats up.
fn check_format(connection: &mut Connection, file: &Path) -> Result<(), RegistryError> {
    let sqlite = |error| RegistryError::from_sqlite(file, "read the format", error);
    let pragma = |connection: &Connection, name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let application = pragma(connection, "application_id").map_err(sqlite)?;
    if application != schema::APPLICATION_ID {
        return Err(RegistryError::Damaged { file: file.to_owned(), source: DamageSign::Foreign(application) });
    }
    let found = pragma(connection, "user_version").map_err(sqlite)?;
    let known = schema::newest();
    if found > known {
        return Err(RegistryError::Newer { file: file.to_owned(), found, known });
    }
    if found < known {
        schema::migrate(connection)
            .map_err(|error| RegistryError::from_sqlite(file, "bring the format up to date", error))?;
    }
    Ok(())
}

/// Makes the file beside its place and renames it there, so that nobody ever meets a half-made one.
fn create(home: &Home, file: &Path) -> Result<(), RegistryError> {
    let failed = |action: &'static str| move |source| RegistryError::File { action, file: file.to_owned(), source };
    let folder = File::open(home.state()).map_err(failed("lock the folder of"))?;
    rustix::fs::flock(&folder, FlockOperation::LockExclusive)
        .map_err(|errno| failed("lock the folder of")(errno.into()))?;
    if fs::exists(file).map_err(failed("look at"))? {
        return Ok(());
    }
    let machines = home.machines_folder();
    let orphans = fs::read_dir(&machines).is_ok_and(|mut entries| entries.next().is_some());
    if orphans {
        return Err(RegistryError::Missing { file: file.to_owned(), machines });
    }
    let fresh = file.with_extension("sqlite.new");
    for name in [
        &fresh,
        &companion(&fresh, "-wal"),
        &companion(&fresh, "-shm"),
        &companion(file, "-wal"),
        &companion(file, "-shm"),
    ] {
        match fs::remove_file(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("make")(error)),
            _ => {}
        }
    }
    let made = (|| {
        let mut connection = connect(&fresh, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        // The mode is kept in the file: this is the only place that sets it. Closing must fold the log this once.
        connection.pragma_update(None, "page_size", PAGE)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        schema::migrate(&mut connection)?;
        connection.close().map_err(|(_, error)| error)
    })();
    made.map_err(|error| RegistryError::from_sqlite(file, "make the tables", error))?;
    fs::rename(&fresh, file).map_err(failed("make"))
}

/// The name of a file that SQLite keeps beside its database.
pub(crate) fn companion(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
