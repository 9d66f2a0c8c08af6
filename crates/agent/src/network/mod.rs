//! A machine's own network: an interface in a network of machines.
//!
//! ```text
//!   host │ network namespace of the network │ machine's network namespace
//!        │        bridge `members`          │
//!        │         ├── m-ID ════════════════╪══ net0  10.213.0.1/24
//!        │         └── m-ID ════════════════╪══ (another machine's) net0
//!  publisher: 127.0.0.1:2222 ───────────────╪─► 127.0.0.1:22
//!  pasta: the host's connections ───────────╪── the way out, where asked for
//! ```
//!
//! The bridge is the kernel's, in a namespace that nothing but the members' routers ([`crate::route`]) keep alive: each
//! hands it on to those that come later. It goes with the last of them, whatever killed it. All of an ordinary user's
//! members live below one user namespace, which has the right to link them; root needs none.

mod hub;
mod membership;
mod names;
mod port;
mod publish;

use std::io::IoSlice;
use std::os::fd::{AsFd as _, OwnedFd};

use serde::{Deserialize, Serialize};
use testyard_linux::process::{self, CloneFlags, CloneOptions, Forked, SingleThreaded};
use testyard_linux::{Error, Result, socket};
use testyard_model::Problem;

pub(crate) use membership::Membership;
pub(crate) use names::{FORWARDED, etc_of, resolvers, show_hosts, write_resolvers};

use hub::Hub;
pub(crate) use hub::user_namespace;
use port::Port;
use publish::Publisher;

/// The interface's name in a machine.
pub(crate) const INTERFACE: &str = "net0";

/// What a child says of its work; descriptors are attached where it was done.
#[derive(Serialize, Deserialize)]
struct Word(Option<Problem>);

/// Does something in a child, because this process could not come back from the namespaces that it takes. Returns
/// the descriptors that the work yields.
fn in_child(
    token: SingleThreaded,
    work: impl FnOnce() -> std::result::Result<Vec<OwnedFd>, Problem>,
) -> std::result::Result<Vec<OwnedFd>, Problem> {
    let system = |error: Error| error.problem();
    let (ours, theirs) = socket::pair(socket::Kind::SeqPacket).map_err(system)?;
    match process::clone3(token, CloneFlags::NONE, CloneOptions::default()).map_err(system)? {
        Forked::Child => {
            let (word, yielded) = match work() {
                Ok(yielded) => (Word(None), yielded),
                Err(problem) => (Word(Some(problem)), Vec::new()),
            };
            let text = serde_json::to_vec(&word).unwrap_or_default();
            let attached: Vec<_> = yielded.iter().map(|fd| fd.as_fd()).collect();
            // Who hears nothing knows that it was not done.
            let _ = socket::send(&theirs, &[IoSlice::new(&text)], &attached);
            process::exit_immediately(0)
        }
        Forked::Parent(child) => {
            drop(theirs);
            let heard = hear(&ours);
            let _ = rustix::process::waitpid(Some(child.pid), rustix::process::WaitOptions::empty());
            let (Word(problem), yielded) = heard.map_err(system)?;
            problem.map_or(Ok(yielded), Err)
        }
    }
}

fn hear(socket: &OwnedFd) -> Result<(Word, Vec<OwnedFd>)> {
    let mut buffer = vec![0; 16 * 1024];
    let mut yielded = Vec::new();
    let length = socket::receive(socket, &mut buffer, &mut yielded)?;
    let word = serde_json::from_slice(&buffer[..length])
        .map_err(|error| Error::new("hear of", "the work on a network", error))?;
    Ok((word, yielded))
}
