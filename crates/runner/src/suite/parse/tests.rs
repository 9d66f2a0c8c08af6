use std::path::Path;

use proptest::prelude::*;

use super::super::{CommandLine, ConfigError, SuiteFile};
use super::parse;
use crate::suite::keys;

fn read(text: &str) -> Result<SuiteFile, ConfigError> {
    parse(text, Path::new("testyard.toml"))
}

/// Everything that a suite file can say.
const FULL: &str = r##"format = 1
run = { jobs = 4, fail-fast = true, no-skip = false }

[suite]
name = "full"
backend = "namespace"
image = "debian:12"

[suite.defaults]
isolation = "namespace"
timeout = "1m30s"
env = { LANG = "C" }
tags = ["all"]

[[test]]
name = "one"
command = ["sh", "-c", "exit 0"]
needs = ["kvm"]
network = "outbound"
env = { A = "1", LANG = "de" }
resources = { cpus = 0.5, memory = "512M", pids = 100, disk = 1048576, exclusive = ["db"] }
user = "root"
cwd = "sub"
tags = "slow"
owner = "ana"
retries = 2
outputs = ["cov/*.xml"]

[[test]]
name = "two"
command = "echo hi | cat"
isolation = "none"

[[tests]]
glob = ["tests/*.py", "more/**/*.py"]
exclude = "tests/conftest.py"
command = ["python3", "-m", "pytest", "{file}"]
"##;

#[test]
fn reads_everything() {
    let file = read(FULL).expect("a valid file");
    assert_eq!(file.tests.len(), 2);
    let one = file.tests[0].settings.over(&file.defaults);
    assert_eq!(one.timeout_ms, Some(90_000));
    assert_eq!(one.env["LANG"], "de");
    assert_eq!(one.tags, ["all", "slow"]);
    assert_eq!(one.resources.disk.map(|size| size.0), Some(1 << 20));
    assert_eq!(file.tests[1].command, CommandLine::Shell("echo hi | cat".to_owned()));
    assert_eq!(file.tests[1].command.argv(), ["/bin/sh", "-c", "echo hi | cat"]);
    assert_eq!(file.globs[0].globs.len(), 2);
    assert_eq!(file.run.jobs, Some(4));
}

#[test]
fn each_mistake_is_one_error_with_place_and_next_step() {
    let test = "format = 1\n[[test]]\nname = \"a\"\ncommand = [\"true\"]\n";
    for (text, message, hint) in [
        ("", "testyard.toml:1:1: a suite file has no `format`", "add `format = 1` as the first line"),
        (
            "format = 2",
            "testyard.toml:1:10: `format`: version 2 is not known; this Testyard reads version 1",
            "install a newer",
        ),
        ("format = 1\n", "testyard.toml:1:1: this suite has no tests", "add [[test]]"),
        ("format = 1\n[[tset]]\n", "testyard.toml:2:3: unknown key `tset` in a suite file", "did you mean `test`?"),
        (
            &format!("{test}comand = 1"),
            "testyard.toml:5:1: unknown key `comand` in [[test]]",
            "did you mean `command`?",
        ),
        (
            &format!("{test}xyzzy = 1"),
            "testyard.toml:5:1: unknown key `xyzzy` in [[test]]",
            "[[test]] takes name, command",
        ),
        (
            &format!("{test}timeout = 5"),
            "testyard.toml:5:11: `timeout` must be a string, not a whole number",
            "write a string",
        ),
        (
            &format!("{test}timeout = \"5\""),
            "testyard.toml:5:11: `timeout`: `5` is not a time span: write",
            "write timeout = \"90s\"",
        ),
        (
            &format!("{test}isolation = \"namespaces\""),
            "testyard.toml:5:13: `isolation` cannot be `namespaces`",
            "did you mean `namespace`?",
        ),
        (
            &format!("{test}isolation = \"none\"\nnetwork = \"private\""),
            "testyard.toml:6:11: isolation `none` and `workspace` share",
            "remove `network`",
        ),
        (
            &format!("{test}resources = {{ cpus = -1 }}"),
            "testyard.toml:5:22: `cpus`: -1 is out of range",
            "write a number above 0",
        ),
        (
            &format!("{test}resources = {{ memory = \"big\" }}"),
            "testyard.toml:5:24: `memory`: `big` is not a size",
            "write a size",
        ),
        (
            &format!("{test}resources = {{ mem = 1 }}"),
            "testyard.toml:5:15: unknown key `mem` in resources",
            "did you mean `memory`?",
        ),
        (
            &format!("{test}env = {{ A = 1 }}"),
            "testyard.toml:5:13: `A` must be a string (write the value in quotes)",
            "write a string",
        ),
        (
            &format!("{test}env = {{ \"A=B\" = \"1\" }}"),
            "testyard.toml:5:9: `env`: \"A=B\" cannot be a variable's name",
            "names are",
        ),
        (
            &format!("{test}tags = [1]"),
            "testyard.toml:5:9: `tags` must be an array of strings only, not a whole number",
            "write",
        ),
        (
            &format!("{test}{}", &test[11..]),
            "testyard.toml:6:8: two tests are named `a`; the first is in line 3",
            "give one",
        ),
        (
            "format = 1\n[[test]]\nname = \"a\"",
            "testyard.toml:2:1: [[test]] has no `command`",
            "add a line such as command",
        ),
        (
            "format = 1\n[[test]]\ncommand = \"x\"",
            "testyard.toml:2:1: [[test]] has no `name`",
            "add a line such as name",
        ),
        (
            "format = 1\n[test]\nname = \"a\"",
            "testyard.toml:2:1: `test` must be an array of tables: write [[…]] with two",
            "write an array",
        ),
        ("format = 1\n[[test]]\nname = \"\"", "testyard.toml:3:8: `name`: a name cannot be empty", "write a short"),
        (
            "format = 1\n[[test]]\nname = \"a\\nb\"",
            "testyard.toml:3:8: `name`: a name cannot contain '\\n'",
            "write a short",
        ),
        (
            "format = 1\n[[test]]\nname = \"a\"\ncommand = []",
            "testyard.toml:4:11: `command`: a command needs at least a program",
            "write command",
        ),
        (
            "format = 1\n[[tests]]\nglob = \"../x\"",
            "testyard.toml:3:8: `../x` is not a valid pattern: it leads out",
            "patterns take",
        ),
        (
            "format = 1\n[[tests]]\nglob = \"a[\"",
            "testyard.toml:3:8: `a[` is not a valid pattern: unclosed",
            "patterns take",
        ),
        (
            "format = 1\n[[tests]]\nglob = \"a\"\ncommand = \"x {fiel}\"",
            "testyard.toml:4:11: `command` cannot be `{fiel}`",
            "did you mean `{file}`?",
        ),
        (
            "format = 1\n[[tests]]\nglob = \"a\"\ncommand = \"x\"",
            "testyard.toml:4:11: `command`: would run the same for every file",
            "say where",
        ),
        (
            "format = 1\n[suite]\nbackend = \"host\"\nimage = \"debian:12\"",
            "testyard.toml:4:9: backend `host` runs on this host",
            "remove `image`",
        ),
        (
            "format = 1\n[suite]\nbackend = \"host\"\n[suite.defaults]\nisolation = \"namespace\"",
            "testyard.toml:5:13: backend `host` gives at most",
            "write backend",
        ),
        ("format = 1\nsuite = 3", "testyard.toml:2:9: `suite` must be a table, not a whole number", "write a table"),
        ("format = \n", "testyard.toml:1:10: not valid TOML: ", "see https://toml.io"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.to_string().starts_with(message), "for {text:?}:\n  got  {error}\n  want {message}");
        let shown = error.fault().hint().unwrap_or_default();
        assert!(shown.starts_with(hint), "for {text:?}: hint {shown:?}, wanted {hint:?}");
        assert!(!error.render(false).contains('\x1b'), "colour was not asked for");
    }
}

#[test]
fn an_error_is_shown_with_its_line() {
    let error = read("format = 1\n[[test]]\nname = \"a\"\ncomand = 1\n").expect_err("unknown key");
    let expected = "\
error: unknown key `comand` in [[test]]
 --> testyard.toml:4:1
  |
4 | comand = 1
  | ^^^^^^
  |
  = hint: did you mean `command`?
";
    assert_eq!(error.render(false), expected);
    assert!(error.render(true).contains('\x1b'));
}

#[test]
fn a_tests_own_weaker_isolation_overrides_the_suites_network() {
    let text = "format = 1\n[suite.defaults]\nnetwork = \"private\"\n[[test]]\nname = \"a\"\ncommand = \"true\"\nisolation = \"none\"\n";
    assert!(read(text).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        if let Err(error) = read(&text) {
            let _ = error.render(false);
        }
    }

    #[test]
    fn any_toml_like_text_is_read_or_refused(text in "(format = 1\n)?((\\[\\[?)?[a-z.\"']{0,6}\\]?\\]?( = )?[\\[{\"0-9a-zä\\\\,}\\]\\r]{0,8}\n){0,8}") {
        if let Err(error) = read(&text) {
            let _ = error.render(true);
        }
    }

    #[test]
    fn a_damaged_file_is_read_or_refused(at in 0..FULL.len(), length in 0_usize..20, with in "[ -~\n\r\tä\u{0}]{0,6}") {
        let end = (at + length).min(FULL.len());
        let text = format!("{}{with}{}", &FULL[..at], &FULL[end..]);
        if let Err(error) = read(&text) {
            let shown = error.render(false);
            prop_assert!(shown.starts_with("error: "));
        }
    }
}

#[test]
fn the_documented_file_is_valid_and_names_every_key() {
    let page = include_str!("../../../../../docs/suite.md");
    let example = page.split("```").find_map(|block| block.strip_prefix("toml\n")).expect("the page has an example");
    read(example).unwrap_or_else(|error| panic!("{}", error.render(false)));
    let tables =
        [keys::TOP, keys::SUITE, keys::RUN, keys::RESOURCES, keys::TEST, keys::GLOB, keys::QUARANTINE, keys::MATRIX];
    for key in tables.concat() {
        assert!(example.contains(key), "docs/suite.md does not show `{key}`");
    }
}

#[test]
fn a_cluster_is_one_that_tests_can_reach() {
    let page = include_str!("../../../../../docs/suite.md");
    let example = page.split("```").find_map(|block| block.strip_prefix("toml\n")).expect("the page has an example");
    for key in keys::CLUSTER {
        assert!(example.contains(key), "docs/suite.md does not show `{key}`");
    }
    let with = |rest: &str| read(&format!("format = 1\n[[test]]\nname = \"t\"\ncommand = \"x\"\n{rest}"));
    let cluster = with("cluster = true\n[cluster]\nnodes = 200").expect("valid").cluster.expect("it is written");
    assert_eq!((cluster.nodes, cluster.source, cluster.cpus), (200, true, None));
    for (rest, expected, line) in [
        ("cluster = true", "this suite has no cluster", 5),
        (
            "cluster = true\nnetwork = \"none\"\n[cluster]",
            "a test reaches the suite's cluster on the host's loopback, and this one has another network",
            5,
        ),
        ("[cluster]\nkind = \"pbs\"", "`kind`: \"pbs\" is no kind of cluster", 6),
    ] {
        let error = with(rest).expect_err(rest);
        assert_eq!((error.fault().to_string().as_str(), error.place().0), (expected, line), "{rest}");
    }
    for wrong in ["nodes = 0", "nodes = 201", "cpus = 0", "node = 1", "memory = \"much\""] {
        assert!(with(&format!("[cluster]\n{wrong}")).is_err(), "{wrong}");
    }
}

#[test]
fn a_matrix_is_every_combination_less_the_excluded_and_with_the_included() {
    let with = |matrix: &str| {
        read(&format!("format = 1\n[suite]\nmatrix = {{ {matrix} }}\n[[test]]\nname=\"t\"\ncommand=\"x\"\n"))
    };
    let labels = |matrix: &str| {
        let file = with(matrix).unwrap_or_else(|error| panic!("{}", error.render(false)));
        file.variants.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        labels("image = [\"host\", \"debian:12\"], env = [{ DB = \"a\" }, { DB = \"b\", X = \"1\" }]"),
        ["image=host,DB=a", "image=host,DB=b,X=1", "image=debian:12,DB=a", "image=debian:12,DB=b,X=1"]
    );
    assert_eq!(
        labels(
            "backend = [\"host\", \"namespace\"], image = [\"host\", \"debian:12\"], exclude = [{ backend = \"host\", image = \"debian:12\" }], include = [{ env = { SLOW = \"1\" } }]"
        ),
        ["image=host,backend=host", "image=host,backend=namespace", "image=debian:12,backend=namespace", "SLOW=1"]
    );
    for (matrix, expected) in [
        ("image = []", "`matrix`: an axis has no value"),
        ("backend = [\"host\", \"host\"]", "`matrix`: an axis has a value twice"),
        ("", "`matrix`: leaves no variant"),
        ("imgae = [\"host\"]", "unknown key `imgae` in suite.matrix"),
        ("env = [\"A=b\"]", "`env` must be an array of tables such as [{ DB = \"a\" }, { DB = \"b\" }], not a string"),
        ("image = [\"host\"], exclude = [{ image = \"debian:12\" }]", "no variant is such a one"),
        ("image = [\"host\"], exclude = [{ }]", "exclude has no `image`"),
        ("image = [\"host\"], include = [{ image = \"host\" }]", "this variant is there already"),
        (
            "backend = [\"host\"], image = [\"debian:12\"]",
            "`matrix`: variant `image=debian:12,backend=host` cannot be: backend `host` starts from no image",
        ),
    ] {
        let error = with(matrix).expect_err(matrix);
        assert_eq!((error.fault().to_string().as_str(), error.place().0), (expected, 3), "{matrix}");
    }
}

#[test]
fn a_quarantine_says_who_why_and_until_when() {
    let with =
        |entry: &str| read(&format!("format = 1\n[[test]]\nname = \"t\"\ncommand = \"x\"\n[[quarantine]]\n{entry}"));
    let whole = "test = \"t*\"\nowner = \"ana\"\nreason = \"flaky mirror\"\nuntil = ";
    for day in ["2027-03-31", "\"2027-03-31\""] {
        let file = with(&format!("{whole}{day}")).expect("valid");
        assert_eq!(file.quarantine[0].until.value.to_string(), "2027-03-31");
    }
    for (entry, expected, line) in [
        (format!("{whole}\"soon\""), "`until`: is no day of the calendar", 9),
        (format!("{whole}2027-03-31T10:00:00"), "`until`: is a time, not a day", 9),
        (format!("{whole}7"), "`until` must be a day such as 2027-03-31, not a whole number", 9),
        ("test = \"t\"\nowner = \"ana\"\nreason = \"x\"".to_owned(), "[[quarantine]] has no `until`", 5),
        ("test = \"t\"\nowner = \" \"".to_owned(), "`owner`: cannot be empty", 7),
        ("test = \"[\"".to_owned(), "`[` is not a valid pattern: unclosed character class; missing ']'", 6),
    ] {
        let error = with(&entry).expect_err(&entry);
        assert_eq!((error.fault().to_string().as_str(), error.place().0), (expected, line), "{entry}");
    }
}

#[test]
fn the_documented_services_are_valid_and_name_every_key() {
    let page = include_str!("../../../../../docs/services.md");
    let example = page.split("```").find_map(|block| block.strip_prefix("toml\n")).expect("the page has an example");
    let file = read(example).unwrap_or_else(|error| panic!("{}", error.render(false)));
    for key in [keys::SERVICE, keys::READY, keys::STOP].concat() {
        assert!(example.contains(key), "docs/services.md does not show `{key}`");
    }
    let used = |test: usize| {
        let settings = file.tests[test].settings.over(&file.defaults);
        let names: Vec<String> = settings.services.into_iter().flatten().map(|name| name.value).collect();
        let order = crate::suite::order(&file, &names);
        order.into_iter().map(|place| file.services[place].name.value.clone()).collect::<Vec<_>>()
    };
    assert_eq!(used(0), ["db", "shop", "catalogue"]);
    assert_eq!(used(1), [""; 0], "none is not the default");
}
