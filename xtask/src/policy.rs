//! The rules of `deny.toml`, checked from `cargo metadata`: licences, banned crates, sources.
//!
//! cargo-deny reads the same file and knows more; it takes minutes to compile, so it runs where it is
//! installed and these three rules hold everywhere.

use std::process::ExitCode;

use serde_json::Value;

use crate::cargo;
use crate::fault::{Fault, Outcome};

/// What `deny.toml` says of the things checked here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    licences: Vec<String>,
    banned: Vec<String>,
    registries: Vec<String>,
}

/// Prints what breaks a rule; fails if anything does.
pub(crate) fn report() -> Outcome<ExitCode> {
    let findings = findings()?;
    for finding in &findings {
        println!("deny.toml: {finding}");
    }
    println!("policy: {} findings", findings.len());
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn findings() -> Outcome<Vec<String>> {
    let path = cargo::workspace_root().join("deny.toml");
    let text = std::fs::read_to_string(&path).map_err(|error| Fault::file(&path, &error))?;
    let rules = rules(&text);
    let metadata = cargo::metadata(true)?;
    Ok(cargo::packages(&metadata).iter().flat_map(|package| check(&rules, package)).collect())
}

/// Reads the three lists. The file is ours and simple: one string or one table a line.
fn rules(text: &str) -> Rules {
    let mut rules = Rules::default();
    let mut list = String::new();
    let mut section = "";
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if line.starts_with('[') {
            section = line;
        } else if let Some((key, rest)) = line.split_once(" = [") {
            list = format!("{section}{key}");
            add(&mut rules, &list, rest);
        } else {
            add(&mut rules, &list, line);
        }
        if line.ends_with(']') {
            list.clear();
        }
    }
    rules
}

fn add(rules: &mut Rules, list: &str, line: &str) {
    let first_string = || line.split('"').nth(1).map(str::to_owned);
    match list {
        "[licenses]allow" => rules.licences.extend(first_string()),
        "[bans]deny" => rules.banned.extend(first_string()),
        "[sources]allow-registry" => rules.registries.extend(first_string()),
        _ => {}
    }
}

fn check(rules: &Rules, package: &Value) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    // Our own packages have no source.
    let Some(source) = package["source"].as_str() else { return Vec::new() };
    let mut findings = Vec::new();
    if rules.banned.iter().any(|banned| banned == name) {
        findings.push(format!("`{name}` is banned"));
    }
    let registry = source.split_once('+').map_or(source, |(_, place)| place);
    if !rules.registries.iter().any(|allowed| allowed == registry) {
        findings.push(format!("`{name}` comes from {source}"));
    }
    let expression = package["license"].as_str().unwrap_or("(none)");
    if !allowed(rules, expression) {
        findings.push(format!("`{name}` is under {expression}"));
    }
    findings
}

/// Whether an SPDX expression can be met with the allowed licences. `/` is an old way to write OR.
fn allowed(rules: &Rules, expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    either(rules, &words, &mut at) && at == words.len()
}

fn either(rules: &Rules, words: &[&str], at: &mut usize) -> bool {
    let mut met = both(rules, words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= both(rules, words, at);
    }
    met
}

fn both(rules: &Rules, words: &[&str], at: &mut usize) -> bool {
    let mut met = one(rules, words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(rules, words, at);
    }
    met
}

fn one(rules: &Rules, words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let met = either(rules, words, at);
        *at += 1;
        return met;
    }
    let mut licence = (*word).to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{licence} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    rules.licences.contains(&licence)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = "[licenses]\n# a comment\nallow = [\n    \"MIT\",\n    \"Apache-2.0 WITH LLVM-exception\",\n]\n\
                        [bans]\nmultiple-versions = \"allow\"\ndeny = [\n    { crate = \"tokio\", reason = \"no\" },\n]\n\
                        [sources]\nunknown-git = \"deny\"\nallow-registry = [\"https://example.org/index\"]\n";

    #[test]
    fn the_file_is_read() {
        let rules = rules(TEXT);
        assert_eq!(rules.licences, ["MIT", "Apache-2.0 WITH LLVM-exception"]);
        assert_eq!(rules.banned, ["tokio"]);
        assert_eq!(rules.registries, ["https://example.org/index"]);
    }

    #[test]
    fn expressions_are_evaluated() {
        let rules = rules(TEXT);
        for (expression, met) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("MIT/Apache-2.0", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR GPL-3.0) AND Apache-2.0 WITH LLVM-exception", true),
            ("(MIT AND GPL-3.0) OR Zlib", false),
            ("", false),
        ] {
            assert_eq!(allowed(&rules, expression), met, "{expression}");
        }
    }

    #[test]
    fn packages_are_judged() {
        let rules = rules(TEXT);
        let package = |name: &str, source: &str| json!({"name": name, "source": source, "license": "MIT"});
        assert!(check(&rules, &json!({"name": "ours", "source": null})).is_empty());
        assert!(check(&rules, &package("a", "registry+https://example.org/index")).is_empty());
        assert_eq!(check(&rules, &package("a", "git+https://example.org/a")).len(), 1);
        assert_eq!(check(&rules, &package("tokio", "registry+https://example.org/index")).len(), 1);
    }

    #[test]
    fn this_workspace_keeps_them() {
        assert_eq!(findings().expect("the workspace can be read"), Vec::<String>::new());
    }
}
