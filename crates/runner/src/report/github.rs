//! What GitHub shows of a run: annotations beside the code, and the summary of a job.

use std::io::{self, Write};
use std::path::Path;

use super::record::RunRecord;
use super::{safe_ends, safe_line};
use crate::result::{TestResult, Verdict};

/// GitHub shows fewer; a log of thousands helps nobody.
const ANNOTATIONS: usize = 50;
/// Bytes of output in an annotation.
const EXCERPT: usize = 2 << 10;
/// Failures with their output in a summary.
const FAILURES: usize = 50;
/// Bytes of one stream in a summary; GitHub takes 1 MiB in all.
const STREAM: usize = 6 << 10;
/// Tests named as slow.
const SLOWEST: usize = 5;

/// A workflow command a failure; GitHub finds them in what a job prints.
pub(super) fn annotations(record: &RunRecord, out: &mut dyn Write) -> io::Result<()> {
    let bad = record.results.iter().filter(|result| fails(result));
    for result in bad.clone().take(ANNOTATIONS) {
        let name = format!("{}::{}", result.suite, result.name);
        let mut message = result.verdict.detail().unwrap_or_else(|| result.verdict.as_str().to_owned());
        for (stream, captured) in [("stdout", &result.outputs.stdout), ("stderr", &result.outputs.stderr)] {
            if captured.bytes() > 0 {
                let text = safe_ends(captured, EXCERPT).unwrap_or_else(|error| format!("[{error}]"));
                message.push_str(&format!("\n---- {stream}\n{}", text.trim_end()));
            }
        }
        let file = result.file.as_deref().map(|file| format!("file={},line=1,", property(&in_repository(file))));
        let title = property(&safe_line(&format!("{name} {}", result.verdict.as_str())));
        writeln!(out, "::error {}title={title}::{}", file.unwrap_or_default(), data(&message))?;
    }
    let left = bad.count().saturating_sub(ANNOTATIONS);
    if left > 0 {
        writeln!(out, "::error title=testyard::{left} more failures, see the job's summary")?;
    }
    for problem in &record.warnings {
        writeln!(out, "::warning title=testyard::{}", data(&safe_line(&problem.message)))?;
    }
    for result in record.results.iter().filter(|result| is_flaky(result)) {
        let name = data(&safe_line(&format!("{}::{}", result.suite, result.name)));
        writeln!(out, "::warning title=flaky test::{name} passed at attempt {}", result.attempts.len())?;
    }
    Ok(())
}

/// Annotations name files from the top of the repository.
fn in_repository(file: &str) -> String {
    let path = Path::new(file);
    let top = path.ancestors().skip(1).find(|folder| folder.join(".git").exists());
    let inside = top.and_then(|top| path.strip_prefix(top).ok()).unwrap_or(path);
    inside.display().to_string()
}

fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// Markdown: the numbers, each failure with its output folded, what was slow.
pub(super) fn summary(record: &RunRecord, out: &mut dyn Write) -> io::Result<()> {
    let summary = record.summary();
    let mark = if summary.exit_code == 0 { "✅" } else { "❌" };
    writeln!(out, "## {mark} {}\n", html(&record.suites().join(", ")))?;
    writeln!(out, "| passed | flaky | failed | quarantined | skipped | errors | took |")?;
    writeln!(out, "|---:|---:|---:|---:|---:|---:|---:|")?;
    writeln!(
        out,
        "| {} | {} | {} | {} | {} | {} | {} |\n",
        summary.passed,
        summary.flaky,
        summary.failed,
        summary.quarantined,
        summary.skipped,
        summary.infrastructure_errors,
        took(summary.duration_us)
    )?;
    if record.ended.is_none() {
        writeln!(out, "**The run did not come to its end:** {} tests have no result.\n", missing(record))?;
    }
    let bad: Vec<&TestResult> = record.results.iter().map(AsRef::as_ref).filter(|result| fails(result)).collect();
    for result in bad.iter().take(FAILURES) {
        failure(result, out)?;
    }
    if bad.len() > FAILURES {
        writeln!(out, "… and {} more failures.\n", bad.len() - FAILURES)?;
    }
    let flaky: Vec<&TestResult> = record.results.iter().map(AsRef::as_ref).filter(|result| is_flaky(result)).collect();
    if !flaky.is_empty() {
        writeln!(out, "### Flaky\n")?;
        for result in flaky {
            let name = html(&format!("{}::{}", result.suite, result.name));
            writeln!(out, "- <code>{name}</code>: passed at attempt {}", result.attempts.len())?;
        }
        writeln!(out)?;
    }
    let excused = record.results.iter().filter_map(|result| Some((result, result.quarantine.as_ref()?)));
    for (result, mark) in excused.filter(|(result, _)| result.is_excused()) {
        let name = html(&format!("{}::{}", result.suite, result.name));
        let why = html(&format!("{}: {}", mark.owner, mark.reason));
        writeln!(out, "In quarantine until {}: <code>{name}</code> ({why})\n", html(&mark.until))?;
    }
    slowest(record, out)?;
    for tree in &record.info.trees {
        let Some(hash) = &tree.tree else { continue };
        let short: String = hash.chars().take(12).collect();
        writeln!(out, "Suite <code>{}</code> ran tree <code>{}</code>.", html(&tree.suite), html(&short))?;
    }
    Ok(())
}

fn is_flaky(result: &TestResult) -> bool {
    matches!(result.verdict, Verdict::Flaky { .. }) || (result.verdict == Verdict::Passed && result.retried() > 0)
}

/// Whether it fails the run.
fn fails(result: &TestResult) -> bool {
    !result.is_excused() && (result.verdict.is_failure() || result.verdict.is_error())
}

fn missing(record: &RunRecord) -> usize {
    record.info.tests.saturating_sub(record.results.len())
}

fn failure(result: &TestResult, out: &mut dyn Write) -> io::Result<()> {
    let name = html(&format!("{}::{}", result.suite, result.name));
    let detail = html(&result.verdict.detail().unwrap_or_default());
    writeln!(out, "<details><summary><code>{name}</code> {}: {detail}</summary>\n", result.verdict.as_str())?;
    for hint in result.verdict.hints() {
        writeln!(out, "hint: <code>{}</code>\n", html(hint))?;
    }
    for (stream, captured) in [("stdout", &result.outputs.stdout), ("stderr", &result.outputs.stderr)] {
        if captured.bytes() > 0 {
            let text = safe_ends(captured, STREAM).unwrap_or_else(|error| format!("[{error}]"));
            // Blank lines would end the block.
            let text = html_text(&text).replace("\n\n", "\n&#8203;\n");
            writeln!(out, "{stream}\n<pre>{}</pre>\n", text.trim_end())?;
        }
    }
    writeln!(out, "</details>\n")
}

fn slowest(record: &RunRecord, out: &mut dyn Write) -> io::Result<()> {
    let mut slow: Vec<&TestResult> = record.results.iter().map(AsRef::as_ref).collect();
    slow.sort_by_key(|result| std::cmp::Reverse(result.duration_us));
    slow.truncate(SLOWEST);
    writeln!(out, "<details><summary>Slowest</summary>\n\n| test | took |\n|---|---:|")?;
    for result in slow {
        let name = html(&format!("{}::{}", result.suite, result.name));
        writeln!(out, "| <code>{name}</code> | {} |", took(result.duration_us))?;
    }
    writeln!(out, "\n</details>\n")
}

fn took(micros: u64) -> String {
    super::status_line::seconds(std::time::Duration::from_micros(micros))
}

/// A line that is neither markup nor Markdown.
fn html(text: &str) -> String {
    html_text(&safe_line(text)).replace('|', "&#124;").replace('`', "&#96;").replace('*', "&#42;").replace('_', "&#95;")
}

fn html_text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
