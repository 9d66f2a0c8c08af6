//! What people see: live on a terminal, plain lines elsewhere; each failure's output once, whole, at the end.

mod words;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use testyard_model::Problem;

use super::Announcement;
use super::safe_text::safe_line;
use super::status_line::{Counts, Room, Running, columns, seconds, status_lines, told};
use crate::job::JobEvent;
use crate::plan::Plan;
use crate::result::{Outputs, QuarantineMark, RunSummary, SkipReason, Stop, TestResult, Verdict};
use words::{after, begins, precise, write_output};

/// How to show a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// With a status line that is drawn over and over.
    pub live: bool,
    /// With colours.
    pub color: bool,
    /// Also a line for each test that passed.
    pub passed: bool,
    /// GitHub reads the output and obeys lines that look like its commands.
    pub obeyed: bool,
}

impl Style {
    /// What suits this output: live on a terminal that can move its cursor, plain in continuous integration, and
    /// colours unless `NO_COLOR` is set. `variable` reads the environment.
    #[must_use]
    pub fn detect(is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
        let dumb = variable("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let live = is_terminal && !dumb && !set("CI");
        let forced = set("CLICOLOR_FORCE") || set("FORCE_COLOR");
        let color = !set("NO_COLOR") && ((is_terminal && !dumb) || forced);
        Self { live, color, passed: !live, obeyed: set("GITHUB_ACTIONS") }
    }
}

/// The columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Its width.
    pub columns: u16,
    /// Its height.
    pub rows: u16,
}

/// The size of the terminal behind this descriptor; none where it is no terminal or does not know.
#[must_use]
pub fn size_of(descriptor: impl AsFd) -> Option<Size> {
    let size = rustix::termios::tcgetwinsize(descriptor).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(Size { columns: size.ws_col, rows: size.ws_row })
}

/// Longer than anything but a stopped process waits between two drawings.
const PAUSE: Duration = Duration::from_secs(1);

/// A terminal, or what stands in for one.
pub struct Terminal {
    out: Box<dyn Write + Send>,
    size: Box<dyn Fn() -> Option<Size> + Send>,
    style: Style,
    counts: Counts,
    running: Vec<Shown>,
    began: Duration,
    /// Lines at the bottom that are drawn over.
    drawn: usize,
    /// When anything was last done here.
    seen: Duration,
    bad: Vec<Arc<TestResult>>,
    hints: Vec<String>,
    not_started: usize,
    /// Nobody reads any more.
    closed: bool,
    /// Called with each failed test whose environment is kept, while nothing else is shown.
    on_kept: Option<OnKept>,
    /// Tests whose environments are not kept any more.
    forgotten: Vec<usize>,
}

/// What is done with a failed test whose environment is kept; whether it still is afterwards.
pub type OnKept = Box<dyn FnMut(&TestResult) -> bool + Send>;

struct Shown {
    test: usize,
    name: String,
    since: Duration,
    state: Option<String>,
    slow: bool,
}

impl Terminal {
    /// Shows on `out`; `size` tells its size, where it has one.
    #[must_use]
    pub fn new(out: Box<dyn Write + Send>, size: Box<dyn Fn() -> Option<Size> + Send>, style: Style) -> Self {
        Self {
            out,
            size,
            style,
            counts: Counts::default(),
            running: Vec::new(),
            began: Duration::ZERO,
            drawn: 0,
            seen: Duration::ZERO,
            bad: Vec::new(),
            hints: Vec::new(),
            not_started: 0,
            closed: false,
            on_kept: None,
            forgotten: Vec::new(),
        }
    }

    /// Hands each failed test whose environment is kept to `act`, which has the terminal to itself meanwhile. The run
    /// goes on; what it has to tell is shown afterwards.
    #[must_use]
    pub fn with_kept(self, act: OnKept) -> Self {
        Self { on_kept: Some(act), ..self }
    }

    pub(super) fn is_live(&self) -> bool {
        self.style.live
    }

    pub(super) fn take(&mut self, plan: &Plan, now: Duration, announcement: &Announcement) {
        if self.closed {
            return;
        }
        self.notice_pause(now);
        if let Err(_error) = self.show(plan, now, announcement) {
            // A reader that went away (`| head`) is no error of the run; its results are in the exit code.
            self.closed = true;
        }
    }

    /// Draws the status line again: ages grow though nothing happens.
    pub(super) fn redraw(&mut self, now: Duration) {
        self.notice_pause(now);
        if !self.closed && self.style.live && self.counts.done < self.counts.total && self.draw(now).is_err() {
            self.closed = true;
        }
    }

    /// A live terminal is drawn ten times a second. After a longer pause this process was stopped, and what stands
    /// above the cursor is somebody else's.
    fn notice_pause(&mut self, now: Duration) {
        if now.saturating_sub(self.seen) > PAUSE {
            self.drawn = 0;
        }
        self.seen = now;
    }

    fn show(&mut self, plan: &Plan, now: Duration, announcement: &Announcement) -> io::Result<()> {
        match announcement {
            Announcement::RunStarted(info) => {
                self.counts.total = info.tests;
                self.began = now;
                self.line(&begins(info))
            }
            Announcement::TestStarted { test, .. } => {
                let key = plan.key(*test);
                let name = safe_line(&format!("{}::{}", key.suite, key.name));
                self.running.push(Shown { test: *test, name, since: now, state: None, slow: false });
                Ok(())
            }
            Announcement::TestProgress { test, event } => {
                if let Some(shown) = self.running.iter_mut().find(|shown| shown.test == *test) {
                    shown.state = match event {
                        JobEvent::Preparing(what) => Some(safe_line(&format!("(waits for {what})"))),
                        JobEvent::Started { .. } | JobEvent::Ending => None,
                    };
                }
                Ok(())
            }
            Announcement::AttemptFailed { test, attempt, after } => {
                self.running.retain(|shown| shown.test != *test);
                let key = plan.key(*test);
                let detail = attempt.verdict.detail().unwrap_or_default();
                let again = if after.is_zero() { "again".to_owned() } else { format!("again in {}", seconds(*after)) };
                let text = format!("{}::{} (attempt {}: {detail}; {again})", key.suite, key.name, attempt.number);
                let label = self.colored(33, "RETRY  ");
                self.line(&format!("{label}          {}", safe_line(&text)))
            }
            Announcement::TestSlow { test, after } => {
                if let Some(shown) = self.running.iter_mut().find(|shown| shown.test == *test) {
                    shown.slow = true;
                }
                let key = plan.key(*test);
                let label = self.colored(33, "SLOW   ");
                let name = safe_line(&format!("{}::{}", key.suite, key.name));
                self.line(&format!("{label} {:>8}  {name}", format!(">{}", seconds(*after))))
            }
            Announcement::TestFinished(result) => self.finished(result),
            Announcement::Asked => self.answer(now),
            Announcement::Stopping(Stop::Interrupted) => {
                let running = self.running.len();
                self.line(&format!("interrupted: ending {running} running tests; once more to leave at once"))
            }
            Announcement::Stopping(Stop::NoMachineLeft) => self.line("no machine is left: starting no more"),
            Announcement::Stopping(Stop::FailFast) => self.line("a test failed: starting no more (--fail-fast)"),
            Announcement::Warning(problem) => self.warning(problem),
            Announcement::RunFinished(summary) => self.end(summary),
        }?;
        if self.style.live && !matches!(announcement, Announcement::RunFinished(_)) && self.drawn == 0 {
            self.draw(now)?;
        }
        Ok(())
    }

    fn finished(&mut self, result: &Arc<TestResult>) -> io::Result<()> {
        self.running.retain(|shown| shown.test != result.index);
        self.counts.done += 1;
        let (label, color) = match &result.verdict {
            _ if result.is_excused() => ("QUARANT", 33),
            Verdict::Passed => ("PASS   ", 32),
            Verdict::Flaky { .. } => ("FLAKY  ", 33),
            Verdict::Failed(_) => ("FAIL   ", 31),
            Verdict::TimedOut { .. } => ("TIMEOUT", 31),
            Verdict::Skipped(_) => ("SKIP   ", 33),
            Verdict::InfrastructureError { .. } => ("ERROR  ", 35),
        };
        match &result.verdict {
            Verdict::Passed => {}
            Verdict::Flaky { .. } => self.counts.flaky += 1,
            _ if result.is_excused() => {}
            Verdict::Failed(_) | Verdict::TimedOut { .. } => self.counts.failed += 1,
            Verdict::Skipped(_) => self.counts.skipped += 1,
            Verdict::InfrastructureError { .. } => self.counts.errors += 1,
        }
        match &result.verdict {
            Verdict::Passed if !self.style.passed && result.aftermath.problems.is_empty() => return Ok(()),
            Verdict::Skipped(SkipReason::NotStarted { stop }) => {
                self.not_started += 1;
                if *stop != Stop::NoMachineLeft {
                    return Ok(());
                }
            }
            Verdict::Passed => {}
            Verdict::Skipped(_) => self.remember_hints(result),
            _ => self.bad.push(result.clone()),
        }
        let detail = result.verdict.detail().map_or(String::new(), |detail| format!(" ({detail})"));
        let text = safe_line(&format!("{}::{}{detail}", result.suite, result.name));
        let label = self.colored(color, label);
        self.line(&format!("{label} {:>8}  {text}", precise(result.duration_us)))?;
        if result.verdict == Verdict::Passed {
            // Those of the others are shown with them, at the end.
            for problem in &result.aftermath.problems {
                self.warning(problem)?;
            }
        }
        if let (Some(act), Some(_)) = (&mut self.on_kept, &result.aftermath.kept) {
            self.out.flush()?;
            if !act(result) {
                self.forgotten.push(result.index);
            }
        }
        Ok(())
    }

    fn remember_hints(&mut self, result: &TestResult) {
        for hint in result.verdict.hints() {
            if !self.hints.contains(hint) {
                self.hints.push(hint.clone());
            }
        }
    }

    fn warning(&mut self, problem: &Problem) -> io::Result<()> {
        let mut text = format!("warning: {}", problem.message);
        for cause in &problem.causes {
            text.push_str(": ");
            text.push_str(cause);
        }
        self.line(&safe_line(&text))
    }

    /// Everything about the whole run, after the last test.
    fn end(&mut self, summary: &RunSummary) -> io::Result<()> {
        self.erase()?;
        for result in std::mem::take(&mut self.bad) {
            self.failure(&result)?;
        }
        writeln!(self.out)?;
        for hint in &self.hints {
            writeln!(self.out, "hint: {}", safe_line(hint))?;
        }
        if self.not_started > 0 {
            writeln!(self.out, "{} tests were not started", self.not_started)?;
        }
        let mut about = vec![format!("took {}", precise(summary.duration_us))];
        let mut count = |count: usize, one: &str, many: &str| match count {
            0 => {}
            1 => about.push(format!("1 {one}")),
            _ => about.push(format!("{count} {many}")),
        };
        count(summary.timed_out, "of the failed timed out", "of the failed timed out");
        count(summary.infrastructure_errors, "infrastructure error", "infrastructure errors");
        count(summary.retried, "attempt was repeated", "attempts were repeated");
        count(summary.source_changed, "test ran while the source changed", "tests ran while the source changed");
        for tree in &summary.trees {
            let Some(hash) = &tree.tree else { continue };
            let named = if summary.trees.len() > 1 { format!(" ({})", tree.suite) } else { String::new() };
            let unhashed = tree.unhashed.len();
            let but = if unhashed > 0 { format!(", {unhashed} ignored files unhashed") } else { String::new() };
            let how = if tree.frozen { ", frozen" } else { "" };
            about.push(format!("tree {}{how}{named}{but}", hash.chars().take(12).collect::<String>()));
        }
        writeln!(self.out, "{}", safe_line(&about.join("; ")))?;
        for expired in &summary.expired_quarantines {
            let label = self.colored(31, "error");
            writeln!(self.out, "{label}: {}", safe_line(&expired.to_string()))?;
            writeln!(self.out, "hint: mend the test and remove the entry, or give it another day and a reason for it")?;
        }
        writeln!(self.out, "{}", summary.line())?;
        self.out.flush()
    }

    fn failure(&mut self, result: &TestResult) -> io::Result<()> {
        let detail = result.verdict.detail().unwrap_or_default();
        let name = safe_line(&format!("{}::{}", result.suite, result.name));
        let title = self.colored(31, &format!("==== {} {name}", result.verdict.as_str()));
        writeln!(self.out, "\n{title}: {}", safe_line(&detail))?;
        if let Some(quarantine) = result.quarantine.as_ref().filter(|_| result.is_excused()) {
            let QuarantineMark { owner, reason, until } = quarantine;
            let text = format!("in quarantine until {until} ({owner}: {reason}): this does not fail the run");
            writeln!(self.out, "{}", safe_line(&text))?;
        }
        if result.usage.as_ref().is_some_and(|usage| usage.out_of_memory) {
            writeln!(self.out, "its memory limit ended something in it")?;
        }
        if let Some(environment) = &result.environment {
            let time = precise(result.duration_us);
            writeln!(self.out, "ran {time} in {}", safe_line(environment))?;
        }
        for hint in result.verdict.hints() {
            writeln!(self.out, "hint: {}", safe_line(hint))?;
        }
        for (number, outputs) in &result.earlier {
            self.streams(&format!(" of attempt {number}"), outputs)?;
        }
        let seen = result.attempts.last().and_then(|attempt| attempt.inspection.as_ref());
        if let Some(inspection) = seen {
            writeln!(self.out, "---- its processes, just before its time was up")?;
            for line in inspection.text().lines() {
                writeln!(self.out, "{}", safe_line(line))?;
            }
        }
        let kept = !self.forgotten.contains(&result.index);
        for line in after(&result.aftermath, kept) {
            writeln!(self.out, "{}", safe_line(&line))?;
        }
        let outputs = [("stdout", &result.outputs.stdout), ("stderr", &result.outputs.stderr)];
        if result.environment.is_some() && outputs.iter().all(|(_, captured)| captured.bytes() == 0) {
            writeln!(self.out, "(no output)")?;
        }
        self.streams("", &result.outputs)?;
        self.services(result)
    }

    fn services(&mut self, result: &TestResult) -> io::Result<()> {
        for service in &result.services {
            writeln!(self.out, "---- service {} ({})", safe_line(&service.name), service.state())?;
            let left_out = service.bytes.saturating_sub(service.log.bytes());
            if left_out > 0 {
                writeln!(self.out, "[{left_out} bytes before this are left out]")?;
            }
            write_output(&mut self.out, &service.log)?;
        }
        Ok(())
    }

    fn streams(&mut self, whose: &str, outputs: &Outputs) -> io::Result<()> {
        for (stream, captured) in [("stdout", &outputs.stdout), ("stderr", &outputs.stderr)] {
            if captured.bytes() > 0 {
                writeln!(self.out, "---- {stream}{whose}")?;
                // What a test printed is shown, not obeyed; nobody can know this word beforehand.
                let word = self.style.obeyed.then(|| uuid::Uuid::now_v7().simple());
                if let Some(word) = word {
                    writeln!(self.out, "::stop-commands::{word}")?;
                }
                write_output(&mut self.out, captured)?;
                if let Some(word) = word {
                    writeln!(self.out, "::{word}::")?;
                }
            }
        }
        Ok(())
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        self.erase()?;
        writeln!(self.out, "{text}")?;
        // A live terminal is flushed when its last lines are drawn below this one.
        if self.style.live { Ok(()) } else { self.out.flush() }
    }

    /// What runs, each on a line of its own that stays.
    fn answer(&mut self, now: Duration) -> io::Result<()> {
        let counts = self.counts;
        let running = self.running.len();
        self.line(&format!("{} of {} tests are done, {running} running", counts.done, counts.total))?;
        let room = self.room();
        let lines: Vec<String> = self
            .ages(now)
            .iter()
            .map(|(name, age, slow)| told(&Running { name, age: *age, slow: *slow }, room))
            .collect();
        lines.iter().try_for_each(|line| self.line(line))
    }

    /// The names of what runs with what they wait for, and their ages, oldest first.
    fn ages(&self, now: Duration) -> Vec<(String, Duration, bool)> {
        let told = |shown: &Shown| {
            let state = shown.state.as_deref().map_or(String::new(), |state| format!(" {state}"));
            (format!("{}{state}", shown.name), now.saturating_sub(shown.since), shown.slow)
        };
        self.running.iter().map(told).collect()
    }

    fn room(&self) -> Room {
        let size = (self.size)().unwrap_or(Size { columns: 80, rows: 24 });
        // The last column stays free: some terminals wrap as soon as it is written.
        let columns = usize::from(size.columns).saturating_sub(1);
        Room { columns, rows: usize::from(size.rows), color: self.style.color }
    }

    fn erase(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.drawn) {
            0 => Ok(()),
            1 => self.out.write_all(b"\r\x1b[J"),
            lines => write!(self.out, "\r\x1b[{}A\x1b[J", lines - 1),
        }
    }

    fn draw(&mut self, now: Duration) -> io::Result<()> {
        let room = self.room();
        let ages = self.ages(now);
        let running: Vec<Running<'_>> =
            ages.iter().map(|(name, age, slow)| Running { name, age: *age, slow: *slow }).collect();
        let lines = status_lines(self.counts, &running, now.saturating_sub(self.began), room);
        // In one write, each line over the former one: nothing flickers.
        let mut frame = match self.drawn {
            0 => String::new(),
            1 => "\r".to_owned(),
            drawn => format!("\r\x1b[{}A", drawn - 1),
        };
        for (number, line) in lines.iter().enumerate() {
            debug_assert!(self.style.color || columns(line) <= room.columns, "a line must not wrap");
            frame.push_str(if number == 0 { "" } else { "\n" });
            frame.push_str(line);
            frame.push_str("\x1b[K");
        }
        frame.push_str("\x1b[J");
        self.drawn = lines.len();
        self.out.write_all(frame.as_bytes())?;
        self.out.flush()
    }

    fn colored(&self, color: u8, text: &str) -> String {
        if self.style.color { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests;
