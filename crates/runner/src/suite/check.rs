//! What each key allows but not together, and patterns and templates that cannot work.

use testyard_model::{Isolation, Network};

use super::error::{ConfigError, ConfigFault, nearest};
use super::source::SuiteSource;
use super::{CommandLine, Located, Settings, SuiteFile};

/// The words that a `command` of `[[tests]]` may hold in braces.
pub(crate) const PLACEHOLDERS: [&str; 3] = ["file", "name", "stem"];

/// Refuses combinations that no host could give.
pub(super) fn combinations(file: &SuiteFile) -> Result<(), ConfigError> {
    let on_host = file.backend.as_ref().is_some_and(|backend| backend.value.as_str() == "host");
    let nothing = Settings::default();
    check_settings(file, &file.defaults, &nothing, on_host)?;
    for settings in file.tests.iter().map(|test| &test.settings).chain(file.globs.iter().map(|glob| &glob.settings)) {
        check_settings(file, settings, &file.defaults, on_host)?;
    }
    let mut seen = std::collections::HashMap::new();
    for test in &file.tests {
        if let Some(first) = seen.insert(test.name.value.as_str(), test.name.span.start) {
            let first_line = file.source.place(first).0;
            let fault = ConfigFault::DuplicateTest { name: test.name.value.clone(), first_line };
            return Err(file.source.fault(test.name.span.clone(), fault));
        }
    }
    if file.tests.is_empty() && file.globs.is_empty() {
        return Err(file.source.fault(0..0, ConfigFault::NoTests));
    }
    Ok(())
}

fn check_settings(file: &SuiteFile, own: &Settings, over: &Settings, on_host: bool) -> Result<(), ConfigError> {
    if let Some(isolation) = own.isolation.as_ref().filter(|level| on_host && level.value > Isolation::Workspace) {
        let fault = ConfigFault::Combination(
            "backend `host` gives at most isolation `workspace`",
            "write backend = \"auto\" or \"namespace\", or a weaker isolation",
        );
        return Err(file.source.fault(isolation.span.clone(), fault));
    }
    // A network inherited from the defaults gives way to a test's own weaker isolation; one that the test
    // itself asks for does not.
    let isolation = own.isolation.as_ref().or(over.isolation.as_ref()).map(|level| level.value);
    let shared = isolation.is_some_and(|level| level < Isolation::Namespace);
    if let Some(network) = own.network.as_ref().filter(|network| shared && network.value != Network::Host) {
        let fault = ConfigFault::Combination(
            "isolation `none` and `workspace` share the machine's network",
            "remove `network` (or write \"host\"), or write isolation = \"namespace\"",
        );
        return Err(file.source.fault(network.span.clone(), fault));
    }
    Ok(())
}

/// Refuses a pattern over names that cannot be read.
pub(super) fn name_pattern(source: &SuiteSource, pattern: &Located<String>) -> Result<(), ConfigError> {
    let Err(error) = globset::GlobBuilder::new(&pattern.value).build() else { return Ok(()) };
    let (pattern_text, reason) = (super::read::shortened(&pattern.value), error.kind().to_string());
    Err(source.fault(pattern.span.clone(), ConfigFault::BadPattern { pattern: pattern_text, reason }))
}

/// Refuses a pattern that cannot be read or that leads out of the suite's folder.
pub(super) fn pattern(source: &SuiteSource, pattern: &Located<String>) -> Result<(), ConfigError> {
    let text = &pattern.value;
    let reason = if text.is_empty() {
        "it is empty".to_owned()
    } else if text.len() > 4096 {
        "it is longer than 4096 bytes".to_owned()
    } else if text.starts_with('/') || text.split('/').any(|part| part == "..") {
        "it leads out of the suite's folder".to_owned()
    } else {
        match globset::GlobBuilder::new(text).literal_separator(true).build() {
            Ok(_) => return Ok(()),
            Err(error) => error.kind().to_string(),
        }
    };
    let pattern_text = super::read::shortened(text);
    Err(source.fault(pattern.span.clone(), ConfigFault::BadPattern { pattern: pattern_text, reason }))
}

/// Refuses a template without a placeholder, or with one that is nearly right.
pub(super) fn template(source: &SuiteSource, command: &Located<CommandLine>) -> Result<(), ConfigError> {
    let words: Vec<&str> = match &command.value {
        CommandLine::Arguments(argv) => argv.iter().map(String::as_str).collect(),
        CommandLine::Shell(line) => vec![line],
    };
    let mut used = false;
    for name in words.iter().flat_map(|word| braced(word)) {
        if PLACEHOLDERS.contains(&name) {
            used = true;
        } else if let Some(near) = nearest(name, PLACEHOLDERS) {
            let fault = ConfigFault::UnknownWord {
                key: "command".to_owned(),
                word: format!("{{{name}}}"),
                nearest: Some(format!("{{{near}}}")),
                known: "{file}, {name} and {stem}".to_owned(),
            };
            return Err(source.fault(command.span.clone(), fault));
        }
    }
    if used {
        return Ok(());
    }
    let fault = ConfigFault::BadValue {
        key: "command".to_owned(),
        reason: "would run the same for every file".to_owned(),
        hint: "say where the file goes with {file}, {name} or {stem}, such as [\"python3\", \"{file}\"]".to_owned(),
    };
    Err(source.fault(command.span.clone(), fault))
}

/// The lower-case words in braces; `${…}` is the shell's.
fn braced(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices('{').filter_map(move |(open, _)| {
        if text[..open].ends_with('$') {
            return None;
        }
        let rest = &text[open + 1..];
        let name = &rest[..rest.find('}')?];
        let plain = (1..=20).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphabetic());
        plain.then_some(name)
    })
}
