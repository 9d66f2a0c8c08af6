//! Reading a filter: tokens, then precedence climbing (`or` < `and` < `not`).

use globset::GlobBuilder;
use regex::RegexBuilder;
use testyard_model::{Problem, ProblemKind};

use super::{Fact, Filter, LastResult, Matcher};
use crate::suite::nearest;

/// Parentheses deeper than this are refused rather than followed.
const DEEPEST: usize = 64;

/// What is wrong with a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterFault {
    /// Nothing was written.
    #[error("a filter cannot be empty")]
    Empty,
    /// Something else should stand here.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What should.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// No such predicate.
    #[error("unknown predicate `{name}()`")]
    UnknownPredicate {
        /// Its name.
        name: String,
        /// The nearest that exists.
        nearest: Option<&'static str>,
    },
    /// A malformed glob.
    #[error("`{pattern}` is not a valid pattern: {reason}")]
    BadGlob {
        /// The pattern.
        pattern: String,
        /// What the pattern reader says.
        reason: String,
    },
    /// A malformed regular expression.
    #[error("`{pattern}` is not a valid regular expression: {reason}")]
    BadRegex {
        /// The expression.
        pattern: String,
        /// What its reader says.
        reason: String,
    },
    /// No such result.
    #[error("unknown result `{word}`")]
    UnknownResult {
        /// What was written.
        word: String,
        /// The nearest that exists.
        nearest: Option<&'static str>,
    },
    /// Too many parentheses inside each other.
    #[error("parentheses are nested too deeply")]
    TooDeep,
}

/// A filter that could not be read, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter `{text}`, at character {at}: {fault}")]
pub struct FilterError {
    text: String,
    at: usize,
    fault: FilterFault,
}

impl FilterError {
    /// What is wrong.
    #[must_use]
    pub fn fault(&self) -> &FilterFault {
        &self.fault
    }

    /// As every other error is shown.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let hint = match &self.fault {
            FilterFault::UnknownPredicate { nearest: Some(nearest), .. } => format!("did you mean `{nearest}()`?"),
            FilterFault::UnknownResult { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            FilterFault::UnknownResult { .. } => {
                let words = LastResult::ALL.map(|(word, _)| word);
                format!("results are {}", words.join(", "))
            }
            FilterFault::BadRegex { .. } => "a plain part of a name is written name(~part)".to_owned(),
            FilterFault::UnknownPredicate { .. } => {
                "predicates are name(), suite(), tag(), needs(), owner(), variant(), result(), all() and none()"
                    .to_owned()
            }
            _ => {
                "such as: --filter 'name(~boot) and not tag(slow)'; a plain word selects by part of the name".to_owned()
            }
        };
        Problem::new(ProblemKind::Usage, self.to_string()).hint(hint)
    }
}

pub(super) fn parse(text: &str) -> Result<Filter, FilterError> {
    let fail = |at: usize, fault| {
        Err(FilterError { text: text.chars().take(200).collect(), at: text[..at].chars().count() + 1, fault })
    };
    if text.trim().is_empty() {
        return fail(0, FilterFault::Empty);
    }
    // A name with spaces or brackets in it is still a name, unless it reads like an expression.
    if !reads_like_expression(text) {
        return Ok(Filter::Contains(text.trim().to_owned()));
    }
    let mut reader = Reader { text, at: 0 };
    let read = reader.alternatives(0).and_then(|filter| match reader.peek() {
        None => Ok(filter),
        Some(_) => Err((reader.at, reader.expected("`and`, `or` or the end"))),
    });
    read.or_else(|(at, fault)| fail(at, fault))
}

fn reads_like_expression(text: &str) -> bool {
    let starts = |word: &str| text.trim_start().starts_with(word);
    let call = text.find('(').is_some_and(|open| {
        let before = &text[..open];
        let word = before.trim_end().rsplit(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or("");
        let known = Fact::ALL.iter().any(|(name, _)| *name == word) || matches!(word, "all" | "none");
        known
            || word == "result"
            || nearest(word, Fact::ALL.map(|(name, _)| name)).is_some()
            || before.trim().is_empty()
    });
    let operator = text.split_whitespace().any(|word| matches!(word, "and" | "or" | "not" | "&" | "|" | "!"));
    call || operator || starts("!")
}

type Fallible<T> = Result<T, (usize, FilterFault)>;

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    /// Takes this word or sign, where it stands next and ends.
    fn take(&mut self, word: &str) -> bool {
        self.peek();
        let rest = &self.text[self.at..];
        let after = rest.strip_prefix(word).and_then(|after| after.chars().next().or(Some(' ')));
        let whole = after.is_some_and(|next| !word.ends_with(|c: char| c.is_alphabetic()) || ends_word(next));
        if whole {
            self.at += word.len();
        }
        whole
    }

    fn expected(&mut self, expected: &'static str) -> FilterFault {
        let found = match self.peek() {
            Some(character) => format!("{character:?}"),
            None => "the end".to_owned(),
        };
        FilterFault::Expected { expected, found }
    }

    fn alternatives(&mut self, depth: usize) -> Fallible<Filter> {
        let mut left = self.conjunction(depth)?;
        while self.take("or") || self.take("||") || self.take("|") {
            left = Filter::Or(Box::new(left), Box::new(self.conjunction(depth)?));
        }
        Ok(left)
    }

    fn conjunction(&mut self, depth: usize) -> Fallible<Filter> {
        let mut left = self.negation(depth)?;
        while self.take("and") || self.take("&&") || self.take("&") {
            left = Filter::And(Box::new(left), Box::new(self.negation(depth)?));
        }
        Ok(left)
    }

    fn negation(&mut self, depth: usize) -> Fallible<Filter> {
        let mut negated = false;
        while self.take("not") || self.take("!") {
            negated = !negated;
        }
        let inner = self.single(depth)?;
        Ok(if negated { Filter::Not(Box::new(inner)) } else { inner })
    }

    fn single(&mut self, depth: usize) -> Fallible<Filter> {
        if depth > DEEPEST {
            return Err((self.at, FilterFault::TooDeep));
        }
        if self.take("(") {
            let inner = self.alternatives(depth + 1)?;
            return if self.take(")") { Ok(inner) } else { Err((self.at, self.expected("`)`"))) };
        }
        if self.peek().is_none_or(|c| matches!(c, ')' | '|' | '&')) {
            return Err((self.at, self.expected("a word or a predicate")));
        }
        let start = self.at;
        let rest = &self.text[start..];
        let word = &rest[..rest.find(ends_word).unwrap_or(rest.len())];
        self.at += word.len();
        if self.text[self.at..].starts_with('(') {
            self.at += 1;
            return self.predicate(start, word);
        }
        Ok(Filter::Contains(word.to_owned()))
    }

    /// After `word(`.
    fn predicate(&mut self, start: usize, word: &str) -> Fallible<Filter> {
        let body_start = self.at;
        let body = self.body()?;
        if word == "result" {
            return match LastResult::ALL.into_iter().find(|(known, _)| *known == body) {
                Some((_, result)) => Ok(Filter::Result(result)),
                None => {
                    let nearest = nearest(&body, LastResult::ALL.map(|(known, _)| known));
                    Err((body_start, FilterFault::UnknownResult { word: body, nearest }))
                }
            };
        }
        let Some((_, fact)) = Fact::ALL.into_iter().find(|(name, _)| *name == word) else {
            return match word {
                "all" if body.is_empty() => Ok(Filter::All),
                "none" if body.is_empty() => Ok(Filter::None),
                _ => {
                    let nearest = nearest(word, Fact::ALL.map(|(name, _)| name).into_iter().chain(["result"]));
                    Err((start, FilterFault::UnknownPredicate { name: word.to_owned(), nearest }))
                }
            };
        };
        if body.is_empty() {
            return Err((body_start, self.expected("something to compare with, such as name(~part)")));
        }
        let matcher = match body.split_at_checked(1) {
            Some(("~", part)) => Matcher::Contains(part.to_owned()),
            Some(("=", whole)) => Matcher::Equals(whole.to_owned()),
            Some(("#", pattern)) => match GlobBuilder::new(pattern).literal_separator(false).build() {
                Ok(glob) => Matcher::Glob(glob.compile_matcher()),
                Err(error) => {
                    let fault = FilterFault::BadGlob { pattern: pattern.to_owned(), reason: error.kind().to_string() };
                    return Err((body_start, fault));
                }
            },
            _ if regex_in(&body).is_some() => self.regex(body_start, regex_in(&body).unwrap_or_default())?,
            _ if fact == Fact::Name => Matcher::Contains(body.to_owned()),
            _ => Matcher::Equals(body.to_owned()),
        };
        Ok(Filter::Fact(fact, matcher))
    }

    fn regex(&self, start: usize, pattern: &str) -> Fallible<Matcher> {
        RegexBuilder::new(pattern).size_limit(1 << 20).build().map(Matcher::Regex).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            (start, FilterFault::BadRegex { pattern: pattern.to_owned(), reason })
        })
    }

    /// Up to the parenthesis that closes the predicate; those in between must be balanced, but for a regular
    /// expression's, which ends at its slash.
    fn body(&mut self) -> Fallible<String> {
        if let Some(end) = regex_end(&self.text[self.at..]) {
            let body = self.text[self.at..self.at + end].trim().to_owned();
            self.at += end;
            return if self.take(")") { Ok(body) } else { Err((self.at, self.expected("`)`"))) };
        }
        let mut open = 0_usize;
        for (offset, character) in self.text[self.at..].char_indices() {
            match character {
                '(' => open += 1,
                ')' if open == 0 => {
                    let body = self.text[self.at..self.at + offset].trim().to_owned();
                    self.at += offset + 1;
                    return Ok(body);
                }
                ')' => open -= 1,
                _ => {}
            }
        }
        self.at = self.text.len();
        Err((self.at, self.expected("`)`")))
    }
}

/// The regular expression in `/…/`.
fn regex_in(body: &str) -> Option<&str> {
    body.strip_prefix('/')?.strip_suffix('/')
}

/// Where a regular expression ends that begins here: behind the first slash, not escaped, that a parenthesis follows.
fn regex_end(text: &str) -> Option<usize> {
    let begin = text.len() - text.trim_start().len();
    let inner = text[begin..].strip_prefix('/')?;
    let mut escaped = false;
    for (at, character) in inner.char_indices() {
        match character {
            '\\' => escaped = !escaped,
            '/' if !escaped && inner[at + 1..].trim_start().starts_with(')') => return Some(begin + 1 + at + 1),
            _ => escaped = false,
        }
    }
    None
}

fn ends_word(character: char) -> bool {
    character.is_whitespace() || matches!(character, '(' | ')' | '&' | '|')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::filter::Facts;

    fn check(filter: &str, expected: bool) {
        let tags = ["slow".to_owned()];
        let needs = ["kvm".to_owned()];
        let facts = Facts {
            suite: "quick",
            name: "tests/boot (one).sh",
            tags: &tags,
            needs: &needs,
            owner: Some("ana"),
            variant: Some("image=host"),
            last: Some("timed-out"),
        };
        let parsed = Filter::parse(filter).expect(filter);
        assert_eq!(parsed.matches(&facts), expected, "{filter}: {parsed:?}");
    }

    #[test]
    fn selects() {
        for (filter, expected) in [
            ("boot", true),
            ("boot (one)", true),
            ("quick::tests", true),
            ("nothing", false),
            ("name(boot)", true),
            ("name(=boot)", false),
            ("name(#tests/*.sh)", true),
            ("name(~(one))", true),
            ("suite(quick) and tag(slow)", true),
            ("suite(qui)", false),
            ("suite(~qui) & !tag(fast)", true),
            ("not boot", false),
            ("not not boot or none()", true),
            ("owner(ana) and (needs(qemu) or needs(kvm))", true),
            ("all()", true),
            ("none() or boot and tag(slow)", true),
            ("android", false),
            ("name(/boot \\(o.e\\)/) and tag(slow)", true),
            ("name(/^boot/)", false),
            ("name(/a|(b)oot/)", true),
            ("variant(~host)", true),
            ("result(failed) and not result(none)", true),
            ("result(passed)", false),
        ] {
            check(filter, expected);
        }
    }

    #[test]
    fn refuses_with_the_place_and_the_nearest() {
        for (filter, message) in [
            ("", "filter ``, at character 1: a filter cannot be empty"),
            ("nam(x)", "filter `nam(x)`, at character 1: unknown predicate `nam()`"),
            ("a and", "filter `a and`, at character 6: expected a word or a predicate, found the end"),
            ("name(/(/)", "filter `name(/(/)`, at character 6: `(` is not a valid regular expression: unclosed group"),
            ("result(fialed)", "filter `result(fialed)`, at character 8: unknown result `fialed`"),
            ("name(x", "filter `name(x`, at character 7: expected `)`, found the end"),
            ("(a or b", "filter `(a or b`, at character 8: expected `)`, found the end"),
            ("tag(a) tag(b)", "filter `tag(a) tag(b)`, at character 8: expected `and`, `or` or the end, found 't'"),
            (
                "name(#[)",
                "filter `name(#[)`, at character 6: `[` is not a valid pattern: unclosed character class; missing ']'",
            ),
        ] {
            assert_eq!(Filter::parse(filter).expect_err(filter).to_string(), message);
        }
        assert!(Filter::parse(&"(".repeat(10_000)).is_err());
        assert_eq!(Filter::parse("nam(x)").expect_err("unknown").problem().hints, ["did you mean `name()`?"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a-z()~=#!&|/ \\\\\\[ä]{0,40}") {
            let _ = Filter::parse(&text);
        }
    }
}
