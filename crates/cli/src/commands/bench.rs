//! `testyard bench`

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use testyard::Testyard;
use testyard_machine::client::{Connection, caller};
use testyard_measure::{Contender, Times, alternate, timed};
use testyard_model::{BackendName, EnvironmentSpec, MachineInfo, MachineName, MachineSpec, Problem, ProblemKind, Span};
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

/// Times as programs read them.
#[derive(Debug, Serialize)]
struct Figure<'a> {
    /// What was done.
    name: &'a str,
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
        output.say("measuring processes");
        let mut times = alternate(count, vec![process("fork, exec and wait", PAYLOAD, &[])])?;
        // One that is missing or not permitted here is no peer.
        let peers = PEERS.into_iter().filter(|(program, arguments)| whole(program, arguments).is_ok());
        let peers = peers.map(|(program, arguments)| process(program, program, arguments));
        times.extend(alternate(count / 3, peers.collect())?);
        output.say("measuring a machine");
        let yard = yard::open()?;
        let machine = self.lives(&yard, count, &mut times)?;
        let measured = commands(&machine, count);
        yard.machines().delete(&machine.name, true)?;
        times.extend(measured?);
        if output.json {
            let figures: Vec<_> = times.iter().map(figure).collect();
            output.json_object(json!({ "backend": machine.spec.backend, "figures": figures }))?;
        } else {
            output.data(&described(&times))?;
        }
        DONE
    }

    /// Machines made and deleted, and one that stays.
    fn lives(&self, yard: &Testyard, count: usize, times: &mut Vec<Times>) -> Result<MachineInfo, Problem> {
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
        times.push(Times::new("machine: create until its agent answers", creations));
        times.push(Times::new("machine: delete", deletions));
        yard.machines().create(&name(0)?, &spec)
    }
}

/// Commands and environments in a warm machine.
fn commands(machine: &MachineInfo, count: usize) -> Result<Vec<Times>, Problem> {
    let (mut one, mut other) = (yard::connect(&machine.name)?, yard::connect(&machine.name)?);
    let exec = |place: Place| Exec { argv: vec![RawText::from(PAYLOAD)], quiet: true, place, ..Exec::default() };
    let isolation = machine.spec.backend.most_isolation();
    let spec = Box::new(EnvironmentSpec::new(isolation, caller()));
    let name = format!("environment ({isolation}): make, run, end");
    let on_machine = timed(|| run(one.connection(), exec(Place::Machine)));
    let in_environment = timed(|| run(other.connection(), exec(Place::Fresh(spec.clone()))));
    let contenders =
        vec![Contender::new("command in a warm machine", on_machine), Contender::new(name, in_environment)];
    let mut times = alternate(count, contenders)?;
    let program = std::env::current_exe()
        .map_err(|error| Problem::new(ProblemKind::System, "cannot find this program itself").because(error))?;
    let program = program.to_string_lossy();
    let arguments = ["exec", machine.name.as_str(), PAYLOAD];
    times.extend(alternate(count / 3, vec![process("testyard exec, whole process", &program, &arguments)])?);
    Ok(times)
}

/// A contender that is a whole process.
fn process<'a>(name: &str, program: &'a str, arguments: &'a [&'a str]) -> Contender<'a> {
    Contender::new(name, timed(move || whole(program, arguments)))
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

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn figure(times: &Times) -> Figure<'_> {
    Figure {
        name: &times.name,
        median_us: microseconds(times.median()),
        p90_us: microseconds(times.longer_than(9)),
        count: times.count(),
    }
}

/// A line for each; the ratio is to the first.
fn described(times: &[Times]) -> String {
    let rows: Vec<Vec<String>> = times
        .iter()
        .map(|one| {
            let ratio = times.first().map_or(1.0, |bare| one.ratio_to(bare));
            let us = |time: Duration| format!("{:.0} us", microseconds(time));
            vec![one.name.clone(), us(one.median()), us(one.longer_than(9)), format!("{ratio:.2}")]
        })
        .collect();
    table(&["WHAT", "MEDIAN", "90 OF 100", "RATIO"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_a_median_and_its_ratio() {
        let more = (1..=10).map(Duration::from_millis).collect();
        let times = [Times::new("bare", vec![Duration::from_millis(3)]), Times::new("more", more)];
        assert_eq!(
            described(&times),
            "WHAT  MEDIAN   90 OF 100  RATIO\nbare  3000 us  3000 us    1.00\nmore  6000 us  10000 us   2.00\n"
        );
        let figure = figure(&times[1]);
        assert_eq!((figure.name, figure.count), ("more", 10));
        assert!((figure.p90_us - 10_000.0).abs() < 1e-6, "{figure:?}");
    }
}
