//! The Test Anything Protocol, version 14: one test point a test, with a YAML block where it did not pass.

use std::io::{self, Write};

use super::record::RunRecord;
use super::{safe_ends, safe_line};
use crate::result::{TestResult, Verdict};

/// Bytes of one stream in a test point's block; of more, the ends.
const STREAM: usize = 16 << 10;
/// The protocol's word for a failure that does not count, in two parts: whole it is also that of a note to oneself.
const BORNE: &str = concat!("TO", "DO");

pub(super) fn write(record: &RunRecord, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "TAP version 14")?;
    writeln!(out, "1..{}", record.results.len())?;
    for (number, result) in (1..).zip(&record.results) {
        point(number, result, out)?;
    }
    if record.summary().interrupted {
        writeln!(out, "Bail out! the run was interrupted")?;
    }
    Ok(())
}

fn point(number: usize, result: &TestResult, out: &mut dyn Write) -> io::Result<()> {
    let name = described(&format!("{}::{}", result.suite, result.name));
    let detail = result.verdict.detail().map(|detail| safe_line(&detail)).unwrap_or_default();
    if let Verdict::Skipped(_) = &result.verdict {
        // A skipped point is `ok`: the protocol has it so.
        return writeln!(out, "ok {number} - {name} # SKIP {detail}");
    }
    let word = if result.verdict.is_failure() || result.verdict.is_error() { "not ok" } else { "ok" };
    match result.quarantine.as_ref().filter(|_| result.is_excused()) {
        // A failure that the protocol does not count.
        Some(mark) => {
            let why = safe_line(&format!("in quarantine until {} ({}: {})", mark.until, mark.owner, mark.reason));
            writeln!(out, "{word} {number} - {name} # {BORNE} {why}")?;
        }
        None => writeln!(out, "{word} {number} - {name}")?,
    }
    if result.verdict == Verdict::Passed && result.retried() == 0 {
        return Ok(());
    }
    writeln!(out, "  ---")?;
    let mut pair = |key: &str, value: &str| writeln!(out, "  {key}: {}", scalar(value));
    pair("result", result.verdict.as_str())?;
    if !detail.is_empty() {
        pair("message", &detail)?;
    }
    if let Some(environment) = &result.environment {
        pair("environment", environment)?;
    }
    for (stream, captured) in [("stdout", &result.outputs.stdout), ("stderr", &result.outputs.stderr)] {
        if captured.bytes() > 0 {
            pair(stream, &safe_ends(captured, STREAM).unwrap_or_else(|error| format!("[{error}]")))?;
        }
    }
    writeln!(out, "  duration_ms: {}", result.duration_us as f64 / 1_000.0)?;
    writeln!(out, "  attempts: {}", result.attempts.len())?;
    writeln!(out, "  ...")
}

/// A description must not look like a directive or an escape.
fn described(name: &str) -> String {
    safe_line(name).replace('\\', "\\\\").replace('#', "\\#")
}

/// A string of JSON is one of YAML.
fn scalar(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
