//! JUnit's XML, as continuous integration systems read it: exactly the elements and attributes that Jenkins' schema
//! has, and repetitions as Surefire writes them. Written by hand and as it is made, so that no document is ever held
//! in memory.

use std::fmt::Display;
use std::io::{self, Write};

use super::record::RunRecord;
use super::{safe_ends, safe_line};
use crate::result::{Attempt, Outputs, TestResult, Verdict};

/// Bytes of one stream that go into the file; of more, the ends do.
const STREAM: usize = 256 << 10;

/// Bytes of all streams together: readers hold the file in memory. Where many tests fail, each shows less.
const ALL: usize = 16 << 20;

/// What a test case counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Success,
    Failure,
    Error,
    Skipped,
}

impl Kind {
    /// What an attempt counts as by itself.
    fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Skipped(_) => Self::Skipped,
            verdict if verdict.is_failure() => Self::Failure,
            verdict if verdict.is_error() => Self::Error,
            _ => Self::Success,
        }
    }

    /// A test that did not pass in the end counts as its first attempt: the others are its repetitions.
    fn of_test(result: &TestResult) -> Self {
        match (Self::of(&result.verdict), result.attempts.first()) {
            // A reader that knows no quarantine must not take it for a failure.
            _ if result.is_excused() => Self::Skipped,
            (Self::Failure | Self::Error, Some(first)) if result.attempts.len() > 1 => Self::of(&first.verdict),
            (own, _) => own,
        }
    }
}

pub(super) fn write(record: &RunRecord, out: &mut dyn Write) -> io::Result<()> {
    let all: Vec<&TestResult> = record.results.iter().map(AsRef::as_ref).collect();
    let streams = 2 * all.iter().filter(|result| Kind::of_test(result) != Kind::Success).count();
    let most = (ALL / streams.max(1)).clamp(4 << 10, STREAM);
    writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>")?;
    let mut tag = Tag::begin(out, 0, "testsuites")?;
    tag.attribute("name", "testyard")?;
    tag.attribute("time", seconds(record.summary().duration_us))?;
    tag.counts(&all)?;
    tag.open()?;
    for name in record.suites() {
        let group: Vec<&TestResult> = all.iter().copied().filter(|result| result.suite == name).collect();
        if !group.is_empty() {
            suite(record, name, &group, most, out)?;
        }
    }
    writeln!(out, "</testsuites>")
}

fn suite(record: &RunRecord, name: &str, group: &[&TestResult], most: usize, out: &mut dyn Write) -> io::Result<()> {
    let mut tag = Tag::begin(out, 1, "testsuite")?;
    tag.attribute("name", name)?;
    tag.attribute("time", seconds(group.iter().map(|result| result.duration_us).sum()))?;
    if let Ok(when) = jiff::Timestamp::from_millisecond(record.info.started_ms) {
        tag.attribute("timestamp", when.strftime("%Y-%m-%dT%H:%M:%SZ"))?;
    }
    tag.attribute("skipped", group.iter().filter(|result| Kind::of_test(result) == Kind::Skipped).count())?;
    tag.counts(group)?;
    tag.open()?;
    properties(record, name, group, out)?;
    for result in group {
        case(result, most, out)?;
    }
    writeln!(out, "  </testsuite>")
}

/// What the schema has no place for on a test stands on its suite.
fn properties(record: &RunRecord, suite: &str, group: &[&TestResult], out: &mut dyn Write) -> io::Result<()> {
    let mut all: Vec<(String, &str)> = vec![("testyard.run".to_owned(), &record.info.run)];
    let tree = record.info.trees.iter().find(|tree| tree.suite == suite);
    all.extend(tree.and_then(|tree| tree.tree.as_deref()).map(|tree| ("testyard.tree".to_owned(), tree)));
    for result in group {
        all.extend(result.owner.as_deref().map(|owner| (format!("testyard.owner.{}", result.name), owner)));
        if result.source_changed {
            all.push((format!("testyard.source-changed.{}", result.name), "true"));
        }
    }
    writeln!(out, "    <properties>")?;
    for (name, value) in all {
        let mut tag = Tag::begin(out, 3, "property")?;
        tag.attribute("name", name)?;
        tag.attribute("value", value)?;
        tag.close()?;
    }
    writeln!(out, "    </properties>")
}

/// A test, with at most so many bytes of each of its streams.
fn case(result: &TestResult, most: usize, out: &mut dyn Write) -> io::Result<()> {
    let kind = Kind::of_test(result);
    let mut tag = Tag::begin(out, 2, "testcase")?;
    tag.attribute("name", &result.name)?;
    tag.attribute("classname", &result.suite)?;
    tag.attribute("time", seconds(result.duration_us))?;
    if !result.tags.is_empty() {
        tag.attribute("group", result.tags.join(","))?;
    }
    if kind == Kind::Success && result.retried() == 0 {
        return tag.close();
    }
    tag.open()?;
    let first = result.attempts.first().map_or(&result.verdict, |first| &first.verdict);
    let (element, repetitions) = match kind {
        Kind::Skipped => (Some(("skipped", &result.verdict)), &[][..]),
        Kind::Success => (None, result.attempts.split_last().map_or(&[][..], |(_, failed)| failed)),
        Kind::Failure | Kind::Error => {
            let element = if kind == Kind::Failure { "failure" } else { "error" };
            // `--no-skip` makes a failure of a test whose attempt was none.
            let verdict = if result.attempts.len() > 1 { first } else { &result.verdict };
            (Some((element, verdict)), result.attempts.get(1..).unwrap_or_default())
        }
    };
    if let Some((element, verdict)) = element {
        let mut tag = Tag::begin(out, 3, element)?;
        verdict_attributes(&mut tag, verdict)?;
        let hints = verdict.hints().join("\n");
        if hints.is_empty() { tag.close()? } else { tag.text(&hints, element)? }
    }
    for attempt in repetitions {
        repetition(
            attempt,
            result.outputs_of(attempt.number).filter(|_| result.retried() > 0),
            most,
            kind == Kind::Success,
            out,
        )?;
    }
    // Each repetition has its own; the test's are those of its first attempt.
    let own = match result.attempts.first().filter(|_| result.retried() > 0) {
        Some(first) => result.outputs_of(first.number),
        None => Some(&result.outputs),
    };
    if let Some(own) = own.filter(|_| kind != Kind::Success) {
        streams(own, most, 3, out)?;
    }
    // The schema knows no services; what they wrote is on the error output's side of the test's own.
    for service in result.services.iter().filter(|_| kind != Kind::Success) {
        let text = safe_ends(&service.log, most).unwrap_or_else(|error| format!("[{error}]"));
        let text = format!("service {} ({})\n{text}", safe_line(&service.name), service.state());
        Tag::begin(out, 3, "system-err")?.text(&text, "system-err")?;
    }
    writeln!(out, "    </testcase>")
}

fn repetition(
    attempt: &Attempt,
    outputs: Option<&Outputs>,
    most: usize,
    flaky: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let element = match (flaky, Kind::of(&attempt.verdict)) {
        (true, Kind::Error) => "flakyError",
        (true, _) => "flakyFailure",
        (false, Kind::Error) => "rerunError",
        (false, _) => "rerunFailure",
    };
    let mut tag = Tag::begin(out, 3, element)?;
    verdict_attributes(&mut tag, &attempt.verdict)?;
    match outputs.filter(|outputs| outputs.stdout.bytes() + outputs.stderr.bytes() > 0) {
        Some(outputs) => {
            tag.open()?;
            streams(outputs, most, 4, out)?;
            writeln!(out, "      </{element}>")
        }
        None => tag.close(),
    }
}

/// The schema asks for a type on each of them.
fn verdict_attributes(tag: &mut Tag<'_>, verdict: &Verdict) -> io::Result<()> {
    tag.attribute("message", verdict.detail().map(|detail| safe_line(&detail)).unwrap_or_default())?;
    tag.attribute("type", verdict.as_str())
}

fn streams(outputs: &Outputs, most: usize, depth: usize, out: &mut dyn Write) -> io::Result<()> {
    for (element, captured) in [("system-out", &outputs.stdout), ("system-err", &outputs.stderr)] {
        if captured.bytes() > 0 {
            let text = safe_ends(captured, most).unwrap_or_else(|error| format!("[{error}]"));
            Tag::begin(out, depth, element)?.text(&text, element)?;
        }
    }
    Ok(())
}

fn seconds(micros: u64) -> String {
    format!("{}.{:03}", micros / 1_000_000, micros / 1_000 % 1_000)
}

/// An element that is being written.
struct Tag<'a> {
    out: &'a mut dyn Write,
}

impl<'a> Tag<'a> {
    fn begin(out: &'a mut dyn Write, depth: usize, name: &str) -> io::Result<Self> {
        write!(out, "{:1$}<{name}", "", 2 * depth)?;
        Ok(Self { out })
    }

    fn attribute(&mut self, name: &str, value: impl Display) -> io::Result<()> {
        write!(self.out, " {name}=\"")?;
        escape(&value.to_string(), true, self.out)?;
        self.out.write_all(b"\"")
    }

    fn counts(&mut self, results: &[&TestResult]) -> io::Result<()> {
        let count = |kind| results.iter().filter(|result| Kind::of_test(result) == kind).count();
        self.attribute("tests", results.len())?;
        self.attribute("failures", count(Kind::Failure))?;
        self.attribute("errors", count(Kind::Error))
    }

    fn open(self) -> io::Result<()> {
        self.out.write_all(b">\n")
    }

    fn close(self) -> io::Result<()> {
        self.out.write_all(b"/>\n")
    }

    fn text(self, text: &str, name: &str) -> io::Result<()> {
        self.out.write_all(b">")?;
        escape(text, false, self.out)?;
        writeln!(self.out, "</{name}>")
    }
}

/// What XML cannot hold becomes the character that stands for such.
fn escape(text: &str, attribute: bool, out: &mut dyn Write) -> io::Result<()> {
    let mut plain = 0;
    for (place, character) in text.char_indices() {
        let written = match character {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '"' if attribute => "&quot;",
            '\n' if attribute => "&#10;",
            '\t' if attribute => "&#9;",
            '\n' | '\t' => continue,
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => "\u{fffd}",
            _ => continue,
        };
        out.write_all(&text.as_bytes()[plain..place])?;
        out.write_all(written.as_bytes())?;
        plain = place + character.len_utf8();
    }
    out.write_all(&text.as_bytes()[plain..])
}
