//! JUnit, TAP, GitHub's annotations and summary, Chrome's trace.

use std::process::Command;

use testkit::Ability;
use testyard_runner::report::ReportKind;

use crate::{rendered, sample};

#[test]
fn junit_is_valid_against_the_common_schema() {
    testkit::require!(Ability::Program("xmllint"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("junit.xml");
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reports/junit.xsd");
    for record in [sample::every_kind(), sample::many(1_000)] {
        std::fs::write(&path, rendered(ReportKind::Junit, &record)).expect("written");
        let output = Command::new("xmllint").args(["--noout", "--schema", schema]).arg(&path).output();
        let output = output.expect("just required");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn junit_tells_repetitions_as_surefire_does() {
    let xml = rendered(ReportKind::Junit, &sample::every_kind());
    for expected in [
        "<testsuites name=\"testyard\" time=\"2.0",
        "tests=\"11\" failures=\"4\" errors=\"1\">",
        "skipped=\"2\" tests=\"9\" failures=\"4\" errors=\"1\">",
        "timestamp=\"2026-09-21T14:13:20Z\"",
        "<flakyFailure message=\"exit code 1\" type=\"failed\">\n        <system-out>&lt;/script&gt;",
        "</flakyFailure>\n      \
         <flakyError message=\"machine m1 is gone: killed\" type=\"infrastructure-error\"/>\n    </testcase>",
        "<failure message=\"exit code 2\" type=\"failed\"/>\n      \
         <rerunError message=\"machine m1 is gone: killed\" type=\"infrastructure-error\"/>\n      \
         <rerunFailure message=\"exit code 4\" type=\"failed\">\n        <system-out>last</system-out>",
        "<skipped message=\"needs kvm: no vCPU runs here\" type=\"skipped\">testyard doctor</skipped>",
        "<property name=\"testyard.tree\" value=\"9f86d081884c7d659a2feaa0c55ad015\"/>",
        "value=\"ana &amp; co\"/>",
        "group=\"slow,net\"",
    ] {
        assert!(xml.contains(expected), "{expected}\n{xml}");
    }
    assert!(!xml.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{ffff}'), "XML cannot hold those");
}

#[test]
fn tap_has_a_point_for_each_test() {
    let text = rendered(ReportKind::Tap, &sample::every_kind());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["TAP version 14", "1..11", "ok 1 - shop::passes"]);
    let points: Vec<&&str> =
        lines.iter().filter(|line| line.starts_with("ok ") || line.starts_with("not ok ")).collect();
    assert_eq!(points.len(), 11);
    assert!(points[1].starts_with("not ok 2 - shop::</script>") && points[1].contains("\\#%"), "{}", points[1]);
    assert_eq!(**points[4], *"ok 5 - shop::wants kvm # SKIP needs kvm: no vCPU runs here");
    assert_eq!(**points[7], *"ok 8 - shop::flaky");
    assert!(
        text.contains("ok 8 - shop::flaky\n  ---\n  result: \"flaky\"\n") && text.contains("  attempts: 3\n  ...\n")
    );
    assert!(points[10].starts_with(concat!(
        "not ok 11 - other::known to fail # TO",
        "DO in quarantine until 2026-12-01 (bo: <mirror>"
    )));
    for line in lines {
        assert!(!line.contains('\u{1b}') && (line.starts_with("  ") || !line.contains("forged")), "{line}");
    }
}

#[test]
fn annotations_are_one_line_each_and_cannot_be_forged() {
    let text = rendered(ReportKind::Github, &sample::every_kind());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    assert!(lines.iter().all(|line| line.starts_with("::error ") || line.starts_with("::warning ")), "{text}");
    assert!(
        lines[0].starts_with("::error file=/src/shop/tests/a%2Cb%3Ac.sh,line=1,title=shop%3A%3A</script>"),
        "{text}"
    );
    assert!(
        lines[0].contains("::exit code 3%0A---- stdout%0A") && lines[0].contains("%0A::error::forged%0Ared"),
        "{text}"
    );
    assert_eq!(lines[5], "::warning title=flaky test::shop::flaky passed at attempt 3");
    let many = rendered(ReportKind::Github, &sample::many(10_000));
    assert!(many.lines().count() < 200 && many.contains("::950 more failures"), "{}", many.lines().count());
}

#[test]
fn a_jobs_summary_fits_and_holds_no_markup_of_tests() {
    let text = rendered(ReportKind::Markdown, &sample::every_kind());
    assert!(
        text.starts_with("## ❌ shop, other\n\n| passed | flaky | failed | quarantined | skipped | errors | took |\n"),
        "{text}"
    );
    assert!(text.contains("| 2 | 1 | 4 | 1 | 2 | 1 |"), "{text}");
    assert!(
        text.contains("In quarantine until 2026-12-01: <code>other::known to fail</code> (bo: &lt;mirror"),
        "{text}"
    );
    assert!(!text.contains("<img") && !text.contains("<script"), "{text}");
    assert!(text.contains("- <code>shop::flaky</code>: passed at attempt 3"), "{text}");
    let many = rendered(ReportKind::Markdown, &sample::many(10_000));
    assert!(many.len() < 1 << 20, "{} bytes", many.len());
}

#[test]
fn a_trace_has_a_span_for_each_attempt() {
    let text = rendered(ReportKind::Trace, &sample::every_kind());
    let trace: serde_json::Value = serde_json::from_str(&text).expect("one document");
    let events = trace["traceEvents"].as_array().expect("a list");
    let spans: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert_eq!(spans.len(), 13, "nine tests ran, two of them three times");
    assert_eq!((&spans[0]["ts"], &spans[0]["dur"], &spans[0]["tid"]), (&0.into(), &25_900.into(), &0.into()));
    let names: Vec<_> = events.iter().filter(|event| event["name"] == "process_name").collect();
    assert_eq!(names.len(), 2);
    assert_eq!(names[0]["args"]["name"], "namespace/m1");
}
