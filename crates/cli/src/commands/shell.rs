//! `testyard shell`

use testyard_model::MachineName;
use testyard_protocol::{Exec, RawText};

use super::{Outcome, exec};
use crate::output::Output;
use crate::values::User;
use crate::{attend, yard};

/// The machine itself knows its user's shell.
const SHELL: &str = r#"exec "${SHELL:-/bin/sh}" -l"#;

/// Open a login shell in a machine.
///
/// It is the user's own where the machine says which, else /bin/sh. Without a terminal it reads
/// its commands from standard input. Returns the shell's exit code.
///
/// Examples:
///     testyard shell m1
///     testyard shell m1 --user root < set-up.sh
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Shell {
    /// The machine's name
    name: MachineName,
    /// Whom it runs as: a name, root, or a number [default: the machine's user]
    #[arg(long, short)]
    user: Option<User>,
}

impl Shell {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let mut machine = yard::connect(&self.name)?;
        let request = Exec {
            argv: ["/bin/sh", "-c", SHELL].map(RawText::from).to_vec(),
            user: self.user.map(|user| user.0),
            ..Exec::default()
        };
        let finished = if attend::has_terminal() {
            attend::run_on_terminal(machine, request)?
        } else {
            attend::run(machine.connection(), request)?
        };
        exec::report(&self.name, &finished, None, output)
    }
}
