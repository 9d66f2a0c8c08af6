//! Names and ids. A name is what people type; an id is short, because socket paths hold 108 bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::as_text;

/// Why a name or an id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was written.
    #[error("a machine name cannot be empty")]
    Empty,
    /// Longer than a host name label.
    #[error("machine name `{shown}…` is {length} characters long; at most {max} are allowed", max = MachineName::MAX)]
    TooLong {
        /// The first characters.
        shown: String,
        /// How long it was.
        length: usize,
    },
    /// A character that a host name cannot hold.
    #[error(
        "machine name {name:?} contains {character:?}; use letters, digits, `-`, `_` and `.`, beginning with a letter or digit"
    )]
    Character {
        /// The name as given.
        name: String,
        /// The first offending character.
        character: char,
    },
    /// Not an id that Testyard made.
    #[error("{0:?} is not a machine id")]
    Id(String),
}

/// A machine's name: 1–63 of letters, digits, `-`, `_`, `.`; begins with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineName(String);

impl MachineName {
    /// The longest name: that of a host name label.
    pub const MAX: usize = 63;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MachineName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let length = text.chars().count();
        if length > Self::MAX {
            return Err(NameError::TooLong { shown: text.chars().take(20).collect(), length });
        }
        let allowed =
            |(index, c): &(usize, char)| c.is_ascii_alphanumeric() || (*index > 0 && matches!(c, '-' | '_' | '.'));
        match text.chars().enumerate().find(|pair| !allowed(pair)) {
            Some((_, character)) => Err(NameError::Character { name: text.to_owned(), character }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A machine's id: 10 lower-case base-32 characters (50 random bits), stable across renames.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(String);

impl MachineId {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

    /// From random bits, of which the low 50 are used.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self((0..10).map(|place| Self::ALPHABET[(bits >> (place * 5)) as usize & 31] as char).collect())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MachineId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let valid = text.len() == 10 && text.bytes().all(|byte| Self::ALPHABET.contains(&byte));
        if valid { Ok(Self(text.to_owned())) } else { Err(NameError::Id(text.to_owned())) }
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(MachineName, MachineId);

/// An environment's number: unique within its machine's life, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EnvironmentId(pub u64);

impl fmt::Display for EnvironmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_host_name_labels() {
        for good in ["web", "a", "node-1.lab_2", &"x".repeat(63)] {
            assert!(good.parse::<MachineName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-x", "a b", "a\u{7}", "ä", &"x".repeat(300)] {
            assert!(bad.parse::<MachineName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_short_and_round_trip() {
        let id = MachineId::from_bits(0x1234_5678_9abc_def0);
        assert_eq!(id.as_str().len(), 10);
        assert_eq!(id.as_str().parse::<MachineId>(), Ok(id));
        assert!("../../etc/".parse::<MachineId>().is_err());
    }
}
