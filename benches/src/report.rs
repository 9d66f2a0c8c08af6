//! What a run found: a row a figure, with its goal, as a table and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// How a goal bounds its figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// Not above this.
    AtMost(f64),
    /// Not below this.
    AtLeast(f64),
}

impl Goal {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtMost(limit) => figure <= limit,
            Self::AtLeast(limit) => figure >= limit,
        }
    }
}

/// What came of a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Outcome {
    /// The goal was met.
    Met {
        /// In the goal's unit.
        figure: f64,
    },
    /// It was not.
    Missed {
        /// In the goal's unit.
        figure: f64,
    },
    /// It could not be measured here.
    Skipped {
        /// Why, and what would provide it.
        reason: String,
    },
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// What it should be.
    pub goal: Goal,
    /// `×` for ratios, else `ms`, `s`, `MB`.
    pub unit: &'static str,
    /// What it was.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The absolute figures behind it.
    pub detail: String,
}

impl Row {
    /// A row that was measured.
    #[must_use]
    pub fn measured(name: &str, goal: Goal, unit: &'static str, figure: f64, detail: String) -> Self {
        let outcome = if goal.is_met(figure) { Outcome::Met { figure } } else { Outcome::Missed { figure } };
        Self { name: name.to_owned(), goal, unit, outcome, detail }
    }

    /// A row that could not be measured.
    #[must_use]
    pub fn skipped(name: &str, goal: Goal, unit: &'static str, reason: impl Into<String>) -> Self {
        let outcome = Outcome::Skipped { reason: reason.into() };
        Self { name: name.to_owned(), goal, unit, outcome, detail: String::new() }
    }
}

/// All rows of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The JSON's version.
    pub format: u32,
    /// The kernel it ran on.
    pub kernel: String,
    /// How many processors there are.
    pub processors: usize,
    /// In the order of measuring.
    pub rows: Vec<Row>,
}

impl Report {
    /// An empty one for this host.
    #[must_use]
    pub fn new() -> Self {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { format: 1, kernel, processors, rows: Vec::new() }
    }

    /// As a table in Markdown, which is also how people read it.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::from("| figure | goal | measured | | behind it |\n|---|---|---|---|---|\n");
        for row in &self.rows {
            let shown = |figure: f64| match row.unit {
                "×" => format!("{figure:.2}×"),
                unit => format!("{figure:.2} {unit}"),
            };
            let goal = match row.goal {
                Goal::AtMost(limit) => format!("≤ {}", shown(limit)),
                Goal::AtLeast(limit) => format!("≥ {}", shown(limit)),
            };
            let (figure, word, detail) = match &row.outcome {
                Outcome::Met { figure } => (shown(*figure), "met", &row.detail),
                Outcome::Missed { figure } => (shown(*figure), "MISSED", &row.detail),
                Outcome::Skipped { reason } => ("—".to_owned(), "SKIPPED", reason),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {} | {goal} | {figure} | {word} | {detail} |", row.name);
        }
        let _ = writeln!(text, "\nLinux {}, {} processors.", self.kernel, self.processors);
        text
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_on_its_own_side() {
        let row = |goal, figure| Row::measured("x", goal, "×", figure, String::new()).outcome;
        assert_eq!(row(Goal::AtMost(1.3), 1.3), Outcome::Met { figure: 1.3 });
        assert_eq!(row(Goal::AtMost(1.3), 1.4), Outcome::Missed { figure: 1.4 });
        assert_eq!(row(Goal::AtLeast(3.0), 2.9), Outcome::Missed { figure: 2.9 });
        assert_eq!(row(Goal::AtLeast(3.0), 3.1), Outcome::Met { figure: 3.1 });
    }

    #[test]
    fn a_skip_says_why() {
        let mut report = Report::new();
        report.rows.push(Row::skipped("against crun", Goal::AtLeast(6.0), "×", "crun is not installed"));
        assert!(report.table().contains("| against crun | ≥ 6.00× | — | SKIPPED | crun is not installed |"));
    }
}
