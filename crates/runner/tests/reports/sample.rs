//! Runs made up for reports: each kind of result once, with names and output that try to get out; and many tests.

use std::sync::Arc;

use testyard_model::{Isolation, Problem, ProblemKind, Usage};
use testyard_runner::capture::Captured;
use testyard_runner::report::{RunInfo, RunRecord};
use testyard_runner::result::{
    Aftermath, Attempt, ChangedFile, Failure, FileChanges, OutputInfo, Outputs, QuarantineMark, RunSummary, SkipReason,
    Stop, TestResult, TreeInfo, Verdict,
};
use testyard_runner::service::{ServiceResult, ServiceScope};

/// 2026-09-21 14:13:20 UTC.
pub(crate) const STARTED_MS: i64 = 1_790_000_000_000;
/// A name that is a program where somebody takes it for one.
pub(crate) const HOSTILE: &str = "</script><img src=x onerror=\"document.title='owned'\">&amp;\"'#%,:: -->]]>";
/// Output of the same kind, with what no report may hold.
pub(crate) const HOSTILE_OUTPUT: &[u8] =
    b"</script><script>document.title='owned'</script>]]>\n::error::forged\n\x1b[31mred\x1b[0m\xff\x00\xef\xbf\xbf%0A end";

pub(crate) fn result(name: &str, verdict: Verdict, start_ms: u64, took_ms: u64) -> TestResult {
    let ran = took_ms > 0;
    let attempt = Attempt {
        number: 1,
        started_ms: STARTED_MS + start_ms.cast_signed(),
        duration_us: took_ms * 1_000 + 900,
        machine: None,
        worker: Some(0),
        verdict: verdict.clone(),
        stdout: None,
        stderr: None,
        inspection: None,
    };
    TestResult {
        index: 0,
        suite: "shop".to_owned(),
        name: name.to_owned(),
        verdict,
        duration_us: took_ms * 1_000,
        attempts: if ran { vec![attempt] } else { Vec::new() },
        usage: ran.then(|| Usage {
            wall_us: took_ms * 1_000,
            cpu_us: took_ms * 700,
            memory_peak: Some(3 << 20),
            ..Usage::default()
        }),
        isolation: ran.then_some(Isolation::Namespace),
        environment: ran.then(|| "namespace/m1/e17".to_owned()),
        tree: None,
        source_changed: false,
        file: None,
        tags: Vec::new(),
        owner: None,
        stdout: None,
        stderr: None,
        aftermath: Aftermath::default(),
        services: Vec::new(),
        outputs: Outputs::default(),
        variant: None,
        repetition: None,
        slow: false,
        quarantine: None,
        earlier: Vec::new(),
    }
}

pub(crate) fn with_output(mut result: TestResult, stdout: &[u8]) -> TestResult {
    let info = |bytes: u64| Some(OutputInfo { bytes, lost: 0, file: None, text: None });
    result.outputs.stdout = Captured::of(stdout);
    result.stdout = info(stdout.len() as u64);
    result.stderr = info(0);
    result.services.push(ServiceResult {
        name: "db".to_owned(),
        scope: ServiceScope::Environment,
        ready_us: Some(12_000),
        died: None,
        bytes: stdout.len() as u64,
        text: None,
        log: Captured::of(stdout),
    });
    result
}

/// Each failed attempt before the last one, which is there already.
pub(crate) fn after(mut result: TestResult, verdicts: &[Verdict]) -> TestResult {
    let mut last = result.attempts.pop().expect("it ran");
    for verdict in verdicts {
        let number = u32::try_from(result.attempts.len() + 1).expect("few");
        let started_ms = last.started_ms;
        result.attempts.push(Attempt { number, started_ms, verdict: verdict.clone(), ..last.clone() });
        last.started_ms += 40;
        last.number = number + 1;
    }
    result.attempts.push(last);
    result
}

pub(crate) fn exit(code: u8) -> Verdict {
    Verdict::Failed(Failure::Exit { code })
}

pub(crate) fn gone() -> Verdict {
    let problem = Problem::new(ProblemKind::Unavailable, "machine m1 is gone").because("killed").hint("testyard reap");
    Verdict::InfrastructureError { problem }
}

/// Each kind of result.
pub(crate) fn every_kind() -> RunRecord {
    let missing = SkipReason::Missing {
        missing: "kvm".to_owned(),
        detail: "no vCPU runs here".to_owned(),
        hint: Some("testyard doctor".to_owned()),
    };
    let mut owned = with_output(result(HOSTILE, exit(3), 30, 120), HOSTILE_OUTPUT);
    owned.owner = Some("ana & co".to_owned());
    owned.tags = vec!["slow".to_owned(), "net".to_owned()];
    owned.file = Some("/src/shop/tests/a,b:c.sh".to_owned());
    owned.source_changed = true;
    let changed =
        |path: &str, change: &str, size| ChangedFile { path: path.to_owned(), change: change.to_owned(), size };
    owned.aftermath.files = Some(FileChanges {
        added: 1,
        changed: 1,
        deleted: 1,
        more: false,
        entries: vec![
            changed("/tmp/<b>new</b>", "added", Some(12)),
            changed("/etc/hosts", "changed", Some(300)),
            changed("/etc/motd", "deleted", None),
        ],
    });
    let mut other = result("passes", Verdict::Passed, 60, 20);
    other.suite = "other".to_owned();
    other.environment = Some("host/h/e1".to_owned());
    let mut flaky = after(result("flaky", Verdict::Flaky { failed_attempts: 1 }, 100, 30), &[exit(1), gone()]);
    flaky.earlier = vec![(1, Outputs { stdout: Captured::of(HOSTILE_OUTPUT), stderr: Captured::default() })];
    flaky.attempts[0].stdout = Some(OutputInfo { bytes: HOSTILE_OUTPUT.len() as u64, lost: 0, file: None, text: None });
    let mut excused = result("known to fail", exit(1), 70, 20);
    excused.suite = "other".to_owned();
    excused.quarantine = Some(QuarantineMark {
        owner: "bo".to_owned(),
        reason: "<mirror> is down".to_owned(),
        until: "2026-12-01".to_owned(),
    });
    let results = vec![
        result("passes", Verdict::Passed, 0, 25),
        owned,
        result("killed", Verdict::Failed(Failure::Signal { signal: 9 }), 40, 10),
        result("takes too long", Verdict::TimedOut { limit_ms: 2_000 }, 50, 2_000),
        result("wants kvm", Verdict::Skipped(missing), 0, 0),
        result("never began", Verdict::Skipped(SkipReason::NotStarted { stop: Stop::FailFast }), 0, 0),
        result("no machine", gone(), 90, 1),
        flaky,
        after(with_output(result("fails thrice", exit(4), 140, 30), b"last"), &[exit(2), gone()]),
        other,
        excused,
    ];
    record(results)
}

/// As many tests as told, a tenth of which did not pass and say why.
pub(crate) fn many(tests: usize) -> RunRecord {
    const JOBS: usize = 16;
    let mut ends = [0_u64; JOBS];
    let results = (0..tests).map(|place| {
        let worker = (0..JOBS).min_by_key(|worker| ends[*worker]).unwrap_or(0);
        let took = 3 + (place as u64 * 7_919) % 97 + if place % 211 == 0 { 900 } else { 0 };
        let verdict = match place % 40 {
            7 | 23 => exit(1),
            31 => Verdict::TimedOut { limit_ms: 100 },
            35 => gone(),
            _ => Verdict::Passed,
        };
        let name = format!("tests/area_{:02}/case_{place:05}_of_a_usual_length.sh", place % 50);
        let mut made = result(&name, verdict, ends[worker], took);
        ends[worker] += took + 2;
        made.attempts[0].worker = u32::try_from(worker).ok();
        made.environment = Some(format!("namespace/m{}/e{place}", 1 + worker / 8));
        if made.verdict != Verdict::Passed {
            let line = format!("case {place}: expected 1, but got 2 <b>&amp;\n");
            made = with_output(made, line.repeat(200).as_bytes());
        } else if place % 101 == 5 {
            made.verdict = Verdict::Flaky { failed_attempts: 1 };
            made = after(made, &[exit(1)]);
        }
        made
    });
    record(results.collect())
}

fn record(mut results: Vec<TestResult>) -> RunRecord {
    for (index, result) in results.iter_mut().enumerate() {
        result.index = index;
    }
    let mut summary = RunSummary::of(&results, false);
    let ends = results.iter().flat_map(|result| &result.attempts);
    let end_us = ends.map(|one| (one.started_ms - STARTED_MS).unsigned_abs() * 1_000 + one.duration_us).max();
    summary.duration_us = end_us.unwrap_or(0) + 20_000;
    let tree = |suite: &str| TreeInfo {
        suite: suite.to_owned(),
        tree: Some("9f86d081884c7d659a2feaa0c55ad015".to_owned()),
        unhashed: vec!["build/out.o".to_owned()],
        frozen: false,
    };
    let suites: std::collections::BTreeSet<&str> = results.iter().map(|result| result.suite.as_str()).collect();
    summary.trees = suites.into_iter().rev().map(tree).collect();
    let info = RunInfo {
        run: "01998a6e-7b00-7000-8000-00000000abcd".to_owned(),
        started_ms: STARTED_MS,
        tests: results.len(),
        jobs: 16,
        trees: summary.trees.clone(),
        seed: None,
        shard: None,
    };
    RunRecord {
        info,
        results: results.into_iter().map(Arc::new).collect(),
        warnings: Vec::new(),
        ended: Some(summary),
        unfinished: Vec::new(),
    }
}
