//! The reference page of the command line, made from the commands themselves. Only its test calls it.

use clap::{Command, CommandFactory as _};

use crate::Testyard;

/// Width of the help texts on the page.
const WIDTH: usize = 100;

/// `docs/cli.md`.
fn markdown() -> String {
    let mut page = String::from(
        "# The command line\n\n\
         Made from the help texts; a test keeps it true (`UPDATE=1 cargo test -p testyard-cli` rewrites it).\n",
    );
    let mut root = Testyard::command().term_width(WIDTH).styles(clap::builder::Styles::plain());
    root.build();
    describe(&mut root, "testyard", &mut page);
    page
}

fn describe(command: &mut Command, path: &str, page: &mut String) {
    page.push_str(&format!("\n## `{path}`\n\n```text\n"));
    let help = command.render_long_help().to_string();
    for line in help.lines() {
        page.push_str(line.trim_end());
        page.push('\n');
    }
    page.push_str("```\n");
    let inner: Vec<String> = command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set())
        .map(|inner| inner.get_name().to_owned())
        .collect();
    for name in inner {
        let inner = command.find_subcommand_mut(&name).expect("it was just listed");
        *inner = inner.clone().term_width(WIDTH);
        describe(inner, &format!("{path} {name}"), page);
    }
}

#[test]
fn the_reference_page_is_true() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let page = markdown();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page).expect("docs can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/cli.md is not what the help says: UPDATE=1 cargo test -p testyard-cli");
}

#[test]
fn every_command_teaches_by_an_example() {
    fn check(command: &Command, path: &str) {
        let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            check(inner, &format!("{path} {}", inner.get_name()));
        }
        if !command.has_subcommands() {
            assert!(about.contains(&format!("    {path}")), "{path} has no example");
        }
    }
    check(&Testyard::command(), "testyard");
}

#[test]
fn the_definitions_are_sound() {
    Testyard::command().debug_assert();
}
