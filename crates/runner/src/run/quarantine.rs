//! Which quarantines hold today.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::plan::Plan;
use crate::result::{ExpiredQuarantine, QuarantineMark};

/// For each test its quarantine, where it has one that holds; and those that are past their day, each once.
pub(super) fn judge(plan: &Plan, unix_ms: i64) -> (Vec<Option<QuarantineMark>>, Vec<ExpiredQuarantine>) {
    let today = day_of(unix_ms);
    let mut expired: Vec<(usize, usize)> = Vec::new();
    let mut marks = Vec::with_capacity(plan.tests.len());
    for test in &plan.tests {
        let entry = test.quarantine.map(|place| (place, &plan.suite_of(test).file.quarantine[place]));
        marks.push(entry.and_then(|(place, entry)| {
            if entry.until.value < today {
                if !expired.contains(&(test.suite, place)) {
                    expired.push((test.suite, place));
                }
                return None;
            }
            let until = entry.until.value.to_string();
            Some(QuarantineMark { owner: entry.owner.clone(), reason: entry.reason.clone(), until })
        }));
    }
    let told = |(suite, place): (usize, usize)| {
        let source = &plan.suites[suite].file.source;
        let entry = &plan.suites[suite].file.quarantine[place];
        ExpiredQuarantine {
            file: source.path().display().to_string(),
            line: source.place(entry.test.span.start).0,
            test: entry.test.value.clone(),
            owner: entry.owner.clone(),
            reason: entry.reason.clone(),
            until: entry.until.value.to_string(),
        }
    };
    (marks, expired.into_iter().map(told).collect())
}

/// The day in UTC, so that a run means the same everywhere.
fn day_of(unix_ms: i64) -> Date {
    let moment = Timestamp::from_millisecond(unix_ms).unwrap_or(Timestamp::UNIX_EPOCH);
    moment.to_zoned(TimeZone::UTC).date()
}
