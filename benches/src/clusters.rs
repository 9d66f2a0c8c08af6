//! Rows over clusters: how long one takes until every node answers, and what a job through us costs.

use std::time::Duration;

use testyard_measure::Times;
use testyard_model::{Problem, ProblemKind};

use crate::Options;
use crate::programs::{Testyard, or_skip};
use crate::report::{Goal, Row};

/// Jobs that are compared.
const JOBS: usize = 20;

/// Of three nodes. The usual peer, a cluster of one node from a compose file, takes 10.3 s.
pub(crate) fn rows(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    let rounds = options.rounds(20);
    let cold = |from: &str| {
        repeated(rounds, |number| {
            let took = testyard.run(&format!("cluster create slurm cold{number} --nodes 3 --image {from}"))?;
            testyard.run(&format!("cluster delete cold{number}"))?;
            Ok(took)
        })
    };
    or_skip("Slurm cluster of 3, cold, each node answers srun and SSH", Goal::AtMost(500.0), "ms", row, cold("host"));
    if !options.quick {
        // Minutes, of which none counts.
        let built = testyard.run("image build slurm").and_then(|_| cold("slurm"));
        let name = "Slurm cluster of 3, cold from a built image, each node answers srun and SSH";
        or_skip(name, Goal::AtMost(500.0), "ms", row, built);
    }
    let forked = testyard.run("cluster create slurm base --nodes 3").and_then(|_| {
        testyard.run("cluster stop base")?;
        repeated(rounds, |number| {
            let took = testyard.run(&format!("cluster fork base fork{number}"))?;
            testyard.run(&format!("cluster delete fork{number}"))?;
            Ok(took)
        })
    });
    or_skip("Slurm cluster of 3, forked, each node answers srun and SSH", Goal::AtMost(300.0), "ms", row, forked);
    let more = testyard.run("cluster start base").and_then(|_| jobs(testyard));
    or_skip("srun through us, more than the same srun inside", Goal::AtMost(5.0), "ms", row, more);
    // The run's last step removes what a row that failed has left.
    let _ = testyard.run("cluster delete base");
}

fn repeated(rounds: usize, one: impl Fn(usize) -> Result<Duration, Problem>) -> Result<(f64, String), Problem> {
    let times = (0..rounds).map(one).collect::<Result<Vec<_>, _>>()?;
    let times = Times::new("clusters", times);
    Ok((milliseconds(times.median()), format!("median of {rounds}, whole processes")))
}

/// The same job, by turns from outside and from a shell on the node.
fn jobs(testyard: &Testyard) -> Result<(f64, String), Problem> {
    let script = "s=$(date +%s%N); srun hostname >/dev/null; e=$(date +%s%N); echo $((e-s))";
    let (mut outside, mut inside) = (Vec::new(), Vec::new());
    for _ in 0..JOBS {
        outside.push(testyard.run("cluster exec base 1 -- srun hostname")?);
        let mut command = testyard.command("cluster exec base 1 -- bash -c");
        let output = command.arg(script).output().map_err(|error| Problem::from_error(ProblemKind::System, &error))?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let nanoseconds = printed.trim().parse().map_err(|_| {
            Problem::new(ProblemKind::Command, "the job inside was not timed").because(printed.trim().to_owned())
        })?;
        inside.push(Duration::from_nanos(nanoseconds));
    }
    let (outside, inside) = (Times::new("outside", outside).median(), Times::new("inside", inside).median());
    let detail = format!("{:.1} / {:.1} ms, medians of {JOBS}", milliseconds(outside), milliseconds(inside));
    Ok((milliseconds(outside) - milliseconds(inside), detail))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
