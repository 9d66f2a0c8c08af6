//! The probes, really made on this host, by this program run again: which is why it has its own `main`.

mod constructed;

use std::path::Path;
use std::process::{Command, ExitCode};

use testyard_probe::{Answer, Prober, Report, abilities, probe_child};

/// Every test of this program; `cargo test` and others find them by these names.
const TESTS: [(&str, fn()); 6] = [
    ("every_probe_answers_and_leaves_nothing", every_probe_answers_and_leaves_nothing),
    ("root_without_the_right_to_administer", constructed::root_without_the_right_to_administer),
    ("a_container_that_covers_parts_of_proc", constructed::a_container_that_covers_parts_of_proc),
    ("a_container_without_user_namespaces", constructed::a_container_without_user_namespaces),
    ("a_container_with_few_devices", constructed::a_container_with_few_devices),
    ("a_container_whose_filter_hides_clone3", constructed::a_container_whose_filter_hides_clone3),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let folder = || Path::new(arguments.get(2).map_or("/nonexistent", String::as_str));
    match arguments.get(1).map(String::as_str) {
        Some("probe-child") => probe_child(arguments.get(2).map_or("", String::as_str)),
        // What the tests of constructed hosts run inside of these, and what a person may run there.
        Some("json") => {
            let report = prober(folder()).load().expect("this program can be started");
            write(&serde_json::to_string(&report).expect("plain data"));
            return ExitCode::SUCCESS;
        }
        Some("show") => {
            show(&prober(folder()).load().expect("this program can be started"));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    // What test runners ask a program with a `main` of its own.
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let is_wanted = |name: &str| {
        let is_filter = |argument: &&String| !argument.starts_with('-') && *argument != "terse";
        let mut filters = arguments.iter().skip(1).filter(is_filter).peekable();
        filters.peek().is_none()
            || filters.any(|filter| if has("--exact") { filter == name } else { name.contains(filter.as_str()) })
    };
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS.into_iter().filter(|(name, _)| is_wanted(name) && !has("--ignored")) {
        if has("--list") {
            write(&format!("{name}: test\n"));
        } else {
            let ended = std::panic::catch_unwind(test);
            write(&format!("test {name} ... {}\n", if ended.is_ok() { "ok" } else { "FAILED" }));
            if ended.is_ok() { passed += 1 } else { failed += 1 }
        }
    }
    if !has("--list") {
        let word = if failed == 0 { "ok" } else { "FAILED" };
        write(&format!("test result: {word}. {passed} passed; {failed} failed; 0 ignored\n"));
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn prober(state: &Path) -> Prober {
    Prober::new(std::env::current_exe().expect("this program has a path"), state)
}

/// The report that this program makes, run again with a folder for its state and one for temporary files.
fn report_apart(state: &Path, temporary: &Path) -> Report {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new(program).arg("json").arg(state).env("TMPDIR", temporary).output();
    serde_json::from_slice(&output.expect("it can be started").stdout).expect("a report")
}

/// Mounts over the folders that probes mount over, in their own namespaces; others may mount elsewhere meanwhile.
fn covered() -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let points = ["/tmp", "/mnt", "/run", "/var", "/var/tmp"];
    table.lines().filter(|line| line.split(' ').nth(4).is_some_and(|point| points.contains(&point))).count()
}

fn every_probe_answers_and_leaves_nothing() {
    let state = tempfile::tempdir().expect("a temporary folder");
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let mounts = covered();
    let report = report_apart(state.path(), temporary.path());
    assert_eq!(report.probes.len(), abilities().len());
    for (probe, ability) in report.probes.iter().zip(abilities()) {
        assert_eq!(probe.ability, ability.name);
        assert!(!probe.reason.is_empty(), "{probe:?}");
        assert!(probe.answer == Answer::No || probe.provide.is_none(), "{probe:?}");
        assert!(!probe.reason.contains("ended early"), "{probe:?}");
    }
    assert!(!report.tier.reason.is_empty());
    assert_eq!(covered(), mounts);
    assert_eq!(std::fs::read_dir(temporary.path()).expect("listed").count(), 0);

    let again = report_apart(state.path(), temporary.path());
    let answers = |report: &Report| -> Vec<(String, Answer, u64)> {
        report.probes.iter().map(|probe| (probe.ability.clone(), probe.answer, probe.millis)).collect()
    };
    assert_eq!(answers(&report), answers(&again), "the answers were kept, down to their times");
}

fn show(report: &Report) {
    write(&format!("{:?}\n{:?}\n", report.host, report.tier));
    for probe in &report.probes {
        let Probe { answer, millis, ability, reason } = line(probe);
        write(&format!("{answer:3} {millis:5} ms {ability:22} {reason}\n"));
    }
}

struct Probe {
    answer: &'static str,
    millis: u64,
    ability: String,
    reason: String,
}

fn line(probe: &testyard_probe::Probe) -> Probe {
    let mut reason = probe.reason.clone();
    for (word, more) in [("detail", &probe.detail), ("provide", &probe.provide)] {
        if let Some(more) = more {
            reason = format!("{reason}\n      {word}: {more}");
        }
    }
    let answer = if probe.answer == Answer::Yes { "yes" } else { "no" };
    Probe { answer, millis: probe.millis, ability: probe.ability.clone(), reason }
}

fn write(text: &str) {
    use std::io::Write;
    std::io::stdout().write_all(text.as_bytes()).expect("somebody reads it");
}
