//! Control groups of environments: made once, used by one environment after another.

use std::cell::OnceCell;
use std::rc::Rc;

use testyard_linux::Result;
use testyard_linux::cgroup::{Group, GroupUsage};
use testyard_model::{EnvironmentLimits, Usage};

/// The name of the group inside an environment's own.
const INSIDE: &str = "inside";

/// A group's two levels.
struct Pair {
    /// Where its processes are. Root inside can mount it in version 1 and change what it limits, so it limits nothing.
    inside: Group,
    /// The group around it, which is not seen from inside: it limits and counts.
    limits: Group,
}

/// A cgroup that is used by one environment after another.
pub(crate) struct PooledGroup {
    /// The machine's, in which it is.
    machine: Rc<Group>,
    name: String,
    /// Its descriptors, while they are open.
    open: OnceCell<Pair>,
    /// Memory that was charged to it before: page cache of those that had it earlier.
    pub(crate) memory_before: u64,
    pub(crate) oom_before: u64,
    pub(crate) cpu_before: u64,
    pub(crate) read_before: u64,
    pub(crate) written_before: u64,
    /// These readings are of its present user already.
    begun: bool,
    /// Limits that this host could not set.
    pub(crate) unavailable: Vec<&'static str>,
    /// Limits are per environment; one that had any is not used again.
    pub(crate) limited: bool,
}

impl PooledGroup {
    /// A group that nobody has used yet.
    ///
    /// # Errors
    /// What the kernel says when it is made.
    pub(crate) fn create(machine: &Rc<Group>, name: String, limits: &EnvironmentLimits) -> Result<Self> {
        let limited = limits.memory.is_some() || limits.pids.is_some() || limits.cpus.is_some();
        let limits_group = machine.child(&name)?;
        let filled = || -> Result<(Vec<&'static str>, Group)> {
            let unavailable = if limited {
                limits_group.set_limits(limits.memory.map(|size| size.0), limits.pids, limits.cpus)?
            } else {
                Vec::new()
            };
            Ok((unavailable, limits_group.child(INSIDE)?))
        };
        let (unavailable, inside) = match filled() {
            Ok(filled) => filled,
            Err(error) => {
                // Nothing is in it yet; what stays goes with the machine.
                let _ = limits_group.remove();
                return Err(error);
            }
        };
        Ok(Self {
            machine: Rc::clone(machine),
            name,
            open: OnceCell::from(Pair { inside, limits: limits_group }),
            memory_before: 0,
            oom_before: 0,
            cpu_before: 0,
            read_before: 0,
            written_before: 0,
            begun: false,
            unavailable,
            limited,
        })
    }

    /// Both groups, their descriptors opened again where they rested. None when they are not there any more.
    fn pair(&self) -> Option<&Pair> {
        if self.open.get().is_none() {
            let limits = self.machine.open_child(&self.name).ok()?;
            let inside = limits.open_child(INSIDE).ok()?;
            // Just found empty.
            let _ = self.open.set(Pair { inside, limits });
        }
        self.open.get()
    }

    /// Where its processes are.
    pub(crate) fn group(&self) -> Option<&Group> {
        self.pair().map(|pair| &pair.inside)
    }

    /// What it has used until now. Version 1 counts those it killed where they were.
    fn usage_now(&self) -> Option<GroupUsage> {
        let Pair { inside, limits } = self.pair()?;
        let usage = limits.accounts();
        Some(GroupUsage { oom_kills: usage.oom_kills.max(inside.oom_kills()), ..usage })
    }

    /// Closes its descriptors until they are needed: every fork copies those that are open, and closes them.
    pub(crate) fn rested(mut self) -> Self {
        self.open.take();
        self
    }

    /// Ends what is in it and removes it.
    pub(crate) fn remove(mut self) {
        let there = self.pair().is_some();
        if let Some(pair) = self.open.take().filter(|_| there) {
            // One that is still busy is tried again by the supervisor when the machine ends.
            let _ = pair.limits.remove();
        }
    }

    /// Adds what was used since [`PooledGroup::begin`].
    pub(crate) fn add_usage(&self, usage: &mut Usage) {
        let Some(now) = self.usage_now() else { return };
        if let Some(cpu) = now.cpu_us {
            usage.cpu_us = cpu.saturating_sub(self.cpu_before);
        }
        if let Some(peak) = now.memory_peak {
            usage.memory_peak = Some(peak.saturating_sub(self.memory_before));
        }
        usage.io_read = now.io_read.map(|bytes| bytes.saturating_sub(self.read_before));
        usage.io_write = now.io_write.map(|bytes| bytes.saturating_sub(self.written_before));
        usage.out_of_memory = now.oom_kills.is_some_and(|kills| kills > self.oom_before);
        if now.io_read.is_none() {
            usage.unavailable.push("io".to_owned());
        }
    }

    /// Whether another environment may have it: its peak can start anew, and few pages of earlier ones are charged to it.
    pub(crate) fn is_reusable(&self) -> bool {
        const MOST_CHARGED: u64 = 32 << 20;
        !self.limited
            && self.pair().is_some_and(|pair| {
                pair.limits.restart_peak().unwrap_or(false)
                    && pair.limits.accounts().memory_now.is_none_or(|now| now < MOST_CHARGED)
            })
    }

    /// [`Self::begin`] for an environment that waits for its command. Not where its descriptors rest: opening them for
    /// many would be paid for by every fork.
    pub(crate) fn begin_at_rest(&mut self) {
        if self.open.get().is_some() {
            self.begin();
            self.begun = true;
        }
    }

    /// [`Self::begin`], unless it has just waited.
    pub(crate) fn begin_unless_begun(&mut self) {
        if !std::mem::take(&mut self.begun) {
            self.begin();
        }
    }

    /// Notes what was used before the next command.
    pub(crate) fn begin(&mut self) {
        self.begun = false;
        // A reading that goes on is subtracted instead.
        let Some(pair) = self.pair() else { return };
        let _ = pair.limits.restart_peak();
        let Some(now) = self.usage_now() else { return };
        self.memory_before = now.memory_now.unwrap_or(0);
        self.oom_before = now.oom_kills.unwrap_or(0);
        self.cpu_before = now.cpu_us.unwrap_or(0);
        self.read_before = now.io_read.unwrap_or(0);
        self.written_before = now.io_write.unwrap_or(0);
    }
}
