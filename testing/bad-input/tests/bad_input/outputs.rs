//! What tests do to their output: too much of it, none of it as text, streams closed, held, or dropped by a signal.

use std::process::{Child, Stdio};

use serde_json::Value;
use testkit::{Output, TestHome};

use crate::{DEADLINE, wait};

const GIBIBYTE: u64 = 1 << 30;
/// The most memory that the runner may ever have used, in kilobytes.
const MEMORY: u64 = 50 << 10;

fn suite(home: &TestHome, tests: &[(String, String)]) {
    let mut text = "format = 1\n[suite]\nname = 's'\n[suite.defaults]\ntimeout = '60s'\n".to_owned();
    for (name, command) in tests {
        text.push_str(&format!("[[test]]\nname = '{name}'\ncommand = '''{command}'''\n"));
    }
    std::fs::write(home.work().join("testyard.toml"), text).expect("the home is ours");
}

fn one(name: &str, command: &str) -> (String, String) {
    (name.to_owned(), command.to_owned())
}

/// Runs the suite; what people see, and each test's result by its name.
fn run(home: &TestHome) -> (Output, impl Fn(&str) -> Value + use<>) {
    let output = Output::of(&mut home.cli(&["run"]), DEADLINE);
    let told = home.run_cli(&["report", "--json"]).expect_success().json();
    let result = move |name: &str| {
        let results = told["results"].as_array().expect("a list");
        results.iter().find(|result| result["name"] == name).unwrap_or_else(|| panic!("{name}: {told}")).clone()
    };
    (output, result)
}

/// The most memory that a child of ours used while it ran, in kilobytes.
fn memory_until_its_end(child: &mut Child) -> u64 {
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    wait("its end", || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok());
        most = most.max(now.unwrap_or(0));
        child.try_wait().expect("our child").is_some()
    });
    most
}

#[test]
fn a_gibibyte_is_kept_and_the_runner_stays_small() {
    let home = TestHome::new();
    suite(
        &home,
        &[one("flood", "yes 0123456789abcde | head -c 1073741824; echo end >&2; exit 1"), one("good", "true")],
    );
    let reports = ["junit=j.xml", "html=h.html", "jsonl=l.jsonl", "tap=t.tap", "markdown=m.md"];
    let mut command = home.cli(&["run", "--jobs", "2"]);
    command.args(reports.iter().flat_map(|report| ["--report", report]));
    let shown = std::fs::File::create(home.work().join("shown")).expect("ours");
    let mut child = command.stdout(shown).stderr(Stdio::null()).spawn().expect("the binary was built");
    let memory = memory_until_its_end(&mut child);
    assert_eq!(child.wait().expect("our child").code(), Some(1));
    println!("the runner used at most {} KiB", memory);
    assert!(memory > 0 && memory < MEMORY, "{memory} KiB");

    let told = home.run_cli(&["report", "--json"]).expect_success().json();
    let stdout = &told["results"][0]["stdout"];
    assert_eq!((&stdout["bytes"], &stdout["lost"]), (&GIBIBYTE.into(), &Value::Null), "nothing is lost");
    let file = stdout["file"].as_str().expect("too much to hold");
    assert_eq!(std::fs::metadata(file).expect("it is kept").len(), GIBIBYTE);
    let shown = std::fs::read_to_string(home.work().join("shown")).expect("text");
    assert!(shown.len() < 4 << 20, "nobody reads {} bytes on a terminal", shown.len());
    for words in ["bytes left out ...]", &format!("[raw output: {file}]"), "---- stderr\nend\n", "1 passed, 1 failed"] {
        assert!(shown.contains(words), "{words}");
    }
    for report in reports {
        let size =
            std::fs::metadata(home.work().join(report.split_once('=').expect("a file").1)).expect("written").len();
        assert!(size < 1 << 20, "{report}: {size} bytes");
    }
    home.finish();
}

#[test]
fn what_is_no_text_is_shown_as_such() {
    let home = TestHome::new();
    let tests = [
        one("no newline", "printf last; exit 1"),
        one("binary", r"printf '\000\001\377\376\200end'; exit 1"),
        one("escapes", r"printf '\033[2J\033[31mred\033[0m\033]0;title\007\033[?1049h\r\010back'; exit 1"),
        one("nothing", "exit 1"),
    ];
    suite(&home, &tests);
    let (output, result) = run(&home);
    assert_eq!(output.code, 1, "{output}");
    assert!(!output.stdout.contains(['\u{1b}', '\0', '\u{8}']), "a test cannot write to our terminal: {output}");
    assert!(output.stdout.contains("---- stdout\nlast\n\n"), "the next line begins where it should: {output}");
    assert!(output.stdout.contains("==== failed s::nothing: exit code 1\n"), "{output}");
    assert!(output.stdout.contains("(no output)\n"), "{output}");
    assert_eq!(result("no newline")["stdout"]["text"], "last");
    assert_eq!(result("binary")["stdout"]["text"], "\\x00\\x01\u{fffd}\u{fffd}\u{fffd}end");
    assert_eq!(result("binary")["stdout"]["bytes"], 8);
    assert_eq!(result("escapes")["stdout"]["text"], "red\n\\x08back");
    home.finish();
}

#[test]
fn closed_and_held_streams_do_not_hold_a_test() {
    let home = TestHome::new();
    suite(
        &home,
        &[
            one("closes", "echo before; exec <&- >&- 2>&-; exit 4"),
            one("closes and passes", "exec <&- >&- 2>&-; exit 0"),
            one("daemon", "echo started; setsid sleep 1071 & exit 6"),
            one("daemon passes", "(setsid sh -c 'sleep 1071; echo late' &) ; echo fine"),
        ],
    );
    let (output, result) = run(&home);
    assert_eq!(output.code, 1, "{output}");
    assert!(output.stdout.contains("2 passed, 2 failed, 0 skipped"), "{output}");
    assert_eq!((&result("closes")["code"], &result("closes")["stdout"]["text"]), (&4.into(), &"before\n".into()));
    assert_eq!((&result("daemon")["code"], &result("daemon")["stdout"]["text"]), (&6.into(), &"started\n".into()));
    for name in ["closes", "daemon", "daemon passes"] {
        assert!(result(name)["duration_us"].as_u64().expect("it ran") < 30_000_000, "{name} was waited for");
    }
    wait("the daemons' end", || !crate::runs::runs("1071"));
    home.finish();
}

#[test]
fn a_death_by_each_signal_is_told_by_its_name() {
    // Those that end a process unless it says otherwise; the real-time signals stand for their kind.
    const DEADLY: [(i32, &str); 24] = [
        (1, "HUP"),
        (2, "INT"),
        (3, "QUIT"),
        (4, "ILL"),
        (5, "TRAP"),
        (6, "ABRT"),
        (7, "BUS"),
        (8, "FPE"),
        (9, "KILL"),
        (10, "USR1"),
        (11, "SEGV"),
        (12, "USR2"),
        (13, "PIPE"),
        (14, "ALRM"),
        (15, "TERM"),
        (16, "STKFLT"),
        (24, "XCPU"),
        (25, "XFSZ"),
        (26, "VTALRM"),
        (27, "PROF"),
        (29, "IO"),
        (30, "PWR"),
        (31, "SYS"),
        (40, ""),
    ];
    let home = TestHome::new();
    let tests: Vec<_> = DEADLY
        .iter()
        .map(|(number, _)| {
            (format!("signal {number}"), format!("ulimit -c 0; echo before {number}; kill -{number} $$; sleep 9"))
        })
        .collect();
    suite(&home, &tests);
    let (output, result) = run(&home);
    assert_eq!(output.code, 1, "{output}");
    assert!(output.stdout.contains("0 passed, 24 failed, 0 skipped"), "{output}");
    for (number, name) in DEADLY {
        let told = result(&format!("signal {number}"));
        assert_eq!((&told["cause"], &told["signal"]), (&"signal".into(), &number.into()), "{told}");
        assert_eq!(told["stdout"]["text"], format!("before {number}\n"), "{told}");
        let named = if name.is_empty() { format!("signal {number}") } else { format!("signal {number} (SIG{name})") };
        assert!(output.stdout.contains(&format!("==== failed s::signal {number}: {named}\n")), "{named}: {output}");
    }
    home.finish();
}
