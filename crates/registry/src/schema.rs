//! The registry's tables, as the list of changes that made them.

use rusqlite::{Connection, TransactionBehavior};

/// Marks the file as ours: "TsYd".
pub(crate) const APPLICATION_ID: i64 = 0x5473_5964;

/// Each entry raises `user_version` by one. Entries that were released are never edited. Nothing is in `slot_block` and
/// `run` any more.
pub(crate) const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE machine (
    id              TEXT PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    state           TEXT NOT NULL,
    spec            TEXT NOT NULL,
    backend_reason  TEXT,
    created_ms      INTEGER NOT NULL,
    expires_ms      INTEGER,
    cause           TEXT,
    host_id         TEXT NOT NULL,
    boot_id         TEXT NOT NULL,
    pid_namespace   INTEGER NOT NULL,
    supervisor_pid          INTEGER,
    supervisor_start_ticks  INTEGER,
    agent           TEXT,
    generation      INTEGER NOT NULL DEFAULT 0,
    next_slot       INTEGER NOT NULL DEFAULT 1
) STRICT;

CREATE TABLE resource (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    machine   TEXT NOT NULL REFERENCES machine (id) ON DELETE RESTRICT,
    kind      TEXT NOT NULL,
    place     TEXT NOT NULL,
    identity  TEXT
) STRICT;
CREATE INDEX resource_of_machine ON resource (machine);

CREATE TABLE slot_block (
    machine  TEXT NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
    first    INTEGER NOT NULL,
    count    INTEGER NOT NULL,
    lease    TEXT,
    PRIMARY KEY (machine, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE lease (
    id             TEXT PRIMARY KEY,
    kind           TEXT NOT NULL,
    machine        TEXT REFERENCES machine (id) ON DELETE CASCADE,
    file           TEXT NOT NULL UNIQUE,
    host_id        TEXT NOT NULL,
    boot_id        TEXT NOT NULL,
    pid_namespace  INTEGER NOT NULL,
    purpose        TEXT NOT NULL,
    expires_ms     INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX lease_of_machine ON lease (machine);

CREATE TABLE run (
    id          TEXT PRIMARY KEY,
    started_ms  INTEGER NOT NULL,
    root        TEXT NOT NULL,
    summary     TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX run_by_start ON run (started_ms);
",
    "
CREATE TABLE kept_environment (
    machine      TEXT NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
    environment  INTEGER NOT NULL,
    run          TEXT NOT NULL,
    suite        TEXT NOT NULL,
    test         TEXT NOT NULL,
    created_ms   INTEGER NOT NULL,
    expires_ms   INTEGER NOT NULL,
    PRIMARY KEY (machine, environment)
) STRICT, WITHOUT ROWID;
",
    "
CREATE TABLE cluster (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    state       TEXT NOT NULL,
    spec        TEXT NOT NULL,
    created_ms  INTEGER NOT NULL,
    lease       TEXT
) STRICT, WITHOUT ROWID;
",
];

/// The format that this version writes.
pub(crate) fn newest() -> i64 {
    MIGRATIONS.len() as i64
}

/// Brings a database of an older format to the newest one; the check is repeated under the write lock, because two
/// processes may find the same old file.
pub(crate) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(usize::MAX)) {
        transaction.execute_batch(migration)?;
    }
    if found < newest() {
        transaction.pragma_update(None, "user_version", newest())?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    transaction.commit()
}
