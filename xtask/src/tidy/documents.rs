//! The rules of everything that is not Rust: links that lead somewhere, manifests that take the lints.

use std::path::Path;

use super::Finding;

/// Relative links of a Markdown file whose target does not exist.
pub(super) fn links(root: &Path, path: &str, text: &str) -> Vec<Finding> {
    let folder = root.join(path).parent().map(Path::to_owned).unwrap_or_default();
    let mut findings = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let broken = targets(line).into_iter().filter(|target| !resolves(root, &folder, target));
        findings.extend(broken.map(|target| Finding::new(path, index + 1, format!("`{target}` leads nowhere"))));
    }
    findings
}

/// The targets of `[text](target)` in a line, inline code left out.
fn targets(line: &str) -> Vec<String> {
    let prose: String = line.split('`').step_by(2).collect();
    let mut found = Vec::new();
    for (at, _) in prose.match_indices("](") {
        let rest = &prose[at + 2..];
        if let Some(end) = rest.find(')') {
            let target = rest[..end].split_whitespace().next().unwrap_or_default();
            found.push(target.to_owned());
        }
    }
    found
}

fn resolves(root: &Path, folder: &Path, target: &str) -> bool {
    let file = target.split('#').next().unwrap_or_default();
    if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
        return true;
    }
    match file.strip_prefix('/') {
        Some(from_top) => root.join(from_top).exists(),
        None => folder.join(file).exists(),
    }
}

/// Spaces and tabs at the ends of lines.
pub(super) fn trailing_whitespace(path: &str, text: &str) -> Vec<Finding> {
    let lines = text.lines().enumerate().filter(|(_, line)| line.ends_with([' ', '\t', '\r']));
    lines.map(|(index, _)| Finding::new(path, index + 1, "white space at the end of the line")).collect()
}

/// A package that does not take the workspace's lints is not checked by them.
pub(super) fn manifest(path: &str, text: &str) -> Vec<Finding> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    // A workspace of its own, as cargo-fuzz needs, has no lints to inherit.
    let is_package = lines.contains(&"[package]") && !lines.contains(&"[workspace]");
    let inherits = lines.windows(2).any(|pair| pair == ["[lints]", "workspace = true"]);
    if is_package && !inherits {
        return vec![Finding::new(path, 0, "no `[lints]` with `workspace = true`")];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed() {
        let root = crate::cargo::workspace_root();
        let text = "[a](fault.rs) [b](../../README.md#x) [c](/Cargo.toml) [d](https://example.org) `[e](gone)`\n\
                    ```\n[f](gone)\n```\n[g](gone.md) [h](fault.rs \"title\")\n";
        let findings = links(&root, "xtask/src/notes.md", text);
        let shown: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["xtask/src/notes.md:5: `gone.md` leads nowhere"]);
    }

    #[test]
    fn manifests_take_the_lints() {
        assert!(manifest("Cargo.toml", "[workspace]\n").is_empty());
        assert!(manifest("a/Cargo.toml", "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n").is_empty());
        assert_eq!(manifest("a/Cargo.toml", "[package]\nname = \"a\"\n").len(), 1);
        assert!(manifest("fuzz/Cargo.toml", "[package]\nname = \"a\"\n[workspace]\n").is_empty());
    }

    #[test]
    fn white_space_is_seen() {
        assert_eq!(trailing_whitespace("a.md", "a\nb \nc\t\n").len(), 2);
    }
}
