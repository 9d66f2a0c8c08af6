//! The files of version 2.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::Controller;
use super::group::{Folder, GroupUsage, write_file};
use super::v1::{PERIOD_US, keyed, number, quota_us, read, write_if_there};

/// Lets the groups below have every controller that this one has. Each alone: one that is refused (because this
/// group holds processes, or the host has none of it) must not take the others with it.
pub(super) fn hand_on_controllers(folder: &Folder) {
    let Some(available) = read(folder, "cgroup.controllers") else { return };
    let on = read(folder, "cgroup.subtree_control").unwrap_or_default();
    for name in Controller::ALL.into_iter().filter_map(Controller::v2_name) {
        let listed = |text: &str| text.split_ascii_whitespace().any(|word| word == name);
        if listed(&available) && !listed(&on) {
            let _ = write_file(folder.descriptor.as_fd(), "cgroup.subtree_control", format!("+{name}").as_bytes());
        }
    }
}

pub(super) fn limit_memory(folder: &Folder, bytes: u64) -> rustix::io::Result<bool> {
    let set = write_if_there(folder, "memory.max", &bytes.to_string())?;
    // In this version swap is counted apart: none, so that the limit means what it says.
    write_if_there(folder, "memory.swap.max", "0")?;
    Ok(set)
}

pub(super) fn limit_cpus(folder: &Folder, cores: f64) -> rustix::io::Result<bool> {
    let Some(quota) = quota_us(cores) else { return Err(Errno::INVAL) };
    write_if_there(folder, "cpu.max", &format!("{quota} {PERIOD_US}"))
}

pub(super) fn add_usage(folder: &Folder, usage: &mut GroupUsage) {
    usage.cpu_us = read(folder, "cpu.stat").and_then(|text| keyed(&text, "usage_usec"));
    usage.memory_peak = read(folder, "memory.peak").and_then(number);
    usage.memory_now = read(folder, "memory.current").and_then(number);
    usage.oom_kills = read(folder, "memory.events").and_then(|text| keyed(&text, "oom_kill"));
    usage.pids = read(folder, "pids.current").and_then(number);
    if let Some((read, written)) = read(folder, "io.stat").as_deref().map(block_io) {
        (usage.io_read, usage.io_write) = (Some(read), Some(written));
    }
}

pub(super) fn reset(folder: &Folder) -> rustix::io::Result<()> {
    // Since Linux 6.12 a write starts a peak of its own, but only for readers of that very descriptor: pools of
    // this version should make groups anew where the peak matters.
    match write_if_there(folder, "memory.reclaim", "1G") {
        // It could not find that much to give back, or cannot be asked: what stays charged is page cache.
        Ok(_) | Err(Errno::AGAIN | Errno::INVAL | Errno::ACCESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=…`, a line for each device, as the sums of bytes.
fn block_io(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let values = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
        values.sum()
    };
    (sum("rbytes="), sum("wbytes="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_summed_over_devices() {
        let text = "8:0 rbytes=90 wbytes=10 rios=3 wios=4 dbytes=5 dios=6\n8:16 rbytes=1 wbytes=2\n";
        assert_eq!(block_io(text), (91, 12));
        assert_eq!(block_io(""), (0, 0));
    }
}
