//! The filter language of `--filter`: which tests are meant.
//!
//! ```text
//! text                      tests whose `suite::name` contains the text
//! name(~part) suite(quick)  by name, suite, tag(), needs(), owner() or variant(); ~ contains, = equals, # glob, /regex/
//! result(failed)            by the result of the last run
//! a and (b or not c)        also written & | !
//! all()  none()
//! ```
//!
//! A filter decides from [`Facts`] alone and does no IO; results of earlier runs are one more fact.

mod parse;

use globset::GlobMatcher;
use regex::Regex;

pub use parse::{FilterError, FilterFault};

use crate::suite::nearest;

/// Which tests are meant.
#[derive(Debug, Clone)]
pub enum Filter {
    /// Every test.
    All,
    /// No test.
    None,
    /// Those that the inner one does not mean.
    Not(Box<Filter>),
    /// Those that both mean.
    And(Box<Filter>, Box<Filter>),
    /// Those that either means.
    Or(Box<Filter>, Box<Filter>),
    /// Those of which `suite::name` contains this.
    Contains(String),
    /// Those of which this fact matches.
    Fact(Fact, Matcher),
    /// Those whose last result was this one.
    Result(LastResult),
}

/// A result of the last run, as `result()` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastResult {
    /// One of the words of a run's `result`; `failed` also means `timed-out`.
    Was(&'static str),
    /// No run of it is remembered.
    None,
}

impl LastResult {
    /// Every word that `result()` takes.
    pub const ALL: [(&'static str, Self); 7] = [
        ("passed", Self::Was("passed")),
        ("flaky", Self::Was("flaky")),
        ("failed", Self::Was("failed")),
        ("timed-out", Self::Was("timed-out")),
        ("skipped", Self::Was("skipped")),
        ("infrastructure-error", Self::Was("infrastructure-error")),
        ("none", Self::None),
    ];

    fn matches(self, last: Option<&str>) -> bool {
        match (self, last) {
            (Self::Was("failed"), Some(last)) => matches!(last, "failed" | "timed-out"),
            (Self::Was(word), Some(last)) => word == last,
            (Self::None, last) => last.is_none(),
            (Self::Was(_), None) => false,
        }
    }
}

/// What a predicate looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// The test's name.
    Name,
    /// Its suite's name.
    Suite,
    /// Any of its tags.
    Tag,
    /// Any of its needs.
    Needs,
    /// Its owner.
    Owner,
    /// The variant of its suite's matrix.
    Variant,
}

impl Fact {
    /// Every predicate, by its word.
    pub const ALL: [(&'static str, Self); 6] = [
        ("name", Self::Name),
        ("suite", Self::Suite),
        ("tag", Self::Tag),
        ("needs", Self::Needs),
        ("owner", Self::Owner),
        ("variant", Self::Variant),
    ];
}

/// How a predicate compares.
#[derive(Debug, Clone)]
pub enum Matcher {
    /// `~text`: contains.
    Contains(String),
    /// `=text`: equals.
    Equals(String),
    /// `#pattern`: a glob over the whole.
    Glob(GlobMatcher),
    /// `/pattern/`: a regular expression that is found somewhere.
    Regex(Regex),
}

impl Matcher {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Contains(part) => text.contains(part.as_str()),
            Self::Equals(whole) => text == whole,
            Self::Glob(glob) => glob.is_match(text),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// What is known of a test when it is selected.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its suite's name.
    pub suite: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its tags.
    pub tags: &'a [String],
    /// Its needs.
    pub needs: &'a [String],
    /// Whom to ask about it.
    pub owner: Option<&'a str>,
    /// The variant of its suite's matrix.
    pub variant: Option<&'a str>,
    /// The word for its last result; none where no run of it is remembered, or nobody asked.
    pub last: Option<&'a str>,
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// Where it is an expression that is malformed or uses an unknown predicate.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        parse::parse(text)
    }

    /// Those that any of these mean; every test where there are none.
    #[must_use]
    pub fn any_of(filters: Vec<Self>) -> Self {
        filters.into_iter().reduce(|a, b| Self::Or(Box::new(a), Box::new(b))).unwrap_or(Self::All)
    }

    /// Whether it depends on the results of earlier runs.
    #[must_use]
    pub fn asks_for_results(&self) -> bool {
        match self {
            Self::Result(_) => true,
            Self::Not(inner) => inner.asks_for_results(),
            Self::And(a, b) | Self::Or(a, b) => a.asks_for_results() || b.asks_for_results(),
            Self::All | Self::None | Self::Contains(_) | Self::Fact(..) => false,
        }
    }

    /// The name nearest to what was perhaps meant, where the filter is a plain word.
    #[must_use]
    pub fn nearest<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
        match self {
            Self::Contains(word) => nearest(word, names).map(str::to_owned),
            _ => None,
        }
    }

    /// Whether this test is meant.
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Not(inner) => !inner.matches(facts),
            Self::And(a, b) => a.matches(facts) && b.matches(facts),
            Self::Or(a, b) => a.matches(facts) || b.matches(facts),
            Self::Contains(part) => contains(facts, part),
            Self::Fact(Fact::Name, matcher) => matcher.matches(facts.name),
            Self::Fact(Fact::Suite, matcher) => matcher.matches(facts.suite),
            Self::Fact(Fact::Tag, matcher) => facts.tags.iter().any(|tag| matcher.matches(tag)),
            Self::Fact(Fact::Needs, matcher) => facts.needs.iter().any(|need| matcher.matches(need)),
            Self::Result(result) => result.matches(facts.last),
            Self::Fact(Fact::Variant, matcher) => facts.variant.is_some_and(|variant| matcher.matches(variant)),
            Self::Fact(Fact::Owner, matcher) => facts.owner.is_some_and(|owner| matcher.matches(owner)),
        }
    }
}

fn contains(facts: &Facts<'_>, part: &str) -> bool {
    facts.name.contains(part)
        || facts.suite.contains(part)
        || (part.contains(':') && format!("{}::{}", facts.suite, facts.name).contains(part))
}
