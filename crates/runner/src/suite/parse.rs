//! From text to [`SuiteFile`]: total, whatever the text.

mod matrix;
mod quarantine;
mod services;
mod settings;

use std::path::Path;

use testyard_model::{BackendName, ImageReference, Span};
use toml_edit::Document;

use super::check;
use super::cluster::read_cluster;
use super::error::{ConfigError, ConfigFault};
use super::keys;
use super::read::{TableReader, shortened};
use super::source::SuiteSource;
use super::{
    CommandLine, FORMAT, GlobEntry, Located, RunSettings, SuiteFile, SyncSettings, TestEntry, WrittenPreparation,
};
use matrix::read_matrix;
use quarantine::read_quarantine;
use services::read_service;
use settings::{read_patterns, read_settings};

/// Reads a suite file. Never panics; the first thing that is wrong is the error.
///
/// # Errors
/// Anything that the format does not allow, with its place and the next step.
pub fn parse(text: &str, path: &Path) -> Result<SuiteFile, ConfigError> {
    let source = SuiteSource::new(path, text);
    let document = Document::parse(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        source.fault(span, ConfigFault::Syntax(shortened(&message)))
    })?;
    let top = TableReader::new(&source, document.as_table(), "a suite file", 0..0, keys::TOP)?;
    read_format(&top)?;
    let suite = top.table("suite", "[suite]", keys::SUITE)?;
    let suite = suite.as_ref();
    let name = suite.map(|table| read_name(table, "name")).transpose()?.flatten();
    let (backend, image) = suite.map(read_place).transpose()?.unwrap_or((None, None));
    let defaults =
        suite.map(|table| table.table("defaults", "[suite.defaults]", keys::DEFAULTS)).transpose()?.flatten();
    let defaults = defaults.as_ref().map(read_settings).transpose()?.unwrap_or_default();
    let preparation = suite.map(read_preparation).transpose()?.unwrap_or_default();
    let run = top.table("run", "[run]", keys::RUN)?.as_ref().map(read_run).transpose()?.unwrap_or_default();
    let sync = top.table("sync", "[sync]", keys::SYNC)?.as_ref().map(read_sync).transpose()?.unwrap_or_default();
    let cluster = top.table("cluster", "[cluster]", keys::CLUSTER)?.as_ref().map(read_cluster).transpose()?;
    let services = top.tables("service", "[[service]]", keys::SERVICE)?;
    let services = services.iter().map(read_service).collect::<Result<_, _>>()?;
    let tests = top.tables("test", "[[test]]", keys::TEST)?.iter().map(read_test).collect::<Result<_, _>>()?;
    let globs = top.tables("tests", "[[tests]]", keys::GLOB)?.iter().map(read_glob).collect::<Result<_, _>>()?;
    let variants = suite.map(read_matrix).transpose()?.unwrap_or_default();
    let matrix = suite.map_or(0..0, |table| table.span_of("matrix"));
    let quarantine = read_quarantine(&top)?;
    let file = SuiteFile {
        source: source.clone(),
        name,
        backend,
        image,
        preparation,
        variants,
        matrix,
        defaults,
        sync,
        run,
        cluster,
        services,
        tests,
        globs,
        quarantine,
    };
    check::combinations(&file)?;
    super::services::check(&file)?;
    super::cluster::check(&file)?;
    Ok(file)
}

fn read_sync(table: &TableReader<'_>) -> Result<SyncSettings, ConfigError> {
    let git = table.word("git", &[("none", false), ("history", true)])?;
    Ok(SyncSettings { always: table.boolean("always")?.unwrap_or(false), history: git.is_some_and(|git| git.value) })
}

fn read_format(top: &TableReader<'_>) -> Result<(), ConfigError> {
    let Some(item) = top.get("format") else { return Err(top.missing("format", "`format = 1` as the first line")) };
    match item.as_integer() {
        Some(FORMAT) => Ok(()),
        Some(other) => Err(top.bad(
            "format",
            format!("version {other} is not known; this Testyard reads version {FORMAT}"),
            "install a newer Testyard, or write format = 1",
        )),
        None => Err(top.wrong_type("format", item, "a whole number")),
    }
}

fn read_name(table: &TableReader<'_>, key: &str) -> Result<Option<Located<String>>, ConfigError> {
    let Some(name) = table.string(key)? else { return Ok(None) };
    let reason = if name.value.trim().is_empty() {
        Some("a name cannot be empty".to_owned())
    } else if name.value.chars().count() > 255 {
        Some("a name cannot be longer than 255 characters".to_owned())
    } else {
        let control = name.value.chars().find(|character| character.is_control());
        control.map(|character| format!("a name cannot contain {character:?}"))
    };
    match reason {
        Some(reason) => Err(table.bad(key, reason, "write a short name of printable characters on one line")),
        None => Ok(Some(name)),
    }
}

type Placed = (Option<Located<BackendName>>, Option<Located<ImageReference>>);

fn read_place(suite: &TableReader<'_>) -> Result<Placed, ConfigError> {
    let backend = suite.parsed::<BackendName>("backend", "write auto, host or namespace")?;
    let image = suite.parsed::<ImageReference>("image", "list images with `testyard image list`")?;
    let backend = backend.filter(|name| name.value.as_str() != "auto");
    if backend.as_ref().is_some_and(|name| name.value.as_str() == "host")
        && image.as_ref().is_some_and(|image| image.value != ImageReference::Host)
    {
        let fault = ConfigFault::Combination(
            "backend `host` runs on this host as it is and cannot start from an image",
            "remove `image`, or write backend = \"namespace\"",
        );
        return Err(suite.source.fault(suite.span_of("image"), fault));
    }
    Ok((backend, image))
}

fn read_preparation(suite: &TableReader<'_>) -> Result<WrittenPreparation, ConfigError> {
    let timeout = suite.parsed::<Span>("prepare-timeout", "write prepare-timeout = \"20m\"")?;
    Ok(WrittenPreparation {
        prepare: read_command(suite, "prepare")?.map(|command| command.value),
        restore: read_command(suite, "restore")?.map(|command| command.value),
        inputs: read_patterns(suite, "inputs")?,
        timeout_ms: timeout.map(|span| span.value.milliseconds()),
    })
}

fn read_run(table: &TableReader<'_>) -> Result<RunSettings, ConfigError> {
    Ok(RunSettings {
        jobs: table.count("jobs", 1..=4096)?,
        fail_fast: table.boolean("fail-fast")?,
        no_skip: table.boolean("no-skip")?,
    })
}

fn read_test(table: &TableReader<'_>) -> Result<TestEntry, ConfigError> {
    let name = read_name(table, "name")?.ok_or_else(|| table.missing("name", "a line such as name = \"starts\""))?;
    let command = read_command(table, "command")?
        .ok_or_else(|| table.missing("command", "a line such as command = [\"./tests/start.sh\"]"))?;
    Ok(TestEntry { name, command: command.value, settings: read_settings(table)? })
}

fn read_glob(table: &TableReader<'_>) -> Result<GlobEntry, ConfigError> {
    let globs = table.strings("glob")?.unwrap_or_default();
    if globs.is_empty() {
        return Err(table.missing("glob", "a line such as glob = \"tests/*.sh\""));
    }
    let exclude = table.strings("exclude")?.unwrap_or_default();
    for pattern in globs.iter().chain(&exclude) {
        check::pattern(table.source, pattern)?;
    }
    let command = read_command(table, "command")?;
    if let Some(command) = &command {
        check::template(table.source, command)?;
    }
    Ok(GlobEntry { globs, exclude, command, settings: read_settings(table)? })
}

fn read_command(table: &TableReader<'_>, key: &str) -> Result<Option<Located<CommandLine>>, ConfigError> {
    let Some(item) = table.get(key) else { return Ok(None) };
    let empty = |reason| Err(table.bad(key, reason, format!("write {key} = [\"program\", \"argument\"]")));
    let span = table.span_of(key);
    if let Some(line) = item.as_str() {
        table.refuse_nul(key, line)?;
        if line.trim().is_empty() {
            return empty("a command cannot be empty");
        }
        return Ok(Some(Located { value: CommandLine::Shell(line.to_owned()), span }));
    }
    let words = table.strings(key)?.unwrap_or_default();
    let argv: Vec<String> = words.into_iter().map(|word| word.value).collect();
    match argv.first() {
        None => empty("a command needs at least a program"),
        Some(program) if program.is_empty() => empty("the program's name cannot be empty"),
        Some(_) => Ok(Some(Located { value: CommandLine::Arguments(argv), span })),
    }
}

#[cfg(test)]
mod tests;
