//! Working trees that a machine keeps: what travels, what is seen, what stays. The real binary, in a home of the test's
//! own.

mod faults;
mod page;

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use serde_json::Value;
use testkit::{Ability, TestHome, User};

/// Skips where only this crate was built, or this host isolates nothing.
macro_rules! ground {
    () => {{
        testkit::require_programs!();
        testkit::require!(Ability::UserNamespaces);
        $crate::Ground::new()
    }};
}
pub(crate) use ground;

/// A home with a running machine `m` and an empty tree in `work/tree`.
struct Ground {
    home: TestHome,
    tree: PathBuf,
}

impl Ground {
    fn new() -> Self {
        Self::of(User::current())
    }

    fn of(user: User) -> Self {
        let home = TestHome::of(user);
        let tree = home.work().join("tree");
        std::fs::create_dir(&tree).expect("the home is empty");
        home.give(&tree);
        home.must_run(&["create", "m", "--backend", "namespace"]);
        Self { home, tree }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.tree.join(name);
        std::fs::create_dir_all(path.parent().expect("it is below the tree")).expect("folders");
        std::fs::write(&path, text).expect("a file");
        self.home.give(&path);
    }

    /// [`Self::write`], all of it at once: who watches sends what it sees.
    fn save(&self, name: &str, text: &str) {
        self.home.save(&self.tree.join(name), text);
    }

    fn sync(&self) -> Value {
        self.home.run_cli(&["sync", "m", "tree", "--json"]).expect_success().json()["sync"].clone()
    }

    /// What a shell on the machine says, in the tree.
    fn inside(&self, script: &str) -> String {
        let script = format!("cd {:?} && {script}", self.tree);
        self.home.must_run(&["exec", "m", "--", "sh", "-c", &script])
    }
}

#[test]
fn a_machine_has_the_tree_as_it_is_and_what_it_writes_stays_there() {
    let ground = ground!();
    ground.write("sub/deep/file", "one");
    ground.write("script", "#!/bin/sh\necho ran");
    std::fs::set_permissions(ground.tree.join("script"), std::fs::Permissions::from_mode(0o750)).expect("ours");
    ground.write("empty", "");
    ground.write(".gitignore", "ignored\n");
    ground.write("ignored", "x");
    symlink("sub/deep/file", ground.tree.join("link")).expect("a link");
    std::fs::write(ground.tree.join(OsStr::from_bytes(b"odd\xff\n")), "odd").expect("a file");
    let report = ground.sync();
    assert_eq!((&report["known"], &report["files"]), (&false.into(), &6.into()), "{report}");
    assert_eq!(report["left_out"], serde_json::json!(["ignored"]));
    assert_eq!(
        ground.inside("cat link; ./script; cat odd*; test -f empty && ! test -e ignored && ls"),
        "oneran\noddempty\nlink\nodd?\nscript\nsub\n".replace("odd?", "odd\u{fffd}\n")
    );

    ground.inside("echo more >> sub/deep/file; rm script; echo new > new");
    assert_eq!(std::fs::read_to_string(ground.tree.join("sub/deep/file")).expect("a file"), "one");
    assert!(ground.tree.join("script").exists() && !ground.tree.join("new").exists());

    let again = ground.sync();
    assert_eq!((&again["known"], &again["hash"]), (&true.into(), &report["hash"]));
}

#[test]
fn only_what_changed_travels_and_who_is_there_keeps_the_old_tree() {
    let ground = ground!();
    for number in 0..200 {
        ground.write(&format!("many/{number}.py"), &format!("value = {number}\n"));
    }
    ground.write("gone/only", "x");
    ground.write("was-file", "x");
    ground.write("was-folder/file", "x");
    assert_eq!(ground.sync()["sent_files"], 203);
    // It stands in the old tree while the new one comes.
    let script = format!("cd {:?} && echo there > /tmp/there && cat /tmp/go && cat many/7.py", ground.tree);
    ground.inside("mkfifo /tmp/go");
    let mut old = ground.home.cli(&["exec", "m", "--", "sh", "-c", &script]);
    let old = old.stdout(std::process::Stdio::piped()).spawn().expect("it is started");
    ground.inside("while ! test -e /tmp/there; do :; done");

    ground.write("many/7.py", "value = 'changed'\n");
    std::fs::remove_file(ground.tree.join("gone/only")).expect("it was there");
    std::fs::remove_dir(ground.tree.join("gone")).expect("it is empty");
    std::fs::remove_file(ground.tree.join("was-file")).expect("it was there");
    ground.write("was-file/now", "folder");
    std::fs::remove_file(ground.tree.join("was-folder/file")).expect("it was there");
    std::fs::remove_dir(ground.tree.join("was-folder")).expect("it is empty");
    ground.write("was-folder", "file");
    let report = ground.sync();
    assert_eq!(report["sent_files"], 3, "{report}");
    assert!(report["sent_bytes"].as_u64().is_some_and(|bytes| bytes < 2000), "{report}");
    assert_eq!(
        ground.inside("cat many/7.py was-file/now was-folder; ls; ls many | wc -l"),
        "value = 'changed'\nfolderfilemany\nwas-file\nwas-folder\n200\n"
    );
    ground.inside("echo > /tmp/go");
    let output = old.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "\nvalue = 7\n");
}

#[test]
fn history_travels_without_what_could_be_a_secret() {
    testkit::require!(Ability::Program("git"));
    let ground = ground!();
    let git = |arguments: &[&str]| {
        let mut command = ground.home.command("git");
        let identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"];
        command.current_dir(&ground.tree).args(identity).args(arguments);
        testkit::Output::of(&mut command, std::time::Duration::from_secs(30)).expect_success()
    };
    ground.write("file", "one");
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "first"]);
    git(&["tag", "-a", "v1.2", "-m", "release"]);
    git(&["config", "http.extraheader", "Authorization: secret"]);
    std::fs::write(ground.tree.join(".git/hooks/post-checkout"), "#!/bin/sh\n").expect("a hook");
    ground.write("file", "two");
    git(&["commit", "-q", "-a", "-m", "second"]);

    ground.sync();
    assert_eq!(ground.inside("ls -A"), "file\n");
    let output = ground.home.run_cli(&["sync", "m", "tree", "--git-history", "--json"]).expect_success().json();
    assert_eq!(output["sync"]["known"], false, "{output}");
    let told = ground.inside("git describe --dirty --tags --long; git log --oneline | wc -l; git status --porcelain");
    assert!(told.starts_with("v1.2-1-g") && !told.contains("dirty") && told.ends_with("\n2\n"), "{told}");
    assert_eq!(ground.inside("ls .git/hooks 2>/dev/null; grep -c secret .git/config || true"), "0\n");
    // The hash of the files is the same, with history or without.
    assert_eq!(ground.sync()["hash"], output["sync"]["hash"]);
}

/// A home with a suite in `work/suite` that asks for copies.
fn suite(home: &TestHome, sync: &str, tests: &str) -> PathBuf {
    let folder = home.work().join("suite");
    std::fs::create_dir(&folder).expect("the home is empty");
    let text = format!("format = 1\n[suite]\nname = \"s\"\n[sync]\n{sync}\n{tests}");
    std::fs::write(folder.join("testyard.toml"), text).expect("a file");
    folder
}

#[test]
fn a_suite_runs_on_copies_and_its_outputs_come_back() {
    testkit::require_programs!();
    testkit::require!(Ability::UserNamespaces);
    let home = TestHome::new();
    let tests = "[[test]]\nname = \"t\"\noutputs = [\"out\"]\ncommand = \"cat value | tee out; echo scratch > value; ls\"\n\
                 [[test]]\nname = \"u\"\ncommand = \"cat value; exit 1\"";
    let folder = suite(&home, "always = true", tests);
    std::fs::write(folder.join("value"), "one").expect("a file");
    std::fs::write(folder.join(".gitignore"), "secret\n").expect("a file");
    std::fs::write(folder.join("secret"), "x").expect("a file");
    let run = || home.run_cli(&["run", "suite", "--json"]).json();
    let first = run();
    let result = |report: &Value, name: &str| {
        let results = report["results"].as_array().expect("results").clone();
        results.into_iter().find(|result| result["name"] == name).expect("it ran")
    };
    assert_eq!(result(&first, "t")["result"], "passed", "{first}");
    assert_eq!(std::fs::read_to_string(folder.join("out")).expect("it came back"), "one");
    assert_eq!(std::fs::read_to_string(folder.join("value")).expect("a file"), "one");
    assert_eq!(result(&first, "u")["result"], "failed");

    std::fs::write(folder.join("value"), "two").expect("a file");
    let second = run();
    assert_eq!(result(&second, "t")["result"], "passed", "{second}");
    assert_eq!(std::fs::read_to_string(folder.join("out")).expect("it came back"), "two");
    assert_ne!(result(&first, "u")["tree"], result(&second, "u")["tree"]);
}

#[test]
fn a_machine_elsewhere_keeps_the_tree_and_runs_tests_on_it() {
    let ground = ground!();
    ground.home.must_run(&["create", "far", "--backend", "command", "--through", "env", "--inside", "namespace"]);
    ground.write("value", "one");
    let told = |arguments: &[&str]| ground.home.run_cli(arguments).expect_success().json();
    assert_eq!(told(&["sync", "far", "tree", "--json"])["sync"]["sent_files"], 1);
    ground.write("value", "two");
    // That host's view of this path is this host's: what is seen is the copy.
    let value = ground.tree.join("value").display().to_string();
    assert_eq!(ground.home.must_run(&["exec", "far", "--", "cat", &value]), "one");
    let again = told(&["sync", "far", "tree", "--json"]);
    assert_eq!(again["sync"]["sent_files"], 1, "{again}");
    assert_eq!(ground.home.must_run(&["exec", "far", "--", "cat", &value]), "two");

    let tests = "[[test]]\nname = \"t\"\noutputs = [\"out\"]\ncommand = \"cat value | tee out\"";
    let folder = suite(&ground.home, "", tests);
    std::fs::write(folder.join("value"), "three").expect("a file");
    let report = ground.home.run_cli(&["run", "suite", "--json", "--on", "far"]).json();
    assert_eq!(report["results"][0]["result"], "passed", "{report}");
    assert_eq!(std::fs::read_to_string(folder.join("out")).expect("it came back"), "three");
}

/// A way to another host that writes down how much has gone there.
const COUNTER: &str = r"
import os, subprocess, sys
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE)
told, total = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o600), 0
while block := os.read(0, 65536):
    child.stdin.write(block)
    child.stdin.flush()
    total += len(block)
    os.pwrite(told, b'%020d' % total, 0)
child.stdin.close()
child.wait()
";

/// So many bytes are in that source.
const SIZE: u64 = 2_000_000;

#[test]
fn a_run_sends_the_source_once_a_machine() {
    let ground = ground!();
    let counter = ground.home.work().join("counter.py");
    std::fs::write(&counter, COUNTER).expect("a file");
    let count = |name: &str| ground.home.work().join(name);
    for name in ["n1", "n2"] {
        let through = format!("python3 {} {}", counter.display(), count(name).display());
        let create = ["create", name, "--backend", "command", "--inside", "namespace", "--through", &through];
        ground.home.must_run(&create);
    }
    let sent = || {
        ["n1", "n2"].map(|name| {
            let text = std::fs::read_to_string(count(name)).expect("it counts");
            text.parse::<u64>().expect("a number")
        })
    };
    let tests = (0..12).map(|index| format!("[[test]]\nname = \"t{index}\"\ncommand = \"test -s noise\"\n"));
    let folder = suite(&ground.home, "", &tests.collect::<String>());
    let mut noise = vec![0; SIZE as usize];
    let random = std::fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut noise));
    random.and_then(|()| std::fs::write(folder.join("noise"), noise)).expect("nothing packs it");
    // Everything at first, then what changed.
    for (bytes, text) in [(SIZE..SIZE * 3 / 2, "one"), (0..SIZE / 4, "two")] {
        std::fs::write(folder.join("value"), text).expect("a file");
        let before = sent();
        let report = ground.home.run_cli(&["run", "suite", "--json", "--on", "n1,n2", "--jobs", "2"]).expect_success();
        let machines = report.json()["results"].as_array().expect("results").clone();
        assert_eq!(machines.len(), 12, "{report}");
        for (machine, (after, before)) in sent().into_iter().zip(before).enumerate() {
            assert!(bytes.contains(&(after - before)), "{machine}: {} bytes, {bytes:?}: {report}", after - before);
        }
    }
}

#[test]
fn an_ordinary_user_has_the_tree_as_their_own() {
    testkit::require_programs!();
    testkit::require!(Ability::UserNamespaces);
    testkit::require!(Ability::OrdinaryUser);
    let ground = Ground::of(User::ordinary().expect("just required"));
    ground.write("value", "one");
    assert_eq!(ground.sync()["sent_files"], 1);
    ground.write("value", "two");
    ground.write("more", "");
    assert_eq!(ground.sync()["sent_files"], 2);
    assert_eq!(
        ground.inside("cat value; test -O value && test -O . && rm more && echo x > value && cat value"),
        "twox\n"
    );
    // The next one is exactly the tree again.
    ground.write("other", "");
    ground.sync();
    assert_eq!(ground.inside("cat value; ls"), "twomore\nother\nvalue\n");
}

/// A machine with one id: whoever else is to have the files is refused, and nothing is sent. Runs name nobody.
#[test]
fn a_tree_belongs_to_nobody_who_is_not_there() {
    if !testkit::programs::are_built() {
        testkit::skip!(module_path!(), "the agent is not built: cargo build -p testyard-agent");
    }
    testkit::require!(Ability::UserNamespaces);
    testkit::require!(Ability::OrdinaryUser);
    let ground = Ground::of(User::ordinary().expect("just required"));
    let home = &ground.home;
    home.must_run(&["create", "far", "--backend", "command", "--through", "env", "--inside", "namespace"]);
    ground.write("value", "one");
    let own = home.user().uid.to_string();
    for machine in ["m", "far"] {
        let sync = |user: &[&str]| home.run_cli(&[&["sync", machine, "tree", "--json"], user].concat());
        // Before the machine has the tree, and when it has it.
        for known in [false, true] {
            for user in ["4242", "www-data", &format!("{own}:4242")] {
                let refused = sync(&["--user", user]);
                assert_ne!(refused.code, 0, "{machine}, {user}: {refused}");
                assert!(refused.stderr.contains("the machine has one user id"), "{machine}, {user}: {refused}");
                assert!(refused.stderr.contains("hint: leave --user out"), "{machine}, {user}: {refused}");
            }
            for user in [&[][..], &["--user", own.as_str()], &["--user", "root"]] {
                let told = sync(user).expect_success().json()["sync"].clone();
                assert!(known || !user.is_empty() || told["sent_files"] == 1, "nothing was sent before: {told}");
            }
        }
        let value = ground.tree.join("value").display().to_string();
        let looked = home.must_run(&["exec", machine, "--", "sh", "-c", &format!("cat {value}; test -O {value}")]);
        assert_eq!(looked, "one");
    }
    let folder = suite(home, "always = true", "[[test]]\nname = \"t\"\ncommand = \"test -O value\"");
    std::fs::write(folder.join("value"), "one").expect("a file");
    for path in [folder.clone(), folder.join("testyard.toml"), folder.join("value")] {
        home.give(&path);
    }
    for place in [&[][..], &["--on", "m"], &["--on", "far"]] {
        let report = home.run_cli(&[&["run", "suite", "--json"], place].concat()).json();
        assert_eq!(report["results"][0]["result"], "passed", "{place:?}: {report}");
    }
}

/// Keys of who runs this lie in the tree, where git ignores none of them.
#[test]
fn secrets_of_this_host_stay_here() {
    let mut ground = ground!();
    let own = ground.home.path().join("home");
    ground.tree = own.clone();
    for (name, text) in [(".ssh/id_x", "key"), (".aws/credentials", "key"), (".netrc", "key"), ("notes/.netrc", "")] {
        ground.write(name, text);
    }
    let path = own.display().to_string();
    let report = ground.home.run_cli(&["sync", "m", &path, "--json"]).expect_success().json()["sync"].clone();
    assert_eq!(report["left_out"], serde_json::json!([".aws", ".netrc", ".ssh"]), "{report}");
    assert_eq!((&report["files"], &report["sent_files"]), (&1.into(), &1.into()), "{report}");
    assert_eq!(ground.inside("find . -type f"), "./notes/.netrc\n");

    let look = "find . -type f -name .netrc -o -name id_x -o -name credentials";
    let tests = format!("[[test]]\nname = \"t\"\ncommand = \"{look}; exit 1\"\n");
    ground.write("testyard.toml", &format!("format = 1\n{tests}"));
    for source in ["synced", "frozen"] {
        let said = ground.home.run_cli(&["run", &path, "--source", source]);
        let seen: Vec<&str> = said.stdout.lines().filter(|line| line.starts_with("./")).collect();
        assert_eq!(seen, ["./notes/.netrc"], "{source}: {said}");
    }
}
