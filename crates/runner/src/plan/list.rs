//! `--list`: the tests of a plan, for people and for programs.

use std::io::{self, Write};

use serde::Serialize;
use testyard_model::{Isolation, Network, milliseconds};

use super::Plan;
use crate::result::JSON_VERSION;

#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    tests: Vec<Listed<'a>>,
}

#[derive(Serialize)]
struct Listed<'a> {
    suite: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    command: &'a [String],
    cwd: String,
    isolation: Isolation,
    network: Network,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    quarantined: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    needs: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
}

impl Plan {
    /// A line for each test, below its suite.
    ///
    /// # Errors
    /// Where nothing more can be written.
    pub fn list(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut last = usize::MAX;
        for test in &self.tests {
            if test.suite != last {
                last = test.suite;
                let suite = self.suite_of(test);
                writeln!(out, "{} ({})", suite.name, suite.root.display())?;
            }
            write!(out, "    {}", test.name)?;
            if !test.tags.is_empty() {
                write!(out, "  [{}]", test.tags.join(", "))?;
            }
            if !test.needs.is_empty() {
                write!(out, "  needs {}", test.needs.join(", "))?;
            }
            writeln!(out)?;
        }
        let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        writeln!(out, "{} in {}", plural(self.tests.len(), "test"), plural(self.suites.len(), "suite"))
    }

    /// The same as one JSON document (see `docs/json.md`).
    ///
    /// # Errors
    /// Where nothing more can be written.
    pub fn list_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let tests = self.tests.iter().map(|test| Listed {
            suite: &self.suite_of(test).name,
            name: &test.name,
            file: test.file.as_ref().map(|file| file.display().to_string()),
            command: &test.argv,
            cwd: test.cwd.display().to_string(),
            isolation: test.isolation,
            network: test.network,
            variant: test.variant.as_deref(),
            repetition: test.repetition,
            quarantined: test.quarantine.is_some(),
            timeout_ms: test.timeout.map(milliseconds),
            needs: &test.needs,
            tags: &test.tags,
            owner: test.owner.as_deref(),
        });
        let listing = Listing { version: JSON_VERSION, tests: tests.collect() };
        serde_json::to_writer_pretty(&mut *out, &listing)?;
        writeln!(out)
    }
}
