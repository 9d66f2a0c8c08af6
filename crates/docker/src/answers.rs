//! What each command prints and does; the longer ones have modules of their own.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use testyard_linux::process;
use testyard_linux::signal::Signal;

use crate::arguments::Line;
use crate::images::{Reference, Standing, System};
use crate::records::{Record, Records};
use crate::template::formatted;
use crate::{Failure, Outcome, container, joining, say, warn};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The version of docker's interface that is answered.
const INTERFACE: &str = "1.43";

/// Answers one command.
pub(crate) fn answer(line: &Line) -> Outcome {
    match line.command {
        "run" => container::run(line),
        "pull" => container::pull(line),
        "exec" => joining::exec(line),
        "ps" => ps(line),
        "images" => images(line),
        "inspect" => inspect(line),
        "image inspect" => image_inspect(line),
        "stop" => stop(line),
        "kill" => kill(line),
        "rm" => rm(line),
        "rmi" => rmi(line),
        "logs" => logs(line),
        "wait" => wait(line),
        "container prune" | "system prune" => prune(),
        "image prune" => {
            say("Total reclaimed space: 0B");
            Ok(0)
        }
        "version" => one(line, &version(), version_text),
        "info" => one(line, &info()?, info_text),
        "--version" => {
            say(format_args!("Docker version {VERSION}, build testyard"));
            Ok(0)
        }
        _ => {
            say(
                "Usage:  docker COMMAND\n\nThis docker is the machine's own: a container is a process tree of the machine, over its root \
                 copy-on-write.\n\nCommands: run exec ps stop kill rm logs wait inspect, container prune, images, image inspect, pull, \
                 rmi, image prune, system prune, info, version",
            );
            Ok(0)
        }
    }
}

/// One record: as `--format` asks, else as text.
fn one(line: &Line, record: &Value, text: fn(&Value) -> String) -> Outcome {
    match line.value("format") {
        Some(format) => say(formatted(format, record)?),
        None => say(text(record)),
    }
    Ok(0)
}

fn version() -> Value {
    let part = json!({"Version": VERSION, "ApiVersion": INTERFACE, "Os": "linux", "Arch": std::env::consts::ARCH});
    json!({"Client": part, "Server": part})
}

fn version_text(_: &Value) -> String {
    format!(
        "Client: testyard\n Version:           {VERSION}\n API version:       {INTERFACE}\n\nServer: testyard\n Engine:\n  Version:          {VERSION}"
    )
}

fn info() -> Result<Value, Failure> {
    let all = Records::open()?.all();
    let running = all.iter().filter(|one| one.is_running()).count();
    Ok(json!({
        "ServerVersion": VERSION,
        "Driver": "overlay",
        "Containers": all.len(),
        "ContainersRunning": running,
        "ContainersStopped": all.len() - running,
        "Runtimes": {"testyard": {"path": "docker"}},
        "DefaultRuntime": "testyard",
        "OperatingSystem": System::here().pretty,
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "Name": rustix::system::uname().nodename().to_string_lossy(),
    }))
}

fn info_text(record: &Value) -> String {
    let field = |name: &str| record[name].as_str().map_or_else(|| record[name].to_string(), str::to_owned);
    format!(
        "Server:\n Containers: {}\n  Running: {}\n Server Version: {}\n Storage Driver: {}\n Runtimes: testyard\n Operating System: {}",
        field("Containers"),
        field("ContainersRunning"),
        field("ServerVersion"),
        field("Driver"),
        field("OperatingSystem"),
    )
}

fn ps(line: &Line) -> Outcome {
    let mut found = Records::open()?.all();
    let by_state = line.values("filter").any(|filter| filter.starts_with("status="));
    if !line.has("all") && !by_state {
        found.retain(Record::is_running);
    }
    for filter in line.values("filter") {
        let Some((key, wanted)) = filter.split_once('=') else {
            return Err(Failure::new(format!(
                "invalid argument \"{filter}\" for \"-f, --filter\" flag: invalid filter '{filter}'"
            )));
        };
        match key {
            // As docker does: anywhere in the name, `^` and `$` being its ends.
            "name" => found.retain(|one| is_named(&one.name, wanted)),
            "id" => found.retain(|one| one.id.starts_with(wanted)),
            "status" => found.retain(|one| one.state() == wanted),
            "ancestor" => found.retain(|one| one.image == wanted),
            _ => return Err(Failure::new(format!("Error response from daemon: invalid filter '{key}'"))),
        }
    }
    // Newest first.
    found.reverse();
    listed(line, &found)
}

fn is_named(name: &str, wanted: &str) -> bool {
    let slashed = format!("/{name}");
    let (begins, wanted) = wanted.strip_prefix('^').map_or((false, wanted), |rest| (true, rest));
    let (ends, wanted) = wanted.strip_suffix('$').map_or((false, wanted), |rest| (true, rest));
    [name, slashed.as_str()].iter().any(|name| match (begins, ends) {
        (true, true) => *name == wanted,
        (true, false) => name.starts_with(wanted),
        (false, true) => name.ends_with(wanted),
        (false, false) => name.contains(wanted),
    })
}

fn listed(line: &Line, found: &[Record]) -> Outcome {
    let whole = line.has("no-trunc");
    if line.has("quiet") {
        found.iter().for_each(|one| say(if whole { &one.id } else { one.short_id() }));
        return Ok(0);
    }
    if let Some(format) = line.value("format").filter(|format| *format != "table") {
        for one in found {
            say(formatted(format, &one.listed(whole))?);
        }
        return Ok(0);
    }
    let columns = ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"];
    let mut rows =
        vec!["CONTAINER ID|IMAGE|COMMAND|CREATED|STATUS|PORTS|NAMES".split('|').map(str::to_owned).collect::<Vec<_>>()];
    for one in found {
        let shown = one.listed(whole);
        rows.push(columns.iter().map(|name| shown[name].as_str().unwrap_or_default().to_owned()).collect());
    }
    table(&rows);
    Ok(0)
}

fn table(rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let text: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(text.join("   ").trim_end());
    }
}

fn image_record(reference: &Reference) -> Value {
    let system = System::here();
    // Stable, and the same for all names of one root.
    let sum = system
        .pretty
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let id = format!("sha256:{}", format!("{sum:016x}").repeat(4));
    let stands_in = reference.standing_here() == Standing::StandIn;
    json!({
        "Id": id,
        "RepoTags": [reference.shown()],
        "RepoDigests": [],
        "Comment": if stands_in { format!("stood in for by the machine's own root, {}", system.pretty) } else { String::new() },
        "Architecture": std::env::consts::ARCH,
        "Os": "linux",
        "Size": 0,
        "Repository": reference.name,
        "Tag": reference.tag,
        "ID": id.trim_start_matches("sha256:")[..12].to_owned(),
    })
}

fn image_inspect(line: &Line) -> Outcome {
    let pulled = Records::open()?.pulled();
    let (mut found, mut code) = (Vec::new(), 0);
    for image in line.at_least_one()? {
        let reference = Reference::read(image)?;
        if reference.standing_here() == Standing::Own || pulled.contains(&reference.shown()) {
            found.push(image_record(&reference));
        } else {
            warn(format_args!("Error response from daemon: No such image: {}", reference.shown()));
            code = 1;
        }
    }
    inspected(line, &found)?;
    Ok(code)
}

fn inspected(line: &Line, found: &[Value]) -> Result<(), Failure> {
    match line.value("format") {
        Some(format) => {
            for one in found {
                say(formatted(format, one)?);
            }
        }
        None => say(serde_json::to_string_pretty(found).unwrap_or_default()),
    }
    Ok(())
}

fn images(line: &Line) -> Outcome {
    let own = System::here();
    let own = Reference { name: own.id, tag: if own.version.is_empty() { "latest".to_owned() } else { own.version } };
    let pulled = Records::open()?.pulled();
    let mut all = vec![own];
    all.extend(pulled.iter().filter_map(|image| Reference::read(image).ok()));
    all.retain(|one| line.rest.first().is_none_or(|wanted| *wanted == one.name || *wanted == one.shown()));
    let mut rows = vec![["REPOSITORY", "TAG", "IMAGE ID", "SIZE"].map(str::to_owned).to_vec()];
    for reference in &all {
        let record = image_record(reference);
        let id = record["ID"].as_str().unwrap_or_default().to_owned();
        match line.value("format") {
            _ if line.has("quiet") => say(id),
            Some(format) => say(formatted(format, &record)?),
            None => rows.push(vec![reference.name.clone(), reference.tag.clone(), id, "0B".to_owned()]),
        }
    }
    if !line.has("quiet") && line.value("format").is_none() {
        table(&rows);
    }
    Ok(0)
}

fn inspect(line: &Line) -> Outcome {
    let records = Records::open()?;
    let (mut found, mut code) = (Vec::new(), 0);
    for name in line.at_least_one()? {
        match records.find(name) {
            Ok(record) => found.push(record.inspected()),
            Err(_) => {
                warn(format_args!("Error: No such object: {name}"));
                code = 1;
            }
        }
    }
    inspected(line, &found)?;
    Ok(code)
}

/// Does something to each container that is named, says its name, and goes on after one that fails.
fn each(line: &Line, mut act: impl FnMut(&Records, Record) -> Result<(), Failure>) -> Outcome {
    let records = Records::open()?;
    let mut code = 0;
    for name in line.at_least_one()? {
        match records.find(name).and_then(|record| act(&records, record)) {
            Ok(()) => say(name),
            Err(failure) => {
                warn(failure.message);
                code = failure.code;
            }
        }
    }
    Ok(code)
}

fn stop(line: &Line) -> Outcome {
    let seconds = line.value("time").or(line.value("timeout")).unwrap_or("10");
    let seconds: u64 = seconds
        .parse()
        .map_err(|_| Failure { message: format!("invalid argument \"{seconds}\" for \"-t, --time\""), code: 125 })?;
    let signal = signal_of(line.value("signal").unwrap_or("TERM"))?;
    each(line, |_, record| {
        if let Some(pidfd) = record.pidfd() {
            end(&pidfd, signal, seconds);
        }
        Ok(())
    })
}

fn signal_of(text: &str) -> Result<Signal, Failure> {
    text.parse().map_err(|_| Failure::new(format!("Error response from daemon: invalid signal: {text}")))
}

/// Asks with a signal, and kills what has not ended after so long.
fn end(pidfd: &OwnedFd, signal: Signal, seconds: u64) {
    // What has just ended needs neither.
    let _ = process::pidfd_signal(pidfd.as_fd(), signal.number());
    if !has_ended(pidfd, seconds) {
        let _ = process::pidfd_signal(pidfd.as_fd(), Signal::KILL.number());
        has_ended(pidfd, 10);
    }
}

fn has_ended(pidfd: &OwnedFd, seconds: u64) -> bool {
    let patience = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&patience)).is_ok_and(|count| count > 0)
}

fn kill(line: &Line) -> Outcome {
    let signal = signal_of(line.value("signal").unwrap_or("KILL"))?;
    each(line, |_, record| {
        let pidfd = record.pidfd().ok_or_else(|| {
            Failure::new(format!("Error response from daemon: Cannot kill container: {}: is not running", record.name))
        })?;
        let _ = process::pidfd_signal(pidfd.as_fd(), signal.number());
        if signal == Signal::KILL {
            has_ended(&pidfd, 10);
        }
        Ok(())
    })
}

fn rm(line: &Line) -> Outcome {
    let force = line.has("force");
    each(line, |records, record| {
        if let Some(pidfd) = record.pidfd().filter(|_| record.is_running()) {
            if !force {
                return Err(Failure::new(format!(
                    "Error response from daemon: cannot remove container \"/{}\": container is running: stop the container before \
                     removing or force remove",
                    record.name
                )));
            }
            end(&pidfd, Signal::KILL, 10);
        }
        records.remove(&record);
        Ok(())
    })
}

fn rmi(line: &Line) -> Outcome {
    let records = Records::open()?;
    for image in line.at_least_one()? {
        let shown = Reference::read(image)?.shown();
        if !records.pulled().contains(&shown) {
            return Err(Failure::new(format!("Error response from daemon: No such image: {shown}")));
        }
        records.set_pulled(&shown, false)?;
        say(format_args!("Untagged: {shown}"));
    }
    Ok(0)
}

fn logs(line: &Line) -> Outcome {
    let records = Records::open()?;
    let [name] = line.at_least_one()? else {
        return Err(Failure::new("\"docker logs\" requires exactly 1 argument.\nSee 'docker logs --help'."));
    };
    let record = records.find(name)?;
    if let Some(pidfd) = record.pidfd().filter(|_| line.has("follow")) {
        // To its end, and then whole.
        let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None);
    }
    let Ok(text) = std::fs::read(records.log(&record.id)) else {
        return Err(Failure::new(
            "Error response from daemon: only what a detached container (-d) writes is kept here",
        ));
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = line.value("tail").and_then(|count| count.parse::<usize>().ok()).unwrap_or(lines.len());
    lines[lines.len().saturating_sub(tail)..].iter().for_each(say);
    Ok(0)
}

fn wait(line: &Line) -> Outcome {
    let records = Records::open()?;
    for name in line.at_least_one()? {
        let record = records.find(name)?;
        if let Some(pidfd) = record.pidfd() {
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None);
        }
        // Who attends it writes down how it ended, a moment after it did.
        let mut ended = records.find(name).unwrap_or(record);
        for _ in 0..200 {
            if ended.exit_code.is_some() {
                break;
            }
            testyard_linux::pause(Duration::from_millis(5));
            ended = records.find(name).unwrap_or(ended);
        }
        say(ended.exit_code.unwrap_or(137));
    }
    Ok(0)
}

fn prune() -> Outcome {
    let records = Records::open()?;
    let ended: Vec<Record> = records.all().into_iter().filter(|one| one.state() == "exited").collect();
    if !ended.is_empty() {
        say("Deleted Containers:");
    }
    for record in &ended {
        records.remove(record);
        say(&record.id);
    }
    say("\nTotal reclaimed space: 0B");
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_by_name_are_dockers() {
        for (wanted, found) in [
            ("flow-dev-exec", true),
            ("exec", true),
            ("^flow", true),
            ("^/flow-dev-exec-1$", true),
            ("^exec", false),
            ("x", true),
            ("y", false),
        ] {
            assert_eq!(is_named("flow-dev-exec-1", wanted), found, "{wanted}");
        }
    }
}
