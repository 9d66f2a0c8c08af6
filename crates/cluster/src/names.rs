//! Names in a cluster: its own, and those of its users.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a cluster's name.
    #[error(
        "{0:?} is not a cluster's name: use at most 32 lower-case letters, digits and `-`, beginning with a letter and \
         not ending with `-`"
    )]
    Cluster(String),
    /// Not a user's name.
    #[error(
        "{0:?} is not a user's name: use at most 32 lower-case letters, digits, `-` and `_`, beginning with a letter"
    )]
    User(String),
    /// A user whom the image has for itself.
    #[error("{0:?} cannot be a user of a cluster: the node's own programs run as that one")]
    System(String),
    /// Not a partition's name.
    #[error("{0:?} is not a partition's name: use at most 32 letters, digits, `-` and `_`, beginning with a letter")]
    Partition(String),
}

/// A cluster's name, with which its nodes' host names begin: 1–32 lower-case letters, digits and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

impl ClusterName {
    /// The longest.
    pub const MAX: usize = 32;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let valid = begins_with_letter(text, Self::MAX)
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !text.ends_with('-');
        if valid { Ok(Self(text.to_owned())) } else { Err(NameError::Cluster(text.to_owned())) }
    }
}

/// The name of a user with a home in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserName(String);

impl UserName {
    /// The longest.
    pub const MAX: usize = 32;

    /// Whom a cluster has where none was asked for.
    #[must_use]
    pub fn usual() -> Self {
        Self("slurm".to_owned())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Accounts that daemons need as they are. `slurm` is none of them: it may have a home as everybody else.
const SYSTEM: [&str; 10] =
    ["root", "munge", "sshd", "nobody", "daemon", "bin", "sys", "mysql", "slurmrestd", "www-data"];

impl FromStr for UserName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        if !begins_with_letter(text, Self::MAX) || !text.bytes().all(allowed) {
            return Err(NameError::User(text.to_owned()));
        }
        if SYSTEM.contains(&text) {
            return Err(NameError::System(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Checks a partition's name.
///
/// # Errors
/// It holds what `slurm.conf` would read as something else.
pub fn check_partition(text: &str) -> Result<(), NameError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    // Names that mean something else in that file, whatever their case.
    let taken = ["default", "all"].iter().any(|word| text.eq_ignore_ascii_case(word));
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic()) && text.len() <= 32;
    if begins && text.bytes().all(allowed) && !taken { Ok(()) } else { Err(NameError::Partition(text.to_owned())) }
}

fn begins_with_letter(text: &str, longest: usize) -> bool {
    text.len() <= longest && text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
}

macro_rules! as_text {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

as_text!(ClusterName, UserName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clusters_name_begins_host_names() {
        for good in ["lab", "a", "ci-42", &"x".repeat(32)] {
            assert!(good.parse::<ClusterName>().is_ok(), "{good}");
        }
        for bad in ["", "1a", "-a", "a-", "Lab", "a_b", "a.b", "a b", "a\n", "a[1]", "ä", &"x".repeat(33)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn users_are_nobody_that_a_daemon_needs() {
        for good in ["slurm", "alice", "u-1_b"] {
            assert!(good.parse::<UserName>().is_ok(), "{good}");
        }
        for bad in ["", "root", "munge", "1", "a:b", "a b", "a/b", "$x", "a\nb", &"x".repeat(33)] {
            assert!(bad.parse::<UserName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn partitions_cannot_say_anything_else() {
        for good in ["debug", "GPU", "a-b_c"] {
            assert!(check_partition(good).is_ok(), "{good}");
        }
        for bad in ["", "ALL", "default", "a b", "a=b", "a,b", "1", "a\nNodeName=x"] {
            assert!(check_partition(bad).is_err(), "{bad}");
        }
    }
}
