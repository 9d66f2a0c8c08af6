//! Where a home is, and where it refuses to be.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use testyard_model::{MachineId, ProblemKind};
use testyard_registry::{Home, HomeEnvironment, HomeError, Registry};

use crate::support::uid;

fn environment() -> HomeEnvironment {
    HomeEnvironment { uid: uid(), ..HomeEnvironment::default() }
}

fn at(path: impl Into<OsString>) -> Result<Home, HomeError> {
    Home::load(&HomeEnvironment { testyard_home: Some(path.into()), ..environment() })
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let path = fs::canonicalize(folder.path()).expect("its path");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("a mode");
    (folder, path)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it exists").permissions().mode() & 0o7777
}

#[test]
fn a_short_home_holds_everything() {
    let (_folder, path) = folder();
    let home = at(path.join("a/b")).expect("a home");
    assert_eq!(home.state(), path.join("a/b"));
    assert_eq!(home.runtime(), path.join("a/b/run"));
    for path in [home.state(), home.runtime(), &home.leases_folder(), &home.machines_folder(), &home.images_folder()] {
        assert_eq!(mode(path), 0o700, "{}", path.display());
    }
    let id = MachineId::from_bits(7);
    assert_eq!(home.machine_socket(&id), home.runtime().join(id.as_str()).join("machine.sock"));
    assert_eq!(at(path.join("a/b")).expect("the same home"), home);
    let empty = HomeEnvironment {
        home: Some(path.clone().into()),
        testyard_home: Some("".into()),
        xdg_runtime_dir: Some(path.clone().into()),
        ..environment()
    };
    assert_eq!(Home::load(&empty).expect("a home").state(), path.join(".local/state/testyard"));
}

#[test]
fn variables_prevail_in_their_order() {
    let (_folder, path) = folder();
    let session = path.join("session");
    fs::create_dir(&session).expect("a folder");
    fs::set_permissions(&session, fs::Permissions::from_mode(0o700)).expect("a mode");
    let mut environment = HomeEnvironment {
        xdg_state_home: Some(path.join("xdg").into()),
        xdg_runtime_dir: Some(session.clone().into()),
        home: Some(path.join("user").into()),
        ..environment()
    };
    let home = Home::load(&environment).expect("a home");
    assert_eq!(home.state(), path.join("xdg/testyard"));
    assert_eq!(home.runtime().parent(), Some(session.join("testyard").as_path()));
    // Another home in the same session has another runtime folder.
    environment.xdg_state_home = Some("relative".into());
    let other = Home::load(&environment).expect("a home");
    assert_eq!(other.state(), path.join("user/.local/state/testyard"));
    assert_ne!(other.runtime(), home.runtime());
    // Once chosen, a client without the session's variable finds the same.
    environment.xdg_runtime_dir = None;
    assert_eq!(Home::load(&environment).expect("a home"), other);
    // And when the session's folder is gone, another is chosen.
    fs::rename(&session, path.join("ended")).expect("the session");
    let moved = Home::load(&environment).expect("a home");
    assert_ne!(moved.runtime(), other.runtime());
    if uid() == 0 {
        assert_eq!(moved.runtime().parent(), Some(Path::new("/run/testyard")));
        fs::remove_dir(moved.runtime()).expect("an empty folder");
    }
    assert!(matches!(Home::load(&self::environment()), Err(HomeError::Unset)));
}

#[test]
fn a_home_too_long_for_a_socket_gets_a_short_runtime_folder() {
    let (_folder, path) = folder();
    let session = path.join("s");
    fs::create_dir(&session).expect("a folder");
    fs::set_permissions(&session, fs::Permissions::from_mode(0o700)).expect("a mode");
    for length in [60, 83, 84, 120, 200] {
        let mut long = path.join("x").into_os_string();
        while long.len() + "/run".len() < length {
            long.push("y");
        }
        let environment = HomeEnvironment {
            testyard_home: Some(long.clone()),
            xdg_runtime_dir: Some(session.clone().into()),
            ..environment()
        };
        let home = Home::load(&environment).expect("a home");
        let socket = home.machine_socket(&MachineId::from_bits(0));
        assert!(socket.as_os_str().len() <= 107, "{}", socket.display());
        assert_eq!(home.runtime().starts_with(home.state()), length <= 83, "{length}");
        assert!(Registry::open(&home).expect("a registry").list().expect("no machines").is_empty());
        std::os::unix::net::UnixListener::bind(home.runtime().join("0123456789").with_extension("")).expect("a socket");
    }
}

#[test]
fn other_peoples_and_open_folders_are_refused() {
    let (_folder, path) = folder();
    let open = path.join("open");
    fs::create_dir(&open).expect("a folder");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("a mode");
    assert_eq!(mode(at(&open).expect("an empty folder is closed").state()), 0o700);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("a mode");
    let error = at(&open).expect_err("a filled one is not");
    assert!(matches!(error, HomeError::Open { mode: 0o755, .. }), "{error}");
    assert!(error.problem().hints.iter().any(|hint| hint.contains("chmod 700")));

    let shared = path.join("shared");
    fs::create_dir(&shared).expect("a folder");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).expect("a mode");
    assert!(matches!(at(shared.join("home")), Err(HomeError::Replaceable { .. })));
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("a mode");
    at(shared.join("home")).expect("a sticky folder is safe");

    let stranger = HomeEnvironment { testyard_home: Some(open.into()), uid: uid() + 1, ..environment() };
    let error = Home::load(&stranger).expect_err("another's folder");
    assert!(matches!(error, HomeError::Owner { .. }), "{error}");
    assert_eq!(error.problem().kind, ProblemKind::Denied);
}

#[test]
fn places_that_cannot_be_homes_are_named() {
    let (_folder, path) = folder();
    assert!(matches!(at("relative/home"), Err(HomeError::Relative { .. })));
    let file = path.join("file");
    fs::write(&file, "x").expect("a file");
    assert!(matches!(at(&file), Err(HomeError::NotFolder { .. })));
    assert!(matches!(at(file.join("below")), Err(HomeError::NotFolder { .. })));
    assert!(matches!(at("/proc/testyard"), Err(HomeError::System { .. })));
    let bytes = OsString::from_vec([path.as_os_str().as_encoded_bytes(), b"/\xff"].concat());
    assert!(matches!(at(bytes), Err(HomeError::NotText { .. })));
    // A link that the user made is followed, and both names are one home.
    let real = path.join("real");
    symlink(&real, path.join("link")).expect("a link");
    fs::create_dir(&real).expect("a folder");
    assert_eq!(at(path.join("link")).expect("a home"), at(real).expect("a home"));
}
