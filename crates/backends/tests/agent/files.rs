//! Trees in and out, over a pipe and over frames.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use testyard_machine::client::{TransferError, caller};
use testyard_model::{EnvironmentId, Isolation, UserSpec};
use testyard_protocol::{Carrier, Place, Transfer};
use testyard_transfer::UnpackOptions;

use crate::fixture::{Machine, capture, isolated, ordinary, run, script, spec};

fn transfer(path: &str, environment: Option<EnvironmentId>) -> Transfer {
    let user = Some(if environment.is_some() { ordinary() } else { caller() });
    Transfer { path: path.into(), carrier: Carrier::Frames, user, environment }
}

fn open(path: &Path) -> fs::File {
    fs::File::open(path).expect("a folder")
}

fn tree() -> tempfile::TempDir {
    let tree = tempfile::tempdir().expect("a folder");
    let inner = tree.path().join("tree");
    fs::create_dir_all(inner.join("a/b")).expect("folders");
    let big: Vec<u8> = (0..3_000_000_u32).map(|number| (number >> 2) as u8).collect();
    fs::write(inner.join("a/big"), big).expect("a file");
    fs::write(inner.join("a/b/run"), "#!/bin/sh\necho ran\n").expect("a file");
    fs::set_permissions(inner.join("a/b/run"), fs::Permissions::from_mode(0o750)).expect("a mode");
    symlink("a/b/run", inner.join("link")).expect("a link");
    tree
}

fn assert_same(one: &Path, other: &Path) {
    let output = std::process::Command::new("diff").args(["-r", "--no-dereference"]).arg(one).arg(other).output();
    let output = output.expect("diff");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let mode = |root: &Path| fs::metadata(root.join("a/b/run")).expect("the file").permissions().mode() & 0o7777;
    assert_eq!((mode(one), mode(other)), (0o750, 0o750));
}

#[test]
fn trees_go_in_and_come_out_over_frames_and_pipes() {
    for machine in Machine::each() {
        let tree = tree();
        let session = machine.session();
        let mut connection = machine.connect();
        let id = (!machine.is_host()).then(|| connection.environment(&isolated(ordinary())).expect("an environment"));
        for (round, environment) in [(0, None), (1, id)] {
            if round == 1 && id.is_none() {
                continue;
            }
            let place = environment.map_or(Place::Machine, Place::Environment);
            let base = format!("/tmp/ty-files-{}-{}", std::process::id(), machine.place.name);
            let (framed, piped) = (format!("{base}/framed"), format!("{base}/piped"));
            run(&mut connection, place.clone(), &format!("mkdir -p {base} && chmod 777 {base}")).ok();
            let root = open(tree.path());
            let pack = |out: &mut dyn std::io::Write| {
                testyard_transfer::pack(root.as_fd(), Path::new("tree"), &mut { out }).map(drop)
            };
            session.push(transfer(&framed, environment), pack).expect("pushed");
            connection.push(transfer(&piped, environment), pack).expect("pushed");
            let said = run(&mut connection, place.clone(), &format!("{framed}/link && {piped}/link")).ok();
            assert_eq!(said, "ran\nran");
            let back = tempfile::tempdir().expect("a folder");
            let target = open(back.path());
            let unpack = |name: &'static str| {
                let target = target.as_fd();
                move |read: &mut dyn std::io::Read| {
                    testyard_transfer::unpack(&mut { read }, target, Path::new(name), &UnpackOptions::default())
                        .map(drop)
                }
            };
            session.pull(transfer(&framed, environment), unpack("framed")).expect("pulled");
            connection.pull(transfer(&piped, environment), unpack("piped")).expect("pulled");
            assert_same(&tree.path().join("tree"), &back.path().join("framed"));
            assert_same(&tree.path().join("tree"), &back.path().join("piped"));
            run(&mut connection, place, &format!("rm -r {base}")).ok();
        }
    }
}

#[test]
fn files_of_an_environment_belong_to_its_user_where_nobody_is_named() {
    for machine in Machine::each() {
        let isolation = if machine.is_host() { Isolation::Workspace } else { Isolation::Namespace };
        let (UserSpec::Numbered { uid: own, .. }, UserSpec::Numbered { uid: of_machine, .. }) = (ordinary(), caller())
        else {
            unreachable!()
        };
        let mut connection = machine.connect();
        let id = connection.environment(&spec(isolation, ordinary())).expect("an environment");
        let place = Place::Environment(id);
        let base = format!("/tmp/ty-owned-{}-{}", std::process::id(), machine.place.name);
        run(&mut connection, place.clone(), &format!("mkdir {base} && chmod 777 {base}")).ok();
        let tree = tree();
        let root = open(tree.path());
        for (name, user) in [("of-nobody-named", None), ("of-the-machine", Some(UserSpec::Machine))] {
            let transfer = Transfer { user, ..transfer(&format!("{base}/{name}"), Some(id)) };
            let pack = |out: &mut dyn std::io::Write| {
                testyard_transfer::pack(root.as_fd(), Path::new("tree"), &mut { out }).map(drop)
            };
            connection.push(transfer, pack).expect("pushed");
        }
        let look = format!("cd {base} && stat -c %u of-nobody-named of-nobody-named/a/big of-the-machine");
        let seen = run(&mut connection, place.clone(), &look).ok();
        assert_eq!(seen, format!("{own}\n{own}\n{of_machine}"));
        let mut removal = script(place, &format!("rm -r {base}"));
        removal.user = Some(if testkit::user::is_host_root() { UserSpec::Root } else { ordinary() });
        capture(&mut connection, removal).ok();
    }
}

#[test]
fn what_is_not_there_or_not_allowed_is_said() {
    for machine in Machine::each() {
        let session = machine.session();
        let back = tempfile::tempdir().expect("a folder");
        let target = open(back.path());
        let pulled = session.pull(transfer("/no/such/tree", None), |read| {
            testyard_transfer::unpack(&mut { read }, target.as_fd(), Path::new("x"), &UnpackOptions::default())
                .map(drop)
        });
        // The end of the tree may be noticed before its reason is read.
        assert!(pulled.is_err());
        if let Err(TransferError::Machine(error)) = &pulled {
            assert!(format!("{error:?}").contains("/no/such"), "{error:?}");
        }
        let tree = tree();
        let root = open(tree.path());
        let mut denied = transfer("/etc/of-nobody", None);
        denied.user = Some(UserSpec::Numbered { uid: 4321, gid: 4321, groups: Vec::new() });
        if testkit::user::is_host_root() {
            let pushed = session
                .push(denied, |out| testyard_transfer::pack(root.as_fd(), Path::new("tree"), &mut { out }).map(drop));
            assert!(pushed.is_err());
        }
    }
}
