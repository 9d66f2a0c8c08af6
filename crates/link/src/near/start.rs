//! What the near side is told by whoever starts it.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use testyard_model::{MachineSpec, Problem, Remote, milliseconds};

use crate::bootstrap::Programs;
use crate::message::{FarStart, Hello, LINK_VERSION};
use crate::plain::PlainStart;
use crate::transport::Dialled;

/// How long everything lives on without a link, where nothing else was asked for.
pub const GRACE: Duration = Duration::from_secs(120);

/// What the near side is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NearStart {
    /// The machine's name.
    pub name: String,
    /// The session, a random name.
    pub session: String,
    /// How to get there.
    pub remote: Remote,
    /// The machine there.
    pub spec: MachineSpec,
    /// What runs there.
    pub programs: Programs,
    /// What the machine is where no programs of ours may run; none where it cannot be without.
    #[serde(default)]
    pub plain: Option<PlainStart>,
    /// What is to be said of the machine beside what its own host says.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Where somebody answers what the first login asks.
    #[serde(default)]
    pub asks: Option<PathBuf>,
    /// How long making a connection may take, in milliseconds, without what is delivered.
    pub connect_ms: u64,
    /// A link is dead when nothing was heard for so long, in milliseconds.
    pub alive_ms: u64,
}

impl NearStart {
    pub(crate) fn grace(&self) -> Duration {
        self.remote.grace.map_or(GRACE, |span| span.0)
    }

    /// The transport, and how long making a connection may take where nobody is asked. Only at first there is somebody
    /// who can be.
    pub(crate) fn dialled(&self, first: bool) -> Result<(Dialled, Duration), Problem> {
        let patience = Duration::from_millis(self.connect_ms);
        let dialled = Dialled::new(&self.remote.transport, patience, self.asks.as_deref().filter(|_| first))?;
        Ok((dialled, patience))
    }

    pub(super) fn hello(&self, resume: Option<u64>) -> Hello {
        let start = FarStart {
            spec: self.spec.clone(),
            name: self.name.clone(),
            grace_ms: milliseconds(self.grace()),
            alive_ms: self.alive_ms,
        };
        Hello { version: LINK_VERSION, session: self.session.clone(), resume, start }
    }
}
