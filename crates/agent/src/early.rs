//! What clients say to commands and transfers that are not there yet: those that wait for their environment's route, its
//! namespaces, or a copy of the machine's files. It is kept, in its order, and said to them once they are.

use std::collections::HashMap;

use testyard_protocol::Command as Message;
use testyard_protocol::Credit;

use crate::agent::Agent;

/// A message is taken for so many bytes.
const MESSAGE: u64 = 256;

/// Something that a client said to its command.
pub(crate) enum Word {
    /// Bytes of its input, or its end.
    Input(Option<Vec<u8>>),
    /// Anything else.
    Message(Message),
}

/// What is kept, by connection and stream. A stream without an entry waits for nothing.
#[derive(Default)]
pub(crate) struct Early(HashMap<(u64, u32), Vec<Word>>);

impl Early {
    /// A command of this stream is not there yet.
    pub(crate) fn expect(&mut self, connection: u64, stream: u32) {
        self.0.entry((connection, stream)).or_default();
    }

    /// Whether one is awaited.
    pub(crate) fn expects(&self, connection: u64, stream: u32) -> bool {
        self.0.contains_key(&(connection, stream))
    }

    /// Its command will never be there.
    pub(crate) fn forget(&mut self, connection: u64, stream: u32) {
        self.0.remove(&(connection, stream));
    }

    /// A client is gone.
    pub(crate) fn forget_client(&mut self, connection: u64) {
        self.0.retain(|(of, _), _| *of != connection);
    }
}

impl Agent {
    /// Keeps a word for a command that is expected; what is said to no command is nobody's.
    pub(crate) fn keep_early(&mut self, connection: u64, stream: u32, word: Word) {
        let Some(words) = self.early.0.get_mut(&(connection, stream)) else { return };
        words.push(word);
        let size = |word: &Word| match word {
            Word::Input(bytes) => bytes.as_ref().map_or(0, Vec::len) as u64,
            Word::Message(_) => MESSAGE,
        };
        if words.iter().map(size).sum::<u64>() > Credit::INITIAL + Credit::STEP {
            self.close_connection(connection);
        }
    }

    /// The command is there: what was said to it is said now.
    pub(crate) fn say_early(&mut self, connection: u64, stream: u32) {
        for word in self.early.0.remove(&(connection, stream)).unwrap_or_default() {
            match word {
                Word::Input(bytes) => self.input(connection, stream, bytes.as_deref()),
                // One that cannot be followed is told as it would have been: not at all.
                Word::Message(message) => drop(self.command_message(connection, stream, message)),
            }
        }
    }
}
