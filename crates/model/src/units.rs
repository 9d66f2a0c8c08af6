//! Sizes and time spans as people write them: `512M`, `1.5G`, `90s`, `2h30m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a size or a span could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("`{0}` is not a size: write a number and a unit, such as 512M or 2G (K, M, G, T are powers of 1024)")]
    Size(String),
    /// Not a span.
    #[error("`{0}` is not a time span: write a number and a unit, such as 500ms, 90s, 5m, 2h or 1d")]
    Span(String),
}

/// A number of bytes. Written with K, M, G, T (powers of 1024; `KiB`, `MiB` … mean the same).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many mebibytes.
    #[must_use]
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Size(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let number: f64 = text[..digits].parse().map_err(|_| bad())?;
        let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "ki" | "kib" => 10,
            "m" | "mb" | "mi" | "mib" => 20,
            "g" | "gb" | "gi" | "gib" => 30,
            "t" | "tb" | "ti" | "tib" => 40,
            _ => return Err(bad()),
        };
        let bytes = number * (1_u64 << shift) as f64;
        if !bytes.is_finite() || bytes < 1.0 || bytes > (1_u64 << 60) as f64 {
            return Err(bad());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 >= 1 << shift {
                let whole = self.0 as f64 / (1_u64 << shift) as f64;
                return if whole.fract() == 0.0 { write!(f, "{whole}{unit}") } else { write!(f, "{whole:.1}{unit}") };
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A span of time. Written with ms, s, m, h, d, also joined: `1h30m`. At least 1 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl Span {
    /// As [`milliseconds`].
    #[must_use]
    pub fn milliseconds(self) -> u64 {
        milliseconds(self.0)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Span(text.to_owned());
        let mut rest = text;
        let mut total = 0.0_f64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            total += number
                * match &rest[..end] {
                    "ms" => 0.001,
                    "s" => 1.0,
                    "m" | "min" => 60.0,
                    "h" => 3_600.0,
                    "d" => 86_400.0,
                    _ => return Err(bad()),
                };
            rest = &rest[end..];
        }
        // A century is more than any time limit needs and far from overflow.
        if !(0.001..=3.2e9).contains(&total) {
            return Err(bad());
        }
        Ok(Self(Duration::from_secs_f64(total)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        if !millis.is_multiple_of(1_000) {
            return if millis < 1_000 {
                write!(f, "{millis}ms")
            } else {
                write!(f, "{}s{}ms", millis / 1_000, millis % 1_000)
            };
        }
        let mut seconds = self.0.as_secs();
        let mut wrote = false;
        for (size, unit) in [(86_400, "d"), (3_600, "h"), (60, "m")] {
            if seconds >= size {
                write!(f, "{}{unit}", seconds / size)?;
                seconds %= size;
                wrote = true;
            }
        }
        if seconds > 0 || !wrote { write!(f, "{seconds}s") } else { Ok(()) }
    }
}

/// Whole milliseconds, as the protocol and JSON carry a time; the most that fit, where it is longer.
#[must_use]
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// As [`milliseconds`], for what is told finer.
#[must_use]
pub fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl serde::Serialize for $kind {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use as_text;

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

as_text!(Span);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_trip() {
        for (text, bytes) in [("1", 1), ("512M", 512 << 20), ("1.5G", 3 << 29), ("4KiB", 4096)] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
        assert_eq!(ByteSize(3 << 29).to_string(), "1.5G");
        for text in ["", "0", "-1", "12X", "G", "1e9", "9999999T"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn spans_round_trip() {
        for (text, millis) in [("500ms", 500), ("90s", 90_000), ("2h30m", 9_000_000), ("1d", 86_400_000)] {
            assert_eq!(text.parse::<Span>(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
        assert_eq!(Span(Duration::from_secs(9_000)).to_string(), "2h30m");
        for text in ["", "5", "s", "0s", "-1s", "1y"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
