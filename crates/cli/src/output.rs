//! What people and programs read: data on standard output, words for people on standard error.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the one place that prints")]

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;
use serde_json::{Value, json};
use testyard_model::machine::JSON_VERSION;
use testyard_model::{Problem, ProblemKind};

/// How to print, from the flags that every command has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Data as JSON.
    pub(crate) json: bool,
    /// No remarks on standard error; errors still.
    pub(crate) quiet: bool,
}

impl Output {
    /// Prints data for people: lines on standard output, as they are.
    pub(crate) fn data(self, text: &str) -> Result<(), Problem> {
        write_all(text.as_bytes())
    }

    /// Prints data that need not be text.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<(), Problem> {
        write_all(bytes)
    }

    /// Prints data for programs: one line of JSON with the version of its form.
    pub(crate) fn json(self, key: &str, value: &impl Serialize) -> Result<(), Problem> {
        self.json_object(json!({ key: value }))
    }

    /// Prints an object, with the version of its form added.
    pub(crate) fn json_object(self, mut object: Value) -> Result<(), Problem> {
        object["version"] = JSON_VERSION.into();
        write_all(format!("{object}\n").as_bytes())
    }

    /// Prints a document that carries its own version.
    pub(crate) fn document(self, document: &impl Serialize) -> Result<(), Problem> {
        let text = serde_json::to_string(document)
            .map_err(|error| Problem::new(ProblemKind::Bug, "cannot write JSON").because(error))?;
        write_all(format!("{text}\n").as_bytes())
    }

    /// A remark for people.
    pub(crate) fn say(self, remark: impl fmt::Display) {
        if !self.quiet && !self.json {
            // Nobody reads standard error any more: nobody misses the remark.
            let _ = writeln!(io::stderr(), "{remark}");
        }
    }

    /// A line about what goes on, in place of the last such line; none to remove it. For terminals.
    pub(crate) fn status(self, line: Option<&str>) {
        // Nobody misses it where it cannot be written.
        let _ = write!(io::stderr(), "\r{}\x1b[K", line.unwrap_or_default());
    }

    /// Something that did not go as asked, but went.
    pub(crate) fn warn(self, warning: impl fmt::Display) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{}: {warning}", Colour::Yellow.paint("warning"));
        }
    }

    /// A problem that did not stop anything.
    pub(crate) fn warn_of(self, problem: &Problem) {
        if !self.quiet {
            let _ = io::stderr().write_all(told(&Colour::Yellow.paint("warning"), problem).as_bytes());
        }
    }

    /// An error that was already put into words for people, `rendered`.
    pub(crate) fn rendered(self, rendered: &str, problem: &Problem) {
        let _ = io::stderr().write_all(rendered.as_bytes());
        if self.json {
            let _ = self.json("error", problem);
        }
    }

    /// An error: for people on standard error, with `--json` also for programs on standard output.
    pub(crate) fn problem(self, problem: &Problem) {
        let _ = io::stderr().write_all(explain(problem).as_bytes());
        if self.json {
            let _ = self.json("error", problem);
        }
    }
}

/// What went wrong, why, and what to type next.
fn explain(problem: &Problem) -> String {
    told(&Colour::Red.paint("error"), problem)
}

fn told(word: &str, problem: &Problem) -> String {
    let mut text = format!("{word}: {}\n", problem.message);
    for cause in &problem.causes {
        text.push_str(&format!("  because: {cause}\n"));
    }
    for hint in &problem.hints {
        text.push_str(&format!("{}: {hint}\n", Colour::Cyan.paint("hint")));
    }
    text
}

/// The few colours there are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Colour {
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Colour {
    /// The text in this colour where standard error is a terminal that wants colours.
    pub(crate) fn paint(self, text: &str) -> String {
        if wants_colour() { self.always(text) } else { text.to_owned() }
    }

    /// The text in this colour.
    pub(crate) fn always(self, text: &str) -> String {
        let code = match self {
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Cyan => 36,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Whether standard error takes colours: a terminal, without `NO_COLOR` and not a dumb one.
pub(crate) fn wants_colour() -> bool {
    io::stderr().is_terminal() && colour_is_welcome()
}

/// The same of standard output.
pub(crate) fn wants_colour_on_stdout() -> bool {
    io::stdout().is_terminal() && colour_is_welcome()
}

fn colour_is_welcome() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn write_all(bytes: &[u8]) -> Result<(), Problem> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // The reader has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Problem::new(ProblemKind::System, "cannot write to standard output").because(error)),
    }
}

/// Rows under a heading, in columns of equal width. Control characters in cells are shown, not sent.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let safe: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    for row in &safe {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let start = text.len();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        let end = text[start..].trim_end().len();
        text.truncate(start + end);
        text.push('\n');
    };
    line(&mut heading.iter().copied());
    for row in &safe {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A text that cannot move the cursor or change colours.
pub(crate) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_and_its_reasons() {
        let problem = Problem::new(ProblemKind::NotFound, "no machine is called `m2`")
            .because("nothing was created under that name")
            .hint("testyard list")
            .hint("testyard create m2");
        assert_eq!(
            explain(&problem),
            "error: no machine is called `m2`\n  because: nothing was created under that name\n\
             hint: testyard list\nhint: testyard create m2\n"
        );
    }

    #[test]
    fn a_table_has_straight_columns_and_no_control_characters() {
        let rows = [vec!["m1".into(), "running".into()], vec!["a-longer-name".into(), "\x1b[31m".into()]];
        assert_eq!(
            table(&["NAME", "STATE"], &rows),
            "NAME           STATE\nm1             running\na-longer-name  \\u{1b}[31m\n"
        );
    }
}
