//! Showing a machine the working tree, in the way that this client and that machine allow.
//!
//! Root makes a detached mount of the tree, its owners mapped into the machine's user namespace, and sends that. An
//! ordinary user's machine cannot use a mount made outside of it; it takes the tree from its own view of the
//! host, and what is sent only proves which folder is meant. On backend `host` there is nothing to show.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use testyard_linux::identity;
use testyard_linux::mount::{self, Attributes};
use testyard_protocol::{Event, Request};

use super::connection::{Connection, Reply};
use super::error::ClientError;
use super::session::Session;

/// How a request is made: over a connection or a session.
type Ask<'a> = dyn FnMut(&Request, &[BorrowedFd<'_>]) -> Result<Reply, ClientError> + 'a;

impl Connection {
    /// Shows the machine the working tree at `path`, for as long as this connection lives; its number for
    /// [`testyard_protocol::Exec::source`].
    ///
    /// # Errors
    /// No such folder, a machine that cannot be shown it, or a broken connection.
    pub fn open_source(&mut self, path: &Path) -> Result<u32, ClientError> {
        let machine = self.machine().to_owned();
        open_source(&machine, path, &mut |request, descriptors| self.request(request, descriptors))
    }
}

impl Session {
    /// As [`Connection::open_source`].
    ///
    /// # Errors
    /// As there.
    pub fn open_source(&self, machine: &str, path: &Path) -> Result<u32, ClientError> {
        open_source(machine, path, &mut |request, descriptors| self.request(request, descriptors))
    }
}

fn open_source(machine: &str, path: &Path, ask: &mut Ask<'_>) -> Result<u32, ClientError> {
    let operation = "open the working tree";
    let path = path.canonicalize().map_err(|error| ClientError::local(operation, error))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| ClientError::local(operation, error))?;
    let tree = if rustix::process::geteuid().is_root() { mapped(&folder, ask)?.unwrap_or(folder) } else { folder };
    match ask(&Request::Source { path: path.into() }, &[tree.as_fd()])?.event {
        Event::Source(number) => Ok(number),
        _ => Err(ClientError::Unexpected { machine: machine.to_owned(), event: "another event than `source`" }),
    }
}

/// A detached mount of the folder for the machine's users; none where the machine has no namespaces of its own.
fn mapped(folder: &OwnedFd, ask: &mut Ask<'_>) -> Result<Option<OwnedFd>, ClientError> {
    let failed = |error: testyard_linux::Error| {
        ClientError::local("show the working tree to the machine", io::Error::other(error))
    };
    let mut namespaces = match ask(&Request::Namespaces, &[]) {
        Ok(reply) => reply.descriptors.into_iter(),
        Err(ClientError::Refused(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(user) = namespaces.next() else { return Ok(None) };
    let tree = mount::clone_tree(folder.as_fd(), false).map_err(failed)?;
    let shared = rustix::fs::fstat(&user).map(|facts| facts.st_ino).ok()
        == identity::namespace_inode(Path::new("/proc/self/ns/user")).ok();
    let idmap = (!shared).then(|| user.as_fd());
    let attributes = Attributes { read_only: true, idmap, ..Attributes::default() };
    match mount::set_attributes(tree.as_fd(), &attributes, false) {
        Ok(()) => Ok(Some(tree)),
        // A file system that maps no ids. A machine with one id finds the tree itself; others say that they cannot.
        Err(error) if idmap.is_some() && error.errno() == Errno::INVAL => Ok(None),
        Err(error) => Err(failed(error)),
    }
}
