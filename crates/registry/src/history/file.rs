//! The history's file: opened, made, and set aside where it is damaged.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use rustix::fs::FlockOperation;

use super::HistoryError;
use crate::home::Home;
use crate::registry::{PAGE, companion, connect};

/// Marks the file as ours: "TsYh".
const APPLICATION_ID: i64 = 0x5473_5968;

/// Each entry raises `user_version` by one. Entries that were released are never edited.
const MIGRATIONS: &[&str] = &["
CREATE TABLE suite (
    id    INTEGER PRIMARY KEY,
    file  TEXT NOT NULL UNIQUE,
    name  TEXT NOT NULL
) STRICT;

CREATE TABLE test (
    id              INTEGER PRIMARY KEY,
    suite           INTEGER NOT NULL REFERENCES suite (id) ON DELETE CASCADE,
    name            TEXT NOT NULL,
    outcome         TEXT NOT NULL,
    expected_ms     INTEGER,
    recorded        INTEGER NOT NULL,
    last_good_tree  TEXT,
    first_bad_tree  TEXT,
    first_bad_ms    INTEGER,
    updated_ms      INTEGER NOT NULL,
    UNIQUE (suite, name)
) STRICT;

CREATE TABLE outcome (
    test             INTEGER NOT NULL REFERENCES test (id) ON DELETE CASCADE,
    slot             INTEGER NOT NULL,
    run              TEXT NOT NULL,
    at_ms            INTEGER NOT NULL,
    outcome          TEXT NOT NULL,
    duration_us      INTEGER NOT NULL,
    failed_attempts  INTEGER NOT NULL,
    tree             TEXT,
    PRIMARY KEY (test, slot)
) STRICT, WITHOUT ROWID;
"];

/// The history of one home, opened when it is first asked.
#[derive(Debug)]
pub struct HistoryFile {
    state: PathBuf,
    file: PathBuf,
    open: Option<Open>,
    set_aside: Option<PathBuf>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    /// Which file it was, so that nobody sets aside one that another process has just begun.
    inode: u64,
}

/// Why a piece of work was not done.
enum Trouble {
    Sqlite(rusqlite::Error),
    File(&'static str, io::Error),
    /// The file is not a history, or not a whole one.
    Damaged,
    Newer(i64),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        // 522 is SQLITE_IOERR_SHORT_READ: the file ends before its header says.
        let short_read = error.sqlite_error().is_some_and(|error| error.extended_code == 522);
        let damaged = matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
            // A table or column that is not there, or a value of another type: somebody else's, or half of ours.
            || matches!(error, rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..))
            || error.sqlite_error_code() == Some(ErrorCode::Unknown);
        if short_read || damaged { Self::Damaged } else { Self::Sqlite(error) }
    }
}

impl HistoryFile {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(home: &Home) -> Self {
        Self { state: home.state().to_owned(), file: home.history_file(), open: None, set_aside: None }
    }

    /// Where a damaged history was moved to, once: for a word to the user.
    pub fn take_set_aside(&mut self) -> Option<PathBuf> {
        self.set_aside.take()
    }

    /// Does a piece of work; where the file is damaged, begins a new one and does it there.
    pub(super) fn work<T>(
        &mut self,
        action: &'static str,
        mut work: impl FnMut(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, HistoryError> {
        let mut done = self.attempt(&mut work);
        if matches!(done, Err(Trouble::Damaged)) {
            done = self.begin_anew().and_then(|()| self.attempt(&mut work));
        }
        let file = self.file.clone();
        done.map_err(|trouble| match trouble {
            Trouble::Sqlite(source) => HistoryError::Failed { action, file, source },
            Trouble::File(action, source) => HistoryError::File { action, file, source },
            Trouble::Newer(found) => HistoryError::Newer { file, found, known: newest() },
            Trouble::Damaged => {
                HistoryError::File { action, file, source: io::Error::other("it is damaged again and again") }
            }
        })
    }

    fn attempt<T>(&mut self, work: &mut impl FnMut(&mut Connection) -> rusqlite::Result<T>) -> Result<T, Trouble> {
        let open = match self.open.take() {
            Some(open) => open,
            None => open(&self.state, &self.file)?,
        };
        let open = self.open.insert(open);
        work(&mut open.connection).map_err(Trouble::from)
    }

    /// Moves the damaged file away, unless another process has done so.
    fn begin_anew(&mut self) -> Result<(), Trouble> {
        let damaged = self.open.take().map(|open| open.inode);
        let failed = |error: io::Error| Trouble::File("set aside", error);
        let _lock = lock(&self.state)?;
        let found = match fs::metadata(&self.file) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        if damaged.is_some_and(|inode| inode != found.ino()) {
            return Ok(());
        }
        let aside = companion(&self.file, ".damaged");
        fs::rename(&self.file, &aside).map_err(failed)?;
        for suffix in ["-wal", "-shm"] {
            // They belong to the file that is gone; without it they would be taken for the new one's.
            let _ = fs::remove_file(companion(&self.file, suffix));
        }
        self.set_aside = Some(aside);
        Ok(())
    }
}

fn newest() -> i64 {
    MIGRATIONS.len() as i64
}

/// The lock under which the file is made and set aside: the state folder's own.
fn lock(state: &Path) -> Result<File, Trouble> {
    let folder = File::open(state).map_err(|error| Trouble::File("lock the folder of", error))?;
    rustix::fs::flock(&folder, FlockOperation::LockExclusive)
        .map_err(|errno| Trouble::File("lock the folder of", errno.into()))?;
    Ok(folder)
}

fn open(state: &Path, file: &Path) -> Result<Open, Trouble> {
    let looked = |error| Trouble::File("look at", error);
    match fs::metadata(file) {
        // SQLite would read zeros in place of what is cut from the last page.
        Ok(found) if found.len() == 0 || found.len() % PAGE != 0 => return Err(Trouble::Damaged),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(state, file)?,
        Err(error) => return Err(looked(error)),
    }
    let inode = fs::metadata(file).map_err(looked)?.ino();
    let mut connection = connect(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let pragma = |connection: &Connection, name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    if pragma(&connection, "application_id")? != APPLICATION_ID {
        return Err(Trouble::Damaged);
    }
    let found = pragma(&connection, "user_version")?;
    if found > newest() {
        return Err(Trouble::Newer(found));
    }
    if found < newest() {
        migrate(&mut connection)?;
    }
    Ok(Open { connection, inode })
}

/// Makes the file beside its place and renames it there, so that nobody ever meets a half-made one.
fn create(state: &Path, file: &Path) -> Result<(), Trouble> {
    let failed = |error| Trouble::File("make", error);
    let _lock = lock(state)?;
    if fs::exists(file).map_err(failed)? {
        return Ok(());
    }
    let fresh = companion(file, ".new");
    for name in [&fresh, &companion(&fresh, "-wal"), &companion(&fresh, "-shm")] {
        match fs::remove_file(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    let mut connection = connect(&fresh, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    connection.pragma_update(None, "page_size", PAGE)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    migrate(&mut connection)?;
    connection.close().map_err(|(_, error)| Trouble::from(error))?;
    fs::rename(&fresh, file).map_err(failed)
}

fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(usize::MAX)) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", newest())?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.commit()
}
