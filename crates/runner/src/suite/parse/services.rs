//! `[[service]]`.

use testyard_model::Span;

use super::settings::{read_env, read_words};
use super::{read_command, read_name};
use crate::service::{Readiness, ServiceScope, ServiceUser};
use crate::suite::error::ConfigError;
use crate::suite::keys;
use crate::suite::read::TableReader;
use crate::suite::services::{PATIENCE_MS, SIGNALS, STOP_PATIENCE_MS, ServiceEntry};

pub(super) fn read_service(table: &TableReader<'_>) -> Result<ServiceEntry, ConfigError> {
    let name = read_name(table, "name")?.ok_or_else(|| table.missing("name", "a line such as name = \"db\""))?;
    if name.value.contains(char::is_whitespace) {
        return Err(table.bad("name", "a service's name cannot contain spaces", "write one word, such as \"db\""));
    }
    let command = read_command(table, "command")?
        .ok_or_else(|| table.missing("command", "a line such as command = [\"redis-server\", \"--save\", \"\"]"))?;
    let (ready, patience_ms) = read_ready(table)?;
    let (stop_signal, stop_patience_ms) = read_stop(table)?;
    let scope = table.word("scope", &[("environment", ServiceScope::Environment), ("suite", ServiceScope::Suite)])?;
    Ok(ServiceEntry {
        name,
        command: command.value,
        env: read_env(table)?,
        cwd: table.string("cwd")?,
        user: read_user(table)?,
        ready,
        patience_ms,
        scope: scope.map(|scope| scope.value).unwrap_or_default(),
        after: read_words(table, "after")?,
        stop_signal,
        stop_patience_ms,
        may_end: table.boolean("may-end")?.unwrap_or(false),
    })
}

fn read_user(table: &TableReader<'_>) -> Result<ServiceUser, ConfigError> {
    let Some(user) = table.string("user")? else { return Ok(ServiceUser::Caller) };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match user.value.as_str() {
        "caller" => Ok(ServiceUser::Caller),
        "root" => Ok(ServiceUser::Root),
        name if (1..=32).contains(&name.len()) && name.bytes().all(plain) => Ok(ServiceUser::Named(user.value)),
        _ => Err(table.bad("user", "this is not a user's name", "write caller, root, or a user of the image")),
    }
}

fn read_ready(table: &TableReader<'_>) -> Result<(Readiness, u64), ConfigError> {
    let Some(ready) = table.table("ready", "ready", keys::READY)? else {
        return Ok((Readiness::Started, PATIENCE_MS));
    };
    let port = ready.count("port", 1..=65_535)?.and_then(|port| u16::try_from(port).ok());
    let log = ready.string("log")?;
    if let Some(pattern) = &log
        && let Err(error) = regex::bytes::Regex::new(&pattern.value)
    {
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let hint = "write a regular expression, such as \"ready to accept connections\"; \\ takes away a meaning";
        return Err(ready.bad("log", format!("not a regular expression: {reason}"), hint));
    }
    let command = read_command(&ready, "command")?.map(|command| command.value);
    let mut kinds = Vec::new();
    kinds.extend(port.map(Readiness::Port));
    kinds.extend(log.map(|pattern| Readiness::Log(pattern.value)));
    kinds.extend(command.map(|command| Readiness::Command(command.argv())));
    if kinds.len() > 1 {
        let hint = "keep the one that comes last; a command can look at several things";
        return Err(table.bad("ready", "`port`, `log` and `command` exclude each other", hint));
    }
    let patience = ready.parsed::<Span>("timeout", "write timeout = \"10s\"")?;
    let patience_ms = patience.map_or(PATIENCE_MS, |span| span.value.milliseconds());
    Ok((kinds.pop().unwrap_or_default(), patience_ms))
}

fn read_stop(table: &TableReader<'_>) -> Result<(i32, u64), ConfigError> {
    const TERM: i32 = 15;
    let Some(stop) = table.table("stop", "stop", keys::STOP)? else { return Ok((TERM, STOP_PATIENCE_MS)) };
    let signal = stop.word("signal", &SIGNALS)?.map_or(TERM, |signal| signal.value);
    let patience = stop.parsed::<Span>("timeout", "write timeout = \"5s\"")?;
    Ok((signal, patience.map_or(STOP_PATIENCE_MS, |span| span.value.milliseconds())))
}
