//! What no side of a link does: the session with one that does it is over.

use testyard_model::{Problem, ProblemKind};
use testyard_protocol::FrameError;

use crate::channel::CREDIT;

/// What the other side did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// It did not wait for room.
    #[error("it sent more than the {CREDIT} bytes on a channel that it had been allowed")]
    Window,
    /// Its clients' bytes are not the protocol's.
    #[error("what it sent for a client is no frame")]
    Frame(#[from] FrameError),
    /// It makes this side say more and more, and acknowledges none of it.
    #[error("it acknowledges nothing of what it is told")]
    Deaf,
}

impl Breach {
    /// For people, of this host.
    #[must_use]
    pub fn problem(&self, host: &str, machine: &str) -> Problem {
        let message = format!("{host} does not keep to the rules of the link, which was ended");
        Problem::new(ProblemKind::Protocol, message)
            .because(self)
            .hint("what answers there is not testyard as it was sent, or is broken: see who else can write there")
            .hint(format!("start the machine anew: testyard start {machine}"))
    }
}
