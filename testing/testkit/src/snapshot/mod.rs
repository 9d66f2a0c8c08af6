//! The host seen from outside, before and after: what a test left, or damaged.

mod files;
mod network;
mod processes;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::wait::wait_until;

/// What kind of thing was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A process, by id and start time. Kernel threads are not counted.
    Process,
    /// A mount in this process's mount namespace, or how many another one holds.
    Mount,
    /// A namespace that a process is in, or that an open descriptor of one keeps.
    Namespace,
    /// A network interface of this network namespace.
    Link,
    /// A folder of any cgroup hierarchy.
    Cgroup,
    /// A bound Unix socket of this network namespace, by path or abstract name.
    UnixSocket,
    /// A TCP or UDP port that somebody listens on.
    Port,
    /// A System V or POSIX IPC object.
    Ipc,
    /// An entry of `/tmp`, `/run`, `/dev/shm` or `/var/tmp`.
    Entry,
    /// A file of the host that tests like to rewrite, with its content's identity.
    HostFile,
}

/// Everything of the host that one process may see, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSnapshot {
    things: BTreeMap<(Kind, String), String>,
}

impl HostSnapshot {
    /// Looks at everything. Things that go away meanwhile are not in it. Some 10 ms.
    #[must_use]
    pub fn take() -> Self {
        let mut things = BTreeMap::new();
        processes::collect(&mut things);
        network::collect(&mut things);
        files::collect(&mut things);
        Self { things }
    }

    /// What appeared and what vanished since this was taken.
    #[must_use]
    pub fn difference(&self, after: &Self) -> Difference {
        let only_in = |one: &Self, other: &Self| -> Vec<Thing> {
            let mine = one.things.iter().filter(|(key, _)| !other.things.contains_key(*key));
            mine.map(|((kind, identity), shown)| Thing {
                kind: *kind,
                identity: identity.clone(),
                shown: shown.clone(),
            })
            .collect()
        };
        Difference { appeared: only_in(after, self), vanished: only_in(self, after) }
    }

    /// The difference to now, without what goes away before the deadline: the host may still be ending what was
    /// told to end, and others come and go on it. Returns as soon as nothing that appeared is left.
    #[must_use]
    pub fn settled_difference(&self, deadline: Duration) -> Difference {
        let mut difference = self.difference(&Self::take());
        wait_until(deadline, || {
            if !difference.appeared.is_empty() {
                let now = self.difference(&Self::take());
                difference.appeared.retain(|thing| now.appeared.contains(thing));
            }
            difference.appeared.is_empty()
        });
        difference
    }

    /// How many things of a kind there are.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.things.keys().filter(|(found, _)| *found == kind).count()
    }
}

/// One thing on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// What kind of thing.
    pub kind: Kind,
    /// What tells it from others of its kind.
    pub identity: String,
    /// More of it, for people.
    pub shown: String,
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.identity)?;
        if self.shown.is_empty() { Ok(()) } else { write!(f, " ({})", self.shown) }
    }
}

/// What changed between two looks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    appeared: Vec<Thing>,
    vanished: Vec<Thing>,
}

impl Difference {
    /// What is there now and was not.
    pub fn appeared(&self) -> impl Iterator<Item = &Thing> {
        self.appeared.iter()
    }

    /// What was there and is not any more. A changed host file has vanished and appeared.
    pub fn vanished(&self) -> impl Iterator<Item = &Thing> {
        self.vanished.iter()
    }

    /// Only things of these kinds.
    #[must_use]
    pub fn only(mut self, kinds: &[Kind]) -> Self {
        self.appeared.retain(|thing| kinds.contains(&thing.kind));
        self.vanished.retain(|thing| kinds.contains(&thing.kind));
        self
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.appeared.is_empty() && self.vanished.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.appeared.iter().try_for_each(|thing| writeln!(f, "appeared: {thing}"))?;
        self.vanished.iter().try_for_each(|thing| writeln!(f, "vanished: {thing}"))
    }
}

/// What belongs to one home: processes that carry its path, mounts below it, sockets in it.
#[must_use]
pub fn leftovers(home: &Path) -> Vec<String> {
    let home = home.display().to_string();
    let mut left = processes::of_home(&home);
    left.extend(network::sockets_below(&home));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(things: &[(Kind, &str)]) -> HostSnapshot {
        let things = things.iter().map(|(kind, identity)| ((*kind, (*identity).to_owned()), String::new()));
        HostSnapshot { things: things.collect() }
    }

    #[test]
    fn differences_name_what_changed() {
        let before = snapshot(&[(Kind::Link, "lo"), (Kind::HostFile, "/etc/hosts 1")]);
        let after = snapshot(&[(Kind::Link, "lo"), (Kind::Link, "veth0"), (Kind::HostFile, "/etc/hosts 2")]);
        let difference = before.difference(&after);
        assert_eq!(difference.to_string().lines().count(), 3);
        let links = difference.clone().only(&[Kind::Link]);
        assert_eq!(links.to_string(), "appeared: Link veth0\n");
        assert!(difference.only(&[Kind::Port]).is_empty());
    }

    #[test]
    fn the_host_is_seen() {
        let snapshot = HostSnapshot::take();
        for kind in [Kind::Process, Kind::Mount, Kind::Namespace, Kind::HostFile] {
            assert!(snapshot.count(kind) > 0, "{kind:?}");
        }
    }

    #[test]
    fn what_is_made_appears_and_what_is_removed_goes() {
        let before = HostSnapshot::take();
        let folder = tempfile::Builder::new().prefix("snapshot-").tempdir_in("/tmp").expect("in /tmp");
        let path = folder.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).expect("a short path");
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("any port");
        let number = port.local_addr().expect("bound").port();
        let appeared = before.difference(&HostSnapshot::take());
        let identities: Vec<&str> = appeared.appeared().map(|thing| thing.identity.as_str()).collect();
        let path = path.display().to_string();
        let port_name = format!("tcp 127.0.0.1:{number}");
        for expected in [folder.path().to_str().expect("plain"), &path, &port_name] {
            assert!(identities.contains(&expected), "{expected} in {identities:?}");
        }
        drop((port, folder, _socket));
        let gone = |identity: &str| {
            wait_until(Duration::from_secs(10), || {
                before.difference(&HostSnapshot::take()).appeared().all(|thing| thing.identity != identity)
            })
        };
        assert!(gone(&path) && gone(&port_name));
    }
}
