//! Many environments at once, and many in a row: what each costs does not grow, and nothing stays of them.
//!
//! Continuous integration does some hundreds. `TESTYARD_TEST_SCALE=full` does what is promised: 1,000 alive at once
//! on one machine, and 10,000 made and removed in a row.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::apart;
use testkit::{Ability, HostSnapshot, Kind, TestHome, wait_until};

/// How long an environment may take to come or go among hundreds of others.
const DEADLINE: Duration = Duration::from_secs(120);

/// More than an agent keeps of what it may use again.
const KEPT: usize = 80;

fn numbers() -> (usize, usize) {
    if std::env::var("TESTYARD_TEST_SCALE").is_ok_and(|scale| scale == "full") { (1_000, 10_000) } else { (200, 1_000) }
}

/// The processes of a home's one machine that are there however many environments are.
struct Machine {
    supervisor: u32,
    agent: u32,
    groups: Vec<PathBuf>,
}

impl Machine {
    fn of(home: &TestHome) -> Self {
        let list = home.run_cli(&["list", "--json"]).expect_success().json();
        let supervisor = list["machines"][0]["supervisor_pid"].as_u64().expect("it runs");
        let supervisor = u32::try_from(supervisor).expect("a pid");
        let id = list["machines"][0]["id"].as_str().expect("it has one").to_owned();
        let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"));
        let children = children.expect("it lives");
        let agent = children.split_whitespace().next().expect("its agent").parse().expect("a pid");
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let folders = hierarchies.map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
        let groups = folders.map(|folder| folder.join(format!("testyard-{id}"))).filter(|path| path.is_dir());
        Self { supervisor, agent, groups: groups.collect() }
    }

    /// The same once nothing changes any more.
    fn settled(&self) -> BTreeMap<&'static str, u64> {
        let mut last = self.measured();
        let mut same = 0;
        wait_until(DEADLINE, || {
            let now = self.measured();
            same = if now == last { same + 1 } else { 0 };
            last = now;
            same == 20
        });
        last
    }

    /// What could grow, by name.
    fn measured(&self) -> BTreeMap<&'static str, u64> {
        let snapshot = HostSnapshot::take();
        let of_kind = |kind| snapshot.count(kind) as u64;
        let groups: usize = self.groups.iter().map(|group| folders_below(group)).sum();
        BTreeMap::from([
            ("agent KiB", resident_kib(self.agent)),
            ("supervisor KiB", resident_kib(self.supervisor)),
            ("agent descriptors", descriptors(self.agent)),
            ("supervisor descriptors", descriptors(self.supervisor)),
            ("processes", of_kind(Kind::Process)),
            ("namespaces", of_kind(Kind::Namespace)),
            ("mounts", of_kind(Kind::Mount)),
            ("cgroups", groups as u64),
        ])
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
    line.split_whitespace().next().expect("a number").parse().expect("a number")
}

fn descriptors(pid: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count() as u64
}

fn folders_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count()
}

fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// An environment whose command waits until its standard input ends.
fn living(home: &TestHome) -> Child {
    let mut command = home.cli(&["env", "run", "m", "--", "sh", "-c", "echo up; exec cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the client starts")
}

fn await_up(child: &mut Child) {
    use std::io::Read;
    let mut said = [0; 3];
    child.stdout.as_mut().expect("piped").read_exact(&mut said).expect("its command runs");
    assert_eq!(&said, b"up\n");
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().expect("our child").success());
}

/// The agent keeps some cgroups for the next environments, as many as there were at once, up to a bound.
fn fill_what_is_kept(home: &TestHome) {
    let mut warming: Vec<Child> = (0..KEPT).map(|_| living(home)).collect();
    warming.iter_mut().for_each(await_up);
    warming.into_iter().for_each(end);
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

#[test]
fn hundreds_of_environments_live_at_once() {
    testkit::require!(Ability::Root);
    if !apart::is_apart("scale::hundreds_of_environments_live_at_once") {
        return;
    }
    let (alive, _) = numbers();
    // An allocator keeps some of what hundreds at once had needed.
    let slack_kib = 1024 + 4 * alive as u64;
    let home = TestHome::new();
    home.must_run(&["create", "m"]);
    fill_what_is_kept(&home);
    let machine = Machine::of(&home);
    let before = machine.settled();
    let mut children = Vec::new();
    let spent = timed(|| {
        for _ in 0..alive {
            let mut child = living(&home);
            await_up(&mut child);
            children.push(child);
        }
    });
    let one_more = timed(|| drop(home.must_run(&["env", "run", "m", "--", "true"])));
    let meanwhile = machine.measured();
    say(&format!("{alive} alive after {spent:?}; one more: {one_more:?}\nbefore {before:?}\nmeanwhile {meanwhile:?}"));
    children.into_iter().for_each(end);
    assert!(settles(&machine, &before, slack_kib), "before {before:?}\nafter {:?}", machine.measured());
    home.finish();
}

#[test]
fn thousands_of_environments_in_a_row_leave_nothing_growing() {
    testkit::require!(Ability::Root);
    if !apart::is_apart("scale::thousands_of_environments_in_a_row_leave_nothing_growing") {
        return;
    }
    let (_, row) = numbers();
    let slack_kib = 1024;
    let home = TestHome::new();
    home.must_run(&["create", "m"]);
    // On a busy host one may come before the last one has gone: then too the agent keeps a cgroup more.
    fill_what_is_kept(&home);
    // What is allocated once is there after some.
    for _ in 0..100 {
        home.must_run(&["env", "run", "m", "--", "true"]);
    }
    let machine = Machine::of(&home);
    let before = machine.settled();
    let spent = timed(|| {
        for _ in 0..row {
            home.must_run(&["env", "run", "m", "--", "true"]);
        }
    });
    assert!(settles(&machine, &before, slack_kib), "before {before:?}\nafter {:?}", machine.measured());
    say(&format!("{row} in {spent:?}\nbefore {before:?}\nafter {:?}", machine.measured()));
    home.finish();
}

/// Whether everything is as it was, within what a running system's memory and ready environments vary by.
fn settles(machine: &Machine, before: &BTreeMap<&'static str, u64>, slack_kib: u64) -> bool {
    wait_until(DEADLINE, || {
        machine.measured().into_iter().all(|(name, now)| {
            let then = before[name];
            let slack = if name.ends_with("KiB") { slack_kib } else { 24 };
            now <= then + slack
        })
    })
}
