//! Doing something inside new namespaces: a forked child does it and sends its outcome back.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::namespace::{IdMap, run_newidmap, write_id_maps};
use testyard_linux::process::{
    Child, CloneFlags, CloneOptions, Credentials, Forked, SingleThreaded, become_user, clone3, exit_immediately,
    pidfd_wait, set_parent_death_signal,
};
use testyard_linux::{signal::Signal, user};

use crate::finding::{Done, Finding, Lacking, Outcome, Step};
use crate::{host, provide};

/// How many ids a machine has.
pub(crate) const RANGE: u32 = 65536;

/// Who the users inside are.
#[derive(Debug, Clone)]
pub(crate) enum Users {
    /// Those outside: no user namespace.
    Same,
    /// This user alone, as root.
    Single,
    /// These; written by this process, which is root.
    Written(Maps),
    /// These; written by newuidmap and newgidmap.
    Granted(Maps),
}

#[derive(Debug, Clone)]
pub(crate) struct Maps {
    pub(crate) uids: Vec<IdMap>,
    pub(crate) gids: Vec<IdMap>,
}

impl Users {
    /// The least that lets this user make other namespaces.
    pub(crate) fn least() -> Self {
        if host::is_full_root() { Self::Same } else { Self::Single }
    }

    /// A range of ids, by whichever way this user has.
    pub(crate) fn range() -> Result<Self, Lacking> {
        if host::is_full_root() {
            let maps = Maps { uids: vec![free_range("uid_map")?], gids: vec![free_range("gid_map")?] };
            return Ok(Self::Written(maps));
        }
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let account = user::account_of(uid);
        let name = account.map_or_else(|| uid.to_string(), |account| account.name);
        let granted = |file: &str, own: u32| -> Result<Vec<IdMap>, Lacking> {
            let text = provide::read(file).unwrap_or_default();
            let range = user::subordinate_ranges(&text, &name, uid).into_iter().find(|range| range.count >= RANGE - 1);
            let range = range.ok_or_else(|| {
                Lacking::new(format!("{file} grants no {} ids to {name}", RANGE - 1))
                    .provide(provide::subordinate_ids(&name))
            })?;
            Ok(vec![IdMap::single(0, own), IdMap { inside: 1, outside: range.start, count: RANGE - 1 }])
        };
        Ok(Self::Granted(Maps { uids: granted("/etc/subuid", uid)?, gids: granted("/etc/subgid", gid)? }))
    }

    fn flags(&self) -> CloneFlags {
        if matches!(self, Self::Same) { CloneFlags::NONE } else { CloneFlags::NEWUSER }
    }

    fn write(&self, child: &Child) -> testyard_linux::Result<()> {
        match self {
            Self::Same => Ok(()),
            Self::Single => {
                let uid = IdMap::single(0, rustix::process::geteuid().as_raw());
                let gid = IdMap::single(0, rustix::process::getegid().as_raw());
                write_id_maps(child.pid, &[uid], &[gid], true)
            }
            Self::Written(maps) => write_id_maps(child.pid, &maps.uids, &maps.gids, false),
            Self::Granted(maps) => run_newidmap(child.pid, &maps.uids, &maps.gids),
        }
    }
}

/// A range of ids that this user namespace knows, away from those that accounts have.
fn free_range(file: &str) -> Result<IdMap, Lacking> {
    let text = provide::read(&format!("/proc/self/{file}")).unwrap_or_default();
    let known = text.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), _, Some(Ok(count))) = (fields.next(), fields.next(), fields.next()) else { return None };
        Some((first, count))
    });
    let mut most = 0;
    for (first, count) in known {
        // 100000 on are what distributions give to accounts; beyond lies room on every host.
        for start in [1_000_000_000, first.max(1)] {
            if start >= first && start + u64::from(RANGE) <= first + count {
                let outside = u32::try_from(start).unwrap_or(1);
                return Ok(IdMap { inside: 0, outside, count: RANGE });
            }
        }
        most = most.max(count);
    }
    Err(Lacking::new(format!(
        "this user namespace knows only {most} ids in a row, and a machine takes {RANGE} beside 0"
    ))
    .provide("give the outer container more ids: at least 131072 in /etc/subuid and /etc/subgid"))
}

/// Runs `act` in a child in new namespaces, as root of them where there is a user namespace.
///
/// The child is killed with this process. The caller has one thread, and forks on.
pub(crate) fn inside(flags: CloneFlags, users: &Users, act: impl FnOnce() -> Outcome) -> Outcome {
    let what = "making new namespaces";
    let thread = SingleThreaded::check()?;
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC).step("making a pipe")?;
    let (answer, say) = pipe_with(PipeFlags::CLOEXEC).step("making a pipe")?;
    let forked = clone3(thread, flags | users.flags(), CloneOptions::default());
    let child = match forked.step(what).map_err(|lacking| explain(lacking, users))? {
        Forked::Parent(child) => child,
        Forked::Child => {
            drop((go, answer));
            let finding = if is_told(&File::from(wait)) { as_root_inside(users, act) } else { Err(Lacking::new("")) };
            // Nobody is left to hear of a failure to say it.
            let _ = serde_json::to_writer(File::from(say), &Finding::from(finding));
            exit_immediately(0);
        }
    };
    drop((wait, say));
    let written = users.write(&child).step("writing the id maps").map_err(|lacking| explain(lacking, users));
    if written.is_ok() {
        let _ = File::from(go).write_all(b"!");
    } else {
        drop(go);
    }
    let mut said = Vec::new();
    let read = File::from(answer).read_to_end(&mut said);
    let status = pidfd_wait(child.pidfd.as_fd(), false)?;
    written?;
    read.step("hearing from the namespaces")?;
    match serde_json::from_slice::<Finding>(&said) {
        Ok(finding) if finding.yes => Ok(Done { reason: finding.reason, detail: finding.detail }),
        Ok(finding) => {
            Err(Lacking { reason: finding.reason, provide: finding.provide, detail: finding.detail, errno: None })
        }
        Err(_) => Err(Lacking::new(format!("the process in the namespaces ended with status {}", status.unwrap_or(0)))),
    }
}

fn is_told(mut wait: &File) -> bool {
    matches!(wait.read(&mut [0]), Ok(1))
}

fn as_root_inside(users: &Users, act: impl FnOnce() -> Outcome) -> Outcome {
    if !matches!(users, Users::Same) {
        become_user(&Credentials::default(), false)?;
    }
    // After the change of user, which clears it.
    set_parent_death_signal(Signal::KILL.number())?;
    act()
}

/// Adds what would allow namespaces, where they are what was refused.
fn explain(lacking: Lacking, users: &Users) -> Lacking {
    match lacking.errno.map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) if matches!(users, Users::Granted(_)) => {
            lacking.provide(provide::package("uidmap", "newuidmap"))
        }
        // The filters of Docker and Podman say that there is no clone3, so that programs fall back to clone, whose
        // flags a filter can see.
        Some(Errno::NOSYS | Errno::PERM) if provide::is_filtered() => {
            let reason = format!("{} (a system call filter of the outer container is in force)", lacking.reason);
            Lacking { reason, ..lacking }.provide_or(provide::user_namespaces())
        }
        Some(Errno::PERM | Errno::NOSPC | Errno::USERS) if !matches!(users, Users::Same) => {
            lacking.provide_or(provide::user_namespaces())
        }
        _ => lacking,
    }
}
