//! What can be wrong with a suite file: one error, its place, the nearest right word and the next step.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use testyard_model::{Problem, ProblemKind};

use super::source::SuiteSource;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFault {
    /// Not TOML.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// A key that the format does not have.
    #[error("unknown key `{key}` in {table}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The table it stands in.
        table: &'static str,
        /// The nearest key that exists.
        nearest: Option<&'static str>,
        /// Every key of this table.
        known: &'static [&'static str],
    },
    /// A value of another type than the key takes.
    #[error("`{key}` must be {expected}, not {found}")]
    WrongType {
        /// The key.
        key: String,
        /// What it takes, with an article.
        expected: &'static str,
        /// What was written, with an article.
        found: &'static str,
    },
    /// A value of the right type that cannot be.
    #[error("`{key}`: {reason}")]
    BadValue {
        /// The key.
        key: String,
        /// Why not.
        reason: String,
        /// What to write instead.
        hint: String,
    },
    /// A word that is none of those allowed.
    #[error("`{key}` cannot be `{word}`")]
    UnknownWord {
        /// The key.
        key: String,
        /// What was written.
        word: String,
        /// The nearest allowed word.
        nearest: Option<String>,
        /// Every allowed word, joined.
        known: String,
    },
    /// A key that must be there is not.
    #[error("{table} has no `{key}`")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// The table that lacks it.
        table: &'static str,
        /// What to write.
        example: &'static str,
    },
    /// Two keys that exclude each other.
    #[error("{0}")]
    Combination(&'static str, /** What to change. */ &'static str),
    /// Two tests of one name.
    #[error("two tests are named `{name}`; the first is in line {first_line}")]
    DuplicateTest {
        /// The name.
        name: String,
        /// Where the first one is, from 1.
        first_line: usize,
    },
    /// Two services of one name.
    #[error("two services are named `{name}`; the first is in line {first_line}")]
    DuplicateService {
        /// The name.
        name: String,
        /// Where the first one is, from 1.
        first_line: usize,
    },
    /// Services that wait for each other.
    #[error("services wait for each other: {circle}")]
    ServiceCircle {
        /// Their names, from one back to itself.
        circle: String,
    },
    /// A file or folder that is not there.
    #[error("`{key}`: {path} {reason}", path = path.display())]
    MissingFile {
        /// The key that names it.
        key: &'static str,
        /// The path that was looked for.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A pattern that cannot be read.
    #[error("`{pattern}` is not a valid pattern: {reason}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What the pattern reader says.
        reason: String,
    },
    /// A pattern that matches nothing.
    #[error("`{pattern}` matches no file below {folder}", folder = folder.display())]
    EmptyGlob {
        /// The pattern.
        pattern: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A matching file that cannot be executed.
    #[error("{path} is not executable", path = path.display())]
    NotExecutable {
        /// The file.
        path: PathBuf,
    },
    /// A backend or an image that there is none of.
    #[error("{message}")]
    NotThere {
        /// Which, and what there is.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// A pattern over tests that means none.
    #[error("`{pattern}` means no test of this suite")]
    NoSuchTest {
        /// The pattern.
        pattern: String,
        /// The name nearest to it.
        nearest: Option<String>,
    },
    /// A suite without tests.
    #[error("this suite has no tests")]
    NoTests,
}

impl ConfigFault {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Syntax(_) => "see https://toml.io for the syntax; strings need quotes".to_owned(),
            Self::UnknownKey { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            Self::UnknownKey { table, known, .. } => format!("{table} takes {}", known.join(", ")),
            Self::WrongType { expected, .. } => format!("write {expected}"),
            Self::BadValue { hint, .. } => hint.clone(),
            Self::UnknownWord { nearest: Some(nearest), known, .. } => {
                format!("did you mean `{nearest}`? It takes {known}")
            }
            Self::UnknownWord { known, .. } => format!("it takes {known}"),
            Self::MissingKey { example, .. } => format!("add {example}"),
            Self::Combination(_, hint) => (*hint).to_owned(),
            Self::DuplicateTest { .. } => "give one of them another name, or `exclude` its file".to_owned(),
            Self::DuplicateService { .. } => "give one of them another name".to_owned(),
            Self::ServiceCircle { .. } => "remove this `after`, or one of the others".to_owned(),
            Self::MissingFile { .. } => "create it, or correct the path; paths begin at the suite's folder".to_owned(),
            Self::NoSuchTest { nearest: Some(nearest), .. } => {
                format!("did you mean `{nearest}`? Remove the entry if its test is gone")
            }
            Self::NoSuchTest { .. } => "correct it, or remove the entry if its test is gone".to_owned(),
            Self::BadPattern { .. } => "patterns take *, **, ?, [abc] and {one,two}".to_owned(),
            Self::EmptyGlob { .. } => {
                "correct the pattern (`**/` also matches in folders below), or remove it".to_owned()
            }
            Self::NotExecutable { path } => {
                format!("chmod +x {}, or give this [[tests]] a `command` with {{file}}", path.display())
            }
            Self::NotThere { hint, .. } => return hint.clone(),
            Self::NoTests => "add [[test]] with a name and a command, or [[tests]] with a glob".to_owned(),
        })
    }
}

/// The one error of a suite file: what is wrong and where.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigError(Box<Details>);

#[derive(Clone, PartialEq, Eq)]
struct Details {
    source: SuiteSource,
    span: Range<usize>,
    fault: ConfigFault,
}

impl ConfigError {
    pub(crate) fn new(source: SuiteSource, span: Range<usize>, fault: ConfigFault) -> Self {
        Self(Box::new(Details { source, span, fault }))
    }

    /// What is wrong.
    #[must_use]
    pub fn fault(&self) -> &ConfigFault {
        &self.0.fault
    }

    /// Line and column, both from 1.
    #[must_use]
    pub fn place(&self) -> (usize, usize) {
        self.0.source.place(self.0.span.start)
    }

    /// With the line it is about, marked; ends with a newline. Colours only where asked for.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let Details { source, span, fault } = &*self.0;
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let title = fault.to_string();
        let path = source.path().display().to_string();
        let snippet = Snippet::source(source.text()).path(path).annotation(AnnotationKind::Primary.span(span.clone()));
        let mut group = Level::ERROR.primary_title(title.as_str()).element(snippet);
        let hint = fault.hint();
        if let Some(hint) = &hint {
            group = group.element(Level::HELP.with_name("hint").message(hint.as_str()));
        }
        let mut text = renderer.decor_style(DecorStyle::Ascii).render(&[group]);
        text.push('\n');
        text
    }

    /// As every other error is shown: `file:line:column: what`, and the hint.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let problem = Problem::new(ProblemKind::Usage, self.to_string());
        match self.0.fault.hint() {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.place();
        write!(f, "{}:{line}:{column}: {}", self.0.source.path().display(), self.0.fault)
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigError({self})")
    }
}

impl std::error::Error for ConfigError {}

/// The choice nearest to what was written, where one is near.
pub(crate) fn nearest<'a>(word: &str, choices: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Distances grow with the square of the length; nobody mistypes a key of a thousand letters.
    let word: String = word.chars().take(80).collect::<String>().to_lowercase();
    let likeness = |choice: &str| {
        let choice = choice.to_lowercase();
        let (longest, slips) = (word.len().max(choice.len()), strsim::damerau_levenshtein(&word, &choice));
        // A slip or two of the fingers, or a beginning in common (`mem` for `memory`).
        let slipped = if slips <= (longest / 3).max(1) { 1.0 - slips as f64 / (longest + 1) as f64 } else { 0.0 };
        let begun = strsim::jaro_winkler(&word, &choice);
        if begun > 0.8 { slipped.max(begun) } else { slipped }
    };
    let ranked = choices.into_iter().map(|choice| (likeness(choice), choice));
    ranked.filter(|(likeness, _)| *likeness > 0.4).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, choice)| choice)
}
