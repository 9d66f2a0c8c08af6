//! Handing a working tree to a machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use testyard_machine::client::{ClientError, Connection};
use testyard_model::Problem;
use testyard_trees::TreeHash;

use crate::synced::{Copies, Part};

/// The trees that a connection's machine has been shown, with their numbers.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    shown: HashMap<PathBuf, u32>,
    /// Copies, by the hashes of their parts.
    copied: HashMap<PathBuf, (Vec<TreeHash>, u32)>,
}

impl Sources {
    /// The number of `tree` on this connection; shows it to the machine the first time.
    pub(crate) fn number(&mut self, connection: &mut Connection, tree: &Path) -> Result<u32, ClientError> {
        if let Some(number) = self.shown.get(tree) {
            return Ok(*number);
        }
        let number = connection.open_source(tree)?;
        self.shown.insert(tree.to_owned(), number);
        Ok(number)
    }

    /// The number of a copy of `tree` as it is now; makes sure that the machine has that.
    pub(crate) fn copied(&mut self, connection: &mut Connection, tree: &Path, copies: &Copies) -> Result<u32, Problem> {
        let now = copies.hashes(tree)?;
        if let Some((hashes, number)) = self.copied.get(tree)
            && *hashes == now
        {
            return Ok(*number);
        }
        let copied = copies.bring(connection, tree, &mut Connection::synced_source)?;
        let hashes = copied.parts.iter().map(Part::hash).collect();
        self.copied.insert(tree.to_owned(), (hashes, copied.answer));
        Ok(copied.answer)
    }
}
