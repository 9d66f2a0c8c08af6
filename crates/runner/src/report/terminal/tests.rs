use std::sync::Mutex;

use testyard_model::{Isolation, ProblemKind, Usage};

use super::*;
use crate::capture::Captured;
use crate::filter::Filter;
use crate::history::NoHistory;
use crate::plan::Selection;
use crate::report::RunInfo;
use crate::result::{Aftermath, Failure, Outputs, TreeInfo};

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Screen {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("safe text")
    }
}

fn plan(folder: &tempfile::TempDir) -> Plan {
    let tests: String =
        ["a", "b", "c", "d"].iter().map(|name| format!("[[test]]\nname = \"{name}\"\ncommand = \"true\"\n")).collect();
    let text = format!("format = 1\n[suite]\nname = \"s\"\n{tests}");
    std::fs::write(folder.path().join("testyard.toml"), text).expect("written");
    Plan::load(&[], folder.path(), &Selection::of(Filter::All), &NoHistory).expect("a plan")
}

fn result(index: usize, name: &str, verdict: Verdict, stdout: &[u8]) -> Arc<TestResult> {
    let ran = !matches!(verdict, Verdict::Skipped(_) | Verdict::InfrastructureError { .. });
    Arc::new(TestResult {
        index,
        suite: "s".to_owned(),
        name: name.to_owned(),
        verdict,
        duration_us: if ran { 12_300 } else { 0 },
        attempts: Vec::new(),
        usage: Some(Usage::default()),
        isolation: Some(Isolation::Namespace),
        environment: ran.then(|| "namespace/m/e1".to_owned()),
        tree: None,
        source_changed: false,
        file: None,
        tags: Vec::new(),
        owner: None,
        stdout: None,
        stderr: None,
        aftermath: Aftermath::default(),
        variant: None,
        repetition: None,
        slow: false,
        quarantine: None,
        earlier: Vec::new(),
        services: Vec::new(),
        outputs: Outputs { stdout: Captured::of(stdout), stderr: Captured::default() },
    })
}

fn announcements() -> Vec<Announcement> {
    let missing = Verdict::Skipped(SkipReason::Missing {
        missing: "kvm".to_owned(),
        detail: "no vCPU runs here".to_owned(),
        hint: Some("testyard doctor".to_owned()),
    });
    let problem = Problem::new(ProblemKind::Unavailable, "machine gone").because("killed").hint("testyard reap");
    let results = [
        result(0, "a", Verdict::Passed, b""),
        result(1, "b", Verdict::Failed(Failure::Exit { code: 3 }), b"\x1b[31mred\x1b[0m\xff\x07 end"),
        result(2, "c", missing, b""),
        result(3, "d", Verdict::InfrastructureError { problem }, b""),
    ];
    let mut summary = RunSummary::of(results.iter().map(AsRef::as_ref), false);
    summary.duration_us = 1_234_567;
    let unhashed = vec!["x".to_owned()];
    let tree = Some("0123456789abcdef".to_owned());
    summary.trees = vec![TreeInfo { suite: "s".to_owned(), tree, unhashed, frozen: false }];
    let trees = summary.trees.clone();
    let info = RunInfo { run: "r".to_owned(), started_ms: 0, tests: 4, jobs: 2, trees, seed: None, shard: None };
    let mut all = vec![Announcement::RunStarted(info)];
    for result in results {
        all.push(Announcement::TestStarted { test: result.index, attempt: 1 });
        all.push(Announcement::TestFinished(result));
    }
    all.push(Announcement::RunFinished(Arc::new(summary)));
    all
}

fn shown(style: Style, width: u16) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = plan(&folder);
    let screen = Screen::default();
    let mut terminal =
        Terminal::new(Box::new(screen.clone()), Box::new(move || Some(Size { columns: width, rows: 24 })), style);
    for announcement in announcements() {
        terminal.take(&plan, Duration::from_secs(1), &announcement);
    }
    screen.text()
}

const PLAIN: Style = Style { live: false, color: false, passed: true, obeyed: false };

#[test]
fn plain_lines_then_each_failure_once_then_the_summary() {
    let expected = "\
running 4 tests of 1 suite, 2 at once
PASS        12ms  s::a
FAIL        12ms  s::b (exit code 3)
SKIP         0ms  s::c (needs kvm: no vCPU runs here)
ERROR        0ms  s::d (machine gone: killed)

==== failed s::b: exit code 3
ran 12ms in namespace/m/e1
---- stdout
red\u{fffd}\\x07 end

==== infrastructure-error s::d: machine gone: killed
hint: testyard reap

hint: testyard doctor
took 1.23s; 1 infrastructure error; tree 0123456789ab, 1 ignored files unhashed
1 passed, 1 failed, 1 skipped
";
    assert_eq!(shown(PLAIN, 80), expected);
}

/// What a terminal of these columns shows in the end of what was written to it, of the few sequences that are used.
fn screen(text: &str) -> Vec<String> {
    let mut lines: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column) = (0, 0);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '\r' => column = 0,
            '\n' => {
                (row, column) = (row + 1, 0);
                lines.resize(lines.len().max(row + 1), Vec::new());
            }
            '\x1b' => {
                let end = rest.find(|c: char| c.is_ascii_alphabetic()).expect("a whole sequence");
                match (&rest[1..end], &rest[end..=end]) {
                    (count, "A") => row -= count.parse::<usize>().expect("a number"),
                    ("", "K") => lines[row].truncate(column),
                    ("", "J") => {
                        lines[row].truncate(column);
                        lines.truncate(row + 1);
                    }
                    other => panic!("{other:?}"),
                }
                rest = &rest[end + 1..];
            }
            other => {
                lines[row].truncate(column);
                lines[row].push(other);
                column += 1;
            }
        }
    }
    lines.into_iter().map(String::from_iter).collect()
}

const LIVE: Style = Style { live: true, passed: false, ..PLAIN };

#[test]
fn a_live_terminal_shows_what_runs_and_erases_it() {
    let text = shown(LIVE, 60);
    assert!(text.contains("------------------------  0/4  0 running  0.0s\x1b[K"), "{text:?}");
    let lines = screen(&text);
    assert!(!text.contains("PASS") && lines[1].starts_with("FAIL"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains(" running  ")), "{lines:?}");
    assert_eq!(lines[lines.len() - 2..], ["1 passed, 1 failed, 1 skipped", ""]);
}

#[test]
fn who_asks_is_told_what_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = plan(&folder);
    let output = Screen::default();
    let mut terminal = Terminal::new(Box::new(output.clone()), Box::new(|| None), LIVE);
    let announcements = announcements();
    terminal.take(&plan, Duration::from_secs(1), &announcements[0]);
    for test in [0, 2] {
        terminal.take(&plan, Duration::from_secs(2), &Announcement::TestStarted { test, attempt: 1 });
    }
    let waits = Announcement::TestProgress { test: 2, event: JobEvent::Preparing("machine".to_owned()) };
    terminal.take(&plan, Duration::from_secs(2), &waits);
    for second in 3..14 {
        terminal.redraw(Duration::from_secs(second));
    }
    terminal.take(&plan, Duration::from_secs(14), &Announcement::Asked);
    terminal.redraw(Duration::from_secs(15));
    assert_eq!(
        screen(&output.text()),
        [
            "running 4 tests of 1 suite, 2 at once",
            "0 of 4 tests are done, 2 running",
            "     12s  s::a",
            "     12s  s::c (waits for machine)",
            "------------------------  0/4  2 running  14s",
            "     13s  s::a",
            "     13s  s::c (waits for machine)",
        ]
    );
    // Stopped and continued: the shell has written below what was drawn.
    output.0.lock().expect("no panic").extend_from_slice(b"\n[1]+  Stopped\n> fg\n");
    terminal.redraw(Duration::from_secs(60));
    let lines = screen(&output.text());
    assert_eq!(lines[7..10], ["[1]+  Stopped", "> fg", "------------------------  0/4  2 running  59s"]);
}

#[test]
fn what_a_test_printed_is_not_obeyed() {
    let text = shown(Style { obeyed: true, ..PLAIN }, 80);
    let lines: Vec<&str> = text.lines().collect();
    let stop = lines.iter().position(|line| line.starts_with("::stop-commands::")).expect("they are stopped");
    let word = &lines[stop][17..];
    assert_eq!(lines[stop + 1..stop + 3], ["red\u{fffd}\\x07 end", &format!("::{word}::")]);
    assert!(word.len() >= 32 && text.matches("::stop-commands::").count() == 1);
}

#[test]
fn colours_are_only_where_asked_for() {
    assert!(!shown(PLAIN, 80).contains('\x1b'));
    assert!(shown(Style { color: true, ..PLAIN }, 80).contains("\x1b[31mFAIL"));
}

#[test]
fn the_style_suits_the_output() {
    let style = |is_terminal, variables: &[(&str, &str)]| {
        let find =
            |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
        let Style { live, color, .. } = Style::detect(is_terminal, find);
        (live, color)
    };
    assert_eq!(style(true, &[("TERM", "xterm")]), (true, true));
    assert_eq!(style(true, &[("TERM", "xterm"), ("NO_COLOR", "1")]), (true, false));
    assert_eq!(style(true, &[("TERM", "xterm"), ("CI", "true")]), (false, true));
    assert_eq!(style(true, &[("TERM", "dumb")]), (false, false));
    assert_eq!(style(true, &[]), (false, false));
    assert_eq!(style(false, &[("TERM", "xterm")]), (false, false));
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let plan = plan(&folder);
    let mut terminal = Terminal::new(Box::new(Gone), Box::new(|| None), PLAIN);
    for announcement in announcements() {
        terminal.take(&plan, Duration::ZERO, &announcement);
    }
    assert!(terminal.closed);
}
