//! JUnit's XML, as continuous integration systems read it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quick_junit::{NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestSuite};

use super::{Announcement, ReportError, safe_ends, write_whole};
use crate::result::{TestResult, Verdict};

/// Bytes of one stream that go into the file; of more, the ends do.
const STREAM: usize = 256 << 10;

/// Bytes of all streams together: the file is made in memory. Where many tests fail, each shows less.
const ALL: usize = 16 << 20;

/// Collects results; the file is written when the run is over.
pub(super) struct Junit {
    path: PathBuf,
    results: Vec<Arc<TestResult>>,
    duration: Duration,
}

impl Junit {
    /// Refuses a folder that is not there before the first test.
    pub(super) fn create(path: &Path) -> Result<Self, ReportError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let refuse = |source| ReportError::Write { path: path.to_owned(), source };
        if !folder.metadata().map_err(refuse)?.is_dir() || path.is_dir() {
            return Err(refuse(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Self { path: path.to_owned(), results: Vec::new(), duration: Duration::ZERO })
    }

    pub(super) fn take(&mut self, announcement: &Announcement) {
        match announcement {
            Announcement::TestFinished(result) => self.results.push(result.clone()),
            Announcement::RunFinished(summary) => self.duration = Duration::from_micros(summary.duration_us),
            _ => {}
        }
    }

    pub(super) fn close(mut self) -> Result<(), ReportError> {
        self.results.sort_by_key(|result| result.index);
        let mut report = Report::new("testyard");
        report.set_time(self.duration);
        let streams = 2 * self.results.iter().filter(|result| result.verdict != Verdict::Passed).count();
        let most = (ALL / streams.max(1)).clamp(4 << 10, STREAM);
        for group in self.results.chunk_by(|a, b| a.suite == b.suite) {
            let Some(first) = group.first() else { continue };
            let mut suite = TestSuite::new(first.suite.as_str());
            suite.set_time(group.iter().map(|result| Duration::from_micros(result.duration_us)).sum());
            if let Some(tree) = group.iter().find_map(|result| result.tree.as_ref()) {
                suite.add_property(Property::new("testyard.tree", tree.as_str()));
            }
            suite.add_test_cases(group.iter().map(|result| case(result, most)));
            report.add_test_suite(suite);
        }
        let written = write_whole(&self.path, |out| report.serialize(out).map_err(io::Error::other));
        written.map_err(|source| ReportError::Write { path: self.path, source })
    }
}

/// A test, with at most so many bytes of each of its streams.
fn case(result: &TestResult, most: usize) -> TestCase {
    let detail = result.verdict.detail();
    let mut status = match &result.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Failed(_) | Verdict::TimedOut { .. } => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Verdict::InfrastructureError { .. } => TestCaseStatus::non_success(NonSuccessKind::Error),
        Verdict::Skipped(_) => TestCaseStatus::skipped(),
    };
    if let Some(detail) = detail {
        status.set_message(detail);
        status.set_type(result.verdict.as_str());
    }
    let hints = result.verdict.hints();
    if !hints.is_empty() {
        status.set_description(hints.join("\n"));
    }
    let mut case = TestCase::new(result.name.as_str(), status);
    case.set_classname(result.suite.as_str()).set_time(Duration::from_micros(result.duration_us));
    if result.source_changed {
        case.add_property(Property::new("testyard.source-changed", "true"));
    }
    if let Some(owner) = &result.owner {
        case.add_property(Property::new("owner", owner.as_str()));
    }
    if result.verdict != Verdict::Passed {
        let text = |captured| safe_ends(captured, most).unwrap_or_else(|error| format!("[{error}]"));
        if result.outputs.stdout.bytes() > 0 {
            case.set_system_out(text(&result.outputs.stdout));
        }
        if result.outputs.stderr.bytes() > 0 {
            case.set_system_err(text(&result.outputs.stderr));
        }
    }
    case
}
