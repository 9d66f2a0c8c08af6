//! From text to [`SuiteFile`]: total, whatever the text.

use std::collections::BTreeMap;
use std::path::Path;

use testyard_model::{BackendName, ByteSize, ImageReference, Isolation, Network, Span};
use toml_edit::{Document, Item};

use super::check;
use super::error::{ConfigError, ConfigFault};
use super::read::{TableReader, shortened};
use super::source::SuiteSource;
use super::{
    CommandLine, FORMAT, GlobEntry, Located, Resources, RunSettings, Settings, SuiteFile, TestEntry, TestUser,
};

const TOP: &[&str] = &["format", "suite", "run", "test", "tests"];
const SUITE: &[&str] = &["name", "backend", "image", "defaults"];
const RUN: &[&str] = &["jobs", "fail-fast", "no-skip"];
const RESOURCES: &[&str] = &["cpus", "memory", "pids", "disk", "exclusive"];
const DEFAULTS: &[&str] = &[
    "needs",
    "isolation",
    "network",
    "timeout",
    "env",
    "resources",
    "user",
    "cwd",
    "tags",
    "owner",
    "retries",
    "outputs",
];
const TEST: &[&str] = &[
    "name",
    "command",
    "needs",
    "isolation",
    "network",
    "timeout",
    "env",
    "resources",
    "user",
    "cwd",
    "tags",
    "owner",
    "retries",
    "outputs",
];
const GLOB: &[&str] = &[
    "glob",
    "exclude",
    "command",
    "needs",
    "isolation",
    "network",
    "timeout",
    "env",
    "resources",
    "user",
    "cwd",
    "tags",
    "owner",
    "retries",
    "outputs",
];

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
    let top = TableReader::new(&source, document.as_table(), "a suite file", 0..0, TOP)?;
    read_format(&top)?;
    let suite = top.table("suite", "[suite]", SUITE)?;
    let suite = suite.as_ref();
    let name = suite.map(|table| read_name(table, "name")).transpose()?.flatten();
    let (backend, image) = suite.map(read_place).transpose()?.unwrap_or((None, None));
    let defaults = suite.map(|table| table.table("defaults", "[suite.defaults]", DEFAULTS)).transpose()?.flatten();
    let defaults = defaults.as_ref().map(read_settings).transpose()?.unwrap_or_default();
    let run = top.table("run", "[run]", RUN)?.as_ref().map(read_run).transpose()?.unwrap_or_default();
    let tests = top.tables("test", "[[test]]", TEST)?.iter().map(read_test).collect::<Result<_, _>>()?;
    let globs = top.tables("tests", "[[tests]]", GLOB)?.iter().map(read_glob).collect::<Result<_, _>>()?;
    let file = SuiteFile { source: source.clone(), name, backend, image, defaults, run, tests, globs };
    check::combinations(&file)?;
    Ok(file)
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

fn read_place(suite: &TableReader<'_>) -> Result<(Option<BackendName>, Option<ImageReference>), ConfigError> {
    let backend = suite.parsed::<BackendName>("backend", "write auto, host or namespace")?;
    let image = suite.parsed::<ImageReference>("image", "list images with `testyard image list`")?;
    let backend = backend.map(|name| name.value).filter(|name| name.as_str() != "auto");
    let image = image.map(|image| image.value);
    if backend.as_ref().is_some_and(|name| name.as_str() == "host")
        && image.as_ref().is_some_and(|image| *image != ImageReference::Host)
    {
        let fault = ConfigFault::Combination(
            "backend `host` runs on this host as it is and cannot start from an image",
            "remove `image`, or write backend = \"namespace\"",
        );
        return Err(suite.source.fault(suite.span_of("image"), fault));
    }
    Ok((backend, image))
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
    let command = read_command(table)?
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
    let command = read_command(table)?;
    if let Some(command) = &command {
        check::template(table.source, command)?;
    }
    Ok(GlobEntry { globs, exclude, command, settings: read_settings(table)? })
}

fn read_command(table: &TableReader<'_>) -> Result<Option<Located<CommandLine>>, ConfigError> {
    let Some(item) = table.get("command") else { return Ok(None) };
    let empty = |reason| Err(table.bad("command", reason, "write command = [\"program\", \"argument\"]"));
    let span = table.span_of("command");
    if let Some(line) = item.as_str() {
        table.refuse_nul("command", line)?;
        if line.trim().is_empty() {
            return empty("a command cannot be empty");
        }
        return Ok(Some(Located { value: CommandLine::Shell(line.to_owned()), span }));
    }
    let words = table.strings("command")?.unwrap_or_default();
    let argv: Vec<String> = words.into_iter().map(|word| word.value).collect();
    match argv.first() {
        None => empty("a command needs at least a program"),
        Some(program) if program.is_empty() => empty("the program's name cannot be empty"),
        Some(_) => Ok(Some(Located { value: CommandLine::Arguments(argv), span })),
    }
}

fn read_settings(table: &TableReader<'_>) -> Result<Settings, ConfigError> {
    let isolation = table.word("isolation", &Isolation::ALL.map(|level| (level.as_str(), level)))?;
    let network = table.word("network", &Network::ALL.map(|network| (network.as_str(), network)))?;
    let timeout = table.parsed::<Span>("timeout", "write timeout = \"90s\"")?;
    let user = table.word("user", &[("caller", TestUser::Caller), ("root", TestUser::Root)])?;
    Ok(Settings {
        needs: read_words(table, "needs")?,
        isolation,
        network,
        timeout_ms: timeout.map(|span| u64::try_from(span.value.0.as_millis()).unwrap_or(u64::MAX)),
        env: read_env(table)?,
        resources: read_resources(table)?,
        user: user.map(|user| user.value),
        cwd: table.string("cwd")?,
        tags: values(read_words(table, "tags")?),
        owner: table.string("owner")?.map(|owner| owner.value),
        retries: table.count("retries", 0..=100)?,
        outputs: read_outputs(table)?,
    })
}

fn values(words: Vec<Located<String>>) -> Vec<String> {
    words.into_iter().map(|word| word.value).collect()
}

/// A list of words that filters and locks can name.
fn read_words(table: &TableReader<'_>, key: &str) -> Result<Vec<Located<String>>, ConfigError> {
    let words = table.strings(key)?.unwrap_or_default();
    for word in &words {
        let bad = word.value.is_empty() || word.value.chars().any(|c| c.is_control() || c.is_whitespace());
        if bad || word.value.chars().count() > 255 {
            let fault = ConfigFault::BadValue {
                key: key.to_owned(),
                reason: format!("{:?} is not a word", shortened(&word.value)),
                hint: "write words without spaces, such as \"slow\"".to_owned(),
            };
            return Err(table.source.fault(word.span.clone(), fault));
        }
    }
    Ok(words)
}

fn read_outputs(table: &TableReader<'_>) -> Result<Vec<String>, ConfigError> {
    let outputs = table.strings("outputs")?.unwrap_or_default();
    for output in &outputs {
        check::pattern(table.source, output)?;
    }
    Ok(values(outputs))
}

fn read_env(table: &TableReader<'_>) -> Result<BTreeMap<String, String>, ConfigError> {
    let Some(item) = table.get("env") else { return Ok(BTreeMap::new()) };
    let variables = item.as_table_like().ok_or_else(|| table.wrong_type("env", item, "a table of strings"))?;
    let mut env = BTreeMap::new();
    for (name, item) in variables.iter() {
        let at = |reason: String, hint: &str| {
            let span = variables.key(name).and_then(toml_edit::Key::span).unwrap_or_else(|| table.span_of("env"));
            let fault = ConfigFault::BadValue { key: "env".to_owned(), reason, hint: hint.to_owned() };
            table.source.fault(span, fault)
        };
        if name.is_empty() || name.contains(['=', '\0']) {
            let reason = format!("{:?} cannot be a variable's name", shortened(name));
            return Err(at(reason, "names are not empty and contain no `=` and no zero byte"));
        }
        match item {
            Item::Value(toml_edit::Value::String(text)) if text.value().contains('\0') => {
                return Err(at(format!("the value of `{name}` contains a zero byte"), "remove \\u0000"));
            }
            Item::Value(toml_edit::Value::String(text)) => env.insert(name.to_owned(), text.value().clone()),
            other => return Err(table.wrong_type(name, other, "a string (write the value in quotes)")),
        };
    }
    Ok(env)
}

fn read_resources(table: &TableReader<'_>) -> Result<Resources, ConfigError> {
    let Some(resources) = table.table("resources", "resources", RESOURCES)? else { return Ok(Resources::default()) };
    let size = |key: &str| -> Result<Option<ByteSize>, ConfigError> {
        match resources.get(key).and_then(Item::as_integer) {
            Some(bytes) if bytes > 0 => Ok(Some(ByteSize(bytes.unsigned_abs()))),
            Some(bytes) => Err(resources.bad(key, format!("{bytes} is out of range"), "write a size such as \"512M\"")),
            None => Ok(resources.parsed(key, "write a size such as \"512M\" or \"2G\"")?.map(|size| size.value)),
        }
    };
    Ok(Resources {
        cpus: resources.positive("cpus")?,
        memory: size("memory")?,
        pids: resources.count("pids", 1..=4_194_304)?,
        disk: size("disk")?,
        exclusive: values(read_words(&resources, "exclusive")?),
    })
}

#[cfg(test)]
mod tests;
