//! What is written of a run and of a failed test, whatever the terminal can do.

use std::io::{self, Write};

use crate::capture::Captured;
use crate::plan::ShardInfo;
use crate::report::RunInfo;
use crate::report::safe_text::{SafeText, safe_ends, safe_line};
use crate::result::{Aftermath, FileChanges, whole};

/// What there is to see of a failed test's files, and where.
pub(super) fn after(aftermath: &Aftermath, kept: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(files) = &aftermath.files {
        let more = if files.more { " and more" } else { "" };
        if files.added + files.changed + files.deleted > 0 {
            let FileChanges { added, changed, deleted, .. } = files;
            lines.push(format!("files: {added} added, {changed} changed, {deleted} deleted{more}"));
        }
    }
    lines.extend(aftermath.artifacts.iter().map(|artifact| format!("artifact: {}", artifact.file)));
    for problem in &aftermath.problems {
        lines.push(format!("problem: {}", whole(problem)));
        lines.extend(problem.hints.iter().map(|hint| format!("hint: {hint}")));
    }
    lines.extend(aftermath.kept.iter().filter(|_| kept).map(|kept| format!("kept: {}", kept.enter)));
    lines
}

/// Bytes of a stream that are shown whole; of more, the ends.
const WHOLE: u64 = 8 << 20;
/// Bytes of those ends.
const ENDS: usize = 1 << 20;

/// What was captured, made safe, ending in a line end.
pub(super) fn write_output(out: &mut dyn Write, captured: &Captured) -> io::Result<()> {
    if captured.bytes() > WHOLE {
        return match safe_ends(captured, ENDS) {
            Ok(text) => write!(out, "{text}{}", if text.ends_with('\n') { "" } else { "\n" }),
            Err(error) => writeln!(out, "[it cannot be read: {error}]"),
        }
        .and_then(|()| whereabouts(out, captured));
    }
    let mut safe = SafeText::default();
    let mut text = String::new();
    let mut ends_line = true;
    let mut flush = |text: &mut String| {
        ends_line = text.ends_with('\n') || (text.is_empty() && ends_line);
        out.write_all(text.as_bytes())?;
        text.clear();
        io::Result::Ok(ends_line)
    };
    let read = captured.read(|piece| {
        safe.push(piece, &mut text);
        flush(&mut text).map(drop)
    });
    safe.finish(&mut text);
    let ended = flush(&mut text)?;
    if !ended {
        writeln!(out)?;
    }
    if let Err(error) = read {
        writeln!(out, "[the rest cannot be read: {error}]")?;
    }
    whereabouts(out, captured)
}

/// Where all of it is, and what of it is nowhere.
fn whereabouts(out: &mut dyn Write, captured: &Captured) -> io::Result<()> {
    if captured.lost() > 0 {
        writeln!(out, "[{} more bytes could not be kept]", captured.lost())?;
    }
    if let Some(file) = captured.file() {
        writeln!(out, "[raw output: {}]", safe_line(&file.display().to_string()))?;
    }
    Ok(())
}

/// The line that a run begins with.
pub(super) fn begins(info: &RunInfo) -> String {
    let suites = match info.trees.len() {
        1 => "1 suite".to_owned(),
        many => format!("{many} suites"),
    };
    let mut line = format!("running {} tests of {suites}, {} at once", info.tests, info.jobs.min(info.tests));
    if let Some(seed) = info.seed {
        line.push_str(&format!("; random order, --seed {seed}"));
    }
    if let Some(ShardInfo { index, count, of, basis }) = &info.shard {
        line.push_str(&format!("; shard {index}/{count} of {of} tests, basis {basis}"));
    }
    line
}

/// Milliseconds below a second, else hundredths.
pub(super) fn precise(micros: u64) -> String {
    let millis = micros / 1_000;
    match millis {
        0..1_000 => format!("{millis}ms"),
        1_000..60_000 => format!("{}.{:02}s", millis / 1_000, millis % 1_000 / 10),
        _ => format!("{}m{:02}s", millis / 60_000, millis / 1_000 % 60),
    }
}
