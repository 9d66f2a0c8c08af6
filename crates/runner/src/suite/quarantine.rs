//! `[[quarantine]]`: tests whose failures are known and owned, and do not fail a run until a day.

use jiff::civil::Date;

use super::Located;

/// One `[[quarantine]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineEntry {
    /// A pattern over the names of the suite's tests.
    pub test: Located<String>,
    /// Who cares about it.
    pub owner: String,
    /// Why its failures are borne.
    pub reason: String,
    /// The last day (UTC) on which they are.
    pub until: Located<Date>,
}
