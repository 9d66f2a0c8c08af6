use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

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
    Plan::load(&paths, folder.path(), &filter)
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
        "no testyard.toml in ., above it or below it\nwrite a testyard.toml there (see docs/suite.md), or give a path that has one"
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
