//! The files of version 1.

use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, pread};

use super::Controller;
use super::group::{Folder, GroupUsage, write_file};

/// The quota's period, in microseconds: the kernel's default.
pub(super) const PERIOD_US: u64 = 100_000;

/// Descriptors of files that are read for every result: reading an open one costs 1.5 µs, opening it several times
/// that.
#[derive(Debug, Default)]
pub(super) struct KeptFiles {
    cpu: OnceCell<Option<OwnedFd>>,
    peak: OnceCell<Option<OwnedFd>>,
    now: OnceCell<Option<OwnedFd>>,
    oom: OnceCell<Option<OwnedFd>>,
    io: OnceCell<Option<OwnedFd>>,
}

pub(super) fn limit_memory(folder: &Folder, bytes: u64) -> rustix::io::Result<bool> {
    let value = bytes.to_string();
    // Memory with swap must never be below memory alone: raising needs the one order, lowering the other. The
    // second limit is not there on a host without swap accounting.
    let swap = "memory.memsw.limit_in_bytes";
    match write_if_there(folder, "memory.limit_in_bytes", &value) {
        Err(Errno::INVAL) => {
            write_if_there(folder, swap, &value)?;
            write_if_there(folder, "memory.limit_in_bytes", &value)
        }
        Ok(true) => write_if_there(folder, swap, &value).map(|_| true),
        other => other,
    }
}

pub(super) fn limit_cpus(folder: &Folder, cores: f64) -> rustix::io::Result<bool> {
    let Some(quota) = quota_us(cores) else { return Err(Errno::INVAL) };
    write_if_there(folder, "cpu.cfs_quota_us", &quota.to_string())
}

/// Microseconds of processor time a period; at least the kernel's minimum of one millisecond.
pub(super) fn quota_us(cores: f64) -> Option<u64> {
    let quota = cores * PERIOD_US as f64;
    (quota.is_finite() && quota > 0.0 && quota < 1e12).then(|| (quota.round() as u64).max(1_000))
}

/// False where the kernel has no such file.
pub(super) fn write_if_there(folder: &Folder, file: &str, value: &str) -> rustix::io::Result<bool> {
    match write_file(folder.descriptor.as_fd(), file, value.as_bytes()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

pub(super) fn add_usage(folder: &Folder, usage: &mut GroupUsage) {
    for controller in &folder.controllers {
        match controller {
            Controller::Memory => {
                usage.memory_peak = read_kept(folder, &folder.kept.peak, "memory.max_usage_in_bytes").and_then(number);
                usage.memory_now = read_kept(folder, &folder.kept.now, "memory.usage_in_bytes").and_then(number);
                usage.oom_kills = oom(folder).and_then(|text| keyed(&text, "oom_kill"));
            }
            Controller::CpuAccounting => {
                let nanoseconds = read_kept(folder, &folder.kept.cpu, "cpuacct.usage").and_then(number);
                usage.cpu_us = nanoseconds.map(|nanoseconds| nanoseconds / 1_000);
            }
            Controller::BlockIo => {
                let file = folder.kept.io.get_or_init(|| {
                    open(folder, "blkio.throttle.io_service_bytes_recursive")
                        .or_else(|| open(folder, "blkio.throttle.io_service_bytes"))
                });
                let text = file.as_ref().and_then(read_descriptor);
                if let Some((read, written)) = text.as_deref().map(block_io) {
                    (usage.io_read, usage.io_write) = (Some(read), Some(written));
                }
            }
            Controller::Cpu | Controller::Freezer | Controller::Pids => {}
        }
    }
}

/// The state of killing for want of memory.
pub(super) fn oom(folder: &Folder) -> Option<String> {
    read_kept(folder, &folder.kept.oom, "memory.oom_control")
}

/// Processes and threads now.
pub(super) fn count(folder: &Folder) -> Option<u64> {
    folder.controllers.contains(&Controller::Pids).then(|| read(folder, "pids.current").and_then(number)).flatten()
}

/// Starts a new peak, and nothing else: what [`reset`] does takes milliseconds. False where there is no such file.
pub(super) fn restart_peak(folder: &Folder) -> rustix::io::Result<bool> {
    if !folder.controllers.contains(&Controller::Memory) {
        return Ok(false);
    }
    let file = folder.kept.peak.get_or_init(|| open_both_ways(folder, "memory.max_usage_in_bytes"));
    let Some(file) = file else { return Ok(false) };
    rustix::io::pwrite(file, b"0", 0).map(|_| true)
}

pub(super) fn reset(folder: &Folder) -> rustix::io::Result<()> {
    for controller in &folder.controllers {
        match controller {
            Controller::Memory => {
                // Gives the page cache back that the last user left charged; it may fail, which only keeps it.
                let _ = write_if_there(folder, "memory.force_empty", "0");
                write_if_there(folder, "memory.max_usage_in_bytes", "0")?;
                write_if_there(folder, "memory.memsw.max_usage_in_bytes", "0")?;
            }
            Controller::CpuAccounting => {
                write_if_there(folder, "cpuacct.usage", "0")?;
            }
            Controller::BlockIo | Controller::Cpu | Controller::Pids | Controller::Freezer => {}
        }
    }
    Ok(())
}

/// `8:0 Read 4096` and `8:0 Write 0`, a line for each device and direction, as the sums of each.
fn block_io(text: &str) -> (u64, u64) {
    let (mut read, mut written) = (0, 0);
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some(direction), Some(Ok(bytes))) = (words.next(), words.next().map(str::parse::<u64>)) else { continue };
        match direction {
            "Read" => read += bytes,
            "Write" => written += bytes,
            _ => {}
        }
    }
    (read, written)
}

fn read_kept(folder: &Folder, kept: &OnceCell<Option<OwnedFd>>, file: &str) -> Option<String> {
    read_descriptor(kept.get_or_init(|| open(folder, file)).as_ref()?)
}

/// The text of a small file of the group; nothing where it is not there.
pub(super) fn read(folder: &Folder, file: &str) -> Option<String> {
    read_descriptor(&open(folder, file)?)
}

fn open(folder: &Folder, file: &str) -> Option<OwnedFd> {
    openat(&folder.descriptor, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

fn open_both_ways(folder: &Folder, file: &str) -> Option<OwnedFd> {
    openat(&folder.descriptor, file, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()
}

fn read_descriptor(file: &OwnedFd) -> Option<String> {
    let mut text = [0_u8; 4096];
    let length = pread(file, &mut text, 0).ok()?;
    Some(String::from_utf8_lossy(&text[..length]).into_owned())
}

/// A number alone in its file.
pub(super) fn number(text: String) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number behind a word, of a file with one such pair a line.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_are_summed_over_devices() {
        let text = "8:0 Read 4096\n8:0 Write 1\n8:0 Sync 9\n8:0 Total 4097\n254:0 Read 4\n254:0 Write 2\nTotal 4103\n";
        assert_eq!(block_io(text), (4100, 3));
        assert_eq!(block_io(""), (0, 0));
    }

    #[test]
    fn pairs_are_found_by_their_whole_word() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(keyed(text, "oom_kill"), Some(3));
        assert_eq!(keyed(text, "oom"), None);
    }

    #[test]
    fn cores_become_a_quota() {
        assert_eq!(quota_us(0.5), Some(50_000));
        assert_eq!(quota_us(0.000_1), Some(1_000));
        for nonsense in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(quota_us(nonsense), None);
        }
    }
}
