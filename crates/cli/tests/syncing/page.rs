//! `docs/sync.md`: every command of the page is run, and the suite file that it shows.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::{Ability, Output, TestHome};

/// A command in the tree, with `testyard` among its programs.
fn bash(home: &TestHome, line: &str) -> Command {
    let programs = home.program("testyard").parent().expect("a folder").display().to_string();
    let mut command = home.command("/bin/bash");
    command.current_dir(home.work().join("tree")).args(["-e", "-c", line]);
    command.env("PATH", format!("{programs}:/usr/local/bin:/usr/bin:/bin"));
    command
}

fn must(home: &TestHome, line: &str) -> String {
    Output::of(&mut bash(home, line), Duration::from_secs(60)).expect_success().stdout
}

#[test]
fn the_pages_commands_work_as_written() {
    testkit::require_programs!();
    testkit::require!(Ability::UserNamespaces);
    testkit::require!(Ability::Program("git"));
    let home = TestHome::new();
    let tree = home.work().join("tree");
    std::fs::create_dir(&tree).expect("the home is empty");
    let write = |name: &str, text: &str| std::fs::write(tree.join(name), text).expect("ours");
    write("value", "one\n");
    write("ignored", "");
    write(".gitignore", "ignored\n");
    let git = "git -c user.name=t -c user.email=t@example.org";
    must(&home, &format!("git init -q; git add .; {git} commit -q -m first; {git} tag -a v1.2 -m release"));

    let page = testkit::Page::load("sync");
    let mut lines = page.first("sh").lines();
    for expected in ["", "", "value\n"] {
        let line = lines.next().expect("a command");
        assert_eq!(must(&home, line), expected, "{line}");
    }
    watch(&home, lines.next().expect("a command"));
    assert_eq!((lines.next(), must(&home, "testyard exec m1 -- cat \"$PWD/value\"")), (None, "three\n".to_owned()));

    suites(&home, page.first("toml"));
    home.finish();
}

/// It sends what is saved until it is interrupted.
fn watch(home: &TestHome, line: &str) {
    let mut command = bash(home, &format!("exec {line}"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut said = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(said.next().is_some_and(|line| line.contains("nothing to send")));
    // Each save is seen, whether it comes before there is a watch or after it.
    for value in ["two\n", "three\n"] {
        std::fs::write(home.work().join("tree/value"), value).expect("ours");
        let line = said.next();
        assert!(line.as_ref().is_some_and(|line| line.contains("sent 1 file")), "{line:?}");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .expect("it lives");
    assert_eq!(child.wait().expect("ours").code(), Some(0));
}

/// What the page says of suites: copies where they ask for it, or the run does, with git's history where that is wanted.
fn suites(home: &TestHome, sync: &str) {
    let suite = |sync: &str, command: &str| {
        let text = format!("format = 1\n{sync}\n[[test]]\nname = \"t\"\ncommand = '''{command}'''\n");
        std::fs::write(home.work().join("tree/testyard.toml"), text).expect("ours");
    };
    let copied = "test -f value && ! test -e ignored";
    suite(sync, &format!("{copied} && git describe --tags | grep -q ^v1.2"));
    must(home, "testyard run --no-skip");
    // Otherwise it is the tree itself, or a copy without history.
    suite("", "test -e ignored && test -d .git");
    must(home, "testyard run --no-skip");
    suite("", &format!("{copied} && ! test -e .git"));
    must(home, "testyard run --no-skip --source synced");
    // Whom the files belong to there, where there is more than one user.
    if testkit::user::is_host_root() {
        must(home, "testyard sync m1 --user 1000");
        assert_eq!(must(home, "testyard exec m1 -- stat -c %u \"$PWD/value\""), "1000\n");
    }
}
