//! The working tree: at its own path, copy-on-write, live.

use std::fs;

use testyard_machine::client::caller;
use testyard_model::{BackendName, Isolation, MachineSpec, UserSpec};
use testyard_protocol::{Exec, Place};

use crate::fixture::{Machine, capture, fresh, isolated, ordinary, script, spec};

fn tree() -> tempfile::TempDir {
    let tree = tempfile::Builder::new().prefix("tree-").tempdir_in("/var/tmp").expect("a folder");
    fs::write(tree.path().join("file"), "host\n").expect("a file");
    fs::create_dir(tree.path().join("folder")).expect("a folder");
    // A machine with one id has the files of one user.
    let owner = if testkit::user::is_host_root() { ordinary() } else { caller() };
    if let UserSpec::Numbered { uid, gid, .. } = owner {
        for path in [tree.path().to_owned(), tree.path().join("file"), tree.path().join("folder")] {
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("given");
        }
    }
    tree
}

fn with_source(place: Place, text: &str, source: u32) -> Exec {
    Exec { source: Some(source), ..script(place, text) }
}

#[test]
fn a_test_writes_into_its_own_copy() {
    let machine = Machine::namespace();
    let tree = tree();
    let path = tree.path().to_str().expect("text");
    let mut connection = machine.connect();
    let source = connection.open_source(tree.path()).expect("a source");
    let text = "pwd; cat file; echo changed > file; echo new > new; rm -r folder; cat file new; ls";
    for user in [ordinary(), UserSpec::Root] {
        let spec = isolated(user);
        let said = capture(&mut connection, with_source(fresh(&spec), text, source)).ok();
        assert_eq!(said, format!("{path}\nhost\nchanged\nnew\nfile\nnew"));
    }
    assert_eq!(fs::read_to_string(tree.path().join("file")).expect("the file"), "host\n");
    assert!(!tree.path().join("new").exists() && tree.path().join("folder").exists());
    // What changes on the host is what the next one sees.
    fs::write(tree.path().join("file"), "later\n").expect("written");
    let said = capture(&mut connection, with_source(fresh(&isolated(ordinary())), "cat file", source)).ok();
    assert_eq!(said, "later");
    // Without a source the way to it is there at most.
    let said = capture(&mut connection, script(fresh(&isolated(ordinary())), "pwd")).ok();
    assert_ne!(said, path);
}

#[test]
fn parked_and_held_environments_get_it_with_the_command() {
    let machine = Machine::namespace();
    let tree = tree();
    let mut connection = machine.connect();
    let source = connection.open_source(tree.path()).expect("a source");
    let mut spec = isolated(ordinary());
    spec.source = Some("/shown/elsewhere".into());
    let id = connection.environment(&spec).expect("an environment");
    for _ in 0..2 {
        let said = capture(&mut connection, with_source(Place::Environment(id), "pwd; cat file", source)).ok();
        assert_eq!(said, "/shown/elsewhere\nhost");
    }
    connection.release(id).expect("released");
}

#[test]
fn what_is_hidden_stays_hidden_where_the_tree_is_shown_elsewhere() {
    let tree = tree();
    let mut machine = Machine::created(MachineSpec::new(BackendName::namespace()));
    machine.place.masked.push(tree.path().join("folder"));
    machine.up();
    let mut connection = machine.connect();
    let source = connection.open_source(tree.path()).expect("a source");
    let mut spec = isolated(ordinary());
    for target in [None, Some("/shown/elsewhere")] {
        spec.source = target.map(Into::into);
        let said = capture(&mut connection, with_source(fresh(&spec), "ls", source)).ok();
        assert_eq!(said, "file", "at {target:?}");
    }
}

#[test]
fn every_isolation_and_backend_runs_in_the_tree() {
    let tree = tree();
    let path = tree.path().to_str().expect("text");
    for machine in Machine::each() {
        let mut connection = machine.connect();
        let source = connection.open_source(tree.path()).expect("a source");
        for isolation in [Isolation::None, Isolation::Workspace] {
            let spec = spec(isolation, ordinary());
            let said = capture(&mut connection, with_source(fresh(&spec), "pwd; cat file", source)).ok();
            assert_eq!(said, format!("{path}\nhost"), "{isolation} on {}", machine.backend.name());
        }
    }
}

#[test]
fn a_source_that_is_another_folder_is_refused() {
    if testkit::user::is_host_root() {
        testkit::skip!("a source that is another folder is refused", host: "only ordinary users' machines look it up");
    }
    let machine = Machine::namespace();
    let (tree, other) = (tree(), tree());
    let folder = fs::File::open(other.path()).expect("a folder");
    let error = machine.connect().source(&folder, tree.path()).expect_err("another folder");
    assert!(error.to_string().contains("another folder"), "{error}");
}
