//! Which reports there are, and how they are asked for.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use testyard_model::{Problem, ProblemKind};

use crate::suite::nearest;

/// A form that a run's results can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// JUnit's XML.
    Junit,
    /// A line of JSON for each event.
    JsonLines,
    /// The Test Anything Protocol, version 14.
    Tap,
    /// Trace events as Chrome, Perfetto and Speedscope read them.
    Trace,
    /// One page for a browser.
    Html,
    /// Markdown, as a job's summary.
    Markdown,
    /// Annotations, as GitHub reads them from a job's output.
    Github,
}

impl ReportKind {
    /// Each, in the order in which help texts name them.
    pub const ALL: [Self; 7] =
        [Self::Junit, Self::JsonLines, Self::Tap, Self::Trace, Self::Html, Self::Markdown, Self::Github];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Junit => "junit",
            Self::JsonLines => "jsonl",
            Self::Tap => "tap",
            Self::Trace => "trace",
            Self::Html => "html",
            Self::Markdown => "markdown",
            Self::Github => "github",
        }
    }
}

impl FromStr for ReportKind {
    type Err = ReportError;

    fn from_str(word: &str) -> Result<Self, ReportError> {
        let words = Self::ALL.map(Self::as_str);
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == word);
        found.ok_or_else(|| ReportError::UnknownKind { kind: word.to_owned(), nearest: nearest(word, words) })
    }
}

/// A report to write, as `--report` names it: `junit=FILE`; `github` alone goes to the job's own output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportSpec {
    /// Its form.
    pub kind: ReportKind,
    /// Where it goes; none only for [`ReportKind::Github`].
    pub file: Option<PathBuf>,
}

impl ReportSpec {
    /// A report into a file.
    #[must_use]
    pub fn file(kind: ReportKind, file: impl Into<PathBuf>) -> Self {
        Self { kind, file: Some(file.into()) }
    }
}

impl FromStr for ReportSpec {
    type Err = ReportError;

    fn from_str(text: &str) -> Result<Self, ReportError> {
        let no_file = || ReportError::NoFile(text.to_owned());
        match text.split_once('=') {
            Some((kind, file)) => {
                let kind = kind.parse()?;
                if file.is_empty() { Err(no_file()) } else { Ok(Self::file(kind, file)) }
            }
            None if text == ReportKind::Github.as_str() => Ok(Self { kind: ReportKind::Github, file: None }),
            None => Err(no_file()),
        }
    }
}

/// A report that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Not `kind=FILE`.
    #[error("`{0}` is not a report: write KIND=FILE")]
    NoFile(String),
    /// A kind that does not exist.
    #[error("unknown report `{kind}`")]
    UnknownKind {
        /// The kind.
        kind: String,
        /// The nearest that exists.
        nearest: Option<&'static str>,
    },
    /// A file that cannot be written.
    #[error("cannot write report {path}", path = path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The job's own output does not take it.
    #[error("cannot write annotations")]
    Annotate(#[source] io::Error),
    /// The results could not be kept for later.
    #[error("cannot keep the results in {path}", path = path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread can be started.
    #[error("cannot start the thread that writes reports")]
    Thread(#[source] io::Error),
}

impl ReportError {
    /// As every other error is shown.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kinds = || format!("reports are {}", ReportKind::ALL.map(ReportKind::as_str).join(", "));
        match self {
            Self::NoFile(_) => Problem::new(ProblemKind::Usage, self.to_string())
                .hint("such as --report junit=junit.xml")
                .hint(kinds()),
            Self::UnknownKind { nearest: Some(nearest), .. } => {
                Problem::new(ProblemKind::Usage, self.to_string()).hint(format!("did you mean `{nearest}`?"))
            }
            Self::UnknownKind { .. } => Problem::new(ProblemKind::Usage, self.to_string()).hint(kinds()),
            Self::Write { source, .. } => Problem::from_error(written(source), self)
                .hint("check that the folder exists, can be written and has room"),
            Self::Annotate(_) => Problem::from_error(ProblemKind::System, self),
            Self::Keep { source, .. } => Problem::from_error(written(source), self)
                .hint("the run itself is complete; make room, or see what else failed there"),
            Self::Thread(_) => {
                Problem::from_error(ProblemKind::Exhausted, self).hint("raise the limit of processes (ulimit -u)")
            }
        }
    }
}

/// A wrong path is the caller's to correct.
fn written(error: &io::Error) -> ProblemKind {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => ProblemKind::Usage,
        io::ErrorKind::PermissionDenied => ProblemKind::Denied,
        io::ErrorKind::StorageFull => ProblemKind::Exhausted,
        _ => ProblemKind::System,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_named_by_kind_and_file() {
        for kind in ReportKind::ALL {
            let text = format!("{}=out=1", kind.as_str());
            assert_eq!(text.parse::<ReportSpec>().expect("a report"), ReportSpec::file(kind, "out=1"));
        }
        assert_eq!("github".parse::<ReportSpec>().expect("a report").file, None);
        for (text, words) in [
            ("junit", "`junit` is not a report"),
            ("junit=", "`junit=` is not a report"),
            ("htm=x", "unknown report `htm`"),
            ("=x", "unknown report ``"),
        ] {
            let error = text.parse::<ReportSpec>().expect_err(text);
            assert!(error.to_string().contains(words), "{error}");
            assert!(!error.problem().hints.is_empty(), "{text}");
        }
        let problem = "htm=x".parse::<ReportSpec>().expect_err("unknown").problem();
        assert_eq!(problem.hints, ["did you mean `html`?"]);
    }
}
