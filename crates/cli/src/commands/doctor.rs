//! `testyard doctor`

use testyard_probe::{Answer, Report};

use super::{DONE, Outcome};
use crate::output::{Colour, Output, printable, wants_colour_on_stdout};
use crate::yard;

/// Find out what this host can do, by doing it.
///
/// Every answer has a reason, and where something is missing the command that would provide it.
/// The last lines say which backend `auto` picks, and why. Answers are kept until the next
/// boot.
///
/// Examples:
///     testyard doctor
///     testyard doctor --refresh --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Doctor {
    /// Try everything again instead of using the answers of this boot
    #[arg(long)]
    refresh: bool,
}

impl Doctor {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let prober = yard::open()?.prober();
        let report = if self.refresh { prober.probe() } else { prober.load() }.map_err(|error| error.problem())?;
        if output.json {
            output.document(&report)?;
        } else {
            output.data(&described(&report, wants_colour_on_stdout()))?;
        }
        DONE
    }
}

/// The answers one a line, what would provide the missing ones below each, and what `auto` means here.
fn described(report: &Report, colour: bool) -> String {
    let paint = |colour_of: Colour, text: &str| if colour { colour_of.always(text) } else { text.to_owned() };
    let width = report.probes.iter().map(|probe| probe.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for probe in &report.probes {
        let answer = match probe.answer {
            Answer::Yes => paint(Colour::Green, "yes"),
            Answer::No => paint(Colour::Yellow, "no "),
        };
        text.push_str(&format!("{answer}  {:<width$}  {}\n", printable(&probe.name), printable(&probe.reason)));
        if let Some(provide) = &probe.provide {
            text.push_str(&format!("     {:<width$}  {}: {}\n", "", paint(Colour::Cyan, "hint"), printable(provide)));
        }
    }
    let tier = &report.tier;
    text.push_str(&format!("\nbackend auto is {} here: {}\n", tier.backend, printable(&tier.reason)));
    for limit in &tier.limits {
        text.push_str(&format!("limit: {}\n", printable(limit)));
    }
    text
}
