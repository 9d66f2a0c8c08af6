//! What the page is made of: columns of numbers and words by their place in a list, with the details of only those
//! tests that have any.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use serde::Serialize;

use crate::report::lanes::Lanes;
use crate::report::{RunRecord, safe_ends, safe_line};
use crate::result::{Aftermath, FileChanges, Outputs, RunSummary, TestResult, TreeInfo, Verdict};

/// The version of this form; the page that reads it comes with it.
const VERSION: u32 = 1;
/// Bytes of output that the page shows in all.
const ALL: usize = 5 << 20;
/// Bytes of one stream, where few tests failed.
const STREAM: usize = 64 << 10;

#[derive(Serialize)]
struct Page<'a> {
    version: u32,
    run: &'a str,
    started_ms: i64,
    jobs: usize,
    planned: usize,
    /// False where the run was killed.
    complete: bool,
    summary: RunSummary,
    trees: &'a [TreeInfo],
    warnings: Vec<String>,
    unfinished: &'a [String],
    suites: Vec<&'a str>,
    machines: &'a [String],
    words: Vec<&'static str>,
    tests: Columns<'a>,
    bars: Bars,
    details: BTreeMap<usize, Details>,
}

/// A place in each list is a test.
#[derive(Default, Serialize)]
struct Columns<'a> {
    name: Vec<&'a str>,
    suite: Vec<usize>,
    word: Vec<usize>,
    duration_us: Vec<u64>,
    cpu_us: Vec<u64>,
    memory: Vec<u64>,
    attempts: Vec<usize>,
}

/// A place in each list is an attempt.
#[derive(Default, Serialize)]
struct Bars {
    test: Vec<usize>,
    start_ms: Vec<u64>,
    duration_us: Vec<u64>,
    machine: Vec<usize>,
    lane: Vec<usize>,
    word: Vec<usize>,
}

/// What only some tests have.
#[derive(Default, Serialize)]
struct Details {
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hints: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<Log>,
    /// What it changed in its file system: a sign and a path a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<String>,
}

#[derive(Serialize)]
struct Log {
    stream: String,
    bytes: u64,
    text: String,
}

/// Words by their places.
#[derive(Default)]
struct Words {
    list: Vec<&'static str>,
    places: HashMap<&'static str, usize>,
}

impl Words {
    fn place(&mut self, word: &'static str) -> usize {
        *self.places.entry(word).or_insert_with(|| {
            self.list.push(word);
            self.list.len() - 1
        })
    }
}

pub(super) fn write(record: &RunRecord, out: &mut dyn Write) -> io::Result<()> {
    let lanes = Lanes::of(record);
    let suites = record.suites();
    let suite_places: HashMap<&str, usize> = suites.iter().enumerate().map(|(place, name)| (*name, place)).collect();
    let mut words = Words::default();
    let mut tests = Columns::default();
    let mut details = BTreeMap::new();
    let streams = 2 * record.results.iter().filter(|result| result.verdict != Verdict::Passed).count();
    let most = (ALL / streams.max(1)).clamp(256, STREAM);
    for (place, result) in record.results.iter().enumerate() {
        tests.add(result, suite_places[result.suite.as_str()], words.place(word_of(result)));
        details.extend(details_of(result, most).map(|details| (place, details)));
    }
    let mut bars = Bars::default();
    for bar in &lanes.bars {
        let attempt = &record.results[bar.test].attempts[bar.attempt];
        bars.test.push(bar.test);
        bars.start_ms.push(bar.start_ms);
        bars.duration_us.push(attempt.duration_us);
        bars.machine.push(bar.machine);
        bars.lane.push(bar.lane);
        bars.word.push(words.place(attempt.verdict.as_str()));
    }
    let page = Page {
        version: VERSION,
        run: &record.info.run,
        started_ms: record.info.started_ms,
        jobs: record.info.jobs,
        planned: record.info.tests,
        complete: record.ended.is_some(),
        summary: record.summary(),
        trees: &record.info.trees,
        warnings: record.warnings.iter().map(|problem| safe_line(&problem.message)).collect(),
        unfinished: &record.unfinished,
        suites,
        machines: &lanes.machines,
        words: words.list,
        tests,
        bars,
        details,
    };
    serde_json::to_writer(out, &page).map_err(io::Error::from)
}

impl<'a> Columns<'a> {
    fn add(&mut self, result: &'a TestResult, suite: usize, word: usize) {
        self.name.push(&result.name);
        self.suite.push(suite);
        self.word.push(word);
        self.duration_us.push(result.duration_us);
        self.cpu_us.push(result.usage.as_ref().map_or(0, |usage| usage.cpu_us));
        self.memory.push(result.usage.as_ref().and_then(|usage| usage.memory_peak).unwrap_or(0));
        self.attempts.push(result.attempts.len());
    }
}

/// A test that passed only in the end is told apart.
fn word_of(result: &TestResult) -> &'static str {
    match &result.verdict {
        _ if result.is_excused() => "quarantined",
        Verdict::Passed if result.retried() > 0 => "flaky",
        verdict => verdict.as_str(),
    }
}

/// None for the many of which there is nothing more to say than where they ran.
fn details_of(result: &TestResult, most: usize) -> Option<Details> {
    let plain = result.verdict == Verdict::Passed
        && result.retried() == 0
        && !result.source_changed
        && !result.slow
        && result.aftermath == Aftermath::default();
    if plain && result.tags.is_empty() && result.owner.is_none() {
        return None;
    }
    let mut details = Details { owner: result.owner.clone(), tags: result.tags.clone(), ..Details::default() };
    if plain {
        return Some(details);
    }
    details.detail = result.verdict.detail().map(|detail| safe_line(&detail));
    details.hints = result.verdict.hints().iter().map(|hint| safe_line(hint)).collect();
    details.environment = result.environment.as_deref().map(safe_line);
    if result.attempts.len() > 1 {
        let told = result.attempts.iter().map(|attempt| match attempt.verdict.detail() {
            Some(detail) => format!("{}: {}", attempt.verdict.as_str(), safe_line(&detail)),
            None => attempt.verdict.as_str().to_owned(),
        });
        details.attempts = told.collect();
    }
    if result.source_changed {
        details.notes.push("the source changed while it ran".to_owned());
    }
    if result.usage.as_ref().is_some_and(|usage| usage.out_of_memory) {
        details.notes.push("its memory limit ended something in it".to_owned());
    }
    if let Some(mark) = &result.quarantine {
        let note = format!("in quarantine until {} ({}: {})", mark.until, mark.owner, mark.reason);
        details.notes.push(safe_line(&note));
    }
    if result.slow {
        details.notes.push("it took longer than it should".to_owned());
    }
    let after = &result.aftermath;
    details.notes.extend(after.artifacts.iter().map(|artifact| safe_line(&format!("artifact {}", artifact.file))));
    details.notes.extend(after.problems.iter().map(|problem| safe_line(&problem.message)));
    details.hints.extend(after.kept.iter().map(|kept| safe_line(&kept.enter)));
    details.changes = after.files.as_ref().map(changes_of);
    details.logs = logs_of(result, most);
    Some(details)
}

/// A line for each path, as many as were named, and how many there were.
fn changes_of(files: &FileChanges) -> String {
    let mut lines: Vec<String> = files
        .entries
        .iter()
        .map(|file| {
            let sign = match file.change.as_str() {
                "added" => '+',
                "deleted" => '-',
                _ => '~',
            };
            let size = file.size.map_or(String::new(), |size| format!("  {size} bytes"));
            format!("{sign} {}{size}", safe_line(&file.path))
        })
        .collect();
    let more = if files.more { ", and more" } else { "" };
    lines.push(format!("{} added, {} changed, {} deleted{more}", files.added, files.changed, files.deleted));
    lines.join("\n")
}

/// What a test wrote, attempt by attempt, and what it was doing when its time was up.
fn logs_of(result: &TestResult, most: usize) -> Vec<Log> {
    let mut logs = Vec::new();
    let mut add = |whose: &str, outputs: &Outputs| {
        for (stream, captured) in [("stdout", &outputs.stdout), ("stderr", &outputs.stderr)] {
            if captured.bytes() > 0 {
                let text = safe_ends(captured, most).unwrap_or_else(|error| format!("[{error}]"));
                logs.push(Log { stream: format!("{stream}{whose}"), bytes: captured.bytes(), text });
            }
        }
    };
    for (number, outputs) in &result.earlier {
        add(&format!(" of attempt {number}"), outputs);
    }
    if result.verdict != Verdict::Passed {
        add("", &result.outputs);
    }
    if let Some(seen) = result.attempts.last().and_then(|attempt| attempt.inspection.as_ref()) {
        let text: Vec<String> = seen.text().lines().map(safe_line).collect();
        let text = text.join("\n");
        logs.push(Log {
            stream: "its processes, just before its time was up".to_owned(),
            bytes: text.len() as u64,
            text,
        });
    }
    logs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_one_place_each() {
        let mut words = Words::default();
        assert_eq!((words.place("a"), words.place("b"), words.place("a")), (0, 1, 0));
        assert_eq!(words.list, ["a", "b"]);
    }
}
