//! Writing down what became of tests, and asking for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::{
    FirstBad, Flakes, HistoryError, HistoryFile, KEPT_OUTCOMES, LastOutcome, NewOutcome, PastOutcome, TestOutcome,
    TestRecord,
};
use crate::registry::fold;

/// Over how many of the last outcomes a test's usual duration is taken.
const DURATIONS: u32 = 5;

/// Tests that were not run for so long are forgotten, in milliseconds.
const FORGOTTEN_MS: i64 = 180 * 24 * 3_600 * 1_000;

/// Where fewer tests than this are asked for, each is looked up; of more, the whole suite is read.
const LOOKED_UP: usize = 2_000;

impl HistoryFile {
    /// Remembers what became of a run's tests, in one commit.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&mut self, run: &str, now_ms: i64, outcomes: &[NewOutcome<'_>]) -> Result<(), HistoryError> {
        self.work("write", |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut suites: HashMap<&Path, i64> = HashMap::new();
            for new in outcomes {
                let suite = match suites.get(new.suite_file) {
                    Some(id) => *id,
                    None => {
                        let id = suite_id(&transaction, new)?;
                        suites.insert(new.suite_file, id);
                        id
                    }
                };
                save(&transaction, suite, run, now_ms, new)?;
            }
            transaction.execute("DELETE FROM test WHERE updated_ms < ?1", [now_ms - FORGOTTEN_MS])?;
            transaction.commit()?;
            fold(connection);
            Ok(())
        })
    }

    /// How tests of one suite ended last, in the order in which they are asked for.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn last(&mut self, suite_file: &Path, tests: &[&str]) -> Result<Vec<Option<LastOutcome>>, HistoryError> {
        self.work("read", |connection| {
            let suite: Option<i64> = connection
                .prepare_cached("SELECT id FROM suite WHERE file = ?1")?
                .query_row([suite_file.to_string_lossy()], |row| row.get(0))
                .optional()?;
            let Some(suite) = suite else { return Ok(vec![None; tests.len()]) };
            if tests.len() < LOOKED_UP {
                let mut find = connection
                    .prepare_cached("SELECT outcome, expected_ms FROM test WHERE suite = ?1 AND name = ?2")?;
                let find = |test: &&str| find.query_row(params![suite, test], |row| last(row, 0)).optional();
                return tests.iter().map(find).collect();
            }
            let mut all = connection.prepare_cached("SELECT outcome, expected_ms, name FROM test WHERE suite = ?1")?;
            let all: HashMap<String, LastOutcome> =
                all.query_map([suite], |row| Ok((row.get(2)?, last(row, 0)?)))?.collect::<rusqlite::Result<_>>()?;
            Ok(tests.iter().map(|test| all.get(*test).copied()).collect())
        })
    }

    /// Every test whose name contains this, by suite and name; at most `limit`. With a folder, only of suites in it,
    /// above it and below it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn find(&mut self, part: &str, near: Option<&Path>, limit: u32) -> Result<Vec<TestRecord>, HistoryError> {
        self.work("read", |connection| {
            let mut found = Vec::new();
            for (id, file, name) in suites(connection)? {
                let folder = file.parent().unwrap_or(&file);
                if near.is_none_or(|near| near.starts_with(folder) || folder.starts_with(near)) {
                    let left = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
                    find_in(connection, (id, &file, &name), part, left, &mut found)?;
                }
            }
            Ok(found)
        })
    }
}

/// Every suite: its number, file and name.
fn suites(connection: &Connection) -> rusqlite::Result<Vec<(i64, PathBuf, String)>> {
    connection
        .prepare_cached("SELECT id, file, name FROM suite ORDER BY file")?
        .query_map([], |row| Ok((row.get(0)?, PathBuf::from(row.get::<_, String>(1)?), row.get(2)?)))?
        .collect()
}

fn find_in(
    connection: &Connection,
    (suite, file, suite_name): (i64, &Path, &str),
    part: &str,
    limit: u32,
    found: &mut Vec<TestRecord>,
) -> rusqlite::Result<()> {
    let mut tests = connection.prepare_cached(
        "SELECT id, name, outcome, expected_ms, last_good_tree, first_bad_tree, first_bad_ms FROM test
         WHERE suite = ?1 AND (instr(name, ?2) > 0 OR instr(?3 || '::' || name, ?2) > 0) ORDER BY name LIMIT ?4",
    )?;
    let mut rows = tests.query(params![suite, part, suite_name, limit])?;
    while let Some(row) = rows.next()? {
        let (bad_tree, bad_ms): (Option<String>, Option<i64>) = (row.get(5)?, row.get(6)?);
        let outcomes = outcomes_of(connection, row.get(0)?)?;
        found.push(TestRecord {
            suite_file: file.to_owned(),
            suite: suite_name.to_owned(),
            test: row.get(1)?,
            last: outcome_at(row, 2)?,
            expected_ms: row.get::<_, Option<i64>>(3)?.map(i64::unsigned_abs),
            last_good_tree: row.get(4)?,
            first_bad: bad_ms.map(|at_ms| FirstBad { tree: bad_tree, at_ms }),
            flakes: Flakes::of(&outcomes),
            outcomes,
        });
    }
    Ok(())
}

fn suite_id(transaction: &Transaction<'_>, new: &NewOutcome<'_>) -> rusqlite::Result<i64> {
    transaction
        .prepare_cached(
            "INSERT INTO suite (file, name) VALUES (?1, ?2)
             ON CONFLICT (file) DO UPDATE SET name = excluded.name RETURNING id",
        )?
        .query_row(params![new.suite_file.to_string_lossy(), new.suite], |row| row.get(0))
}

/// What is known of a test before this outcome.
struct Before {
    id: i64,
    recorded: i64,
    first_bad: Option<FirstBad>,
    last_good_tree: Option<String>,
}

fn save(
    transaction: &Transaction<'_>,
    suite: i64,
    run: &str,
    now_ms: i64,
    new: &NewOutcome<'_>,
) -> rusqlite::Result<()> {
    let before = transaction
        .prepare_cached(
            "SELECT id, recorded, first_bad_ms, first_bad_tree, last_good_tree FROM test
             WHERE suite = ?1 AND name = ?2",
        )?
        .query_row(params![suite, new.test], |row| {
            let at_ms: Option<i64> = row.get(2)?;
            let tree = row.get(3)?;
            Ok(Before {
                id: row.get(0)?,
                recorded: row.get(1)?,
                first_bad: at_ms.map(|at_ms| FirstBad { tree, at_ms }),
                last_good_tree: row.get(4)?,
            })
        })
        .optional()?;
    let recorded = before.as_ref().map_or(0, |before| before.recorded);
    let slot = recorded % i64::from(KEPT_OUTCOMES);
    let micros = i64::try_from(new.duration.as_micros()).unwrap_or(i64::MAX);
    let (first_bad, last_good_tree) = turned(before.as_ref(), now_ms, new);
    let id = match &before {
        Some(before) => before.id,
        None => transaction
            .prepare_cached(
                "INSERT INTO test (suite, name, outcome, recorded, updated_ms) VALUES (?1, ?2, ?3, 0, ?4) RETURNING id",
            )?
            .query_row(params![suite, new.test, new.outcome.as_str(), now_ms], |row| row.get(0))?,
    };
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO outcome (test, slot, run, at_ms, outcome, duration_us, failed_attempts, tree)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![id, slot, run, now_ms, new.outcome.as_str(), micros, new.failed_attempts, new.tree])?;
    let expected_ms = expected(transaction, id, slot)?;
    transaction
        .prepare_cached(
            "UPDATE test SET outcome = ?2, expected_ms = coalesce(?3, expected_ms), recorded = ?4, updated_ms = ?5,
                    first_bad_tree = ?6, first_bad_ms = ?7, last_good_tree = ?8 WHERE id = ?1",
        )?
        .execute(params![
            id,
            new.outcome.as_str(),
            expected_ms,
            recorded + 1,
            now_ms,
            first_bad.as_ref().and_then(|bad| bad.tree.as_deref()),
            first_bad.as_ref().map(|bad| bad.at_ms),
            last_good_tree,
        ])?;
    Ok(())
}

/// Where the test began to fail, if it fails, and the last tree on which it passed.
fn turned(before: Option<&Before>, now_ms: i64, new: &NewOutcome<'_>) -> (Option<FirstBad>, Option<String>) {
    let known_bad = before.and_then(|before| before.first_bad.clone());
    let known_good = before.and_then(|before| before.last_good_tree.clone());
    if new.outcome.is_failure() {
        let bad = FirstBad { tree: new.tree.map(str::to_owned), at_ms: now_ms };
        (Some(known_bad.unwrap_or(bad)), known_good)
    } else if new.outcome.is_verdict() {
        (None, new.tree.map(str::to_owned).or(known_good))
    } else {
        // Not run to its end: nothing is known that was not known before.
        (known_bad, known_good)
    }
}

/// The middle one of the last durations of a test that ended by itself, in milliseconds.
fn expected(transaction: &Transaction<'_>, test: i64, newest: i64) -> rusqlite::Result<Option<i64>> {
    let kept = i64::from(KEPT_OUTCOMES);
    let mut find =
        transaction.prepare_cached("SELECT outcome, duration_us FROM outcome WHERE test = ?1 AND slot = ?2")?;
    let mut durations = Vec::new();
    for back in 0..i64::from(DURATIONS) {
        let slot = (newest - back).rem_euclid(kept);
        let found = find.query_row([test, slot], |row| Ok((outcome_at(row, 0)?, row.get::<_, i64>(1)?))).optional()?;
        durations.extend(found.filter(|(outcome, _)| outcome.is_verdict()).map(|(_, micros)| micros / 1_000));
    }
    durations.sort_unstable();
    Ok(durations.get(durations.len() / 2).copied())
}

fn outcomes_of(connection: &Connection, test: i64) -> rusqlite::Result<Vec<PastOutcome>> {
    connection
        .prepare_cached(
            "SELECT run, at_ms, outcome.outcome, duration_us, failed_attempts, tree
             FROM outcome JOIN test ON test.id = outcome.test WHERE test = ?1
             ORDER BY (recorded - 1 - slot) % ?2",
        )?
        .query_map(params![test, KEPT_OUTCOMES], |row| {
            Ok(PastOutcome {
                run: row.get(0)?,
                at_ms: row.get(1)?,
                outcome: outcome_at(row, 2)?,
                duration_us: row.get::<_, i64>(3)?.unsigned_abs(),
                failed_attempts: row.get(4)?,
                tree: row.get(5)?,
            })
        })?
        .collect()
}

fn last(row: &Row<'_>, first: usize) -> rusqlite::Result<LastOutcome> {
    let millis: Option<i64> = row.get(first + 1)?;
    Ok(LastOutcome {
        outcome: outcome_at(row, first)?,
        expected: millis.map(|millis| Duration::from_millis(millis.unsigned_abs())),
    })
}

/// A word that no version wrote is damage.
fn outcome_at(row: &Row<'_>, column: usize) -> rusqlite::Result<TestOutcome> {
    let word: String = row.get(column)?;
    TestOutcome::from_word(&word).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, format!("`{word}` is no outcome").into())
    })
}
