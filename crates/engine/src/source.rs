//! Handing a working tree to a machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use testyard_machine::client::{ClientError, Connection};

/// The trees that a connection's machine has been shown, with their numbers.
#[derive(Debug, Default)]
pub(crate) struct Sources(HashMap<PathBuf, u32>);

impl Sources {
    /// The number of `tree` on this connection; shows it to the machine the first time.
    pub(crate) fn number(&mut self, connection: &mut Connection, tree: &Path) -> Result<u32, ClientError> {
        if let Some(number) = self.0.get(tree) {
            return Ok(*number);
        }
        let number = connection.open_source(tree)?;
        self.0.insert(tree.to_owned(), number);
        Ok(number)
    }
}
