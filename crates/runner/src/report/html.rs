//! One page for a browser that needs nothing else: no network, no other file. Its data is one document of JSON in
//! columns, small enough for ten thousand tests; what it shows is made of that in the browser, as text and never as
//! markup, so that no name or log can do anything there.

mod data;

use std::io::{self, Write};

use super::record::RunRecord;

const PAGE: &str = include_str!("html/page.html");
const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");

pub(super) fn write(record: &RunRecord, out: &mut dyn Write) -> io::Result<()> {
    // The page's own script is the only one that may run: whoever smuggles one in cannot know this.
    let nonce = uuid::Uuid::now_v7().simple().to_string();
    let mut rest = PAGE;
    while let Some((before, after)) = rest.split_once("{{") {
        out.write_all(before.as_bytes())?;
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        match name {
            "title" => out.write_all(escaped(&title(record)).as_bytes())?,
            "nonce" => out.write_all(nonce.as_bytes())?,
            "style" => out.write_all(STYLE.as_bytes())?,
            "script" => out.write_all(SCRIPT.as_bytes())?,
            _ => data::write(record, &mut Inert(&mut *out))?,
        }
        rest = after;
    }
    out.write_all(rest.as_bytes())
}

fn title(record: &RunRecord) -> String {
    let summary = record.summary();
    let suites = record.suites();
    let suites = if suites.len() > 3 { format!("{} suites", suites.len()) } else { suites.join(", ") };
    super::safe_line(&format!("{suites}: {}", summary.line()))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// JSON that can stand in a script element: nothing in it begins a tag or a comment. `<` is only ever part of a string.
struct Inert<'a>(&'a mut dyn Write);

impl Write for Inert<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for (number, piece) in bytes.split(|byte| *byte == b'<').enumerate() {
            if number > 0 {
                self.0.write_all(b"\\u003c")?;
            }
            self.0.write_all(piece)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
