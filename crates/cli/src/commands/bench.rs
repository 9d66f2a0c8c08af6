//! `testyard bench`

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use testyard::Testyard;
use testyard_machine::client::{Connection, caller};
use testyard_model::{
    BackendName, EnvironmentLimits, EnvironmentSpec, Isolation, MachineInfo, MachineName, MachineSpec, Network,
    Problem, ProblemKind, Span,
};
use testyard_protocol::{Exec, Place, RawText};

use super::{DONE, Outcome};
use crate::output::{Output, table};
use crate::yard;

/// What every figure runs.
const PAYLOAD: &str = "/bin/true";
/// The machine is gone by then, should this be killed.
const TIME_TO_LIVE: Duration = Duration::from_secs(600);
/// Programs that make something like an environment, with the arguments that make one around the payload.
const PEERS: [(&str, &[&str]); 3] = [
    ("unshare", &["--user", "--map-root-user", "--mount", "--pid", "--fork", "--net", "--ipc", "--uts", PAYLOAD]),
    ("bwrap", &["--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", PAYLOAD]),
    ("systemd-nspawn", &["--quiet", "--directory=/", "--volatile=overlay", "--pipe", PAYLOAD]),
];

/// Measure what machines, commands and environments cost on this host.
///
/// Each figure comes with its peers (a bare fork and exec, unshare, and what else is
/// installed), measured in the same run: compare the ratios, not the times.
///
/// Examples:
///     testyard bench
///     testyard bench --json > figures.json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Bench {
    /// Fewer repetitions, for a first look
    #[arg(long)]
    quick: bool,
    /// What makes the machine that is measured
    #[arg(long, short, default_value = "auto")]
    backend: BackendName,
}

/// One thing, done again and again.
#[derive(Debug, Serialize)]
struct Figure {
    /// What was done.
    name: String,
    /// Half of the times were shorter, in microseconds.
    median_us: f64,
    /// Nine of ten were, in microseconds.
    p90_us: f64,
    /// How often it was done.
    count: usize,
}

impl Bench {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let count = if self.quick { 30 } else { 300 };
        let mut figures = vec![measure("fork, exec and wait", count, || whole(PAYLOAD, &[]))?];
        for (program, arguments) in PEERS {
            output.say(format_args!("measuring {program}"));
            // One that is missing or not permitted here is no peer.
            if whole(program, arguments).is_ok() {
                figures.push(measure(program, count / 3, || whole(program, arguments))?);
            }
        }
        output.say("measuring a machine");
        let yard = yard::open()?;
        let machine = self.lives(&yard, count, &mut figures)?;
        let measured = commands(&machine, count, &mut figures);
        yard.machines().delete(&machine.name, true)?;
        measured?;
        if output.json {
            output.json_object(json!({ "backend": machine.spec.backend, "figures": figures }))?;
        } else {
            output.data(&described(&figures))?;
        }
        DONE
    }

    /// Machines made and deleted, and one that stays.
    fn lives(&self, yard: &Testyard, count: usize, figures: &mut Vec<Figure>) -> Result<MachineInfo, Problem> {
        let mut spec = MachineSpec::new(self.backend.clone());
        spec.ttl = Some(Span(TIME_TO_LIVE));
        let name = |number: usize| -> Result<MachineName, Problem> {
            let name = format!("bench-{}-{number}", std::process::id());
            name.parse().map_err(|error| Problem::from_error(ProblemKind::Bug, &error))
        };
        let (mut creations, mut deletions) = (Vec::new(), Vec::new());
        for number in 1..=(count / 15) {
            let name = name(number)?;
            let start = Instant::now();
            yard.machines().create(&name, &spec)?;
            creations.push(start.elapsed());
            let start = Instant::now();
            yard.machines().delete(&name, true)?;
            deletions.push(start.elapsed());
        }
        figures.push(figure("machine: create until its agent answers", creations));
        figures.push(figure("machine: delete", deletions));
        yard.machines().create(&name(0)?, &spec)
    }
}

/// Commands and environments in a warm machine.
fn commands(machine: &MachineInfo, count: usize, figures: &mut Vec<Figure>) -> Result<(), Problem> {
    let mut connected = yard::connect(&machine.name)?;
    let connection = connected.connection();
    let exec = |place: Place| Exec { argv: vec![RawText::from(PAYLOAD)], quiet: true, place, ..Exec::default() };
    figures.push(measure("command in a warm machine", count, || run(connection, exec(Place::Machine)))?);
    let isolation =
        if machine.spec.backend == BackendName::host() { Isolation::Workspace } else { Isolation::Namespace };
    let spec = Box::new(EnvironmentSpec {
        isolation,
        network: if isolation == Isolation::Namespace { Network::Private } else { Network::Host },
        user: caller(),
        limits: EnvironmentLimits::default(),
        host_name: None,
        source: None,
        strict_limits: false,
        layer: None,
        joins: None,
    });
    let name = format!("environment ({isolation}): make, run, end");
    figures.push(measure(&name, count, || run(connection, exec(Place::Fresh(spec.clone()))))?);
    drop(connected);
    let program = std::env::current_exe()
        .map_err(|error| Problem::new(ProblemKind::System, "cannot find this program itself").because(error))?;
    let arguments = ["exec", machine.name.as_str(), PAYLOAD];
    let program = program.to_string_lossy();
    figures.push(measure("testyard exec, whole process", count / 3, || whole(&program, &arguments))?);
    Ok(())
}

fn run(connection: &mut Connection, exec: Exec) -> Result<(), Problem> {
    let finished = connection.exec(exec, &[]).and_then(|command| command.wait()).map_err(yard::told)?;
    if finished.status.success() {
        Ok(())
    } else {
        Err(Problem::new(ProblemKind::System, format!("{PAYLOAD} failed in the machine")))
    }
}

/// A whole process, without output.
fn whole(program: &str, arguments: &[&str]) -> Result<(), Problem> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Problem::new(ProblemKind::Command, format!("{program} failed ({status})"))),
        Err(error) => Err(Problem::new(ProblemKind::Command, format!("cannot start {program}")).because(error)),
    }
}

fn measure(name: &str, count: usize, mut once: impl FnMut() -> Result<(), Problem>) -> Result<Figure, Problem> {
    // The first few warm up caches.
    for _ in 0..count.min(3) {
        once()?;
    }
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        once()?;
        times.push(start.elapsed());
    }
    Ok(figure(name, times))
}

fn figure(name: &str, mut times: Vec<Duration>) -> Figure {
    times.sort_unstable();
    let at = |tenths: usize| times.get(times.len() * tenths / 10).map_or(0.0, |time| time.as_secs_f64() * 1e6);
    Figure { name: name.to_owned(), median_us: at(5), p90_us: at(9), count: times.len() }
}

/// A line a figure; the ratio is to the first.
fn described(figures: &[Figure]) -> String {
    let bare = figures.first().map_or(1.0, |figure| figure.median_us.max(1.0));
    let rows: Vec<Vec<String>> = figures
        .iter()
        .map(|figure| {
            vec![
                figure.name.clone(),
                format!("{:.0} us", figure.median_us),
                format!("{:.0} us", figure.p90_us),
                format!("{:.2}", figure.median_us / bare),
            ]
        })
        .collect();
    table(&["WHAT", "MEDIAN", "90 OF 100", "RATIO"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_a_median_and_its_ratio() {
        let times = (1..=10).map(Duration::from_millis).collect();
        let figures = [figure("bare", vec![Duration::from_millis(3)]), figure("more", times)];
        assert_eq!(
            described(&figures),
            "WHAT  MEDIAN   90 OF 100  RATIO\nbare  3000 us  3000 us    1.00\nmore  6000 us  10000 us   2.00\n"
        );
    }
}
