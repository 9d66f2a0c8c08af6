//! A registry that is not what was written is named and left as it is.

use std::fs;
use std::os::unix::fs::FileExt;

use testyard_model::ProblemKind;
use testyard_registry::{Registry, RegistryError};

use crate::support::{Yard, machine, reserved};

/// A registry with so many machines that it has many pages, all in the file itself.
fn filled() -> Yard {
    let yard = Yard::new();
    let registry = yard.registry();
    for n in 0..200 {
        reserved(&registry, &format!("m{n}"));
    }
    drop(registry);
    fold(&yard);
    yard
}

/// Folds the log into the file, as SQLite does from time to time.
fn fold(yard: &Yard) {
    let connection = rusqlite::Connection::open(yard.home().registry_file()).expect("the file");
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).expect("a checkpoint");
}

/// Everything that a command does first.
fn use_it(yard: &Yard) -> Result<(), RegistryError> {
    let registry = Registry::open(&yard.home())?;
    registry.list()?;
    registry.verify()
}

#[test]
fn a_cut_file_is_never_recreated() {
    let yard = filled();
    let file = yard.home().registry_file();
    let whole = fs::read(&file).expect("the file");
    assert!(whole.len() > 16 * 4096);
    use_it(&yard).expect("a sound file");
    for length in [0, 1, 50, 100, 4095, 4096, 5000, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        fold(&yard);
        let _ = fs::remove_file(file.with_extension("sqlite-wal"));
        let _ = fs::remove_file(file.with_extension("sqlite-shm"));
        fs::write(&file, &whole[..length]).expect("the file");
        // Ordinary use shows it, without the check of every page.
        let outcome = Registry::open(&yard.home()).and_then(|registry| registry.list());
        let Err(error) = outcome else { panic!("cut to {length} bytes") };
        assert!(matches!(error, RegistryError::Damaged { .. }), "{length}: {error:?}");
        let problem = error.problem();
        assert!(problem.message.contains(file.to_str().expect("text")), "{}", problem.message);
        assert!(problem.hints.iter().any(|hint| hint.contains("mv ")), "{length}");
        assert_eq!(fs::read(&file).expect("the file").len(), length, "it is left as it was");
        fs::write(&file, &whole).expect("the file");
    }
}

#[test]
fn overwritten_pages_are_damage_wherever_they_show() {
    let yard = filled();
    let file = yard.home().registry_file();
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .expect("the file")
        .write_all_at(&[0x5a; 8 * 4096], 2 * 4096)
        .expect("the file");
    let error = use_it(&yard).expect_err("a damaged file");
    assert!(matches!(error, RegistryError::Damaged { .. }), "{error:?}");
    fs::write(&file, "not a database at all, but longer than a header of one hundred bytes: ".repeat(4))
        .expect("the file");
    assert!(matches!(use_it(&yard), Err(RegistryError::Damaged { .. })));
}

#[test]
fn a_newer_format_and_another_programs_file_are_refused() {
    let yard = filled();
    let set = |pragma: &str, value: i64| {
        let connection = rusqlite::Connection::open(yard.home().registry_file()).expect("the file");
        connection.pragma_update(None, pragma, value).expect("the file");
    };
    let connection = rusqlite::Connection::open(yard.home().registry_file()).expect("the file");
    let own: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).expect("the file");
    drop(connection);
    set("user_version", 1_000);
    let error = use_it(&yard).expect_err("a newer format");
    assert!(matches!(error, RegistryError::Newer { found: 1_000, .. }), "{error:?}");
    assert_eq!(error.problem().kind, ProblemKind::Unsupported);
    set("user_version", own);
    use_it(&yard).expect("this format");
    set("application_id", 0);
    assert!(matches!(use_it(&yard), Err(RegistryError::Damaged { .. })));
}

#[test]
fn a_missing_file_beside_machines_is_not_made_anew() {
    let yard = Yard::new();
    let home = yard.home();
    let registry = yard.registry();
    let id = reserved(&registry, "m");
    fs::create_dir(home.machine_folder(&id)).expect("a folder");
    drop(registry);
    fs::remove_file(home.registry_file()).expect("the file");
    let error = Registry::open(&home).expect_err("machines without a registry");
    assert!(matches!(error, RegistryError::Missing { .. }), "{error:?}");
    assert!(!home.registry_file().exists());
    fs::remove_dir(home.machine_folder(&id)).expect("the folder");
    // A log of the lost file must not be played into the new one.
    assert!(Registry::open(&home).expect("a new one").list().expect("a registry").is_empty());
}

#[test]
fn a_row_from_another_world_is_named() {
    let yard = Yard::new();
    let registry = yard.registry();
    let id = registry.reserve_name(&machine("m")).expect("a free name");
    let connection = rusqlite::Connection::open(yard.home().registry_file()).expect("the file");
    connection.execute("UPDATE machine SET spec = '{\"backend\":'", []).expect("the row");
    let error = registry.list().expect_err("a row that cannot be read");
    let problem = error.problem();
    assert!(problem.causes.iter().any(|cause| cause.contains(id.as_str()) && cause.contains("spec")), "{problem:?}");
}

#[test]
fn opening_writes_nothing() {
    let yard = filled();
    drop(yard.registry());
    let file = yard.home().registry_file();
    let state = |name: &str| {
        let found = fs::metadata(file.with_extension(name)).expect("the file");
        (found.len(), found.modified().expect("a time"))
    };
    let before = (state("sqlite"), state("sqlite-wal"));
    yard.registry().list().expect("a registry");
    assert_eq!((state("sqlite"), state("sqlite-wal")), before);
}
