//! Which of the host's ids a machine has: a range of its own, leased for as long as the machine exists.
//!
//! A lease is the link `/var/lib/testyard/ids/<first id>` to the machine's folder. Making it is one step, and the kernel
//! refuses it where a machine of whatever home has that range already. It lasts as long as the files that bear the
//! ids, also while the machine is stopped and over restarts of the host. Whose it is stands in the link itself.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, Mode, OFlags};
use testyard_linux::Error;
use testyard_linux::files::remove_link_to;
use testyard_linux::mount::{self, Attributes};
use testyard_linux::namespace::{self, IdMap};
use testyard_machine::backend::{BackendError, MachinePlace, RecordedResource, Recorder, ResourceKind};
use testyard_model::{ImageReference, MachineSpec, Problem, ProblemKind};
use testyard_protocol::start::IdRange;

use super::granted::{self, Lack};

/// How many ids a machine has.
const COUNT: u32 = 65_536;

/// The ids that nobody hands out: systemd's containers end at 0x6FFF_FFFF, and its images of foreign systems begin at
/// 0x7FFE_0000. `/etc/subuid` begins far below.
const FREE: std::ops::Range<u32> = 0x7000_0000..0x7FFE_0000;

/// Where the leases of this host are.
const FOLDER: &str = "/var/lib/testyard/ids";

/// How a machine's ids relate to the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// A range of its own.
    Range,
    /// The user's own and those that the host grants.
    Granted,
    /// The user's one id.
    Single,
    /// The host's.
    Host,
}

/// Which sort of ids a machine of this user has.
pub(super) fn sort_of(spec: &MachineSpec) -> Sort {
    match (rustix::process::geteuid().is_root(), spec.privileged) {
        (true, true) => Sort::Host,
        (true, false) if why_single(&spec.image).is_none() => Sort::Range,
        (false, _) if !spec.network.is_host() && granted::find().is_some() => Sort::Granted,
        _ => Sort::Single,
    }
}

/// What a machine of root's lacks with one id.
pub(super) fn limit(place: &MachinePlace) -> Option<String> {
    let one = rustix::process::geteuid().is_root() && sort_of(&place.spec) == Sort::Single;
    why_single(&place.spec.image).filter(|_| one).map(|reason| format!("one id, as an ordinary user has: {reason}"))
}

/// Refuses what runs as several users where a machine of this image, with a network of its own, would have one id.
///
/// # Errors
/// The machine would have one: why, and the command that gives this user more.
pub fn expect_several(what: &str, image: &ImageReference) -> Result<(), Problem> {
    let lack = if rustix::process::geteuid().is_root() {
        why_single(image).map(|reason| {
            let provide = "give the outer container at least 131072 ids, and a root that is no overlay".to_owned();
            Lack { reason: reason.to_owned(), provide }
        })
    } else {
        granted::look().err()
    };
    let Some(Lack { reason, provide }) = lack else { return Ok(()) };
    let message = format!("{what} takes machines with many user ids, and {} has one", whose_machine());
    Err(Problem::new(ProblemKind::Unsupported, message).because(reason).hint(provide))
}

/// The machines of this user, as an error calls them.
pub(super) fn whose_machine() -> &'static str {
    if rustix::process::geteuid().is_root() {
        "a machine of root inside a container"
    } else {
        "an ordinary user's machine"
    }
}

/// Why root's machines have one id, as an ordinary user's have: inside somebody else's container root may have no
/// ids to give, or a root whose file system maps none.
fn why_single(image: &ImageReference) -> Option<&'static str> {
    static ROOT: OnceLock<Option<&'static str>> = OnceLock::new();
    if !namespace::knows_every_id() {
        return Some("root is that of a user namespace, which has too few ids");
    }
    if *image != ImageReference::Host {
        return None;
    }
    *ROOT.get_or_init(|| (!maps_root()).then_some("the file system of / maps no ids"))
}

/// Done rather than asked: no file system tells.
fn maps_root() -> bool {
    let map = [IdMap { inside: 0, outside: FREE.start, count: COUNT }];
    let mapped = || {
        let user = namespace::new_user_namespace(&map, &map, false)?;
        let root = mount::clone_tree(Path::new("/"), false)?;
        let attributes = Attributes { idmap: Some(user.as_fd()), ..Attributes::default() };
        mount::set_attributes(root.as_fd(), &attributes, false)
    };
    mapped().is_ok()
}

/// The ids that a machine has had since it was made; for a new one they are leased now.
pub(super) fn acquire(place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<IdRange, BackendError> {
    match sort_of(&place.spec) {
        Sort::Host => Ok(IdRange::Host),
        Sort::Single => Ok(IdRange::Single),
        // What was there a moment ago.
        Sort::Granted => Ok(granted::find().unwrap_or(IdRange::Single)),
        Sort::Range => {
            let ranges = Ranges::of_host();
            let recorded = recorder.all()?.into_iter().find_map(|one| ranges.first_of(&one));
            let first = match recorded {
                Some(first) => {
                    ranges.confirm(first, place)?;
                    first
                }
                None => ranges.lease(place, recorder)?,
            };
            Ok(IdRange::Range { first, count: COUNT })
        }
    }
}

/// Gives the machine's range back; its files are gone.
pub(super) fn release(place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
    let leases: Vec<_> = recorder.all()?.into_iter().filter(|one| is_lease(one, Path::new(FOLDER))).collect();
    for lease in &leases {
        remove_link_to(&place.folder, &lease.place).map_err(host(place, "give the ids back"))?;
    }
    recorder.gone(&leases.iter().map(|one| one.id).collect::<Vec<_>>())?;
    Ok(())
}

/// A user namespace that shows files of the range at `from` as if they were of the range at `to`, for an idmapped copy.
pub(super) fn shift(from: u32, to: u32) -> Result<OwnedFd, Error> {
    let map = [IdMap { inside: from, outside: to, count: COUNT }];
    namespace::new_user_namespace(&map, &map, false)
}

fn host<'a>(place: &'a MachinePlace, operation: &'static str) -> impl Fn(Error) -> BackendError + 'a {
    move |source| BackendError::Host { operation, machine: place.name.clone(), source }
}

fn is_lease(resource: &RecordedResource, folder: &Path) -> bool {
    resource.kind == ResourceKind::File && resource.place.parent() == Some(folder)
}

/// The ranges that may be leased.
struct Ranges {
    folder: PathBuf,
    ids: std::ops::Range<u32>,
}

impl Ranges {
    fn of_host() -> Self {
        Self { folder: PathBuf::from(FOLDER), ids: FREE }
    }

    fn link(&self, first: u32) -> PathBuf {
        self.folder.join(first.to_string())
    }

    fn first_of(&self, resource: &RecordedResource) -> Option<u32> {
        let named = resource.place.file_name().and_then(|name| name.to_str());
        named.filter(|_| is_lease(resource, &self.folder)).and_then(|name| name.parse().ok())
    }

    fn count(&self) -> u32 {
        (self.ids.end - self.ids.start) / COUNT
    }

    fn lease(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<u32, BackendError> {
        let failed = host(place, "lease ids");
        std::fs::create_dir_all(&self.folder)
            .map_err(|error| failed(Error::new("make folder", self.folder.display(), error)))?;
        if let Some(first) = self.take_free(place, recorder)? {
            return Ok(first);
        }
        // All are taken: perhaps by machines whose homes were removed by hand.
        self.sweep().map_err(&failed)?;
        self.take_free(place, recorder)?.ok_or_else(|| {
            Problem::new(ProblemKind::Exhausted, format!("all {} ranges of ids are taken by machines", self.count()))
                .hint("delete machines that nobody needs: testyard list")
                .hint(format!("see whose they are: ls -l {}", self.folder.display()))
                .into()
        })
    }

    /// The first free one from a place that differs between machines, so that two which are made at once rarely meet,
    /// and a range that was given back is not taken again at once.
    fn take_free(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<Option<u32>, BackendError> {
        let count = self.count();
        let seed = place.id.as_str().bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        for step in 0..count {
            let first = self.ids.start + (seed.wrapping_add(step) % count) * COUNT;
            let link = self.link(first);
            if std::fs::symlink_metadata(&link).is_ok() {
                continue;
            }
            let ids = recorder.intend(&[(ResourceKind::File, &link)])?;
            match std::os::unix::fs::symlink(&place.folder, &link) {
                Ok(()) => return Ok(Some(first)),
                Err(error) => {
                    recorder.gone(&ids)?;
                    if error.kind() != io::ErrorKind::AlreadyExists {
                        return Err(host(place, "lease ids")(Error::new("make", link.display(), error)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// That the lease is still there. One that was removed by hand is made again.
    fn confirm(&self, first: u32, place: &MachinePlace) -> Result<(), BackendError> {
        let link = self.link(first);
        let failed = |error| host(place, "confirm the lease of ids")(Error::new("make", link.display(), error));
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        match std::os::unix::fs::symlink(&place.folder, &link) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
            Err(_) => match std::fs::read_link(&link) {
                Ok(found) if found == place.folder => Ok(()),
                other => Err(Problem::new(
                    ProblemKind::WrongState,
                    format!("the ids of machine {} are another machine's now", place.name),
                )
                .because(match other {
                    Ok(found) => format!("{} leads to {}", link.display(), found.display()),
                    Err(error) => format!("{}: {error}", link.display()),
                })
                .hint("keep its files with `testyard pull`, delete it and create it again")
                .into()),
            },
        }
    }

    /// Removes leases whose machines' folders are gone.
    fn sweep(&self) -> Result<(), Error> {
        let failed = |error: io::Error| Error::new("look for abandoned leases in", self.folder.display(), error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&self.folder, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        // One at a time: between the look and the removal another must not lease the same range again.
        rustix::fs::flock(&folder, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let link = entry.map_err(failed)?.path();
            let Ok(machine) = std::fs::read_link(&link) else { continue };
            if std::fs::symlink_metadata(&machine).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                remove_link_to(&machine, &link)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use testyard_machine::MemoryRecorder;
    use testyard_model::{BackendName, MachineId};

    use super::*;

    /// A machine whose folder is there.
    fn place(home: &Path, number: u64) -> MachinePlace {
        let id = MachineId::from_bits(number);
        let folder = home.join(id.as_str());
        std::fs::create_dir(&folder).expect("a folder of the test's own");
        MachinePlace {
            name: format!("m{number}").parse().expect("a name"),
            spec: MachineSpec::new(BackendName::namespace()),
            runtime: folder.clone(),
            images: folder.clone(),
            agent: folder.clone(),
            masked: Vec::new(),
            id,
            folder,
        }
    }

    #[test]
    fn no_two_machines_have_a_range_together_and_abandoned_ones_are_taken_again() {
        let home = tempfile::tempdir().expect("a temporary folder");
        let ranges = Ranges { folder: home.path().join("ids"), ids: COUNT..4 * COUNT };
        let places: Vec<_> = (0..4).map(|number| place(home.path(), number)).collect();
        let mut records: Vec<_> = (0..4).map(|_| MemoryRecorder::default()).collect();
        let mut leased: Vec<_> = places
            .iter()
            .zip(&mut records)
            .take(3)
            .map(|(place, record)| ranges.lease(place, record).expect("there is one"))
            .collect();
        leased.sort_unstable();
        assert_eq!(leased, [COUNT, 2 * COUNT, 3 * COUNT]);

        let problem = ranges.lease(&places[3], &mut records[3]).expect_err("there are three").problem();
        assert_eq!(problem.kind, ProblemKind::Exhausted);
        assert!(records[3].all().is_ok_and(|all| all.is_empty()));

        std::fs::remove_dir(&places[1].folder).expect("it is there");
        let first = ranges.lease(&places[3], &mut records[3]).expect("a machine was removed by hand");
        assert_eq!(records[1].all().expect("in memory").iter().find_map(|one| ranges.first_of(one)), Some(first));
        assert_eq!(ranges.confirm(first, &places[3]).map_err(|error| error.problem()), Ok(()));
        let problem = ranges.confirm(first, &places[1]).expect_err("it is another's").problem();
        assert_eq!(problem.kind, ProblemKind::WrongState);

        let link = ranges.link(first);
        remove_link_to(&places[1].folder, &link).expect("another's stays");
        assert!(link.symlink_metadata().is_ok());
        remove_link_to(&places[3].folder, &link).expect("one's own goes");
        assert!(link.symlink_metadata().is_err());
        ranges.confirm(first, &places[3]).expect("what was removed by hand is made again");
    }
}
