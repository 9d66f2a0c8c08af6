//! `testyard man`

use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use testyard_model::{Problem, ProblemKind};

use super::{DONE, Outcome};
use crate::Testyard;
use crate::output::Output;

/// Write the manual's pages, one a command, into a folder.
///
/// Examples:
///     testyard man ~/.local/share/man/man1
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ManPages {
    /// The folder, made where it does not exist; pages that are there already are replaced
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl ManPages {
    pub(crate) fn run(self, output: Output) -> Outcome {
        std::fs::create_dir_all(&self.folder).map_err(|error| refused(&self.folder, &error))?;
        let mut root = Testyard::command();
        root.build();
        let mut pages = Vec::new();
        collect(&root, "testyard", &mut pages);
        for (name, page) in &pages {
            let path = self.folder.join(format!("{name}.1"));
            std::fs::write(&path, page).map_err(|error| refused(&path, &error))?;
        }
        output.say(format_args!("{} pages in {}", pages.len(), self.folder.display()));
        DONE
    }
}

/// The pages of a command and of those below it, by their names.
fn collect(command: &Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) {
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command.clone().version(version).disable_help_subcommand(true))
        .title(name.to_uppercase())
        .source(format!("testyard {version}"));
    let mut page = Vec::new();
    // Memory takes everything.
    let _ = man.render(&mut page);
    pages.push((name.to_owned(), as_written(&page)));
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help") {
        collect(inner, &format!("{name}-{}", inner.get_name()), pages);
    }
}

/// The help texts have their lines where they belong: examples and tables must not flow together.
fn as_written(page: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(page);
    let mut lines = Vec::new();
    let mut verbatim = false;
    for line in text.lines() {
        if line.starts_with(".SH ") {
            if std::mem::replace(&mut verbatim, line == ".SH DESCRIPTION") {
                lines.push(".fi");
            }
            lines.push(line);
            if verbatim {
                lines.push(".nf");
            }
        } else {
            lines.push(line);
        }
    }
    let mut text = lines.join("\n");
    text.push('\n');
    text.into_bytes()
}

fn refused(path: &Path, error: &io::Error) -> Problem {
    let kind = if error.kind() == io::ErrorKind::PermissionDenied { ProblemKind::Denied } else { ProblemKind::System };
    Problem::new(kind, format!("cannot write {}", path.display())).because(error)
}
