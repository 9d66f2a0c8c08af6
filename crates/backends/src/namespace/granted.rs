//! The ids that this host grants to an ordinary user, and work on files that bear them.
//!
//! A machine with a network of its own is a whole system: its services change to users of their own. An ordinary
//! user's machine has ids for them where `/etc/subuid` and `/etc/subgid` grant some and newuidmap is there to map them.
//! All of a user's machines have the same ones, so that folders which several see have the same owners in each.

use std::path::Path;
use std::process::{Command, Stdio};

use testyard_linux::{Error, user};
use testyard_machine::backend::MachinePlace;
use testyard_protocol::start::{COPY, IdRange, REMOVE, WITH_GRANTED};

use super::ids::{self, Sort};

/// How many ids a machine takes beside its user's own.
const COUNT: u32 = 65_535;

/// The programs that map ids for an ordinary user, of the package `uidmap`.
const PROGRAMS: [&str; 2] = ["newuidmap", "newgidmap"];

/// The user's ids, or none where the host grants too few.
pub(super) fn find() -> Option<IdRange> {
    look().ok()
}

/// What a user's machines lack for a range of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lack {
    /// A fragment of a sentence.
    pub(super) reason: String,
    /// The command that would provide it.
    pub(super) provide: String,
}

/// The user's ids, or why there are none.
pub(super) fn look() -> Result<IdRange, Lack> {
    let uid = rustix::process::getuid();
    let missing = PROGRAMS.into_iter().find(|name| !Path::new("/usr/bin").join(name).exists());
    if let Some(program) = missing.filter(|_| !uid.is_root()) {
        let reason = format!("{program}, which maps the ids that a host grants to its users, is not installed");
        return Err(Lack { reason, provide: "sudo apt-get install -y --no-install-recommends uidmap".to_owned() });
    }
    let name = user::account_of(uid.as_raw()).map_or_else(|| uid.as_raw().to_string(), |account| account.name);
    let first = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let ranges = user::subordinate_ranges(&text, &name, uid.as_raw());
        let fit = ranges.into_iter().find(|range| range.count >= COUNT && !uid.is_root());
        fit.map(|range| range.start).ok_or_else(|| Lack {
            reason: format!("{file} grants {name} no range of {COUNT}"),
            provide: format!("sudo {}", user::granting_command(&name)),
        })
    };
    Ok(IdRange::Granted { uids: first("/etc/subuid")?, gids: first("/etc/subgid")?, count: COUNT })
}

/// What a machine with a network of its own lacks where nothing is granted.
pub(super) fn limit(place: &MachinePlace) -> Option<String> {
    let ordinary = !rustix::process::geteuid().is_root() && !place.spec.network.is_host();
    let lacking = ordinary && ids::sort_of(&place.spec) == Sort::Single;
    lacking.then(|| {
        "one id: services that change to users of their own do not run, until newuidmap is installed (package uidmap) and \
         /etc/subuid and /etc/subgid grant 65535 ids to this user"
            .to_owned()
    })
}

/// Removes what is in a folder under a name.
pub(super) fn remove(place: &MachinePlace, parent: &Path, name: &str) -> Result<(), Error> {
    work(place, REMOVE, parent, Path::new(name))
}

/// Copies what is in a folder to an empty one.
pub(super) fn copy(place: &MachinePlace, from: &Path, to: &Path) -> Result<(), Error> {
    work(place, COPY, from, to)
}

fn work(place: &MachinePlace, verb: &str, from: &Path, to: &Path) -> Result<(), Error> {
    let failed = |reason: String| Error::new("work on the files in", from.display(), std::io::Error::other(reason));
    let Some(IdRange::Granted { uids, gids, count }) = find() else {
        return Err(failed("this host no longer grants the ids that they bear: see /etc/subuid".to_owned()));
    };
    let output = Command::new(&place.agent)
        .args([WITH_GRANTED, &uids.to_string(), &gids.to_string(), &count.to_string(), verb])
        .args([from, to])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("the agent's program could not be run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Err(failed(if said.is_empty() { format!("it ended with {}", output.status) } else { said }))
}
