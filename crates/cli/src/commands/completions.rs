//! `testyard completions`

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{DONE, Outcome};
use crate::Testyard;
use crate::output::Output;

/// Print a script that completes this command line in a shell.
///
/// Examples:
///     testyard completions bash > ~/.local/share/bash-completion/completions/testyard
///     testyard completions zsh > ~/.zfunc/_testyard
///     testyard completions fish > ~/.config/fish/completions/testyard.fish
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Testyard::command(), "testyard", &mut script);
        output.bytes(&script)?;
        DONE
    }
}
