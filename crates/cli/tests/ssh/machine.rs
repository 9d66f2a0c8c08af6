//! What a machine behind SSH does: all that any machine does.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Stdio;

use testkit::output::Output;
use testkit::wait::wait_until;

use crate::cuts::clients;
use crate::server::{PATIENCE, Server, ready, server};

#[test]
fn a_host_is_a_machine_like_any_other() {
    let server = server!();
    server.create("gpu");
    commands(&server);
    files(&server);
    terminals(&server);
    at_once(&server);
    life(&server);
    server.finish();
}

/// Everything goes over one connection.
fn at_once(server: &Server) {
    let connection = clients(server);
    assert_eq!(connection.len(), 1);
    let gate = server.far().join("gate");
    let wait = "touch ~/in-$1; while [ ! -e ~/gate ]; do sleep 0.02; done; echo $1";
    let words = |number: usize| format!("set -- {number}; {wait}");
    let children: Vec<_> = (0..20)
        .map(|number| server.script("gpu", &words(number)).stdout(Stdio::piped()).spawn().expect("it starts"))
        .collect();
    assert!(wait_until(PATIENCE, || (0..20).all(|number| server.far().join(format!("in-{number}")).exists())));
    let there = server.far().join("beside");
    server.home.must_run(&["push", "gpu", "tree", there.to_str().expect("text")]);
    assert_eq!(clients(server), connection, "it is one connection for all of them");
    fs::write(gate, "").expect("a file");
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{number}\n"));
    }
}

fn commands(server: &Server) {
    let seen = server.sh("gpu", "echo out; echo err >&2; exit 7");
    assert_eq!((seen.code, seen.stdout.as_str(), seen.stderr.as_str()), (7, "out\n", "err\n"));
    let mut command = server.script("gpu", "cat; echo end");
    let input = server.home.work().join("input");
    fs::write(&input, "through standard input\n").expect("a file");
    command.stdin(fs::File::open(&input).expect("a file"));
    assert_eq!(Output::of(&mut command, PATIENCE).stdout, "through standard input\nend\n");
    let late = server.home.run_cli(&["exec", "gpu", "--timeout", "200ms", "--", "sleep", "100"]);
    assert_eq!(late.code, 124, "{late}");
    let killed = server.sh("gpu", "kill -9 $$");
    assert_eq!(killed.code, 128 + 9);
    assert_eq!(server.home.run_cli(&["exec", "gpu", "--", "there-is-no-such-program"]).code, 127);
    // Much output arrives whole, before the end is told.
    assert_eq!(server.sh("gpu", "seq 300000 | tail -c 2000000").stdout.len(), 1_988_895);
    let place = server.home.run_cli(&["env", "run", "gpu", "--isolation", "workspace", "--", "pwd"]).expect_success();
    assert!(place.stdout.contains("/workspaces/"), "{place}");
    // A signal reaches the command there.
    let script = format!("trap 'echo got it; exit 3' TERM; echo on; {} & wait", Server::nap(21));
    let mut child = server.script("gpu", &script).stdout(Stdio::piped()).spawn().expect("it starts");
    assert!(wait_until(PATIENCE, || Server::sleeps(21)));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
}

fn files(server: &Server) {
    let work = server.home.work();
    let tree = work.join("tree");
    fs::create_dir_all(tree.join("deep/er")).expect("a folder");
    fs::write(tree.join("deep/er/file"), "content").expect("a file");
    fs::write(tree.join("run"), "#!/bin/sh\necho ran\n").expect("a file");
    fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o755)).expect("ours");
    std::os::unix::fs::symlink("deep/er/file", tree.join("link")).expect("a link");
    let there = server.far().join("tree");
    server.home.must_run(&["push", "gpu", "tree", there.to_str().expect("text")]);
    assert_eq!(server.sh("gpu", "cat ~/tree/link; ~/tree/run").stdout, "contentran\n");
    server.home.must_run(&["pull", "gpu", there.to_str().expect("text"), "back"]);
    assert_eq!(fs::read_to_string(work.join("back/link")).expect("a file"), "content");
    assert_eq!(fs::metadata(work.join("back/run")).expect("a file").mode() & 0o777, 0o755);
    let refused = server.home.run_cli(&["pull", "gpu", "/there/is/nothing", "nothing"]);
    assert_ne!(refused.code, 0, "{refused}");
}

fn terminals(server: &Server) {
    let shell = server.home.program("testyard").display().to_string();
    let script = format!("{shell} exec -t gpu -- sh -c 'tty; stty size; echo done'");
    let mut command = server.home.command("script");
    command.args(["-qec", &format!("stty rows 33 columns 77; {script}"), "/dev/null"]);
    let seen = Output::of(&mut command, PATIENCE);
    assert!(seen.stdout.contains("/dev/pts/") && seen.stdout.contains("33 77"), "{seen}");
}

fn life(server: &Server) {
    let delivered = server.programs();
    assert_eq!(delivered.len(), 1, "{delivered:?}");
    let inode = fs::metadata(delivered[0].join("testyard")).expect("a program").ino();
    let cache = fs::metadata(delivered[0].parent().expect("the cache")).expect("a folder");
    assert_eq!(cache.mode() & 0o777, 0o700);
    server.home.must_run(&["stop", "gpu"]);
    assert!(server.sessions().is_empty());
    let stopped = server.sh("gpu", "true");
    assert_eq!((stopped.code, stopped.stderr.lines().next()), (2, Some("error: machine gpu is stopped")));
    server.home.must_run(&["start", "gpu"]);
    server.create("second");
    assert_eq!(fs::metadata(delivered[0].join("testyard")).expect("a program").ino(), inode, "it was sent again");
    assert_eq!(server.home.must_run(&["list", "--names"]), "gpu\nsecond\n");
    server.home.must_run(&["delete", "gpu", "second"]);
}

#[test]
fn programs_of_others_are_not_run() {
    ready!();
    // The next place for programs is not the host's.
    let server = Server::with("", "mount -t tmpfs none /var/tmp");
    let cache = server.far().join(".cache");
    // A folder that others may write to, with a program in it.
    let open = cache.join("testyard-programs");
    fs::create_dir_all(&open).expect("a folder");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("ours");
    if testkit::user::is_root() {
        // There is another place for them.
        server.create("gpu");
        assert_eq!(fs::read_dir(&open).expect("a folder").count(), 0);
        server.home.must_run(&["delete", "gpu"]);
    }
    fs::remove_dir(&open).expect("it is empty");
    if testkit::user::is_root() {
        // A link to somewhere.
        std::os::unix::fs::symlink("/tmp", &open).expect("a link");
        server.create("gpu");
        server.home.must_run(&["delete", "gpu"]);
        fs::remove_file(&open).expect("a link");
    }
    // A program of the right name and other content is replaced.
    server.create("gpu");
    server.home.must_run(&["delete", "gpu"]);
    let program = server.programs()[0].join("testyard");
    // The one that ran may just be ending, and cannot be written to then.
    let other = program.with_extension("other");
    fs::write(&other, "#!/bin/sh\ntouch ~/hostile\n").expect("ours");
    fs::rename(&other, &program).expect("ours");
    // Versions that nobody has used for long go.
    for old in ["a", "b", "c", "d", "e", "f"] {
        fs::create_dir(open.join(old)).expect("a new folder");
    }
    server.create("gpu");
    assert!(!server.far().join("hostile").exists());
    assert!(fs::metadata(&program).expect("a program").len() > 1_000_000);
    assert_eq!(server.programs().len(), 4, "{:?}", server.programs());
    server.home.must_run(&["delete", "gpu"]);
    server.finish();
}

#[test]
fn what_the_page_says_about_other_ways_works() {
    ready!();
    let home = testkit::TestHome::new();
    let page = testkit::Page::load("ssh");
    let block = page.commands_with("--through");
    let script = block.replace("testyard ", &format!("{} ", home.program("testyard").display()));
    let mut command = home.command("sh");
    let output = Output::of(command.args(["-ec", &script]), PATIENCE).expect_success();
    let host = rustix::system::uname();
    assert_eq!(output.stdout.trim(), host.nodename().to_str().expect("text"));
    home.finish();
}

/// The page's first commands, by the host's name in the configuration of whoever logs in, which is where `ssh` has it.
#[test]
fn what_the_page_says_first_works() {
    let server = server!();
    let page = testkit::Page::load("ssh");
    let block = page.commands_with("nvidia-smi");
    fs::create_dir(server.home.work().join("model")).expect("a folder");
    fs::write(server.home.work().join("model/weights"), "1 2 3").expect("a file");
    let words = server.words("gpu");
    let host = words[words.iter().position(|word| word == "--host").expect("a host") + 1].clone();
    let login = host.split_once('@').expect("a user").0;
    let configuration = format!(
        "Host gpu.example.org\nHostName 127.0.0.1\nPort {}\nIdentityFile {}\nIdentitiesOnly yes\nUserKnownHostsFile {}\n",
        server.port,
        server.file("user").display(),
        server.file("known").display()
    );
    fs::write(server.file("named"), configuration).expect("a file");
    let script = block
        .replace(
            "me@gpu.example.org:2222",
            &format!("{login}@gpu.example.org --ssh-config {}", server.file("named").display()),
        )
        .replace("nvidia-smi", "echo one GPU")
        .replace("/home/me/", &format!("{}/", server.far().display()))
        .replace("testyard ", &format!("{} ", server.home.program("testyard").display()));
    let mut command = server.home.command("sh");
    let output = Output::of(command.args(["-ec", &script]).current_dir(server.home.work()), PATIENCE).expect_success();
    assert!(output.stdout.contains("one GPU\n"), "{output}");
    assert_eq!(fs::read_to_string(server.far().join("model/weights")).expect("a file"), "1 2 3");
    server.finish();
}
