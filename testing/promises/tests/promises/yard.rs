//! A Testyard whose processes are killed, and the comparison of everything with what was there before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use testkit::{HostSnapshot, Kind, Output, TestHome, User, wait_until};

/// What the first cluster or private network makes, and all share.
const ANYBODYS: [&str; 3] = ["clusters", "networks", "networks.lock"];

/// A client whose machine dies must notice, and end.
const DEADLINE: Duration = Duration::from_secs(120);
/// Teardown is off the hot path: this long after the reaper has passed, nothing may be left.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// How deep folders are looked into for what is left.
const LEVELS: u32 = 3;
/// What is kept on purpose: what was learned of runs.
const HISTORY: [&str; 2] = ["run", "test_duration"];
const SUITE: &str = "format = 1\n[[test]]\nname = \"a\"\ncommand = \"true\"\n";
const KEPT: &str = r#"
format = 1
[suite]
prepare = "echo 1 > /tmp/prepared"
[[test]]
name = "fails"
command = "echo 1 > out1; echo 2 > out2; cat /tmp/prepared; sleep 1000 & exit 1"
outputs = ["out*"]
artifacts = ["out1"]
"#;
const SERVED: &str = r#"
format = 1
[[service]]
name = "own"
command = "trap 'exit 0' TERM; touch /tmp/up; sleep 1000 & wait"
ready = { command = "test -e /tmp/up" }
[[service]]
name = "shared"
command = "trap 'exit 0' TERM; echo up; setsid sleep 1000 & wait"
ready = { log = "^up$" }
scope = "suite"
[[test]]
name = "a"
command = "true"
services = ["own", "shared"]
"#;
/// What is kept of runs and trees, by the beginning of its path in the state folder; none of it is half-made.
const REMEMBERED: [&str; 3] = ["runs/", "frozen/", "sync/"];
const HALF_MADE: [&str; 2] = [".new", ".testyard-returning-"];

/// A home with a suite in its working folder, and how everything looked before.
pub(crate) struct Yard {
    home: TestHome,
    log: PathBuf,
    host: HostSnapshot,
    files: BTreeSet<PathBuf>,
    rows: BTreeMap<String, i64>,
}

impl Yard {
    /// After a first pass over an empty home, so that what is made once (the registry, the host's report) is there.
    pub(crate) fn new(user: User) -> Self {
        let home = TestHome::of(user);
        for (name, text) in [("suite", SUITE), ("served", SERVED), ("kept", KEPT)] {
            let suite = home.work().join(name);
            let file = suite.join("testyard.toml");
            std::fs::create_dir(&suite).expect("the home is empty");
            std::fs::write(&file, text).expect("just made");
            home.give(&suite);
            home.give(&file);
        }
        let log = home.work().join("steps");
        std::fs::write(&log, "").expect("the home is empty");
        home.give(&log);
        home.must_run(&["create", "first"]);
        home.must_run(&["run", "suite"]);
        let mut yard = Self { home, log, host: HostSnapshot::take(), files: BTreeSet::new(), rows: BTreeMap::new() };
        assert_eq!(yard.clean(), [""; 0]);
        // What the first machines were made of may still be going.
        wait_until(SETTLED_WITHIN, || {
            let now = HostSnapshot::take();
            let settled = now == yard.host;
            yard.host = now;
            settled
        });
        yard.files = yard.present_files();
        yard.rows = yard.present_rows();
        yard
    }

    /// A client that is not started yet.
    pub(crate) fn cli(&self, arguments: &[&str]) -> std::process::Command {
        self.home.cli(arguments)
    }

    /// Runs it, which must succeed; its standard output.
    pub(crate) fn must_run(&self, arguments: &[&str]) -> String {
        self.home.must_run(arguments)
    }

    /// The process ids of a running machine's supervisor and agent.
    pub(crate) fn processes(&self, name: &str) -> (u32, u32) {
        let list = self.home.run_cli(&["list", "--json"]).expect_success().json();
        let mut machines = list["machines"].as_array().expect("a list of machines").iter();
        let machine = machines.find(|machine| machine["name"] == name).expect("it is there");
        let supervisor = machine["supervisor_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("it runs");
        let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"));
        let agent = children.expect("it lives").split_whitespace().next().and_then(|pid| pid.parse().ok());
        (supervisor, agent.expect("its agent is its child"))
    }

    /// Runs it, its steps logged.
    pub(crate) fn logged(&self, arguments: &[&str]) {
        let mut command = self.home.cli(arguments);
        let _ = Output::of(command.env("TESTYARD_STEP_LOG", &self.log), DEADLINE).expect_success();
    }

    /// Runs it, its steps logged; it exits with this code.
    pub(crate) fn logged_with(&self, arguments: &[&str], code: i32) {
        let mut command = self.home.cli(arguments);
        let output = Output::of(command.env("TESTYARD_STEP_LOG", &self.log), DEADLINE);
        assert_eq!(output.code, code, "{output}");
    }

    /// Runs it with its processes killed at a step.
    pub(crate) fn armed(&self, step: &str, arguments: &[&str]) -> Output {
        let mut command = self.home.cli(arguments);
        Output::of(command.env("TESTYARD_STEP_LOG", &self.log).env("TESTYARD_KILL_AT", step), DEADLINE)
    }

    /// Makes the tree of the suite that keeps another than it was.
    pub(crate) fn change_tree(&self, text: &str) {
        let file = self.home.work().join("kept/input");
        std::fs::write(&file, text).expect("the suite is there");
        self.home.give(&file);
    }

    /// From here on only new steps count.
    pub(crate) fn forget_steps(&self) {
        let log = std::fs::File::options().write(true).truncate(true).open(&self.log);
        drop(log.expect("it was made with the yard"));
    }

    /// The steps that were logged.
    pub(crate) fn steps(&self) -> BTreeSet<String> {
        let text = std::fs::read_to_string(&self.log).expect("it was made with the yard");
        text.lines().filter_map(|line| Some(line.split_once(' ')?.1.to_owned())).collect()
    }

    /// Whether a step was logged, maybe by a process that outlives the client.
    pub(crate) fn was_reached(&self, step: &str) -> bool {
        wait_until(SETTLED_WITHIN, || self.steps().contains(step))
    }

    /// Deletes every machine that is there once nothing is under way any more; what could not be deleted.
    pub(crate) fn clean(&self) -> Vec<String> {
        // A supervisor whose client was killed goes on with what it was told.
        let under_way = |state: &str| matches!(state, "creating" | "deleting" | "stopping");
        let mut left = Vec::new();
        wait_until(SETTLED_WITHIN, || {
            left = self.machines().into_iter().filter(|(_, state)| under_way(state)).collect();
            left.is_empty()
        });
        let mut left: Vec<String> =
            left.into_iter().map(|(name, state)| format!("machine {name} stays {state}")).collect();
        // With their nodes, which are machines.
        let clusters = self.home.run_cli(&["cluster", "list", "--json"]).expect_success().json();
        for cluster in clusters["clusters"].as_array().expect("a list of clusters") {
            let deleted = self.home.run_cli(&["cluster", "delete", cluster["name"].as_str().expect("a name")]);
            if deleted.code != 0 {
                left.push(format!("a cluster could not be deleted: {deleted}"));
            }
        }
        for (name, state) in self.machines() {
            let deleted = self.home.run_cli(&["delete", &name, "--force"]);
            // What a supervisor rolls back may go by itself at this moment.
            let gone = || wait_until(SETTLED_WITHIN, || !self.machines().contains_key(&name));
            if deleted.code != 0 && !gone() {
                left.push(format!("machine {name}, {state}, could not be deleted: {deleted}"));
            }
        }
        left
    }

    /// The machines' states by their names.
    fn machines(&self) -> BTreeMap<String, String> {
        let list = self.home.run_cli(&["list", "--json"]).expect_success().json();
        let text = |machine: &serde_json::Value, key: &str| machine[key].as_str().expect("each has it").to_owned();
        let machines = list["machines"].as_array().expect("a list of machines");
        machines.iter().map(|machine| (text(machine, "name"), text(machine, "state"))).collect()
    }

    /// One reaper, then the deletion of what lives on; what is there then and was not before.
    pub(crate) fn left(&self) -> Vec<String> {
        let recorded = self.recorded_machines();
        let reap = self.home.run_cli(&["reap"]);
        if reap.code != 0 {
            return vec![format!("reap: {reap}")];
        }
        let undeleted = self.clean();
        if !undeleted.is_empty() {
            return undeleted;
        }
        let mut left = Vec::new();
        wait_until(SETTLED_WITHIN, || {
            left = self.differences(&recorded);
            left.is_empty()
        });
        left
    }

    fn differences(&self, machines: &[String]) -> Vec<String> {
        let mut left: Vec<String> = Vec::new();
        let now = HostSnapshot::take();
        for thing in self.host.difference(&now).appeared() {
            let ours = thing.kind != Kind::Cgroup || machines.iter().any(|id| thing.identity.contains(id));
            if ours {
                left.push(thing.to_string());
            }
        }
        left.extend(self.present_files().difference(&self.files).map(|path| format!("file {}", path.display())));
        for (table, rows) in self.present_rows() {
            let before = self.rows.get(&table).copied().unwrap_or(0);
            if rows > before && !HISTORY.contains(&table.as_str()) {
                left.push(format!("{} rows in table {table}", rows - before));
            }
        }
        left
    }

    /// Everything of the state folder and the runtime folder below it.
    fn present_files(&self) -> BTreeSet<PathBuf> {
        let mut files = BTreeSet::new();
        add_files(&self.home.state(), LEVELS, &mut files);
        for name in ["home", "tmp"] {
            add_files(&self.home.path().join(name), LEVELS, &mut files);
        }
        let state = self.home.state();
        files.retain(|path| {
            let name = path.strip_prefix(&state).unwrap_or(path).display().to_string();
            let remembered = REMEMBERED.iter().any(|folder| name.starts_with(folder))
                && !HALF_MADE.iter().any(|half| name.contains(half));
            !remembered && !name.contains("registry.sqlite") && !ANYBODYS.contains(&name.as_str())
        });
        // The working tree is never half-written.
        add_files(&self.home.work().join("kept"), 1, &mut files);
        files.retain(|path| {
            !path.file_name().is_some_and(|name| ["out1", "out2", "input"].iter().any(|one| name == *one))
        });
        files
    }

    fn registry(&self) -> Connection {
        let path = self.home.state().join("registry.sqlite");
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the first machine made it")
    }

    fn present_rows(&self) -> BTreeMap<String, i64> {
        let registry = self.registry();
        let mut tables = registry.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").expect("SQL");
        let tables = tables.query_map([], |row| row.get::<_, String>(0)).expect("names");
        let count = |table: &str| {
            registry.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("SQL")
        };
        let tables = tables.map(|name| name.expect("text")).filter(|name| !name.starts_with("sqlite_"));
        tables.map(|name| (name.clone(), count(&name))).collect()
    }

    fn recorded_machines(&self) -> Vec<String> {
        let registry = self.registry();
        let mut ids = registry.prepare("SELECT id FROM machine").expect("SQL");
        let ids = ids.query_map([], |row| row.get(0)).expect("ids");
        ids.map(|id| id.expect("text")).collect()
    }
}

/// Adds what is there, some levels deep: a tree of a whole host's metadata may be below.
fn add_files(folder: &Path, levels: u32, files: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if levels > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add_files(&path, levels - 1, files);
        }
        files.insert(path);
    }
}

/// Past the harness: a matrix that takes minutes shows how far it is.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}
