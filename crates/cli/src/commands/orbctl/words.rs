//! The words of a line: flags before or after the positionals, as the tool that this stands in for takes them.
//!
//! Not clap: the same letter means different things in different commands, a command's own words begin without `--`, and
//! building clap's definitions would cost as much as the whole answer to `status`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use testyard_model::{Problem, ProblemKind};

/// A flag that a command understands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    /// Written `--long`.
    long: &'static str,
    /// Written `-s`.
    short: Option<char>,
    takes_value: bool,
}

impl Flag {
    /// A flag that stands alone.
    pub(super) const fn alone(long: &'static str, short: Option<char>) -> Self {
        Self { long, short, takes_value: false }
    }

    /// A flag with a value: `--long V`, `--long=V`, `-s V` or `-sV`.
    pub(super) const fn with_value(long: &'static str, short: Option<char>) -> Self {
        Self { long, short, takes_value: true }
    }
}

/// Where a command's positionals end and somebody else's words begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Flags are understood everywhere.
    Ours,
    /// From the first positional on, every word is kept as it is.
    Verbatim,
}

/// What a line says.
#[derive(Debug, Default)]
pub(super) struct Words {
    given: Vec<(&'static str, OsString)>,
    /// Everything that is no flag, in order.
    pub(super) positionals: Vec<OsString>,
    /// `-h` or `--help` was among the flags.
    pub(super) help: bool,
}

impl Words {
    /// Sorts a command's words.
    pub(super) fn parse(flags: &[Flag], rest: Rest, words: Vec<OsString>) -> Result<Self, Problem> {
        let mut parsed = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.as_bytes() {
                b"--" => {
                    parsed.positionals.extend(words);
                    return Ok(parsed);
                }
                b"-h" | b"--help" => parsed.help = true,
                [b'-', _, ..] => parsed.flag(flags, &word, &mut words)?,
                _ => {
                    parsed.positionals.push(word);
                    if rest == Rest::Verbatim {
                        parsed.positionals.extend(words);
                        return Ok(parsed);
                    }
                }
            }
        }
        Ok(parsed)
    }

    fn flag(&mut self, flags: &[Flag], word: &OsStr, rest: &mut impl Iterator<Item = OsString>) -> Result<(), Problem> {
        let bytes = word.as_bytes();
        let unknown = || Problem::new(ProblemKind::Usage, format!("no such flag: {}", word.to_string_lossy()));
        let (flag, joined) = match bytes.strip_prefix(b"--") {
            Some(long) => {
                let end = long.iter().position(|byte| *byte == b'=').unwrap_or(long.len());
                let flag = flags.iter().find(|flag| flag.long.as_bytes() == &long[..end]);
                (flag, long.get(end + 1..))
            }
            None => {
                let flag = flags.iter().find(|flag| flag.short.is_some_and(|short| bytes[1] == short as u8));
                (flag, Some(&bytes[2..]).filter(|joined| !joined.is_empty()))
            }
        };
        let flag = flag.ok_or_else(unknown)?;
        let value = match (flag.takes_value, joined) {
            (true, Some(joined)) => OsString::from_vec(joined.to_vec()),
            (true, None) => {
                let missing = || Problem::new(ProblemKind::Usage, format!("{} needs a value", word.display()));
                rest.next().ok_or_else(missing)?
            }
            (false, Some(_)) => return Err(unknown()),
            (false, None) => OsString::new(),
        };
        self.given.push((flag.long, value));
        Ok(())
    }

    /// Whether a flag was given.
    pub(super) fn has(&self, long: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == long)
    }

    /// The last value given to a flag.
    pub(super) fn raw(&self, long: &str) -> Option<&OsStr> {
        self.given.iter().rev().find(|(given, _)| *given == long).map(|(_, value)| value.as_os_str())
    }

    /// The last value given to a flag, as text.
    pub(super) fn value(&self, long: &str) -> Result<Option<&str>, Problem> {
        self.raw(long).map(|value| value.to_str().ok_or_else(|| not_text(value))).transpose()
    }

    /// Exactly these positionals, as text.
    pub(super) fn exactly<const COUNT: usize>(&self, named: [&str; COUNT]) -> Result<[&str; COUNT], Problem> {
        let mut texts = [""; COUNT];
        if let Some(name) = named.get(self.positionals.len()) {
            return Err(Problem::new(ProblemKind::Usage, format!("{name} is missing")));
        }
        if let Some(word) = self.positionals.get(COUNT) {
            let message = format!("one word too many: {}", word.to_string_lossy());
            return Err(Problem::new(ProblemKind::Usage, message));
        }
        for (text, word) in texts.iter_mut().zip(&self.positionals) {
            *text = word.to_str().ok_or_else(|| not_text(word))?;
        }
        Ok(texts)
    }

    /// All positionals, as text.
    pub(super) fn texts(&self) -> Result<Vec<&str>, Problem> {
        self.positionals.iter().map(|word| word.to_str().ok_or_else(|| not_text(word))).collect()
    }
}

fn not_text(word: &OsStr) -> Problem {
    Problem::new(ProblemKind::Usage, format!("not text: {}", word.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [Flag; 3] =
        [Flag::with_value("format", Some('f')), Flag::alone("all", Some('a')), Flag::with_value("machine", Some('m'))];

    fn parse(rest: Rest, line: &str) -> Result<Words, String> {
        let words = line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect();
        Words::parse(&FLAGS, rest, words).map_err(|problem| problem.message)
    }

    #[test]
    fn flags_stand_anywhere() {
        for line in ["web -f json", "-f json web", "--format=json web", "-fjson web", "web --format json"] {
            let words = parse(Rest::Ours, line).expect(line);
            assert_eq!(words.value("format").expect("text"), Some("json"), "{line}");
            assert_eq!(words.exactly(["NAME"]).expect(line), ["web"]);
            assert!(!words.has("all"));
        }
    }

    #[test]
    fn a_command_is_kept_as_it_is() {
        for line in ["-m web ls -f --machine x -- y", "-m web -- ls -f --machine x -- y"] {
            let words = parse(Rest::Verbatim, line).expect(line);
            assert_eq!(words.value("machine").expect("text"), Some("web"));
            assert_eq!(words.positionals, ["ls", "-f", "--machine", "x", "--", "y"], "{line}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse(Rest::Ours, "--nonsense").expect_err("unknown"), "no such flag: --nonsense");
        assert_eq!(parse(Rest::Ours, "--all=1").expect_err("no value"), "no such flag: --all=1");
        assert_eq!(parse(Rest::Ours, "web -f").expect_err("cut off"), "-f needs a value");
        let two = parse(Rest::Ours, "a b").expect("two words");
        assert_eq!(two.exactly(["NAME"]).expect_err("too many").message, "one word too many: b");
        assert_eq!(two.exactly(["A", "B", "C"]).expect_err("too few").message, "C is missing");
        assert_eq!(parse(Rest::Ours, "-").expect("a word").positionals, ["-"]);
    }
}
