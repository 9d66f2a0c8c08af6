//! A host on which no program of ours runs: the same verbs over plain `ssh`, and nothing left there.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use testkit::output::Output;
use testkit::wait::wait_until;

use crate::server::{PATIENCE, Server, ready, server};

impl Server {
    fn create_plain(&self, name: &str) {
        let words = [self.words(name), vec!["--agent".to_owned(), "never".to_owned()]].concat();
        let _ = self.cli(&words, &[]).expect_success();
    }
}

#[test]
fn a_host_without_an_agent_has_the_same_verbs() {
    let server = server!();
    server.create_plain("gpu");
    commands(&server);
    files(&server);
    refusals(&server);
    server.home.must_run(&["stop", "gpu"]);
    assert!(wait_until(PATIENCE, || !Server::sleeps(8)), "it runs on there");
    assert_eq!(server.sh("gpu", "true").code, 2);
    server.home.must_run(&["start", "gpu"]);
    assert_eq!(server.sh("gpu", "echo again").stdout, "again\n");
    server.home.must_run(&["delete", "gpu"]);
    let left: Vec<_> = fs::read_dir(server.far()).expect("a home").flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| name.to_str().is_some_and(|name| !name.starts_with('.'))), "left there: {left:?}");
    finish(server);
}

fn commands(server: &Server) {
    let seen = server.sh("gpu", "echo out; echo err >&2; printf end >&2; exit 7");
    assert_eq!((seen.code, seen.stdout.as_str(), seen.stderr.as_str()), (7, "out\n", "err\nend"));
    let mut command = server.script("gpu", "cat; echo end");
    let input = server.home.work().join("input");
    fs::write(&input, "through standard input\n").expect("a file");
    command.stdin(fs::File::open(&input).expect("a file"));
    assert_eq!(Output::of(&mut command, PATIENCE).stdout, "through standard input\nend\n");
    let words =
        ["exec", "gpu", "-e", "PLAIN=it's $HOME", "--cwd", "/usr", "--", "sh", "-c", "echo \"$PLAIN\" $PWD \"$1\""];
    let seen = server.home.run_cli(&[&words[..], &["x", "a  'b'\n\"c\""]].concat());
    assert_eq!(seen.stdout, "it's $HOME /usr a  'b'\n\"c\"\n", "{seen}");
    assert_eq!(server.sh("gpu", "kill -9 $$").code, 128 + 9);
    assert_eq!(server.home.run_cli(&["exec", "gpu", "--", "there-is-no-such-program"]).code, 127);
    let nowhere = server.home.run_cli(&["exec", "gpu", "--cwd", "/there/is/nothing", "--", "true"]);
    assert!(nowhere.stderr.contains("cannot enter the working folder /there/is/nothing"), "{nowhere}");
    assert_eq!(server.sh("gpu", "seq 300000 | tail -c 2000000").stdout.len(), 1_988_895);
    // What runs there ends with its time, also what has left its parents.
    let script = format!("setsid {} & {}", Server::nap(1), Server::nap(2));
    let late = server.home.run_cli(&["exec", "gpu", "--timeout", "2s", "--", "sh", "-c", &script]);
    assert_eq!(late.code, 124, "{late}");
    assert!(wait_until(PATIENCE, || !Server::sleeps(1) && !Server::sleeps(2)), "it runs on there");
    // What a command leaves there runs on, and does not hold its client.
    assert_eq!(server.sh("gpu", &format!("{} & echo left", Server::nap(8))).stdout, "left\n");
    assert!(wait_until(PATIENCE, || Server::sleeps(8)));
    // A signal reaches the command there; a killed client takes it along.
    let script = format!("trap 'echo got it; exit 3' TERM; echo on; {} & wait", Server::nap(3));
    let mut child = server.script("gpu", &script).stdout(Stdio::null()).spawn().expect("it starts");
    assert!(wait_until(PATIENCE, || Server::sleeps(3)));
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
    let mut child = server.script("gpu", &Server::nap(4)).spawn().expect("it starts");
    assert!(wait_until(PATIENCE, || Server::sleeps(4)));
    child.kill().expect("it runs");
    assert!(!child.wait().expect("it ends").success());
    assert!(wait_until(PATIENCE, || !Server::sleeps(4)), "it runs on there");
}

fn files(server: &Server) {
    let work = server.home.work();
    let tree = work.join("tree");
    fs::create_dir_all(tree.join("deep/er")).expect("a folder");
    fs::write(tree.join("deep/er/file"), "content").expect("a file");
    fs::write(tree.join("it's"), "#!/bin/sh\necho ran\n").expect("a file");
    fs::set_permissions(tree.join("it's"), fs::Permissions::from_mode(0o755)).expect("ours");
    std::os::unix::fs::symlink("deep/er/file", tree.join("link")).expect("a link");
    let there = server.far().join("tree");
    let far = |name: &str| server.far().join(name).display().to_string();
    server.home.must_run(&["push", "gpu", "tree", &far("tree")]);
    assert_eq!(server.sh("gpu", "cat ~/tree/link; \"$HOME/tree/it's\"").stdout, "contentran\n");
    // Onto a folder: into it; what is there and was not sent, stays.
    fs::write(there.join("mine"), "mine").expect("a file");
    fs::set_permissions(&there, fs::Permissions::from_mode(0o700)).expect("ours");
    server.home.must_run(&["push", "gpu", "tree", &far("")]);
    assert_eq!(fs::read_to_string(there.join("mine")).expect("a file"), "mine");
    assert_eq!(fs::metadata(&there).expect("a folder").mode() & 0o777, 0o700);
    server.home.must_run(&["pull", "gpu", &far("tree"), "back"]);
    assert_eq!(fs::read_to_string(work.join("back/link")).expect("a file"), "content");
    assert_eq!(fs::metadata(work.join("back/it's")).expect("a file").mode() & 0o777, 0o755);
    // One file each way.
    server.home.must_run(&["push", "gpu", "tree/it's", &far("one")]);
    assert_eq!(fs::metadata(server.far().join("one")).expect("a file").mode() & 0o777, 0o755);
    server.home.must_run(&["pull", "gpu", &far("one"), "one"]);
    assert_eq!(fs::read_to_string(work.join("one")).expect("a file"), "#!/bin/sh\necho ran\n");
    let refused = |words: &[&str], expected: &str| {
        let seen = server.home.run_cli(words);
        assert!(seen.code != 0 && seen.stderr.contains(expected), "{seen}");
    };
    refused(&["pull", "gpu", "/there/is/nothing", "nothing"], "there is no \"/there/is/nothing\"");
    refused(&["push", "gpu", "tree", "/there/is/nothing"], "cannot make");
    refused(&["push", "gpu", "tree", &far("one")], "something that is not a folder is there");
}

#[test]
fn a_terminal_is_made_there() {
    if !testkit::user::is_root() {
        testkit::skip!("a_terminal_is_made_there", "an ordinary user's sshd cannot give a terminal away");
    }
    let server = server!();
    server.create_plain("gpu");
    let shell = server.home.program("testyard").display().to_string();
    let script = format!("{shell} exec -t gpu -- sh -c 'tty; stty size; echo done; exit 5'");
    let mut command = server.home.command("script");
    command.args(["-qec", &format!("stty rows 33 columns 77; {script}"), "/dev/null"]);
    let seen = Output::of(&mut command, PATIENCE);
    assert!(seen.stdout.contains("/dev/pts/") && seen.stdout.contains("33 77"), "{seen}");
    assert_eq!(seen.code, 5, "{seen}");
    server.home.must_run(&["delete", "gpu"]);
    finish(server);
}

fn refusals(server: &Server) {
    for words in [
        &["env", "run", "gpu", "--", "true"][..],
        &["env", "run", "gpu", "--isolation", "workspace", "--", "true"],
        &["exec", "gpu", "--user", "nobody", "--", "true"],
        &["sync", "gpu", "."],
    ] {
        let seen = server.home.run_cli(words);
        assert!(seen.code != 0 && seen.stderr.contains("on which Testyard's agent does not run"), "{words:?}: {seen}");
        assert!(seen.stderr.contains("hint: "), "{seen}");
    }
    assert!(server.home.must_run(&["info", "gpu"]).contains("without Testyard's agent there"));
    let words = [server.words("other"), vec!["--agent".to_owned(), "never".to_owned()]].concat();
    for (more, said) in [(["--inside", "namespace"], "in a container of a host"), (["--user", "root"], "as user root")]
    {
        let seen = server.cli(&[&words[..], &more.map(str::to_owned)].concat(), &[]);
        assert!(seen.code == 2 && seen.stderr.contains(said) && seen.stderr.contains("leave --agent out"), "{seen}");
    }
}

#[test]
fn a_connection_that_broke_is_made_anew_and_says_so() {
    let server = server!();
    server.create_plain("gpu");
    let child = server
        .script("gpu", &format!("echo on; {}", Server::nap(5)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.expect("it starts");
    assert!(wait_until(PATIENCE, || Server::sleeps(5)));
    testkit::processes::signal(&server.processes("ControlMaster=yes"), Signal::KILL);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(69), &b"on\n"[..]), "{said}");
    assert!(said.contains("broke while a command ran there"), "{said}");
    // The shell there has ended what ran; the next command finds a new connection.
    assert!(wait_until(PATIENCE, || !Server::sleeps(5)), "it runs on there");
    let seen = server.sh("gpu", "echo again");
    assert_eq!(seen.stdout, "again\n", "{seen}");
    server.home.must_run(&["delete", "gpu"]);
    finish(server);
}

/// Nothing of the machines is left, on either side.
fn finish(server: Server) {
    assert!(wait_until(PATIENCE, || keepers(&server).is_empty()), "a keeper is left");
    assert!(wait_until(PATIENCE, || server.processes("ControlMaster=yes").is_empty()), "a connection is left");
    server.finish();
}

/// Who has the connection of a machine of this home: it is in the machine's folder.
fn keepers(server: &Server) -> Vec<i32> {
    let is_ours = |process: &testkit::processes::Process| {
        process.command_line().ends_with(" plain keep")
            && fs::read_link(process.folder().join("cwd")).is_ok_and(|cwd| cwd.starts_with(server.home.path()))
    };
    testkit::processes::all().filter(is_ours).map(|process| process.pid).collect()
}

#[test]
fn a_killed_machine_leaves_nothing_there() {
    let server = server!();
    server.create_plain("gpu");
    let mut child = server.script("gpu", &Server::nap(6)).spawn().expect("it starts");
    assert!(wait_until(PATIENCE, || Server::sleeps(6)));
    let keepers = keepers(&server);
    assert_eq!(keepers.len(), 1);
    let all = [keepers, server.processes("ControlMaster=yes")].concat();
    testkit::processes::signal(&all, Signal::KILL);
    assert!(wait_until(PATIENCE, || !Server::sleeps(6)), "it runs on there");
    assert!(!child.wait().expect("it ends").success());
    server.home.must_run(&["delete", "gpu"]);
    finish(server);
}

#[test]
fn a_host_that_forbids_programs_is_served_without() {
    if !testkit::user::is_host_root() {
        testkit::skip!(
            "a_host_that_forbids_programs_is_served_without",
            "only root can mount the folders that it needs"
        );
    }
    ready!();
    let folders = "for f in /var/tmp /dev/shm \"$HOME/../far\"; do mount -t tmpfs -o noexec,mode=777 none $f; done";
    let server = Server::with("", folders);
    server.create("gpu");
    assert_eq!(server.sh("gpu", "echo there").stdout, "there\n");
    let info = server.home.must_run(&["info", "gpu"]);
    assert!(info.contains("its agent does not run there because no folder there can hold programs"), "{info}");
    server.home.must_run(&["delete", "gpu"]);
    finish(server);
}

#[test]
fn more_commands_than_the_host_allows_are_refused_by_name() {
    ready!();
    let server = Server::with("MaxSessions 2", "");
    server.create_plain("gpu");
    let mut child = server.script("gpu", &Server::nap(7)).spawn().expect("it starts");
    assert!(wait_until(PATIENCE, || Server::sleeps(7)));
    let seen = server.sh("gpu", "true");
    assert!(seen.code != 0 && seen.stderr.contains("MaxSessions"), "{seen}");
    child.kill().expect("it runs");
    let _ = child.wait();
    server.home.must_run(&["delete", "gpu", "--force"]);
    finish(server);
}

#[test]
fn what_the_page_says_about_such_hosts_works() {
    let server = server!();
    fs::write(server.far().join("results.csv"), "1,2\n").expect("a file");
    let page = testkit::Page::load("ssh");
    let block = page.commands_with("--agent never");
    let script = block
        .replace("--backend ssh --host me@login.example.org", &server.words("login")[2..].join(" "))
        .replace("/var/tmp/", &format!("{}/", server.far().display()))
        .replace("testyard ", &format!("{} ", server.home.program("testyard").display()));
    let mut command = server.home.command("sh");
    let output = Output::of(command.args(["-ec", &script]).current_dir(server.home.work()), PATIENCE).expect_success();
    let host = rustix::system::uname();
    assert_eq!(output.stdout.trim(), host.nodename().to_str().expect("text"));
    assert_eq!(fs::read_to_string(server.home.work().join("results.csv")).expect("a file"), "1,2\n");
    finish(server);
}
