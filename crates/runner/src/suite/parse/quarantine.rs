//! Reading `[[quarantine]]`.

use jiff::civil::Date;

use crate::suite::check;
use crate::suite::error::ConfigError;
use crate::suite::keys;
use crate::suite::read::TableReader;
use crate::suite::{Located, QuarantineEntry};

const DAY: &str = "write a day such as until = 2027-03-31";

/// Every entry, in order.
pub(super) fn read_quarantine(top: &TableReader<'_>) -> Result<Vec<QuarantineEntry>, ConfigError> {
    top.tables("quarantine", "[[quarantine]]", keys::QUARANTINE)?.iter().map(read_entry).collect()
}

fn read_entry(table: &TableReader<'_>) -> Result<QuarantineEntry, ConfigError> {
    let said = |key: &'static str, example: &'static str| {
        let text = table.string(key)?.ok_or_else(|| table.missing(key, example))?;
        if text.value.trim().is_empty() {
            return Err(table.bad(key, "cannot be empty", format!("add {example}")));
        }
        Ok(text)
    };
    let test = said("test", "a line such as test = \"tests/net/*\"")?;
    check::name_pattern(table.source, &test)?;
    let owner = said("owner", "a line such as owner = \"ana\"")?.value;
    let reason = said("reason", "a line such as reason = \"the mirror drops connections\"")?.value;
    let until = read_day(table)?.ok_or_else(|| table.missing("until", "a line such as until = 2027-03-31"))?;
    Ok(QuarantineEntry { test, owner, reason, until })
}

/// A day, as TOML's own date or as a string.
fn read_day(table: &TableReader<'_>) -> Result<Option<Located<Date>>, ConfigError> {
    let Some(item) = table.get("until") else { return Ok(None) };
    let span = table.span_of("until");
    if let Some(written) = item.as_datetime() {
        let Some(date) = written.date.filter(|_| written.time.is_none()) else {
            return Err(table.bad("until", "is a time, not a day", DAY));
        };
        let day = i16::try_from(date.year).ok().zip(i8::try_from(date.month).ok()).zip(i8::try_from(date.day).ok());
        let day = day.and_then(|((year, month), day)| Date::new(year, month, day).ok());
        return match day {
            Some(value) => Ok(Some(Located { value, span })),
            None => Err(table.bad("until", "is no day of the calendar", DAY)),
        };
    }
    let text = item.as_str().ok_or_else(|| table.wrong_type("until", item, "a day such as 2027-03-31"))?;
    match text.parse::<Date>() {
        Ok(value) => Ok(Some(Located { value, span })),
        Err(_) => Err(table.bad("until", "is no day of the calendar", DAY)),
    }
}
