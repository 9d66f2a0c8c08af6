//! A home of its own for each test, and this test program again as another process.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use testyard_model::{BackendName, MachineId, MachineName, MachineSpec};
use testyard_registry::{Home, HomeEnvironment, NewMachine, Registry};

/// Says which home a child of a test works in.
pub(crate) const CHILD: &str = "TESTYARD_TEST_CHILD";

pub(crate) struct Yard {
    folder: TempDir,
}

impl Yard {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().expect("a temporary folder") }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub(crate) fn home(&self) -> Home {
        home_at(&self.path())
    }

    pub(crate) fn registry(&self) -> Registry {
        Registry::open(&self.home()).expect("a registry")
    }

    /// Runs one test of this program in another process, as a child of this home.
    pub(crate) fn child(&self, test: &str) -> Child {
        Command::new(std::env::current_exe().expect("this program"))
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, self.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program again")
    }
}

pub(crate) fn uid() -> u32 {
    std::fs::metadata("/proc/self").expect("/proc").uid()
}

pub(crate) fn home_at(path: &Path) -> Home {
    let environment = HomeEnvironment { testyard_home: Some(path.into()), uid: uid(), ..HomeEnvironment::default() };
    Home::load(&environment).expect("a home")
}

/// In a child of [`Yard::child`], the registry of the test's home; `None` in the test itself.
pub(crate) fn in_child() -> Option<Registry> {
    let path = std::env::var_os(CHILD)?;
    Some(Registry::open(&home_at(Path::new(&path))).expect("a registry"))
}

/// What a child printed between the test runner's own words, once it has ended.
pub(crate) fn lines(mut child: Child) -> Vec<String> {
    let mut text = String::new();
    drop(child.stdin.take());
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
    assert!(child.wait().expect("a child").success(), "{text}");
    text.lines().filter_map(|line| line.split_once("child: ").map(|(_, said)| said.to_owned())).collect()
}

pub(crate) fn name(text: &str) -> MachineName {
    text.parse().expect("a name")
}

pub(crate) fn machine(text: &str) -> NewMachine {
    NewMachine {
        name: name(text),
        spec: MachineSpec::new(BackendName::namespace()),
        backend_reason: Some("it is a test".to_owned()),
        created_ms: 1_000,
        expires_ms: None,
    }
}

pub(crate) fn reserved(registry: &Registry, text: &str) -> MachineId {
    registry.reserve_name(&machine(text)).expect("a free name")
}
