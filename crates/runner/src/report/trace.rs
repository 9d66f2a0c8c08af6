//! Trace events as Chrome's tracing, Perfetto and Speedscope read them: a process a machine, a thread a worker.

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::{Value, json};

use super::lanes::Lanes;
use super::record::RunRecord;
use crate::result::{Attempt, TestResult};

pub(super) fn write(record: &RunRecord, out: &mut dyn Write) -> io::Result<()> {
    let lanes = Lanes::of(record);
    out.write_all(b"{\"displayTimeUnit\":\"ms\",\"otherData\":")?;
    serde_json::to_writer(&mut *out, &json!({ "run": record.info.run, "producer": "testyard" }))?;
    out.write_all(b",\"traceEvents\":[\n")?;
    let mut first = true;
    let mut event = |value: Value| {
        if !std::mem::take(&mut first) {
            out.write_all(b",\n")?;
        }
        serde_json::to_writer(&mut *out, &value).map_err(io::Error::from)
    };
    let mut threads = BTreeSet::new();
    for (machine, name) in lanes.machines.iter().enumerate() {
        event(json!({ "ph": "M", "name": "process_name", "pid": machine, "args": { "name": name } }))?;
    }
    for bar in &lanes.bars {
        if threads.insert((bar.machine, bar.lane)) {
            let name = format!("worker {}", bar.lane);
            event(json!({
                "ph": "M", "name": "thread_name", "pid": bar.machine, "tid": bar.lane, "args": { "name": name },
            }))?;
        }
        let result = &record.results[bar.test];
        event(span(result, &result.attempts[bar.attempt], bar.start_ms * 1_000, (bar.machine, bar.lane)))?;
    }
    out.write_all(b"\n]}\n")
}

fn span(result: &TestResult, attempt: &Attempt, start_us: u64, (pid, tid): (usize, usize)) -> Value {
    let mut arguments = json!({ "result": attempt.verdict.as_str(), "attempt": attempt.number });
    if let Some(detail) = attempt.verdict.detail() {
        arguments["detail"] = detail.into();
    }
    if let Some(usage) = &result.usage {
        arguments["cpu_us"] = usage.cpu_us.into();
        arguments["memory_peak"] = usage.memory_peak.into();
    }
    json!({
        "ph": "X", "cat": attempt.verdict.as_str(), "name": format!("{}::{}", result.suite, result.name),
        "ts": start_us, "dur": attempt.duration_us, "pid": pid, "tid": tid, "args": arguments,
        "cname": if attempt.verdict.is_failure() { "terrible" } else { "good" },
    })
}
