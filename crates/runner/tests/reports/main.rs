//! Reports as their readers take them: XML against a schema, JSON against another, lines against their protocol, the
//! page in a real browser.

mod formats;
mod json;
mod page;
mod sample;

use testyard_runner::report::{ReportKind, RunRecord, render};

/// A report as text.
fn rendered(kind: ReportKind, record: &RunRecord) -> String {
    let mut bytes = Vec::new();
    render(kind, record, &mut bytes).expect("memory takes everything");
    String::from_utf8(bytes).expect("reports are UTF-8")
}
