//! Environments that outlive their commands: lingering, kept, looked into, forked, sealed.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use testyard_machine::client::{ClientError, Connection};
use testyard_model::{CommandStatus, EnvironmentId, EnvironmentSpec, ProblemKind, UserSpec};
use testyard_protocol::changes::{ChangeKind, Fetch, FileChange, Part, When};
use testyard_protocol::{Exec, Linger, Place};
use testyard_transfer::{UnpackOptions, unpack};

use crate::fixture::{Machine, Output, capture, eventually, fresh, isolated, ordinary, run, script};

const HOUR: Duration = Duration::from_secs(3600);

fn lingering(connection: &mut Connection, spec: &EnvironmentSpec, linger: Linger, text: &str) -> Output {
    capture(connection, Exec { linger, ..script(fresh(spec), text) })
}

/// Runs it and returns the environment, which stays.
fn stayed(connection: &mut Connection, spec: &EnvironmentSpec, text: &str) -> EnvironmentId {
    let output = lingering(connection, spec, Linger::Always, text);
    output.captured.finished.lingering.unwrap_or_else(|| panic!("{output:?}"))
}

fn found<'c>(changes: &'c [FileChange], part: Part, path: &str) -> Option<&'c FileChange> {
    changes.iter().find(|one| one.part == part && one.path.as_path() == Path::new(path))
}

fn change(changes: &[FileChange], part: Part, path: &str) -> Option<ChangeKind> {
    found(changes, part, path).map(|one| one.change)
}

#[test]
fn an_environment_lingers_where_it_was_asked_to() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let spec = isolated(ordinary());
    for (linger, text, stays) in [
        (Linger::Never, "exit 3", false),
        (Linger::Failed, "true", false),
        (Linger::Failed, "exit 3", true),
        (Linger::Failed, "kill -9 $$", true),
        (Linger::Always, "true", true),
    ] {
        let output = lingering(&mut connection, &spec, linger, &format!("echo 1 > /tmp/left; {text}"));
        let lingering = output.captured.finished.lingering;
        assert_eq!(lingering.is_some(), stays, "{linger:?} {text}: {output:?}");
        if let Some(id) = lingering {
            assert_eq!(run(&mut connection, Place::Environment(id), "cat /tmp/left").ok(), "1");
            connection.release(id).expect("released");
        }
    }
    // Its time is over: the command and what it started end, the environment stays.
    let exec =
        Exec { linger: Linger::Failed, timeout_ms: Some(300), ..script(fresh(&spec), "sleep 1000 & sleep 1000") };
    let output = capture(&mut connection, exec);
    assert_eq!(output.captured.finished.status, CommandStatus::TimedOut);
    let id = output.captured.finished.lingering.expect("it stays");
    assert_eq!(run(&mut connection, Place::Environment(id), "ps ax | grep -c '[s]leep 1000'").text, "0");
    // And with its client, unless it is kept.
    drop(connection);
    let mut other = machine.connect();
    eventually("it has ended", || other.status().expect("status").environments == 0);
}

#[test]
fn a_kept_environment_outlives_its_client_until_its_time_is_over() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let id = stayed(&mut connection, &isolated(ordinary()), "echo 1 > /tmp/left");
    connection.keep(id, HOUR).expect("kept");
    drop(connection);
    let mut other = machine.connect();
    assert_eq!(run(&mut other, Place::Environment(id), "cat /tmp/left").ok(), "1");
    assert_eq!(other.status().expect("status").lasting, [id]);
    // A new generation of the machine's files ends what is parked, not what is kept.
    run(&mut other, Place::Machine, "echo 1 > /tmp/generation").ok();
    run(&mut other, fresh(&isolated(ordinary())), "cat /tmp/generation").ok();
    assert_eq!(run(&mut other, Place::Environment(id), "cat /tmp/left").ok(), "1");
    other.keep(id, Duration::from_millis(1)).expect("kept for less");
    eventually("it has ended", || other.status().expect("status").lasting.is_empty());
    let refused = other.keep(id, HOUR);
    let Err(ClientError::Refused(problem)) = refused else { panic!("{refused:?}") };
    assert_eq!(problem.kind, ProblemKind::NotFound);
}

/// A tree with a file or two, shown to a connection.
fn shown(connection: &mut Connection, tree: &Path) -> u32 {
    std::fs::create_dir(tree.join("sub")).expect("a folder");
    for (name, text) in [("file", "before"), ("sub/old", "old"), ("sub/kept", "kept")] {
        std::fs::write(tree.join(name), text).expect("a file");
    }
    connection.open_source(tree).expect("shown")
}

fn owner() -> UserSpec {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if uid == 0 { UserSpec::Root } else { UserSpec::Numbered { uid, gid, groups: Vec::new() } }
}

const CHANGING: &str = "cd $TREE && echo after > file && rm sub/old && mkdir new && echo 123 > new/file && \
                        ln -s /etc/passwd new/link && mkfifo new/pipe && echo x > /tmp/made && chmod 4755 new/file";

fn exec_in(tree: &Path, spec: &EnvironmentSpec, source: u32, text: &str) -> Exec {
    let spec = EnvironmentSpec { source: Some(tree.to_owned()), ..spec.clone() };
    let mut exec = script(fresh(&spec), text);
    exec.source = Some(source);
    exec.linger = Linger::Always;
    exec.env.push(("TREE".into(), tree.into()));
    exec
}

#[test]
fn changes_are_told_and_fetched_and_forked() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let tree = folder.path().canonicalize().expect("a path");
    let source = shown(&mut connection, &tree);
    let spec = isolated(owner());
    let output = capture(&mut connection, exec_in(&tree, &spec, source, CHANGING));
    let id = output.captured.finished.lingering.unwrap_or_else(|| panic!("{output:?}"));
    let list = connection.changes(id, 1000).expect("a list");
    let entries = &list.entries;
    assert!(!list.cut);
    assert_eq!(change(entries, Part::Source, "file"), Some(ChangeKind::Changed), "{entries:?}");
    assert_eq!(change(entries, Part::Source, "sub/old"), Some(ChangeKind::Deleted));
    assert_eq!(change(entries, Part::Source, "new"), Some(ChangeKind::Added));
    assert_eq!(found(entries, Part::Source, "new/file").map(|one| one.size), Some(4));
    assert_eq!(change(entries, Part::Source, "sub/kept"), None);
    assert_eq!(change(entries, Part::Root, "tmp/made"), Some(ChangeKind::Added), "{entries:?}");
    assert_eq!(entries.iter().filter(|one| one.part == Part::Root).count(), 1, "{entries:?}");
    assert!(connection.changes(id, 3).expect("a list").cut);

    let arrived = tempfile::tempdir().expect("a folder");
    let paths: BTreeSet<PathBuf> = ["file", "new/file", "new/pipe", "missing"].map(PathBuf::from).into();
    let fetch = Fetch { environment: id, part: Part::Source, when: When::Now };
    fetched(&mut connection, fetch, &paths, arrived.path());
    assert_eq!(std::fs::read_to_string(arrived.path().join("file")).expect("there"), "after\n");
    let facts = std::fs::metadata(arrived.path().join("new/file")).expect("there");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&facts) & 0o7777, 0o755, "setuid came out");
    assert!(!arrived.path().join("new/link").exists() && !arrived.path().join("new/pipe").exists());
    let before = tempfile::tempdir().expect("a folder");
    let fetch = Fetch { environment: id, part: Part::Source, when: When::Before };
    fetched(&mut connection, fetch, &paths, before.path());
    assert_eq!(std::fs::read_to_string(before.path().join("file")).expect("there"), "before");

    // A fork has it all, and is apart.
    let fork = connection.fork(id, HOUR).expect("a fork");
    let mut other = machine.connect();
    drop(connection);
    eventually("the first has ended", || other.status().expect("status").lasting == [fork]);
    let look = format!("cd {} && cat file new/file /tmp/made && test ! -e sub/old && cat sub/kept", tree.display());
    assert_eq!(run(&mut other, Place::Environment(fork), &look).ok(), "after\n123\nx\nkept");
    assert_eq!(std::fs::read_to_string(tree.join("file")).expect("there"), "before");
    let again = other.changes(fork, 1000).expect("a list");
    assert_eq!(change(&again.entries, Part::Source, "sub/old"), Some(ChangeKind::Deleted), "{again:?}");
    other.release(fork).expect("released");
}

fn fetched(connection: &mut Connection, fetch: Fetch, paths: &BTreeSet<PathBuf>, to: &Path) {
    let folder = rustix::fs::openat(CWD, to, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("a folder");
    let options = UnpackOptions { hostile: true, ..UnpackOptions::default() };
    let result = connection
        .fetch(fetch, paths, |mut stream| unpack(&mut stream, folder.as_fd(), Path::new("."), &options).map(drop));
    result.unwrap_or_else(|error| panic!("{error:?}"));
}

#[test]
fn a_sealed_layer_lies_under_other_environments() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let tree = folder.path().canonicalize().expect("a path");
    let source = shown(&mut connection, &tree);
    let spec = isolated(owner());
    let text = "cd $TREE && echo built > built && rm sub/old && echo 1 > /tmp/prepared";
    let output = capture(&mut connection, exec_in(&tree, &spec, source, text));
    let id = output.captured.finished.lingering.unwrap_or_else(|| panic!("{output:?}"));
    connection.seal(id, "key1").expect("sealed");
    connection.release(id).expect("released");
    assert_eq!(connection.status().expect("status").layers, ["key1"]);
    let over = EnvironmentSpec { layer: Some("key1".to_owned()), ..spec.clone() };
    let look = "cd $TREE && cat built file /tmp/prepared && test ! -e sub/old && echo mine > built";
    for _ in 0..4 {
        // Some of these are parked ones.
        let output = capture(&mut connection, Exec { linger: Linger::Never, ..exec_in(&tree, &over, source, look) });
        assert_eq!(output.ok(), "built\nbefore1");
    }
    // What an environment changes over a layer is told without the layer.
    let output =
        capture(&mut connection, exec_in(&tree, &over, source, "cd $TREE && echo x > built; echo 2 > /tmp/own"));
    let id = output.captured.finished.lingering.expect("it stays");
    let list = connection.changes(id, 100).expect("a list").entries;
    assert_eq!(change(&list, Part::Source, "built"), Some(ChangeKind::Changed), "{list:?}");
    assert_eq!(list.len(), 2, "{list:?}");
    run(&mut connection, fresh(&spec), "test ! -e /tmp/prepared").ok();
    for number in 2..12 {
        let id = stayed(&mut connection, &spec, "echo 1 > /tmp/prepared");
        connection.seal(id, &format!("key{number}")).expect("sealed");
        connection.release(id).expect("released");
    }
    let layers = connection.status().expect("status").layers;
    // The first is in use.
    assert_eq!(layers.len(), 8, "{layers:?}");
    assert!(layers.contains(&"key1".to_owned()) && layers.contains(&"key11".to_owned()), "{layers:?}");
    for (name, kind) in [("nothere", ProblemKind::NotFound), ("../x", ProblemKind::Usage)] {
        let spec = EnvironmentSpec { layer: Some(name.to_owned()), ..spec.clone() };
        let refused = connection.environment(&spec);
        let Err(ClientError::Refused(problem)) = refused else { panic!("{refused:?}") };
        assert_eq!(problem.kind, kind);
    }
}

#[test]
fn backend_host_keeps_environments_and_no_record() {
    let machine = Machine::host();
    let mut connection = machine.connect();
    let spec = crate::fixture::spec(testyard_model::Isolation::Workspace, ordinary());
    let id = stayed(&mut connection, &spec, "echo 1 > $TMPDIR/left");
    connection.keep(id, HOUR).expect("kept");
    assert_eq!(run(&mut connection, Place::Environment(id), "cat $TMPDIR/left").ok(), "1");
    let refused = connection.changes(id, 10);
    let Err(ClientError::Refused(problem)) = refused else { panic!("{refused:?}") };
    assert_eq!(problem.kind, ProblemKind::Unsupported);
    connection.release(id).expect("released");
}
