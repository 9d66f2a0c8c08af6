//! Whom a command runs as.

use serde::{Deserialize, Serialize};

/// Whom a command runs as, inside the machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserSpec {
    /// The machine's own default, as it was created with; who starts the machine where nothing was said.
    Machine,
    /// Root inside: uid 0 with the capabilities of the machine's own user namespace.
    Root,
    /// A user by name, looked up in the machine's own `/etc/passwd`; without capabilities.
    Named(String),
    /// By number, without capabilities. Used for the caller: the same uid, gid and groups inside.
    Numbered {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// Supplementary groups.
        #[serde(default)]
        groups: Vec<u32>,
    },
}
