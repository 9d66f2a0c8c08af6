//! The reaper removes only what Testyard made: a row and the kernel's own proof, never a name alone.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::{Ability, TestHome, User};

fn machine_folder(home: &TestHome) -> PathBuf {
    let mut entries = std::fs::read_dir(home.state().join("machines")).expect("the machines' folder");
    entries.next().expect("one machine").expect("an entry").path()
}

fn precious(at: &Path) {
    for folder in ["store/generations", "store/upper", "masks", "workspaces", "upper"] {
        std::fs::create_dir_all(at.join(folder)).expect("a folder");
        std::fs::write(at.join(folder).join("kept"), "precious").expect("a file");
    }
    std::fs::write(at.join("kept"), "precious").expect("a file");
}

fn all_kept(at: &Path) -> bool {
    let folders = ["", "store/generations", "store/upper", "masks", "workspaces", "upper"];
    folders.iter().all(|folder| at.join(folder).join("kept").exists())
}

fn give_all(home: &TestHome, folder: &Path) {
    home.give(folder);
    for entry in std::fs::read_dir(folder).expect("a folder of the test").flatten() {
        home.give(&entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            give_all(home, &entry.path());
        }
    }
}

#[test]
fn a_folder_that_was_exchanged_is_left_alone() {
    for backend in ["namespace", "host"] {
        for link in [true, false] {
            for command in [["delete", "m", "--force"].as_slice(), ["reap"].as_slice(), ["start", "m"].as_slice()] {
                let home = TestHome::new();
                home.must_run(&["create", "m", "--backend", backend]);
                home.must_run(&["stop", "m"]);
                let folder = machine_folder(&home);
                let aside = home.work().join("aside");
                std::fs::rename(&folder, &aside).expect("the test's own home");
                let precious_folder = if link { home.work().join("precious") } else { folder.clone() };
                std::fs::create_dir(&precious_folder).expect("a folder");
                precious(&precious_folder);
                give_all(&home, &precious_folder);
                if link {
                    symlink(&precious_folder, &folder).expect("a link");
                }
                let output = home.run_cli(command);
                let case = format!("{backend}, {}, {command:?}", if link { "a link" } else { "another folder" });
                assert!(all_kept(&precious_folder), "{case}: {output}");
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a folder that this test made a moment ago, without mounts"
                )]
                let what = if link { std::fs::remove_file(&folder) } else { std::fs::remove_dir_all(&folder) };
                // A link is removed where the machine is.
                assert!(what.is_ok() || link, "{case}");
                if folder.parent().is_some_and(|machines| machines.exists()) && !home.must_run(&["list"]).is_empty() {
                    let _ = std::fs::rename(&aside, &folder);
                }
                let _ = home.run_cli(&["delete", "m", "--force"]);
                home.finish();
            }
        }
    }
}

/// A registry from a backup speaks of pids, sockets and cgroups that are somebody else's now.
#[test]
fn a_restored_registry_ends_nobody_else() {
    for backend in ["namespace", "host"] {
        let home = TestHome::new();
        home.must_run(&["create", "m", "--backend", backend]);
        // Not in the same tick of the clock as the agent: by pid and tick they would be one process.
        testkit::wait_until(std::time::Duration::from_millis(50), || false);
        let mut bystander = Command::new("sleep").arg("7133").stdin(Stdio::null()).spawn().expect("sleep starts");
        let copy = home.path().join("backup.sqlite");
        let registry = home.state().join("registry.sqlite");
        let save = rusqlite::Connection::open(&registry).expect("the registry");
        save.execute("VACUUM INTO ?1", [copy.to_str().expect("a plain path")]).expect("a copy");
        drop(save);
        let id = machine_folder(&home).file_name().expect("a name").to_string_lossy().into_owned();
        home.must_run(&["delete", "m", "--force"]);
        // The supervisor answers before it ends; it may still have the registry open.
        let is_gone = || {
            let found =
                Command::new("pgrep").args(["--full", &format!("supervise --id {id}")]).output().expect("pgrep");
            found.stdout.is_empty()
        };
        assert!(testkit::wait_until(std::time::Duration::from_secs(10), is_gone), "the supervisor stays");
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(home.state().join(format!("registry.sqlite{suffix}")));
        }
        // As if the agent's number were the bystander's now.
        let old = rusqlite::Connection::open(&copy).expect("the copy");
        let agent: String =
            old.query_row("SELECT agent FROM machine", [], |row| row.get(0)).expect("a row with an agent");
        let start = agent.find("\"pid\":").expect("an agent's pid") + 6;
        let end = start + agent[start..].find([',', '}']).expect("the end of a number");
        let forged = format!("{}{}{}", &agent[..start], bystander.id(), &agent[end..]);
        old.execute("UPDATE machine SET agent = ?1", [&forged]).expect("written");
        drop(old);
        std::fs::rename(&copy, &registry).expect("the test's own home");
        home.give(&registry);
        let output = home.run_cli(&["reap"]);
        assert!(bystander.try_wait().expect("our child").is_none(), "{output}");
        let output = home.run_cli(&["delete", "m", "--force"]);
        assert!(bystander.try_wait().expect("our child").is_none(), "{output}");
        bystander.kill().expect("our child");
        bystander.wait().expect("our child");
        home.finish();
    }
}

/// A cgroup of the machine's name that somebody else made is not the machine's.
#[test]
fn a_cgroup_that_was_exchanged_is_left_alone() {
    testkit::require!(Ability::Root);
    testkit::require!(Ability::MemoryCgroup);
    let home = TestHome::of(User::current());
    home.must_run(&["create", "m", "--backend", "namespace"]);
    let id = machine_folder(&home).file_name().expect("a name").to_string_lossy().into_owned();
    let supervisors = Command::new("pgrep").args(["--full", &format!("supervise --id {id}")]).output().expect("pgrep");
    let pids = String::from_utf8_lossy(&supervisors.stdout).into_owned();
    let agents = Command::new("pgrep").args(["--parent", pids.trim()]).output().expect("pgrep starts");
    for pid in format!("{pids}{}", String::from_utf8_lossy(&agents.stdout)).lines() {
        testkit::processes::signal(&[pid.parse().expect("a pid")], rustix::process::Signal::KILL);
    }
    let mount = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].into_iter().map(Path::new).find(|path| path.exists());
    let group = mount.expect("a hierarchy").join(format!("testyard-{id}"));
    let emptied = testkit::wait_until(std::time::Duration::from_secs(10), || remove_groups(&group));
    assert!(emptied, "{}", group.display());
    std::fs::create_dir(&group).expect("a group");
    let mut bystander = Command::new("sleep").arg("7134").stdin(Stdio::null()).spawn().expect("sleep starts");
    std::fs::write(group.join("cgroup.procs"), bystander.id().to_string()).expect("moved");
    let output = home.run_cli(&["reap"]);
    assert!(bystander.try_wait().expect("our child").is_none() && group.exists(), "{output}");
    bystander.kill().expect("our child");
    bystander.wait().expect("our child");
    assert!(testkit::wait_until(std::time::Duration::from_secs(5), || std::fs::remove_dir(&group).is_ok()));
    home.finish();
}

fn remove_groups(group: &Path) -> bool {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    std::fs::remove_dir(group).is_ok() || !group.exists()
}
