//! `testyard network`

use testyard_model::MachineName;

use super::{DONE, Outcome};
use crate::output::Output;
use crate::yard;

/// Cut machines off from their private network, and bring them back.
///
/// Examples:
///     testyard network cut n2
///     testyard network heal n2
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Network {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Cut a running machine off from the others of its network; published ports and the way out stay
    ///
    /// Nothing in the machine can undo that. It holds until `heal`, or until the machine is started again.
    ///
    /// Example:
    ///     testyard network cut n2
    #[command(verbatim_doc_comment)]
    Cut {
        /// The machine
        name: MachineName,
    },
    /// Bring a machine back that was cut off
    ///
    /// Example:
    ///     testyard network heal n2
    #[command(verbatim_doc_comment)]
    Heal {
        /// The machine
        name: MachineName,
    },
}

impl Network {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let (name, connected) = match self.action {
            Action::Cut { name } => (name, false),
            Action::Heal { name } => (name, true),
        };
        yard::open()?.machines().set_connected(&name, connected)?;
        output.say(format_args!("machine {name} is {}", if connected { "connected" } else { "cut off" }));
        DONE
    }
}
