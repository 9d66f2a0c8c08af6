//! Rows over runs that are spread over the nodes of a Slurm cluster, against the same commands through `srun` and `xargs`.
//!
//! Both sides are started on the cluster's first node, by the cluster's user, as whole processes that end when all is
//! over: jobs, machines and steps are gone. The peer has no environments, no results and no copies of the source.

use std::fmt::Write as _;
use std::time::Duration;

use testyard_measure::{ratio, shown};
use testyard_model::Problem;

use crate::Options;
use crate::environments::make_folder;
use crate::programs::{Testyard, failed, or_skip};
use crate::report::{Goal, Row};

const TESTS: usize = 200;
const NODES: usize = 3;
/// Tests at once on a node, which has as many processors.
const JOBS: usize = 2;
/// Where the cluster's nodes share files.
const HOME: &str = "/home/slurm";

/// What a test runs, as it is called, and how many rounds it is worth.
const COMMANDS: [(&str, &str, usize); 3] =
    [("empty", "true", 5), ("of 50 ms", "sleep 0.05", 5), ("of 500 ms", "sleep 0.5", 3)];

pub(crate) fn rows(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    let made = testyard
        .run(&format!("cluster create slurm out --nodes {NODES} --cpus {JOBS}"))
        .and_then(|_| furnish(options, testyard));
    for (name, command, rounds) in COMMANDS {
        // The last takes a minute.
        if options.quick && rounds < 5 {
            continue;
        }
        let name = format!("200 tests {name} over 3 nodes, --on slurm, against srun and xargs -P2");
        let measured = made.clone().and_then(|()| compared(testyard, command, if options.quick { 3 } else { rounds }));
        or_skip(&name, Goal::AtMost(1.25), "×", row, measured);
    }
    // The run's last step removes what is left then.
    let _ = testyard.run("cluster delete out");
}

/// Puts the programs and the suites on the nodes.
fn furnish(options: &Options, testyard: &Testyard) -> Result<(), Problem> {
    for program in ["testyard", "testyard-agent"] {
        let program = options.programs.join(program);
        testyard.run(&format!("push out-1 --user slurm {} {HOME}", program.display()))?;
    }
    for (_, command, _) in COMMANDS {
        let mut suite =
            String::from("format = 1\n[suite]\nname = \"spread\"\n[suite.defaults]\nisolation = \"namespace\"\n");
        let words: Vec<String> = command.split(' ').map(|word| format!("\"{word}\"")).collect();
        for number in 0..TESTS {
            // Writing to a string cannot fail.
            let _ = write!(suite, "[[test]]\nname = \"t{number}\"\ncommand = [{}]\n", words.join(", "));
        }
        let folder = options.folder.join(folder_of(command));
        make_folder(&folder)?;
        std::fs::write(folder.join("testyard.toml"), suite).map_err(failed)?;
        testyard.run(&format!("push out-1 --user slurm {} {HOME}", folder.display()))?;
    }
    Ok(())
}

fn folder_of(command: &str) -> String {
    format!("suite-{}", command.replace(' ', "-"))
}

/// The middle one of so many rounds, by turns; the first of each warms up.
fn compared(testyard: &Testyard, command: &str, rounds: usize) -> Result<(f64, String), Problem> {
    let suite = folder_of(command);
    let ours = || {
        let run = format!("{HOME}/testyard run {HOME}/{suite} --on slurm --nodes {NODES} --jobs {JOBS}");
        testyard.run(&format!("cluster exec out 1 -e TESTYARD_HOME=/var/tmp/ty -- {run}"))
    };
    let share = format!("seq $((SLURM_PROCID+1)) {NODES} {TESTS} | xargs -P{JOBS} -I_ {command}");
    let step = format!("srun --nodes={NODES} --ntasks={NODES} --ntasks-per-node=1 --cpus-per-task={JOBS}");
    let peer = || {
        let mut exec = testyard.command(&format!("cluster exec out 1 -- {step} sh -c"));
        crate::programs::timed(exec.arg(&share))
    };
    ours()?;
    peer()?;
    let mut figures: Vec<(f64, Duration, Duration)> = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let (peer, ours) = (peer()?, ours()?);
        figures.push((ratio(ours, peer), ours, peer));
    }
    figures.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (figure, ours, peer) = figures[rounds / 2];
    let (least, most) = (figures[0].0, figures[rounds - 1].0);
    Ok((figure, format!("{} / {}, {rounds} rounds, {least:.2} to {most:.2}", shown(ours), shown(peer))))
}
