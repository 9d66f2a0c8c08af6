//! Environments in the network of another one.
//!
//! A network namespace belongs to the user namespace of the environment that made it. The init of another environment
//! has no rights there, but the machine, to which both belong, has; so the network is entered before the init gets its
//! own user namespace, by a process between the agent and it, because the agent itself could not go back.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use testyard_linux::process::{self, Child, CloneFlags, CloneOptions, Forked, SingleThreaded};
use testyard_linux::{Error, Result, namespace};
use testyard_model::{EnvironmentSpec, Network, Problem, ProblemKind};

use crate::agent::Agent;

/// As [`process::clone3`], but the child starts in this network. It is a child of the caller all the same.
pub(super) fn clone_into(
    token: SingleThreaded,
    network: BorrowedFd<'_>,
    flags: CloneFlags,
    options: CloneOptions<'_>,
) -> Result<Forked> {
    let failed = |error: std::io::Error| Error::new("make", "a process in another network", error);
    let (told, tell) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    match process::clone3(token, CloneFlags::NONE, CloneOptions::default())? {
        Forked::Child => {
            let options = CloneOptions { sibling: true, ..options };
            let cloned = namespace::enter(network, CloneFlags::NEWNET)
                .and_then(|()| process::clone3(token, flags, options))
                .map_err(|error| error.errno().raw_os_error());
            let word = match cloned {
                Ok(Forked::Child) => return Ok(Forked::Child),
                Ok(Forked::Parent(child)) => child.pid.as_raw_nonzero().get(),
                Err(number) => -number,
            };
            // A caller that hears nothing knows that there is no child.
            let _ = rustix::io::write(&tell, &word.to_ne_bytes());
            process::exit_immediately(0)
        }
        Forked::Parent(between) => {
            drop(tell);
            let mut word = [0; 4];
            let read = rustix::io::read(&told, &mut word);
            // It does nothing but exit any more.
            let _ = waitpid(Some(between.pid), WaitOptions::empty());
            let number = read
                .ok()
                .filter(|count| *count == word.len())
                .map_or(-Errno::SRCH.raw_os_error(), |_| i32::from_ne_bytes(word));
            let pid = Pid::from_raw(number.max(0)).ok_or_else(|| failed(std::io::Error::from_raw_os_error(-number)))?;
            Ok(Forked::Parent(Child { pid, pidfd: process::pidfd_open(pid)? }))
        }
    }
}

impl Agent {
    /// The network that an environment is to share, if any.
    pub(super) fn network_of(&self, spec: &EnvironmentSpec) -> std::result::Result<Option<BorrowedFd<'_>>, Problem> {
        let Some(id) = spec.joins else { return Ok(None) };
        if spec.network != Network::Private || !super::init::has_namespaces(spec.isolation) {
            return Err(Problem::new(
                ProblemKind::Usage,
                "only an isolated environment with network `private` can share the network of another",
            ));
        }
        let network = self.environments.get(&id).and_then(|one| one.network.as_ref());
        let missing = || {
            Problem::new(ProblemKind::NotFound, format!("environment {id} is not there, or has no network of its own"))
        };
        network.map(|fd| Some(fd.as_fd())).ok_or_else(missing)
    }
}
