//! What tests, globs and defaults have in common.

use std::collections::BTreeMap;

use testyard_model::{ByteSize, Isolation, Network, Span};
use toml_edit::Item;

use crate::suite::check;
use crate::suite::error::{ConfigError, ConfigFault};
use crate::suite::keys;
use crate::suite::read::{TableReader, shortened};
use crate::suite::{Located, Resources, Settings, TestUser};

pub(super) fn read_settings(table: &TableReader<'_>) -> Result<Settings, ConfigError> {
    let isolation = table.word("isolation", &Isolation::ALL.map(|level| (level.as_str(), level)))?;
    let network = table.word("network", &Network::ALL.map(|network| (network.as_str(), network)))?;
    let timeout = table.parsed::<Span>("timeout", "write timeout = \"90s\"")?;
    let slow_after = table.parsed::<Span>("slow-after", "write slow-after = \"10s\"")?;
    let user = table.word("user", &[("caller", TestUser::Caller), ("root", TestUser::Root)])?;
    Ok(Settings {
        needs: read_words(table, "needs")?,
        isolation,
        network,
        timeout_ms: timeout.map(millis),
        env: read_env(table)?,
        resources: read_resources(table)?,
        user: user.map(|user| user.value),
        cwd: table.string("cwd")?,
        tags: values(read_words(table, "tags")?),
        owner: table.string("owner")?.map(|owner| owner.value),
        retries: table.count("retries", 0..=100)?,
        outputs: read_patterns(table, "outputs")?,
        artifacts: read_patterns(table, "artifacts")?,
        inputs: read_inputs(table)?,
        slow_after_ms: slow_after.map(millis),
        services: table.get("services").map(|_| read_words(table, "services")).transpose()?,
        cluster: table.boolean("cluster")?.map(|value| Located { value, span: table.span_of("cluster") }),
    })
}

fn millis(span: Located<Span>) -> u64 {
    span.value.milliseconds()
}

fn values(words: Vec<Located<String>>) -> Vec<String> {
    words.into_iter().map(|word| word.value).collect()
}

/// A list of words that filters and locks can name.
pub(super) fn read_words(table: &TableReader<'_>, key: &str) -> Result<Vec<Located<String>>, ConfigError> {
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

/// Patterns of files below the suite's folder.
pub(super) fn read_patterns(table: &TableReader<'_>, key: &str) -> Result<Vec<String>, ConfigError> {
    let patterns = table.strings(key)?.unwrap_or_default();
    for pattern in &patterns {
        check::pattern(table.source, pattern)?;
    }
    Ok(values(patterns))
}

/// What a test depends on may lie beside the suite, `../lib/*.c`; what it gives may not.
fn read_inputs(table: &TableReader<'_>) -> Result<Vec<String>, ConfigError> {
    let patterns = table.strings("inputs")?.unwrap_or_default();
    for pattern in &patterns {
        let inner = pattern.value.trim_start_matches("./").trim_start_matches("../").to_owned();
        check::pattern(table.source, &Located { value: inner, span: pattern.span.clone() })?;
    }
    Ok(values(patterns))
}

pub(super) fn read_env(table: &TableReader<'_>) -> Result<BTreeMap<String, String>, ConfigError> {
    table.get("env").map_or_else(|| Ok(BTreeMap::new()), |item| read_env_table(table, item))
}

/// Variables and their values, in a table that may stand anywhere below `env`.
pub(super) fn read_env_table(table: &TableReader<'_>, item: &Item) -> Result<BTreeMap<String, String>, ConfigError> {
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
    let Some(resources) = table.table("resources", "resources", keys::RESOURCES)? else {
        return Ok(Resources::default());
    };
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
