//! Reports that are written whole, once the run is over or from a run that was kept.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::record::RunRecord;
use super::{Announcement, ReportError, ReportKind, ReportSpec, github, html, junit, tap, trace, write_whole};
use crate::result::JSON_VERSION;

/// Writes a run in this form.
///
/// # Errors
/// Those of `out`.
pub fn render(kind: ReportKind, record: &RunRecord, out: &mut dyn Write) -> io::Result<()> {
    match kind {
        ReportKind::Junit => junit::write(record, out),
        ReportKind::JsonLines => json_lines(record, out),
        ReportKind::Tap => tap::write(record, out),
        ReportKind::Trace => trace::write(record, out),
        ReportKind::Html => html::write(record, out),
        ReportKind::Markdown => github::summary(record, out),
        ReportKind::Github => github::annotations(record, out),
    }
}

/// The events that say what came out; those between are in the past.
fn json_lines(record: &RunRecord, out: &mut dyn Write) -> io::Result<()> {
    let mut line = |event: &str, mut value: serde_json::Value| {
        value["version"] = JSON_VERSION.into();
        value["time_ms"] = record.info.started_ms.into();
        value["event"] = event.into();
        writeln!(out, "{value}")
    };
    let info = &record.info;
    line("run-started", json!({ "run": info.run, "tests": info.tests, "jobs": info.jobs, "trees": info.trees }))?;
    for problem in &record.warnings {
        line("warning", json!({ "problem": problem }))?;
    }
    for result in &record.results {
        line("test-finished", result.to_json()?)?;
    }
    match &record.ended {
        Some(summary) => line("run-finished", serde_json::to_value(summary)?),
        None => Ok(()),
    }
}

/// What is to be written when the run is over.
pub(super) struct Endings {
    record: RunRecord,
    reports: Vec<(ReportKind, PathBuf)>,
    job_summary: Option<PathBuf>,
    annotations: Option<Box<dyn Write + Send>>,
    failed: Vec<ReportError>,
}

impl Endings {
    /// None where nothing is to be written. Refuses a folder that is not there before the first test.
    pub(super) fn prepare(
        specs: Vec<ReportSpec>,
        job_summary: Option<PathBuf>,
        annotations: Option<Box<dyn Write + Send>>,
    ) -> Result<Option<Self>, ReportError> {
        let annotate = specs.iter().any(|spec| spec.file.is_none());
        let annotations = annotations.filter(|_| annotate);
        let reports: Vec<_> = specs.into_iter().filter_map(|spec| Some((spec.kind, spec.file?))).collect();
        for (_, path) in &reports {
            check(path)?;
        }
        let none = reports.is_empty() && job_summary.is_none() && annotations.is_none();
        let made = Self { record: RunRecord::default(), reports, job_summary, annotations, failed: Vec::new() };
        Ok((!none).then_some(made))
    }

    pub(super) fn take(&mut self, announcement: &Announcement) {
        self.record.take(announcement);
        if let Announcement::RunFinished(_) = announcement {
            self.write();
        }
    }

    fn write(&mut self) {
        for (kind, path) in std::mem::take(&mut self.reports) {
            let written = write_whole(&path, |out| render(kind, &self.record, out));
            self.failed.extend(written.err().map(|source| ReportError::Write { path, source }));
        }
        if let Some(path) = self.job_summary.take() {
            // Other steps of the job have written to it.
            let file = OpenOptions::new().append(true).create(true).open(&path);
            let written = file.and_then(|file| {
                let mut out = BufWriter::new(file);
                github::summary(&self.record, &mut out)?;
                out.flush()
            });
            self.failed.extend(written.err().map(|source| ReportError::Write { path, source }));
        }
        if let Some(mut out) = self.annotations.take() {
            let written = github::annotations(&self.record, &mut out).and_then(|()| out.flush());
            self.failed.extend(written.err().map(ReportError::Annotate));
        }
    }

    /// What could not be written.
    pub(super) fn into_failed(self) -> Vec<ReportError> {
        self.failed
    }
}

fn check(path: &Path) -> Result<(), ReportError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let refuse = |source| ReportError::Write { path: path.to_owned(), source };
    if !folder.metadata().map_err(refuse)?.is_dir() || path.is_dir() {
        return Err(refuse(io::ErrorKind::IsADirectory.into()));
    }
    Ok(())
}
