//! Trees that clients sync: received by a worker, kept in the machine's own store, shown to environments and on the
//! machine itself.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use testyard_linux::process;
use testyard_linux::signal::{self, Signal};
use testyard_linux::{Error, files};
use testyard_model::{EnvironmentLimits, Problem, ProblemKind, UserSpec};
use testyard_protocol::start::IdRange;
use testyard_protocol::{Carrier, Event, Sync, Synced};
use testyard_trees::{Owner, ReceiveError, Store, TreeHash, receive};

use crate::account;
use crate::agent::Agent;
use crate::command::Command;
use crate::environment::MACHINE;
use crate::environment::keeping::release;
use crate::environment::layered::LayeredView;
use crate::place::{Place, PlaceKind};
use crate::relay::{Input, Output};
use crate::source::Source;
use crate::timers::Due;
use crate::worker::{self, Task};

/// So many trees that nothing uses are kept for the next sync.
const KEPT: usize = 6;
/// After a sync, so long nothing is removed: who syncs asks for the tree to be shown, and may sync the next one.
const QUIET: Duration = Duration::from_millis(100);
/// The trees of the machine that is not there.
const NOBODY: u64 = u64::MAX;

/// What is shown on the machine itself, by its path.
#[derive(Default)]
pub(crate) struct Presented {
    shown: BTreeMap<PathBuf, Rc<Source>>,
    /// What a worker is about to show. One at a time: two at once could end in another order than they began in, and
    /// what is seen would not be what is known to be shown.
    coming: Option<(u32, PathBuf, Rc<Source>)>,
    /// Who waits for that, in their order.
    waiting: VecDeque<Waiting>,
}

/// A tree to be shown, later.
struct Waiting {
    connection: u64,
    stream: u32,
    synced: Synced,
    /// Their names in the store.
    trees: Vec<String>,
}

impl Presented {
    /// Nobody waits any more for what this client asked for.
    pub(crate) fn forget_client(&mut self, connection: u64) {
        self.waiting.retain(|waiting| waiting.connection != connection);
    }

    /// A worker has shown what was coming, or has not; what is of no use any more.
    pub(crate) fn settle(&mut self, number: u32, is_shown: bool) -> Vec<Rc<Source>> {
        let Some((_, path, source)) = self.coming.take_if(|(coming, ..)| *coming == number) else { return Vec::new() };
        if !is_shown {
            return vec![source];
        }
        // What was shown below went with what was there before, or is covered now.
        let mut gone = Vec::new();
        self.shown.retain(|shown, source| {
            let covered = shown.starts_with(&path);
            gone.extend(covered.then(|| Rc::clone(source)));
            !covered
        });
        self.shown.insert(path, source);
        gone
    }
}

/// Whether this is the user of a machine that has one id: its root, under which number whoever made it is known outside,
/// or whom its commands run as.
fn is_the_only_one(user: &UserSpec, usual: &UserSpec, maker: (u32, u32)) -> bool {
    match user {
        UserSpec::Machine | UserSpec::Root => true,
        UserSpec::Named(_) => user == usual,
        UserSpec::Numbered { uid, gid, .. } => {
            let usual = match usual {
                UserSpec::Numbered { uid, gid, .. } => Some((*uid, *gid)),
                _ => None,
            };
            // A user's number alone stands for the group of the same number, too.
            let is = |(user, group): (u32, u32)| user == *uid && (group == *gid || uid == gid);
            [Some((0, 0)), Some(maker), usual].into_iter().flatten().any(is)
        }
    }
}

/// What is said where the files of a tree are to be somebody's who is not there.
fn nobodys(user: &UserSpec) -> Problem {
    let whom = match user {
        UserSpec::Named(name) => format!("`{name}`"),
        UserSpec::Numbered { uid, gid, .. } => format!("user {uid} and group {gid}"),
        UserSpec::Machine | UserSpec::Root => "its root".to_owned(),
    };
    let message = format!("the files of a tree cannot belong to {whom} on this machine");
    Problem::new(ProblemKind::Unsupported, message)
        .because("the machine has one user id, and every file on it is that user's")
        .hint("leave --user out: they then belong to the machine's user")
        .hint("a machine with many: `testyard create --network private`, once `testyard doctor` says yes to user-namespace-range")
}

/// The folder of a machine's trees; none where it could not show any.
fn store_folder(place: &Place) -> Result<PathBuf, Problem> {
    match &place.kind {
        PlaceKind::Namespace(_) => Ok(PathBuf::from("/store/trees")),
        PlaceKind::Process { .. } => Err(Problem::new(
            ProblemKind::Unsupported,
            "a machine of backend `host` shows working trees as they are, and none that was synced",
        )
        .hint("create the machine with --backend namespace")),
    }
}

/// A tree's name in the store.
fn key(hash: &str, owner: Owner) -> String {
    format!("{hash}-{}-{}", owner.uid, owner.gid)
}

impl Agent {
    /// Receives a tree in a forked worker.
    pub(crate) fn sync(
        &mut self,
        connection: u64,
        stream: u32,
        sync: Sync,
        attached: Vec<OwnedFd>,
    ) -> Result<(), Problem> {
        let folder = store_folder(&self.place)?;
        let owner = self.owner_of(sync.user.as_ref())?;
        let failed = |error| Error::new("make", "a pipe for a tree", error).problem();
        let (input, output, relayed) = match sync.carrier {
            Carrier::Frames => {
                let (from_us, to_worker) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
                let (from_worker, to_us) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
                rustix::io::ioctl_fionbio(&to_worker, true).map_err(|error| failed(error.into()))?;
                rustix::io::ioctl_fionbio(&from_worker, true).map_err(|error| failed(error.into()))?;
                (from_us, to_us, Some((to_worker, from_worker)))
            }
            Carrier::Attached | Carrier::Pipe => {
                let socket = attached.into_iter().next();
                let missing = || Problem::new(ProblemKind::Protocol, "a tree came without its descriptor");
                let socket = socket.ok_or_else(missing)?;
                (socket.try_clone().map_err(failed)?, socket, None)
            }
        };
        let pid = self.fork_worker((connection, stream), MACHINE, Task::Sync, |_, agent, control| {
            receive_tree(&folder, owner, agent, control, input, output)
        })?;
        if let Some((to_worker, from_worker)) = relayed {
            // Both directions.
            let command = Command::of_worker((connection, stream), MACHINE, pid);
            let (input, outputs) = (Some(Input::new(to_worker)), vec![Output::new(0, from_worker)]);
            self.relay_worker(pid, Command { input, outputs, ..command });
        }
        Ok(())
    }

    /// What is shown anywhere, by its name in the store.
    fn trees_in_use(&self) -> Vec<String> {
        let sources = self.sources.values().map(|(_, source)| source);
        let environments = self.environments.values().filter_map(|one| one.shown.as_ref());
        let presented = self.presented.shown.values().chain(self.presented.coming.iter().map(|(_, _, source)| source));
        let used = sources.chain(environments).chain(presented).flat_map(|source| &source.trees);
        used.chain(self.presented.waiting.iter().flat_map(|waiting| &waiting.trees)).cloned().collect()
    }

    /// As [`Agent::sweep_trees`], once those who sync have what they wait for.
    pub(crate) fn sweep_trees_soon(&mut self) {
        self.timers.add_once(Instant::now() + QUIET, Due::Trees);
    }

    /// Forgets all but the trees that were used last, and removes what nothing uses any more, in a worker for which
    /// nobody waits.
    pub(crate) fn sweep_trees(&mut self) {
        let Ok(folder) = store_folder(&self.place) else { return };
        if self.ending.is_some() {
            return;
        }
        Store::at(&folder).forget(KEPT, &self.trees_in_use());
        // What stays is found by the next one.
        let _ = self.fork_worker((NOBODY, 0), MACHINE, Task::Look, |_, _, _| sweep(&folder));
    }

    /// Whose the files of a tree are inside.
    fn owner_of(&self, user: Option<&UserSpec>) -> Result<Owner, Problem> {
        let own = Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
        let PlaceKind::Namespace(place) = &self.place.kind else { return Ok(own) };
        if place.ids == IdRange::Single {
            return match user.filter(|user| !is_the_only_one(user, &self.user, place.maker)) {
                None => Ok(own),
                Some(other) => Err(nobodys(other)),
            };
        }
        // Names are looked up by those who are in the machine's root; who syncs sends numbers.
        let account = account::resolve(self.whom(user), Path::new("/nonexistent"))?;
        Ok(Owner { uid: account.credentials.uid, gid: account.credentials.gid })
    }

    /// The trees of a request, as a source; none where one of them is not there.
    fn synced_source(&mut self, synced: &Synced) -> Result<Source, Problem> {
        let store = Store::at(&store_folder(&self.place)?);
        let owner = self.owner_of(synced.user.as_ref())?;
        let (mut layers, mut trees) = (Vec::new(), Vec::new());
        for text in &synced.trees {
            let hash: TreeHash = text.parse().map_err(|error| Problem::from_error(ProblemKind::Protocol, &error))?;
            let record = store.find(hash, owner).ok_or_else(|| {
                let message = format!("the tree {text} is not on this machine");
                Problem::new(ProblemKind::NotFound, message).hint("testyard sync NAME")
            })?;
            layers.extend(record.layers.iter().map(|layer| store.layer(layer)));
            trees.push(key(text, owner));
        }
        if layers.is_empty() || !synced.path.as_path().is_absolute() {
            return Err(Problem::new(ProblemKind::Protocol, "a synced source needs trees and an absolute path"));
        }
        let number = self.number();
        Source::of_layers(number, synced.path.as_path(), &layers, trees)
    }

    /// Lets commands of this connection show trees that were synced.
    pub(crate) fn show_synced(&mut self, connection: u64, stream: u32, synced: &Synced) -> Result<(), Problem> {
        let source = self.synced_source(synced)?;
        // In place of an older tree that this connection had there: environments keep theirs.
        let old = self
            .sources
            .iter()
            .find(|(_, (holder, old))| *holder == connection && !old.trees.is_empty() && old.path == source.path);
        if let Some((_, old)) = old.map(|(number, _)| *number).and_then(|number| self.sources.remove(&number)) {
            release(old);
        }
        let number = self.number();
        self.sources.insert(number, (connection, Rc::new(source)));
        self.answer(connection, stream, &Event::Source(number));
        Ok(())
    }

    /// Shows trees that were synced on the machine itself.
    pub(crate) fn present(&mut self, connection: u64, stream: u32, synced: &Synced) -> Result<(), Problem> {
        let path = synced.path.as_path().to_owned();
        let owner = self.owner_of(synced.user.as_ref())?;
        let wanted: Vec<String> = synced.trees.iter().map(|hash| key(hash, owner)).collect();
        if self.presented.coming.is_some() {
            let waiting = Waiting { connection, stream, synced: synced.clone(), trees: wanted };
            self.presented.waiting.push_back(waiting);
            return Ok(());
        }
        if self.presented.shown.get(&path).is_some_and(|shown| shown.trees == wanted) {
            self.answer(connection, stream, &Event::Done);
            return Ok(());
        }
        let source = Rc::new(self.synced_source(synced)?);
        match self.show_on_machine((connection, stream), synced, &source) {
            Ok(number) => self.presented.coming = Some((number, path, source)),
            Err(problem) => {
                release(source);
                return Err(problem);
            }
        }
        Ok(())
    }

    /// Has a worker show it; the number under which it is told that it is done.
    fn show_on_machine(&mut self, asked: (u64, u32), synced: &Synced, source: &Source) -> Result<u32, Problem> {
        let again = self.presented.shown.contains_key(synced.path.as_path());
        let layers = source.layer_mounts().map_err(|error| error.problem())?;
        let number = self.number();
        self.generations.touch();
        self.fork_worker(asked, MACHINE, Task::Present(number), |agent, parent, control| {
            worker::tie_to(parent)?;
            let mounts = agent.machine_mounts()?.as_fd();
            let mut kept: Vec<BorrowedFd<'_>> = layers.iter().map(|layer| layer.as_fd()).collect();
            kept.extend([control.as_fd(), mounts]);
            process::close_range_from(3, &kept).map_err(|error| error.problem())?;
            let view =
                LayeredView { layers: &layers, target: synced.path.as_path(), size: EnvironmentLimits::DEFAULT_DISK.0 };
            view.show(mounts, again).map_err(|error| error.problem())
        })?;
        Ok(number)
    }

    fn machine_mounts(&self) -> Result<&OwnedFd, Problem> {
        let mounts = match &self.place.kind {
            PlaceKind::Namespace(place) => place.mounts.as_ref(),
            PlaceKind::Process { .. } => None,
        };
        mounts.ok_or_else(|| Problem::new(ProblemKind::Bug, "the machine has no root yet"))
    }

    /// A worker has shown a tree on the machine, or has not: lets go of what is of no use any more, and gives the next
    /// one its turn.
    pub(crate) fn after_presenting(&mut self, unused: Vec<Rc<Source>>) {
        unused.into_iter().for_each(release);
        while self.presented.coming.is_none()
            && let Some(Waiting { connection, stream, synced, .. }) = self.presented.waiting.pop_front()
        {
            let outcome = match self.ending {
                None => self.present(connection, stream, &synced),
                Some(_) => {
                    Err(Problem::new(ProblemKind::Unavailable, "the machine was stopped before the tree was shown"))
                }
            };
            if let Err(problem) = outcome {
                self.fail(connection, stream, problem);
            }
        }
    }
}

/// In the child: receives one tree.
fn receive_tree(
    folder: &Path,
    owner: Owner,
    agent: Pid,
    control: &OwnedFd,
    input: OwnedFd,
    output: OwnedFd,
) -> Result<(), Problem> {
    let system = |error: Error| error.problem();
    signal::restore_default(Signal::PIPE).map_err(system)?;
    signal::unblock_all().map_err(system)?;
    process::close_range_from(3, &[input.as_fd(), output.as_fd(), control.as_fd()]).map_err(system)?;
    worker::tie_to(agent)?;
    rustix::process::umask(Mode::empty());
    let failed = |error: io::Error| Error::new("open", "the store of trees", error).problem();
    let store = Store::open(folder).map_err(failed)?;
    let (mut input, mut output) = (File::from(input), File::from(output));
    receive(&store, owner, true, &mut input, &mut output).map(drop).map_err(|error| told(&error))
}

/// A failure as clients get it.
fn told(error: &ReceiveError) -> Problem {
    let kind = match error {
        ReceiveError::Write { source, .. } => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ProblemKind::Exhausted,
            _ => ProblemKind::System,
        },
        ReceiveError::Wire(error) if error.is_gone() => ProblemKind::Unavailable,
        ReceiveError::Changed => ProblemKind::Interrupted,
        _ => ProblemKind::Protocol,
    };
    let problem = Problem::from_error(kind, error);
    match kind {
        ProblemKind::Exhausted => problem.hint("free disk space below the machine's state folder: testyard reap"),
        _ => problem,
    }
}

/// In the child: removes what no record names.
fn sweep(folder: &Path) -> Result<(), Problem> {
    process::close_range_from(3, &[]).map_err(|error| error.problem())?;
    // Nobody waits for it, and somebody may for what else goes on here.
    let _ = rustix::process::nice(19);
    let remove = |folder: &Path, name: &str| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(folder) = rustix::fs::open(folder, flags, Mode::empty()) {
            // What stays is found by the next one.
            let _ = files::remove_tree(folder.as_fd(), Path::new(name));
        }
    };
    let swept = Store::at(folder).sweep(&remove);
    swept.map_err(|error| Error::new("sweep", "the store of trees", error).problem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_one_id_has_one_user_under_several_numbers() {
        let number = |uid, gid| UserSpec::Numbered { uid, gid, groups: vec![4, 27] };
        let is = |user: UserSpec| is_the_only_one(&user, &number(33, 34), (1001, 100));
        let own = [number(0, 0), number(1001, 100), number(1001, 1001), number(33, 34), UserSpec::Root];
        for user in own.into_iter().chain([UserSpec::Machine]) {
            assert!(is(user.clone()), "{user:?}");
        }
        let others = [number(1000, 1000), number(1001, 5), number(100, 1001), UserSpec::Named("www-data".to_owned())];
        for user in others {
            assert!(!is(user.clone()) && !nobodys(&user).hints.is_empty(), "{user:?}");
        }
        let app = UserSpec::Named("app".to_owned());
        assert!(is_the_only_one(&app, &app, (1001, 100)));
    }
}
