//! The suite file for what was found: every choice with its reason, every line one that a reader may change.

use std::path::Path;

use super::find::{Found, Python, Scripts, Tool};

/// The whole file.
pub(super) fn suite(folder: &Path, found: &Found) -> String {
    let mut text = format!(
        "# What `testyard run` runs here. All keys: docs/suite.md\n\
         format = 1\n\n\
         [suite]\n\
         name = \"{}\"\n\
         # image = \"debian:12\"                 # else tests see this host, copy-on-write\n\n\
         [suite.defaults]                      # what each test gets unless it says otherwise\n\
         timeout = \"2m\"\n\
         # isolation = \"namespace\"             # none, workspace, namespace, machine: the least it accepts\n\
         # network = \"private\"                 # private, outbound, host, none\n\
         # resources = {{ cpus = 1, memory = \"512M\" }}\n",
        name(folder)
    );
    for scripts in &found.shell {
        text.push_str(&shell(scripts));
    }
    text.extend(found.python.as_ref().map(python));
    text.extend(found.cargo.as_ref().map(|tool| project("cargo", "crates that it does not have yet", tool)));
    text.extend(found.go.as_ref().map(|tool| project("go", "modules that it does not have yet", tool)));
    if !found.programs.is_empty() {
        text.push_str("\n# Programs, each a test of its own.\n[[tests]]\n");
        text.push_str(&format!("glob = {}\n", list(&found.programs)));
    }
    if *found == Found::default() {
        text.push_str(
            "\n# One test. Its command goes to a shell; a list of words is run as it is.\n\
             [[test]]\n\
             name = \"hello\"\n\
             command = \"test -n \\\"$TESTYARD_TEST\\\"\"\n\n\
             # A test for each file that matches.\n\
             # [[tests]]\n\
             # glob = \"tests/*.sh\"\n",
        );
    }
    text
}

fn shell(scripts: &Scripts) -> String {
    let mut text = "\n# A test for each script.\n[[tests]]\n".to_owned();
    text.push_str(&format!("glob = \"{}\"\n", scripts.glob));
    if !scripts.exclude.is_empty() {
        text.push_str(&format!("exclude = {}\n", list(&scripts.exclude)));
    }
    if let Some(shell) = scripts.shell {
        text.push_str(&format!("command = [\"{shell}\", \"{{file}}\"]      # not all of them are executable\n"));
    }
    text
}

fn python(python: &Python) -> String {
    let mut text = "\n# A test for each file of tests.\n[[tests]]\n".to_owned();
    let glob = if let [one] = &python.globs[..] { format!("\"{one}\"") } else { list(&python.globs) };
    let quiet = if python.module == "pytest" { ", \"-q\"" } else { "" };
    text.push_str(&format!("glob = {glob}\n"));
    text.push_str(&format!(
        "command = [\"{}\", \"-m\", \"{}\"{quiet}, \"{{file}}\"]\n",
        python.interpreter, python.module
    ));
    text.push_str("env = { PYTHONDONTWRITEBYTECODE = \"1\" }\n");
    text
}

fn project(name: &str, fetched: &str, tool: &Tool) -> String {
    let words: Vec<String> = tool.command.iter().map(|word| (*word).to_owned()).collect();
    let mut text = format!(
        "\n# All tests of the project, as one.\n[[test]]\nname = \"{name}\"\ncommand = {}\ntimeout = \"30m\"\n",
        list(&words)
    );
    if tool.missing {
        text.push_str(&format!("# `{}` was not found when this was written.\n", tool.command[0]));
    }
    if tool.at_home {
        text.push_str(&format!(
            "# `{}` is in your home, which environments do not see: this one runs as a plain process. Installed for\n\
             # everybody, it could have an environment.\n\
             isolation = \"none\"\n",
            tool.command[0]
        ));
    } else {
        text.push_str(&format!("network = \"outbound\"                  # it may fetch {fetched}\n"));
    }
    text
}

fn list(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

/// The folder's name, of what may stand in a suite's.
fn name(folder: &Path) -> String {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let plain =
        |character: char| if character.is_ascii_alphanumeric() || "._-".contains(character) { character } else { '-' };
    let name: String = name.chars().map(plain).take(60).collect();
    if name.trim_matches(['-', '.']).is_empty() { "tests".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_names_its_suite() {
        for (folder, expected) in [("/src/shop", "shop"), ("/src/a b", "a-b"), ("/", "tests"), ("/src/...", "tests")] {
            assert_eq!(name(Path::new(folder)), expected);
        }
    }
}
