use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::filter::Filter;
use crate::history::NoHistory;
use crate::result::TestResult;

/// A folder with these files; those that end in `.sh` are executable.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a file has one")).expect("made");
        fs::write(&path, text).expect("written");
        if path.extension().is_some_and(|ending| ending == "sh") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("changed");
        }
    }
    folder
}

fn load(folder: &TempDir, paths: &[&str], filter: &str) -> Result<Plan, PlanError> {
    let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
    let filter = if filter.is_empty() { Filter::All } else { Filter::parse(filter).expect(filter) };
    Plan::load(&paths, folder.path(), &Selection::of(filter), &NoHistory)
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.tests.iter().map(|test| test.name.as_str()).collect()
}

fn refused(folder: &TempDir, paths: &[&str], filter: &str) -> String {
    let error = load(folder, paths, filter).expect_err("refused");
    let problem = error.problem();
    let root = folder.path().canonicalize().expect("there").display().to_string();
    format!("{}\n{}", problem.message, problem.hints.join("\n")).replace(&root, "ROOT")
}

const SUITE: &str = r#"format = 1
[suite]
name = "mixed"
[[test]]
name = "inline"
command = "echo hi"
tags = ["fast"]
[[tests]]
glob = "tests/**/*.sh"
exclude = "tests/lib/**"
[[tests]]
glob = ["py/*.py"]
command = ["python3", "-m", "pytest", "{file}", "--name={stem}"]
"#;

fn mixed() -> TempDir {
    folder(&[
        ("testyard.toml", SUITE),
        ("tests/b.sh", ""),
        ("tests/a.sh", ""),
        ("tests/deep/er/c.sh", ""),
        ("tests/lib/shared.sh", ""),
        ("tests/.hidden/d.sh", ""),
        ("tests/notes.txt", ""),
        ("py/test_x.py", ""),
    ])
}

#[test]
fn globs_become_tests_sorted_and_templates_are_filled_in() {
    let folder = mixed();
    let plan = load(&folder, &[], "").expect("a plan");
    assert_eq!(names(&plan), ["inline", "tests/a.sh", "tests/b.sh", "tests/deep/er/c.sh", "py/test_x.py"]);
    assert_eq!(plan.tests[4].argv, ["python3", "-m", "pytest", "py/test_x.py", "--name=test_x"]);
    let root = folder.path().canonicalize().expect("there");
    assert_eq!(plan.tests[1].argv, [root.join("tests/a.sh").display().to_string()]);
    assert_eq!(plan.tests[1].isolation, Isolation::Namespace);
}

#[test]
fn paths_narrow_a_suite() {
    let folder = mixed();
    let of = |paths: &[&str]| names(&load(&folder, paths, "").expect("a plan")).join(" ");
    assert_eq!(of(&["tests/deep"]), "tests/deep/er/c.sh");
    assert_eq!(of(&["tests/a.sh", "py"]), "tests/a.sh py/test_x.py");
    assert_eq!(of(&["testyard.toml"]).split(' ').count(), 5);
    assert_eq!(of(&["tests/a.sh", "."]).split(' ').count(), 5);
    assert_eq!(
        refused(&folder, &["tests/notes.txt"], ""),
        "no test of suite `mixed` is at tests/notes.txt\ntestyard run --list shows the tests of a suite"
    );
    assert_eq!(refused(&folder, &["nowhere"], ""), "nowhere does not exist\ngive a suite's folder, or a test's file");
}

#[test]
fn suites_below_a_folder_are_found() {
    let one = "format = 1\n[[test]]\nname = \"t\"\ncommand = \"true\"\n";
    let folder = folder(&[("b/testyard.toml", one), ("a/x/testyard.toml", one), (".git/testyard.toml", "bad")]);
    let plan = load(&folder, &[], "").expect("a plan");
    assert_eq!(plan.suites.iter().map(|suite| suite.name.as_str()).collect::<Vec<_>>(), ["x", "b"]);
    let plan = load(&folder, &[], "suite(b)").expect("a plan");
    assert_eq!((plan.suites.len(), plan.tests[0].suite), (1, 0));
}

#[test]
fn a_filter_that_means_nothing_is_refused_with_the_nearest_name() {
    let folder = mixed();
    assert_eq!(
        names(&load(&folder, &[], "tag(fast) or name(~deep)").expect("a plan")),
        ["inline", "tests/deep/er/c.sh"]
    );
    assert_eq!(
        refused(&folder, &[], "inlien"),
        "nothing selected: none of 5 tests matches the filter\ndid you mean `inline`?"
    );
    assert_eq!(
        refused(&folder, &[], "tag(slow)"),
        "nothing selected: none of 5 tests matches the filter\ntestyard run --list shows every test and its tags"
    );
}

#[test]
fn files_that_are_wrong_are_refused_at_their_line() {
    let with =
        |rest: &str| folder(&[("testyard.toml", &format!("format = 1\n{rest}")), ("t/x.py", ""), ("t/y.sh", "")]);
    for (rest, expected) in [
        (
            "[[tests]]\nglob = \"t/*.rb\"",
            "ROOT/testyard.toml:3:8: `t/*.rb` matches no file below ROOT\ncorrect the pattern (`**/` also matches in folders below), or remove it",
        ),
        (
            "[[tests]]\nglob = \"t/*.py\"",
            "ROOT/testyard.toml:3:8: ROOT/t/x.py is not executable\nchmod +x ROOT/t/x.py, or give this [[tests]] a `command` with {file}",
        ),
        (
            "[[tests]]\nglob = \"t/*.sh\"\n[[tests]]\nglob = \"**/y.sh\"",
            "ROOT/testyard.toml:5:8: two tests are named `t/y.sh`; the first is in line 3\ngive one of them another name, or `exclude` its file",
        ),
        (
            "[[test]]\nname = \"a\"\ncommand = \"x\"\ncwd = \"u\"",
            "ROOT/testyard.toml:5:7: `cwd`: ROOT/u does not exist\ncreate it, or correct the path; paths begin at the suite's folder",
        ),
        (
            "[[test]]\nname = \"a\"\ncommand = \"x\"\ncwd = \"t/y.sh\"",
            "ROOT/testyard.toml:5:7: `cwd`: ROOT/t/y.sh is not a folder\ncreate it, or correct the path; paths begin at the suite's folder",
        ),
    ] {
        assert_eq!(refused(&with(rest), &[], ""), expected);
    }
    assert_eq!(
        refused(&folder(&[("readme", "")]), &[], ""),
        "no testyard.toml in ., above it or below it\nwrite one from what is there: testyard init; or give a path that has a testyard.toml"
    );
    let twice = "format = 1\n[suite]\nname = \"s\"\n[[test]]\nname = \"t\"\ncommand = \"true\"\n";
    assert!(
        refused(&folder(&[("a/testyard.toml", twice), ("b/testyard.toml", twice)]), &[], "")
            .starts_with("two suites are named `s`")
    );
}

#[test]
fn an_unknown_need_is_refused_at_its_place() {
    let folder = folder(&[(
        "testyard.toml",
        "format = 1\n[[test]]\nname = \"a\"\ncommand = \"x\"\nneeds = [\"qemu\", \"kmv\"]\n",
    )]);
    let plan = load(&folder, &[], "").expect("a plan");
    assert_eq!(plan.needs(), ["kmv", "qemu"]);
    let known = vec!["kvm".to_owned(), "qemu".to_owned()];
    let abilities =
        BTreeMap::from([("qemu".to_owned(), Ability::Available), ("kmv".to_owned(), Ability::Unknown(known))]);
    let problem = plan.check_needs(&abilities).expect_err("unknown").problem();
    assert!(problem.message.ends_with("testyard.toml:5:18: `needs` cannot be `kmv`"), "{}", problem.message);
    assert_eq!(problem.hints, ["did you mean `kvm`? It takes kvm, qemu"]);
}

#[test]
fn lists_for_people_and_programs() {
    let folder = mixed();
    let plan = load(&folder, &[], "inline or name(a.sh)").expect("a plan");
    let mut text = Vec::new();
    plan.list(&mut text).expect("written");
    let root = folder.path().canonicalize().expect("there").display().to_string();
    let text = String::from_utf8_lossy(&text).replace(&root, "ROOT");
    assert_eq!(text, "mixed (ROOT)\n    inline  [fast]\n    tests/a.sh\n2 tests in 1 suite\n");
    let mut json = Vec::new();
    plan.list_json(&mut json).expect("written");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("valid");
    assert_eq!((&json["version"], &json["tests"][0]["tags"][0]), (&1.into(), &"fast".into()));
}

#[test]
fn variants_are_tests_of_their_own_with_their_own_machine() {
    let suite = "format = 1\n[suite]\nname = \"m\"\nmatrix = { image = [\"host\", \"debian:12\"], env = [{ DB = \"a\" }] }\n\
                 [[test]]\nname = \"t\"\ncommand = \"x\"\nenv = { DB = \"own\" }\n\
                 [[quarantine]]\ntest = \"t\"\nowner = \"o\"\nreason = \"r\"\nuntil = 2000-01-01\n";
    let folder = folder(&[("testyard.toml", suite)]);
    let plan = load(&folder, &[], "").expect("a plan");
    assert_eq!(names(&plan), ["t[image=host,DB=a]", "t[image=debian:12,DB=a]"]);
    let second = &plan.tests[1];
    assert_eq!(second.image.as_ref().map(ToString::to_string).as_deref(), Some("debian:12"));
    assert_eq!((second.env["DB"].as_str(), second.plain_name(), second.quarantine), ("a", "t", Some(0)));
}

#[test]
fn a_quarantine_of_nothing_is_refused() {
    let suite = "format = 1\n[[test]]\nname = \"starts\"\ncommand = \"x\"\n\
                 [[quarantine]]\ntest = \"strats\"\nowner = \"o\"\nreason = \"r\"\nuntil = 2000-01-01\n";
    assert_eq!(
        refused(&folder(&[("testyard.toml", suite)]), &[], ""),
        "ROOT/testyard.toml:6:8: `strats` means no test of this suite\ndid you mean `starts`? Remove the entry if its test is gone"
    );
}

/// Knows how tests ended last, and how many seconds they take.
struct Past(Vec<(&'static str, &'static str, u64)>);

impl History for Past {
    fn known(&self, tests: &[TestKey<'_>]) -> Result<Vec<Known>, Problem> {
        let known = |key: &TestKey<'_>| {
            let (_, last, seconds) = self.0.iter().find(|(name, ..)| *name == key.name)?;
            Some(Known { duration: Some(Duration::from_secs(*seconds)), last: Some(last) })
        };
        Ok(tests.iter().map(|key| known(key).unwrap_or_default()).collect())
    }

    fn record(&self, _run: &str, _results: &[(TestKey<'_>, &TestResult)]) -> Result<(), Problem> {
        unreachable!("nothing is run")
    }

    fn remark(&self) -> Option<Problem> {
        None
    }
}

fn inline(names: &[&str]) -> TempDir {
    let tests: String = names.iter().map(|name| format!("[[test]]\nname = \"{name}\"\ncommand = \"x\"\n")).collect();
    folder(&[("testyard.toml", &format!("format = 1\n[suite]\nname = \"s\"\n{tests}"))])
}

fn select(folder: &TempDir, selection: &Selection, past: &Past) -> Result<Vec<String>, String> {
    let plan = Plan::load(&[], folder.path(), selection, past).map_err(|error| error.to_string())?;
    Ok(plan.tests.into_iter().map(|test| test.name).collect())
}

#[test]
fn results_of_earlier_runs_select() {
    let folder = inline(&["a", "b", "c", "d"]);
    let past = Past(vec![("a", "failed", 1), ("b", "flaky", 1), ("c", "timed-out", 1)]);
    let filter = |text: &str| Selection::of(Filter::parse(text).expect(text));
    assert_eq!(select(&folder, &filter("result(failed)"), &past).expect("some"), ["a", "c"]);
    assert_eq!(select(&folder, &filter("result(flaky) or result(none)"), &past).expect("some"), ["b", "d"]);
    let last_failed = Selection { last_failed: true, ..filter("not name(a)") };
    assert_eq!(select(&folder, &last_failed, &past).expect("some"), ["c"]);
    let none = select(&folder, &Selection { last_failed: true, ..filter("b") }, &past);
    let expected = "nothing selected: none of 4 tests matches the filter and failed in its last run";
    assert_eq!(none, Err(expected.to_owned()));
}

#[test]
fn shards_are_balanced_by_duration_have_each_test_once_and_are_always_the_same() {
    let folder = inline(&["a", "b", "c", "d", "e", "f"]);
    let past =
        Past(vec![("a", "passed", 10), ("b", "passed", 9), ("c", "passed", 8), ("d", "passed", 1), ("e", "passed", 2)]);
    let of = |text: &str, shard_by| {
        let shard = Some(text.parse().expect(text));
        let selection = Selection { shard, shard_by, ..Selection::of(Filter::All) };
        select(&folder, &selection, &past)
    };
    // What nobody knows, f, is taken for the usual 8 seconds.
    assert_eq!(of("1/3", ShardBy::Durations).expect("some"), ["a", "d"]);
    assert_eq!(of("2/3", ShardBy::Durations).expect("some"), ["b", "e"]);
    assert_eq!(of("3/3", ShardBy::Durations).expect("some"), ["c", "f"]);
    assert_eq!(of("1/2", ShardBy::Names).expect("some"), ["a", "c", "e"]);
    assert_eq!(of("2/2", ShardBy::Names).expect("some"), ["b", "d", "f"]);
    let empty = of("9/9", ShardBy::Durations);
    assert_eq!(empty, Err("nothing selected: none of 6 tests is in shard 9/9".to_owned()));
}

#[test]
fn repetitions_are_runs_of_their_own_of_the_same_test() {
    let folder = inline(&["a", "b"]);
    let twice = Selection { repeat: Some(2), ..Selection::of(Filter::All) };
    assert_eq!(select(&folder, &twice, &Past(Vec::new())).expect("some"), ["a #1", "b #1", "a #2", "b #2"]);
    let plan = Plan::load(&[], folder.path(), &twice, &NoHistory).expect("a plan");
    assert_eq!((plan.history_key(2).name, plan.tests[2].repetition), ("a", Some(2)));
    let many = Selection { repeat: Some(60_000), ..Selection::of(Filter::All) };
    let refused = select(&folder, &many, &Past(Vec::new()));
    assert_eq!(refused, Err("2 tests 60000 times are more than 100000 runs".to_owned()));
}

#[test]
fn what_a_change_concerns_is_told_by_declared_inputs() {
    let suite = "format = 1\n[[tests]]\nglob = \"*.sh\"\ninputs = [\"lib/**\", \"../shared/*.c\"]\n\
                 [[test]]\nname = \"anything\"\ncommand = \"x\"\n\
                 [[test]]\nname = \"other\"\ncommand = \"x\"\ninputs = \"docs/**\"\n";
    let folder = folder(&[
        ("s/testyard.toml", suite),
        ("s/a.sh", ""),
        ("s/b.sh", ""),
        ("s/lib/x/y.py", ""),
        ("shared/z.c", ""),
        ("s/docs/d.md", ""),
    ]);
    let git = |arguments: &[&str]| {
        let mut git = std::process::Command::new("git");
        git.arg("-C").arg(folder.path()).args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "commit.gpgsign=false",
        ]);
        let output = git.args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null").output().expect("git is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-qm", "one"]);
    let since = |reference: &str| {
        let selection = Selection { changed_since: Some(reference.to_owned()), ..Selection::of(Filter::All) };
        select(&folder, &selection, &Past(Vec::new()))
    };
    assert_eq!(since("HEAD").expect("some"), ["anything"], "what says nothing may depend on anything");
    fs::write(folder.path().join("s/b.sh"), "changed").expect("written");
    assert_eq!(since("HEAD").expect("some"), ["anything", "b.sh"]);
    fs::write(folder.path().join("shared/z.c"), "changed").expect("written");
    assert_eq!(since("HEAD").expect("some"), ["anything", "a.sh", "b.sh"]);
    git(&["commit", "-qam", "two"]);
    fs::write(folder.path().join("s/docs/new.md"), "untracked").expect("written");
    assert_eq!(since("HEAD").expect("some"), ["anything", "other"]);
    assert_eq!(since("HEAD~1").expect("some").len(), 4);
    let unknown = since("no-such").expect_err("git knows none");
    assert!(unknown.starts_with("cannot tell what changed since `no-such`"), "{unknown}");
    let option = since("--output=x").expect_err("it is no commit");
    assert!(option.starts_with("cannot tell what changed since `--output=x`"), "{option}");
}
