//! Words that must not be in the tree. This file spells them, so it is the one that is not looked at.

use super::Finding;

/// This file, from the workspace's top folder.
const THIS_FILE: &str = "xtask/src/tidy/words.rs";

/// Notes to oneself: they belong in an issue, where somebody will find them.
const NOTES: [&str; 3] = ["TODO", "FIXME", "XXX"];

/// Hosts that a text may link to. Where packages come from is the business of each tool's own configuration.
const HOSTS: [&str; 7] =
    ["example.org", "json-schema.org", "github.com", "toml.io", "www.apache.org", "localhost", "x"];

/// Folders of one developer's machine.
const PLACES: [&str; 4] = ["/root/.cargo", "/root/.rustup", "/root/.pyenv", "/Users/"];

/// Skips that nobody hears of.
const IGNORED: &str = "#[ignore";

/// Names that say nothing of what is inside: the next thing always fits too.
const EMPTY_NAMES: [&str; 10] =
    ["util", "utils", "helper", "helpers", "manager", "managers", "misc", "common", "shared", "stuff"];

/// The words of any text file, and the name of the file itself.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    if path.ends_with(".rs")
        && let Some(name) = path.split('/').map(|part| part.trim_end_matches(".rs")).find(|p| EMPTY_NAMES.contains(p))
    {
        findings.push(Finding::new(path, 0, format!("`{name}` names nothing: name the module after its one idea")));
    }
    if path == THIS_FILE {
        return findings;
    }
    for (index, line) in text.lines().enumerate() {
        findings.extend(complaint(line).map(|what| Finding::new(path, index + 1, what)));
    }
    findings
}

fn complaint(line: &str) -> Option<String> {
    if let Some(note) = NOTES.into_iter().find(|note| has_word(line, note)) {
        return Some(format!("`{note}`: do it, or write an issue"));
    }
    if line.trim_start().starts_with(IGNORED) {
        return Some("an ignored test is a skip without a name: `testkit::skip!` says which, and why".to_owned());
    }
    if let Some(host) = hosts_in(line).find(|host| !HOSTS.contains(host)) {
        return Some(format!("`{host}`: packages are asked for by name, and other links need a place in words.rs"));
    }
    PLACES
        .into_iter()
        .find(|place| line.contains(place))
        .map(|place| format!("`{place}…` exists on one developer's machine only"))
}

/// The hosts of the links in a line.
fn hosts_in(line: &str) -> impl Iterator<Item = &str> {
    let ends = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
    line.match_indices("://")
        .filter(|(at, _)| line[..*at].ends_with("http") || line[..*at].ends_with("https"))
        .map(move |(at, _)| line[at + 3..].split(ends).next().unwrap_or_default())
        .filter(|host| !host.is_empty() && !host.starts_with("127.") && !host.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether `word` stands in `text` with no letter, digit or underscore beside it.
pub(super) fn has_word(text: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .any(|(at, _)| !part(text[..at].chars().next_back()) && !part(text[at + word.len()..].chars().next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_word_is_found() {
        for line in
            ["// TODO: later", "    #[ignore = \"slow\"]", "url = https://packages.invalid/simple", "cd /root/.cargo"]
        {
            assert_eq!(check("a.sh", line).len(), 1, "{line}");
        }
        for line in ["mktemp /tmp/aXXXXXX", "TODOS", "upper, /work/inner"] {
            assert_eq!(check("a.sh", line), [], "{line}");
        }
        assert_eq!(check("crates/a/src/utils.rs", "").len(), 1);
        assert_eq!(check("crates/helpers/src/lib.rs", "").len(), 1);
    }

    #[test]
    fn words_have_edges() {
        assert!(has_word("(unsafe {", "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe"));
    }
}
