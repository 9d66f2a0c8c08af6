//! `testyard reap`

use serde_json::json;
use testyard::{ReapAction, ReapReport};
use testyard_model::ExitCode;

use super::{DONE, Outcome};
use crate::output::Output;
use crate::yard;

/// Finish what killed processes left undone, and remove what nobody holds any more.
///
/// Only what Testyard has written down and the kernel confirms is touched. Each command does a
/// cheap pass of this by itself; this one looks at everything.
///
/// Examples:
///     testyard reap --dry-run
///     testyard reap
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Reap {
    /// Say what would be done, and do nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
}

impl Reap {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let report = yard::open()?.reap(self.dry_run)?;
        if output.json {
            output.json_object(json!({
                "dry_run": self.dry_run,
                "clusters": report.clusters,
                "machines": report.machines,
                "leases": report.leases,
                "environments": report.environments,
                "files": report.files,
                "images": report.images,
            }))?;
        } else {
            output.data(&told(&report, self.dry_run))?;
        }
        let machines = report.machines.iter().filter_map(|machine| machine.failed.as_ref());
        for problem in machines.chain(report.clusters.iter().filter_map(|cluster| cluster.failed.as_ref())) {
            output.warn_of(problem);
        }
        if report.is_complete() { DONE } else { Ok(ExitCode::Infrastructure.code()) }
    }
}

/// A line for each machine, and one for the dead leases.
fn told(report: &ReapReport, dry_run: bool) -> String {
    let would = if dry_run { "would be " } else { "" };
    let mut text = String::new();
    for cluster in &report.clusters {
        let done = match cluster.failed {
            Some(_) => "could not be removed; tried again at the next pass",
            None => "removed",
        };
        text.push_str(&format!("cluster {} was left {}: {would}{done}\n", cluster.name, cluster.was));
    }
    for machine in &report.machines {
        let done = match (machine.action, machine.failed.is_some()) {
            (_, true) => "could not be finished; tried again at the next pass",
            (ReapAction::Adopt, _) => "given a new supervisor",
            (ReapAction::Remove, _) => "removed",
            (ReapAction::Fail, _) => "marked as failed",
            (ReapAction::Stop, _) => "stopped",
        };
        text.push_str(&format!("machine {} was left {}: {would}{done}\n", machine.name, machine.was));
    }
    if report.leases > 0 {
        text.push_str(&format!("{} leases of dead processes: {would}removed\n", report.leases));
    }
    if report.environments > 0 {
        text.push_str(&format!("{} kept environments whose time was over: {would}removed\n", report.environments));
    }
    if report.files > 0 {
        text.push_str(&format!("{} tests' outputs or artifacts on their way: finished or undone\n", report.files));
    }
    if report.images > 0 {
        text.push_str(&format!("{} images that were not finished: removed\n", report.images));
    }
    if text.is_empty() {
        text.push_str("nothing was left behind\n");
    }
    text
}
