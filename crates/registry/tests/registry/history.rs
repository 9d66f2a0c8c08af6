//! What is remembered of tests, in a real file: for how long, and what becomes of it when it is damaged.

use std::fs;
use std::path::Path;
use std::time::Duration;

use testyard_registry::history::KEPT_OUTCOMES;
use testyard_registry::{HistoryFile, NewOutcome, TestOutcome};

use crate::support::Yard;

const SUITE: &str = "/w/testyard.toml";

fn new<'a>(test: &'a str, outcome: TestOutcome, millis: u64, tree: &'a str) -> NewOutcome<'a> {
    NewOutcome {
        suite_file: Path::new(SUITE),
        suite: "w",
        test,
        outcome,
        duration: Duration::from_millis(millis),
        failed_attempts: 0,
        tree: Some(tree),
    }
}

#[test]
fn outcomes_are_remembered_newest_first_and_not_for_ever() {
    let yard = Yard::new();
    let mut history = HistoryFile::new(&yard.home());
    for number in 0..i64::from(KEPT_OUTCOMES) + 7 {
        let took = number.unsigned_abs();
        let all = [new("a", TestOutcome::Passed, took, "t"), new("b c/d", TestOutcome::Skipped, 0, "t")];
        history.record(&format!("r{number}"), number, &all).expect("written");
    }
    let last = history.last(Path::new(SUITE), &["b c/d", "no such", "a"]).expect("read");
    assert_eq!(last[0].map(|last| (last.outcome, last.expected)), Some((TestOutcome::Skipped, None)));
    assert_eq!(last[1], None);
    assert_eq!(last[2].and_then(|last| last.expected), Some(Duration::from_millis(104)), "the middle of the last five");
    assert_eq!(history.last(Path::new("/other"), &["a"]).expect("read"), [None]);
    // Asked for very many, it reads the suite at once; the answer is the same.
    let many: Vec<&str> = std::iter::repeat_n("a", 3_000).collect();
    assert!(history.last(Path::new(SUITE), &many).expect("read").iter().all(|one| *one == last[2]));

    let found = history.find("a", None, 10).expect("read");
    assert_eq!((found.len(), found[0].outcomes.len()), (1, KEPT_OUTCOMES as usize));
    let runs: Vec<&str> = found[0].outcomes.iter().take(2).map(|past| past.run.as_str()).collect();
    assert_eq!(runs, ["r106", "r105"]);
    assert!(history.find("a", Some(Path::new("/elsewhere")), 10).expect("read").is_empty());
    assert_eq!(history.find("w::b", Some(Path::new("/w/below")), 10).expect("read")[0].test, "b c/d");
}

#[test]
fn the_first_bad_tree_stands_until_the_test_passes() {
    use TestOutcome::{Failed, Flaky, Infrastructure, Passed, TimedOut};
    let yard = Yard::new();
    let mut history = HistoryFile::new(&yard.home());
    let mut bad = Vec::new();
    let steps =
        [(Passed, "t1"), (Failed, "t2"), (Infrastructure, "t3"), (TimedOut, "t4"), (Flaky, "t5"), (Failed, "t6")];
    for (at, (outcome, tree)) in steps.into_iter().enumerate() {
        history.record("r", at as i64, &[new("a", outcome, 1, tree)]).expect("written");
        let found = history.find("a", None, 1).expect("read").remove(0);
        bad.push((found.first_bad.and_then(|bad| bad.tree), found.last_good_tree));
    }
    let told = |(bad, good): &(Option<String>, Option<String>)| {
        format!("{}/{}", bad.as_deref().unwrap_or("-"), good.as_deref().unwrap_or("-"))
    };
    assert_eq!(bad.iter().map(told).collect::<Vec<_>>(), ["-/t1", "t2/t1", "t2/t1", "t2/t1", "-/t5", "t6/t5"]);
}

#[test]
fn a_damaged_history_is_set_aside_and_begun_anew() {
    let damages: [fn(&Path); 5] = [
        |file| fs::write(file, b"").expect("written"),
        |file| fs::File::options().write(true).open(file).and_then(|file| file.set_len(5_000)).expect("cut"),
        |file| fs::File::options().write(true).open(file).and_then(|file| file.set_len(4_096)).expect("cut"),
        |file| fs::write(file, vec![b'x'; 8_192]).expect("written"),
        |file| {
            let connection = rusqlite::Connection::open(file).expect("a database");
            connection.execute_batch("UPDATE test SET outcome = 'nonsense'").expect("its table");
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let yard = Yard::new();
        let file = yard.home().history_file();
        let mut history = HistoryFile::new(&yard.home());
        history.record("r", 1, &[new("a", TestOutcome::Passed, 1, "t")]).expect("written");
        drop(history);
        // What is still in the log would mend the file.
        let connection = rusqlite::Connection::open(&file).expect("a database");
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("folded");
        drop(connection);
        damage(&file);
        let mut history = HistoryFile::new(&yard.home());
        history.last(Path::new(SUITE), &["a"]).unwrap_or_else(|error| panic!("damage {number}: {error:?}"));
        history.record("r", 2, &[new("a", TestOutcome::Failed, 1, "t")]).expect("written");
        let found = history.find("a", None, 9).expect("read");
        assert_eq!((found.len(), found[0].outcomes.len()), (1, 1), "damage {number}");
        let aside = history.take_set_aside().unwrap_or_else(|| panic!("damage {number} goes unnoticed"));
        assert!(aside.is_file() && history.take_set_aside().is_none());
    }
}

#[test]
fn a_newer_history_is_left_alone() {
    let yard = Yard::new();
    let mut history = HistoryFile::new(&yard.home());
    history.record("r", 1, &[]).expect("written");
    let connection = rusqlite::Connection::open(yard.home().history_file()).expect("a database");
    connection.pragma_update(None, "user_version", 99).expect("written");
    let error = HistoryFile::new(&yard.home()).find("a", None, 1).expect_err("it is newer");
    assert!(error.to_string().ends_with("has format 99; this version reads up to 1"), "{error}");
}

#[test]
fn the_log_does_not_grow_with_every_run() {
    let yard = Yard::new();
    let file = yard.home().history_file();
    let names: Vec<String> = (0..500).map(|number| format!("test-{number}")).collect();
    for run in 0..3 {
        // As a process does that nobody else has it open beside.
        let mut history = HistoryFile::new(&yard.home());
        let outcomes: Vec<_> = names.iter().map(|name| new(name, TestOutcome::Passed, 1, "t")).collect();
        history.record(&format!("r{run}"), run, &outcomes).expect("written");
        drop(history);
        let log = fs::metadata(file.with_extension("sqlite-wal")).expect("it is there").len();
        assert_eq!(log, 0, "run {run}");
    }
}
