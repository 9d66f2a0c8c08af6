//! Values of options as people write them.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use testyard::run::SourceMode;
use testyard_model::{Isolation, Network, UserSpec};

/// One of the isolation levels.
pub(crate) fn isolation() -> impl TypedValueParser<Value = Isolation> {
    PossibleValuesParser::new(Isolation::ALL.map(Isolation::as_str)).try_map(|word| word.parse::<Isolation>())
}

/// One of the networks.
pub(crate) fn network() -> impl TypedValueParser<Value = Network> {
    PossibleValuesParser::new(Network::ALL.map(Network::as_str)).try_map(|word| word.parse::<Network>())
}

/// What tests see of the working tree.
pub(crate) fn source() -> impl TypedValueParser<Value = SourceMode> {
    PossibleValuesParser::new(["live", "frozen", "synced"]).map(|word| match word.as_str() {
        "frozen" => SourceMode::Frozen,
        "synced" => SourceMode::Synced,
        _ => SourceMode::Live,
    })
}

/// A value that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ValueError {
    #[error("write NAME=VALUE, or NAME alone to pass this shell's value on")]
    Variable,
    #[error("this shell has no variable {0:?} to pass on")]
    Unset(String),
    #[error("{0:?} is not a user: write a name, `root`, or a number such as 1000 or 1000:1000")]
    User(String),
    #[error("{0:?} is not a number of tests at once: write a whole number above 0, or leave it out")]
    Jobs(String),
    #[error("{0:?} is not a number of processors: write a number above 0, such as 0.5 or 2")]
    Processors(String),
}

/// A variable for a command: `NAME=VALUE`, or `NAME` for the caller's own value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: OsString,
    pub(crate) value: OsString,
}

impl Variable {
    fn parse(text: &OsString) -> Result<Self, ValueError> {
        let bytes = text.as_bytes();
        let name = |end: usize| match &bytes[..end] {
            [] => Err(ValueError::Variable),
            name => Ok(OsString::from_vec(name.to_vec())),
        };
        match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => Ok(Self { name: name(at)?, value: OsString::from_vec(bytes[at + 1..].to_vec()) }),
            None => {
                let name = name(bytes.len())?;
                let value = std::env::var_os(&name).ok_or_else(|| ValueError::Unset(text.display().to_string()))?;
                Ok(Self { name, value })
            }
        }
    }

    /// For clap.
    pub(crate) fn parser() -> impl TypedValueParser<Value = Self> {
        clap::builder::OsStringValueParser::new().try_map(|text| Self::parse(&text))
    }
}

/// Whom a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User(pub(crate) UserSpec);

impl User {
    /// As it is written.
    pub(crate) fn written(&self) -> String {
        match &self.0 {
            UserSpec::Machine => "machine".to_owned(),
            UserSpec::Root => "root".to_owned(),
            UserSpec::Named(name) => name.clone(),
            UserSpec::Numbered { uid, gid, .. } => format!("{uid}:{gid}"),
        }
    }
}

impl FromStr for User {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError::User(text.to_owned());
        if text == "root" {
            return Ok(Self(UserSpec::Root));
        }
        if text.bytes().next().is_some_and(|byte| byte.is_ascii_digit()) {
            let (uid, gid) = text.split_once(':').unwrap_or((text, text));
            let number = |digits: &str| digits.parse::<u32>().ok().filter(|id| *id != u32::MAX).ok_or_else(bad);
            return Ok(Self(UserSpec::Numbered { uid: number(uid)?, gid: number(gid)?, groups: Vec::new() }));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'$' | b'@');
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-') {
            Ok(Self(UserSpec::Named(text.to_owned())))
        } else {
            Err(bad())
        }
    }
}

/// A number of processors.
pub(crate) fn processors(text: &str) -> Result<f64, ValueError> {
    let bad = || ValueError::Processors(text.to_owned());
    let number: f64 = text.parse().map_err(|_| bad())?;
    if number > 0.0 && number <= 65_536.0 { Ok(number) } else { Err(bad()) }
}

/// How many tests run at once.
pub(crate) fn jobs(text: &str) -> Result<NonZeroUsize, ValueError> {
    text.parse().map_err(|_| ValueError::Jobs(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_split_at_the_first_sign() {
        let parse = |text: &str| Variable::parse(&text.into()).map(|variable| (variable.name, variable.value));
        assert_eq!(parse("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(parse("A="), Ok(("A".into(), "".into())));
        assert_eq!(parse("=b"), Err(ValueError::Variable));
        assert_eq!(parse("TESTYARD_NO_SUCH"), Err(ValueError::Unset("TESTYARD_NO_SUCH".into())));
        assert_eq!(parse("PATH").map(|(_, value)| Some(value)), Ok(std::env::var_os("PATH")));
    }

    #[test]
    fn users_are_names_or_numbers() {
        let parse = |text: &str| text.parse::<User>().map(|user| user.0);
        assert_eq!(parse("root"), Ok(UserSpec::Root));
        assert_eq!(parse("www-data"), Ok(UserSpec::Named("www-data".into())));
        assert_eq!(parse("1000"), Ok(UserSpec::Numbered { uid: 1000, gid: 1000, groups: vec![] }));
        assert_eq!(parse("5:6"), Ok(UserSpec::Numbered { uid: 5, gid: 6, groups: vec![] }));
        for bad in ["", "a b", "a:b", "../x", "-x", "1:", "4294967295", "1x", &"x".repeat(65)] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn processors_are_above_nothing() {
        assert_eq!(processors("0.5"), Ok(0.5));
        for bad in ["", "0", "-1", "NaN", "inf", "two"] {
            assert!(processors(bad).is_err(), "{bad}");
        }
    }
}
