//! What stays after tests: outputs, artifacts, kept environments, prepared layers; frozen trees and watching. The real
//! binary, in a home of the test's own.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use testkit::{Output, TestHome, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// A home with a suite in `work/suite`.
struct Ground {
    home: TestHome,
    suite: PathBuf,
}

impl Ground {
    fn new(suite: &str, tests: &str) -> Self {
        let home = TestHome::new();
        let folder = home.work().join("suite");
        std::fs::create_dir(&folder).expect("the home is empty");
        let ground = Self { home, suite: folder };
        ground.write("testyard.toml", &format!("format = 1\n[suite]\nname = \"s\"\n{suite}\n{tests}"));
        ground
    }

    /// All of it is there at once: who watches runs what it sees.
    fn write(&self, name: &str, text: &str) {
        self.home.save(&self.suite.join(name), text);
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.suite.join(name)).unwrap_or_else(|error| format!("({error})"))
    }

    fn run(&self, more: &[&str]) -> Output {
        self.home.run_cli(&[&["run", "suite", "--json"], more].concat())
    }

    /// The results by their tests' names.
    fn results(&self, more: &[&str]) -> (Output, impl Fn(&str) -> Value + use<>) {
        let output = self.run(more);
        let results = output.json()["results"].as_array().cloned().unwrap_or_default();
        let find = move |name: &str| {
            results
                .iter()
                .find(|result| result["name"] == name)
                .cloned()
                .unwrap_or_else(|| panic!("no result of {name}"))
        };
        (output, find)
    }

    /// What is in the suite's folder, one level deep.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.suite).expect("a folder");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

/// The first lines that each failed test printed.
fn printed(output: &Output, lines: usize) -> Vec<String> {
    let texts = output.stderr.split("---- stdout\n").skip(1);
    texts.map(|text| text.lines().take(lines).map(|line| format!("{line}\n")).collect()).collect()
}

fn test(name: &str, command: &str, more: &str) -> String {
    format!("[[test]]\nname = \"{name}\"\ncommand = '''{command}'''\n{more}\n")
}

#[test]
fn outputs_come_back_and_artifacts_are_kept() {
    testkit::require_programs!();
    let tests = test(
        "both",
        "mkdir cov; echo new > cov/a.xml; chmod 4755 cov/a.xml; ln -s a.xml cov/l.xml; echo x > cov/b.txt; echo log > run.log",
        "outputs = [\"cov/*.xml\"]\nartifacts = [\"*.log\"]",
    ) + &test("fails", "echo again > snap; exit 1", "outputs = [\"snap\"]")
        + &test("late", "echo half > slow; sleep 100", "outputs = [\"slow\"]\ntimeout = \"300ms\"");
    let ground = Ground::new("", &tests);
    ground.write("snap", "before");
    let (output, result) = ground.results(&[]);
    assert_eq!(output.code, 1, "{output}");
    let both = result("both");
    assert_eq!(both["result"], "passed", "{both}");
    assert_eq!(ground.read("cov/a.xml"), "new\n");
    let mode = std::fs::metadata(ground.suite.join("cov/a.xml")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "setuid came out");
    assert_eq!(std::fs::read_link(ground.suite.join("cov/l.xml")).expect("a link"), PathBuf::from("a.xml"));
    assert!(!ground.suite.join("cov/b.txt").exists() && !ground.suite.join("slow").exists());
    assert_eq!(ground.read("snap"), "again\n", "those of a failed test come back, too");
    assert_eq!(both["returned"].as_array().map(Vec::len), Some(2), "{both}");
    let artifact = &both["artifacts"][0];
    assert_eq!((artifact["path"].as_str(), artifact["size"].as_u64()), (Some("run.log"), Some(4)), "{artifact}");
    assert_eq!(std::fs::read_to_string(artifact["file"].as_str().expect("a path")).expect("kept"), "log\n");
    // Nobody else's doing.
    assert_eq!(output.json()["summary"]["source_changed"], 0, "{output}");
    assert_eq!(ground.names(), ["cov", "snap", "testyard.toml"]);
    let files = &result("fails")["files"];
    assert_eq!(
        (files["changed"].as_u64(), files["entries"][0]["change"].as_str()),
        (Some(1), Some("changed")),
        "{files}"
    );
}

#[test]
fn artifacts_of_tests_in_the_tree_itself_are_kept_too() {
    testkit::require_programs!();
    let tests = test("plain", "echo log > plain.log", "isolation = \"none\"\nartifacts = [\"*.log\"]")
        + &test("place", "echo log > place.log", "isolation = \"workspace\"\nartifacts = [\"place.*\"]")
        + &test("fails", "echo log > failed.log; exit 1", "isolation = \"none\"\nartifacts = [\"failed.log\"]");
    let ground = Ground::new("", &tests);
    ground.write("old.log", "of another day");
    let written = std::time::Instant::now();
    assert!(wait_until(DEADLINE, || written.elapsed() > Duration::from_millis(50)));
    let (output, result) = ground.results(&["--jobs", "1"]);
    assert_eq!(output.code, 1, "{output}");
    for (name, file) in [("plain", "plain.log"), ("place", "place.log"), ("fails", "failed.log")] {
        let result = result(name);
        let kept = result["artifacts"].as_array().cloned().unwrap_or_default();
        assert_eq!(kept.iter().map(|one| one["path"].as_str()).collect::<Vec<_>>(), [Some(file)], "{result}");
        assert_eq!(std::fs::read_to_string(kept[0]["file"].as_str().expect("a path")).expect("kept"), "log\n");
    }
}

#[test]
fn outputs_that_lead_out_are_an_error_of_their_test() {
    testkit::require_programs!();
    let out = "outputs = [\"out/*\"]";
    let tests = test("link", "mkdir out; ln -s /etc/passwd out/l", out)
        + &test("folder", "ln -s /tmp out", out)
        + &test("pipe", "mkdir out; mkfifo out/p", out)
        + &test("way", "rm -rf linked; mkdir linked; echo x > linked/y", "outputs = [\"linked/*\"]")
        + &test("fine", "mkdir out; echo 1 > out/one", out);
    let ground = Ground::new("", &tests);
    std::os::unix::fs::symlink("/tmp", ground.suite.join("linked")).expect("a link");
    let (output, result) = ground.results(&["--jobs", "1"]);
    assert_eq!(output.code, 69, "{output}");
    for (name, message) in [
        ("link", "output `out/l` is a link to /etc/passwd, out of the working tree"),
        ("folder", "output pattern `out/*` goes through the link `out`"),
        ("pipe", "output `out/p` is a device, pipe or socket"),
        ("way", "output pattern `linked/*` goes through the link `linked`"),
    ] {
        let result = result(name);
        assert_eq!(result["result"], "infrastructure-error", "{result}");
        assert_eq!(result["problem"]["message"], message);
    }
    assert_eq!(result("fine")["result"], "passed");
    assert_eq!(ground.read("out/one"), "1\n");
}

#[test]
fn too_large_artifacts_stay_behind_and_the_result_stays() {
    testkit::require_programs!();
    let tests = test("large", "truncate -s 2G big.bin", "artifacts = [\"big.bin\"]");
    let ground = Ground::new("", &tests);
    let (output, result) = ground.results(&[]);
    let result = result("large");
    assert_eq!((output.code, result["result"].as_str()), (0, Some("passed")), "{output}");
    let message = result["problems"][0]["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!(message, "the test's artifacts are 2G together; at most 1G are kept");
}

#[test]
fn a_killed_runner_leaves_outputs_whole_or_not_at_all() {
    testkit::require_programs!();
    let tests =
        test("o", "for i in 1 2 3; do echo after > out$i; done", "outputs = [\"out*\"]\nartifacts = [\"out1\"]");
    for (step, after) in [
        ("runner.outputs-intent", "before"),
        ("runner.outputs-fetched", "before"),
        ("runner.outputs-moving", "after"),
        ("runner.artifacts", "before"),
    ] {
        let ground = Ground::new("", &tests);
        for number in 1..4 {
            ground.write(&format!("out{number}"), "before\n");
        }
        let mut command = ground.home.cli(&["run", "suite"]);
        let output = Output::of(command.env("TESTYARD_KILL_AT", step), DEADLINE);
        assert_ne!(output.code, 0, "{step}: {output}");
        ground.home.must_run(&["reap"]);
        for number in 1..4 {
            assert_eq!(ground.read(&format!("out{number}")), format!("{after}\n"), "{step}");
        }
        assert_eq!(ground.names(), ["out1", "out2", "out3", "testyard.toml"], "{step}");
    }
}

#[test]
fn a_failed_environment_is_kept_entered_compared_forked_and_deleted() {
    testkit::require_programs!();
    let tests = test("bad", "echo after > file; rm gone; echo 1 > /tmp/made; sleep 1000 & exit 3", "")
        + &test("good", "true", "");
    let ground = Ground::new("", &tests);
    ground.write("file", "before\n");
    ground.write("gone", "x");
    let (output, result) = ground.results(&["--keep-failed", "--keep-for", "20m"]);
    assert_eq!(output.code, 1, "{output}");
    let bad = result("bad");
    let name = bad["kept"]["environment"].as_str().unwrap_or_else(|| panic!("{bad}")).to_owned();
    assert_eq!(bad["kept"]["enter"], format!("testyard env enter {name}"));
    assert!(result("good").get("kept").is_none());
    let listed = ground.home.must_run(&["env", "list"]);
    assert!(listed.starts_with(&format!("{name}  s::bad  for 1")), "{listed}");
    let look = ground.home.must_run(&[
        "env",
        "enter",
        &name,
        "--",
        "sh",
        "-c",
        "cat file /tmp/made; ps ax | grep -c '[s]leep 1000'",
    ]);
    assert_eq!(look, "after\n1\n1\n");
    let diff = ground.home.must_run(&["env", "diff", &name, "--content"]);
    let suite = ground.suite.display();
    assert!(diff.contains(&format!("M {suite}/file  6\n  @@ -1 +1 @@\n  -before\n  +after\n")), "{diff}");
    assert!(diff.contains(&format!("D {suite}/gone")) && diff.contains("A /tmp/made  2\n"), "{diff}");
    let json = ground.home.run_cli(&["env", "diff", &name, "--json"]).expect_success().json();
    assert_eq!(json["changes"].as_array().map(Vec::len), Some(3), "{json}");
    let fork = ground.home.must_run(&["env", "fork", &name]).trim().to_owned();
    ground.home.must_run(&["env", "enter", &name, "--", "sh", "-c", "echo later > file"]);
    let look = ground.home.must_run(&[
        "env",
        "enter",
        &fork,
        "--",
        "sh",
        "-c",
        "cat file; ps ax | grep -c '[s]leep 1000' || true",
    ]);
    assert_eq!(look, "after\n0\n");
    ground.home.must_run(&["env", "delete", &name]);
    assert!(ground.home.must_run(&["env", "list"]).starts_with(&fork));
    let missing = ground.home.run_cli(&["env", "enter", &name, "--", "true"]);
    assert_eq!(missing.code, 2, "{missing}");
    assert!(missing.stderr.contains("is not kept") && missing.stderr.contains("testyard env list"), "{missing}");
    // What is stopped is gone, and its row with the next look.
    let machine = fork.split('/').next().expect("a machine");
    ground.home.must_run(&["stop", machine]);
    assert_eq!(ground.home.must_run(&["env", "list"]), "");
}

#[test]
fn a_kept_environment_ends_when_its_time_is_over() {
    testkit::require_programs!();
    let ground = Ground::new("", &test("bad", "exit 1", ""));
    let (_, result) = ground.results(&["--keep-failed", "--keep-for", "1s"]);
    assert!(result("bad")["kept"].is_object());
    assert!(wait_until(DEADLINE, || ground.home.must_run(&["env", "list"]).is_empty()));
}

#[test]
fn prepare_runs_once_a_key_and_its_files_lie_under_every_test() {
    testkit::require_programs!();
    let suite = "prepare = \"cat input > prepared; echo x > /etc/prepared; date +%N > stamp\"\ninputs = [\"input\"]\n\
                 restore = \"test -e /etc/prepared && exit 3\"\n[suite.defaults]\nuser = \"root\"";
    let look = "cat prepared /etc/prepared stamp; echo mine > prepared; exit 1";
    let ground = Ground::new(suite, &(test("a", look, "") + &test("b", look, "")));
    ground.write("input", "one\n");
    let stamps = || {
        let output = ground.run(&[]);
        let texts = printed(&output, 3);
        assert_eq!((texts.len(), &texts[0]), (2, &texts[1]), "{output}");
        assert!(output.stderr.contains("`restore` of suite `s` failed: exit code 3"), "{output}");
        texts[0].clone()
    };
    let first = stamps();
    assert!(first.starts_with("one\nx\n"), "{first}");
    assert_eq!(stamps(), first, "prepared again without need");
    ground.write("input", "two\n");
    let second = stamps();
    assert!(second.starts_with("two\nx\n"), "{second}");
    ground.write("input", "one\n");
    assert_eq!(stamps(), first, "the first layer is still there");
    assert_eq!(ground.names(), ["input", "testyard.toml"]);
}

#[test]
fn prepare_that_fails_is_one_clear_error() {
    testkit::require_programs!();
    let ground =
        Ground::new("prepare = \"echo no such thing; exit 7\"", &(test("a", "true", "") + &test("b", "true", "")));
    let (output, result) = ground.results(&["--jobs", "1"]);
    assert_eq!(output.code, 69, "{output}");
    for name in ["a", "b"] {
        let result = result(name);
        assert_eq!(result["result"], "infrastructure-error", "{result}");
        assert_eq!(result["problem"]["message"], "`prepare` of suite `s` failed: exit code 7");
        assert_eq!(result["attempts"].as_array().map(Vec::len), Some(1));
    }
    assert_eq!(output.stdout.matches("it wrote: no such thing").count(), 2, "once, as attempt and as result: {output}");
}

#[test]
fn a_frozen_source_is_the_tree_as_it_was() {
    testkit::require_programs!();
    let tests = test("look", "cat file; ls; sleep 0.3; cat file; exit 1", "");
    let ground = Ground::new("", &tests);
    ground.write("file", "one\n");
    ground.write(".gitignore", "ignored\n");
    ground.write("ignored", "x");
    let output = ground.run(&["--source", "frozen"]);
    assert_eq!(printed(&output, 4), ["one\nfile\ntestyard.toml\none\n"], "{output}");
    let tree = &output.json()["summary"]["trees"][0];
    assert_eq!((tree["frozen"].as_bool(), tree.get("unhashed")), (Some(true), None), "{tree}");
    let live = ground.run(&[]).json();
    assert_eq!(live["summary"]["trees"][0]["tree"], tree["tree"], "the same hash");
    assert_eq!(live["summary"]["trees"][0]["unhashed"][0], "ignored");
    let plain = ground.home.run_cli(&["run", "suite", "--source", "frozen"]);
    assert!(plain.stdout.contains(", frozen"), "{plain}");
    // A test that would see the tree itself is not run.
    let bare = Ground::new("", &test("bare", "true", "isolation = \"none\""));
    let skipped = bare.run(&["--source", "frozen"]);
    assert_eq!(skipped.code, 77, "{skipped}");
    assert!(skipped.stdout.contains("a frozen source"), "{skipped}");
}

#[test]
fn watching_runs_again_what_was_saved_and_what_failed() {
    testkit::require_programs!();
    watch("", &[]);
}

#[test]
fn watching_sends_what_was_saved_to_another_machine() {
    testkit::require_programs!();
    testkit::require!(testkit::Ability::UserNamespaces);
    watch("", &["--on", "far"]);
    watch("[sync]\nalways = true\n", &[]);
}

fn watch(suite: &str, place: &[&str]) {
    let tests = "[[tests]]\nglob = \"*.sh\"\ncommand = [\"sh\", \"{file}\"]\noutputs = [\"*.out\"]\n";
    let ground = Ground::new(suite, &(test("bad", "exit 1", "") + tests));
    if !place.is_empty() {
        ground.home.must_run(&["create", "far", "--backend", "command", "--through", "env", "--inside", "namespace"]);
    }
    for name in ["a.sh", "b.sh"] {
        ground.write(name, "true\n");
    }
    let mut command = ground.home.cli(&[&["run", "suite", "--watch"], place].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let mut until = |end: &str| -> Vec<String> {
        let mut seen = Vec::new();
        for line in lines.by_ref() {
            let last = line.contains(end);
            seen.push(line);
            if last {
                break;
            }
        }
        seen
    };
    let first = until("passed, 1 failed").join("\n");
    assert!(first.contains("s::a.sh") && first.contains("s::b.sh"), "{place:?}: {first}");
    // It waits once it has said so; a save before would be seen by the first look only.
    let ran = |seen: &[String]| -> Vec<String> {
        let mut ran: Vec<String> = seen
            .iter()
            .filter(|line| line.starts_with("PASS") || line.starts_with("FAIL"))
            .filter_map(|line| line.split("s::").nth(1)?.split_whitespace().next().map(str::to_owned))
            .collect();
        ran.sort();
        ran
    };
    ground.write("a.sh", "echo changed > a.out\n");
    let second = until("1 failed, 0 skipped");
    assert_eq!(ran(&second), ["a.sh", "bad"], "{place:?}: {second:?}");
    assert_eq!(ground.read("a.out"), "changed\n", "{place:?}: {second:?}");
    // What came back is no reason to run again.
    ground.write("c.sh", "cat a.out a.sh > c.out\n");
    let third = until("1 failed, 0 skipped");
    assert_eq!(ran(&third), ["bad", "c.sh"], "{place:?}: {third:?}");
    assert_eq!(ground.read("c.out"), "changed\necho changed > a.out\n", "{place:?}: {third:?}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it lives");
    assert_eq!(child.wait().expect("it ends").code(), Some(1), "{place:?}");
}

#[test]
fn a_shell_opens_where_a_test_failed_and_the_run_goes_on() {
    use std::io::{Read as _, Write as _};
    testkit::require_programs!();
    let ground = Ground::new("", &(test("bad", "echo left > here; exit 1", "") + &test("good", "sleep 0.2", "")));
    let piped = ground.home.run_cli(&["run", "suite", "--shell"]);
    assert!(piped.code == 2 && piped.stderr.contains("--shell needs a terminal"), "{piped}");
    let size = testyard_linux::terminal::Size { rows: 30, columns: 90 };
    let (controller, terminal) = testyard_linux::terminal::open_pty(size).expect("devpts is mounted");
    let stdio = || Stdio::from(terminal.try_clone().expect("descriptors are left"));
    let mut command = ground.home.cli(&["run", "suite", "--shell", "--jobs", "2"]);
    command.env("TERM", "vt100").stdin(stdio()).stdout(stdio()).stderr(stdio());
    let mut child = command.spawn().expect("built");
    drop((command, terminal));
    let mut controller = std::fs::File::from(controller);
    let (mut shown, mut typed) = (Vec::new(), false);
    let mut buffer = [0; 4096];
    // Reading ends with an error once nobody has the terminal open any more.
    while let Ok(count @ 1..) = controller.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..count]);
        if !typed && String::from_utf8_lossy(&shown).contains("a shell where s::bad failed") {
            typed = true;
            controller.write_all(b"echo it $(cat here) 6$((7 * 6))\nexit\n").expect("the terminal is open");
        }
    }
    let shown = String::from_utf8_lossy(&shown);
    assert_eq!(child.wait().expect("it ends").code(), Some(1), "{shown}");
    assert!(shown.contains("it left 642"), "{shown}");
    assert!(shown.trim_end().ends_with("1 passed, 1 failed, 0 skipped"), "{shown}");
    assert_eq!(ground.home.must_run(&["env", "list"]), "");
}

#[test]
fn what_a_served_test_leaves_comes_back_and_stays() {
    testkit::require_programs!();
    let service = "[[service]]\nname = \"up\"\ncommand = \"echo up > /tmp/up; echo ready; exec sleep 1000\"\n\
                   ready = { log = \"^ready$\" }\n";
    let more = "services = [\"up\"]\noutputs = [\"out\"]\nartifacts = [\"*.log\"]";
    let tests =
        test("bad", "cp /tmp/up out; echo said > its.log; exit 1", more) + &test("good", "cp /tmp/up out", more);
    let ground = Ground::new(service, &tests);
    let (output, result) = ground.results(&["--jobs", "1", "--keep-failed"]);
    assert_eq!(output.code, 1, "{output}");
    assert_eq!(ground.read("out"), "up\n");
    let bad = result("bad");
    assert_eq!(bad["artifacts"][0]["path"], "its.log", "{bad}");
    assert_eq!(bad["services"][0]["name"], "up", "{bad}");
    assert!(result("good")["kept"].is_null());
    let kept = bad["kept"]["environment"].as_str().expect("it is kept").to_owned();
    let inside = ground.home.must_run(&["env", "enter", &kept, "--", "cat", "/tmp/up", "its.log"]);
    assert_eq!(inside, "up\nsaid\n");
    ground.home.must_run(&["env", "delete", &kept]);
    assert_eq!(ground.home.must_run(&["env", "list"]), "");
}
