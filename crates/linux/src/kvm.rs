//! Whether a virtual processor really runs: not that `/dev/kvm` opens, but that a guest's
//! instructions are executed.
//!
//! There are hosts where the device opens, machines and processors can be made, and the first
//! instruction never returns; and others (nested without hardware help) whose kernel emulates each
//! instruction, a hundred times slower than QEMU's own emulation. So the guest runs in the mode that
//! kernels use, counts to a number that only a real processor reaches in time, and does so in a
//! child process with a deadline.

use std::time::Duration;

/// What became of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmVerdict {
    /// It wrote what it should and halted.
    Runs,
    /// There is no `/dev/kvm`.
    NoDevice,
    /// A step failed, or the processor is of no use: a lower-case fragment that says why.
    Refused(String),
    /// It had not executed its first instructions at the deadline.
    Hangs,
}

/// Runs 40 million long-mode instructions on a virtual processor, for at most `deadline`.
///
/// A real processor takes about 20 ms; give it a second, for a busy host.
/// Works from a multi-threaded process: the child makes only system calls.
#[must_use]
pub fn run_guest_instructions(deadline: Duration) -> KvmVerdict {
    guest::run(deadline)
}

#[cfg(not(target_arch = "x86_64"))]
mod guest {
    use super::{Duration, KvmVerdict};

    pub(super) fn run(_deadline: Duration) -> KvmVerdict {
        match std::fs::metadata("/dev/kvm") {
            Err(_) => KvmVerdict::NoDevice,
            Ok(_) => KvmVerdict::Refused("this probe has no guest for this processor".to_owned()),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod guest {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::time::Instant;

    use rustix::event::{PollFd, PollFlags};
    use rustix::process::{Pid, PidfdFlags, Signal};

    use super::{Duration, KvmVerdict};

    const CREATE_VM: u64 = 0xae01;
    const CREATE_VCPU: u64 = 0xae41;
    const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
    const GET_VCPU_MMAP_SIZE: u64 = 0xae04;
    const RUN: u64 = 0xae80;
    const GET_REGS: u64 = 0x8090_ae81;
    const SET_REGS: u64 = 0x4090_ae82;
    const GET_SREGS: u64 = 0x8138_ae83;
    const SET_SREGS: u64 = 0x4138_ae84;
    const EXIT_IO: u32 = 2;
    const EXIT_HLT: u32 = 5;

    /// The guest's memory: 2 MiB from address 0, mapped one to one by one large page.
    const MEMORY: usize = 2 << 20;
    const CODE_AT: usize = 0x1000;
    const TABLES_AT: usize = 0x2000;
    /// `mov al, 42; out 0xe9, al; mov ecx, 20000000; again: dec ecx; jnz again; mov al, 43; out 0xe9, al; hlt`.
    const CODE: [u8; 18] =
        [0xb0, 42, 0xe6, PORT, 0xb9, 0x00, 0x2d, 0x31, 0x01, 0xff, 0xc9, 0x75, 0xfc, 0xb0, 43, 0xe6, PORT, 0xf4];
    const PORT: u8 = 0xe9;
    /// What the child says between the guest's two halves, in the place of a step.
    const COUNTING: u8 = 0xff;

    const STEPS: [&str; 10] = [
        "ran",
        "open /dev/kvm",
        "create a virtual machine",
        "give it memory",
        "create a virtual processor",
        "map the processor's state",
        "set the processor's registers",
        "run the processor",
        "see the expected output",
        "see the processor halt",
    ];

    /// A step that failed, by its place in [`STEPS`], and its errno.
    type Failure = (u8, i32);

    #[repr(C)]
    struct MemoryRegion {
        slot: u32,
        flags: u32,
        guest_address: u64,
        size: u64,
        host_address: u64,
    }

    pub(super) fn run(deadline: Duration) -> KvmVerdict {
        let until = Instant::now() + deadline;
        let refused =
            |what: &str, errno: &dyn std::fmt::Display| KvmVerdict::Refused(format!("cannot {what}: {errno}"));
        let (reader, writer) = match rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) {
            Ok(ends) => ends,
            Err(errno) => return refused("make a pipe", &errno),
        };
        // SAFETY: the child below makes system calls only, allocates nothing and never returns, so
        // locks that other threads of this process hold at this moment do not matter to it.
        let forked = unsafe { libc::fork() };
        if forked < 0 {
            return refused("fork", &std::io::Error::last_os_error());
        }
        let Some(pid) = Pid::from_raw(forked) else {
            let (step, errno) = guest(&writer).err().unwrap_or((0, 0));
            say(&writer, step, errno);
            // SAFETY: ends this child without running anything of the parent's.
            unsafe { libc::_exit(0) }
        };
        drop(writer);
        let ended = wait_until(pid, until);
        // The writer is gone, so this ends; the child said at most two things of five bytes.
        let mut said = [0; 16];
        let length = rustix::io::read(&reader, &mut said).unwrap_or(0);
        match said[..length].chunks_exact(5).next_back() {
            Some([0, ..]) => KvmVerdict::Runs,
            Some([COUNTING, ..]) => KvmVerdict::Refused(format!(
                "a guest's first instructions ran, but 40 million took longer than {deadline:?}: \
                 this kernel emulates its guests"
            )),
            Some([step, a, b, c, d]) => {
                let errno = i32::from_ne_bytes([*a, *b, *c, *d]);
                if *step == 1 && matches!(errno, libc::ENOENT | libc::ENXIO | libc::ENODEV) {
                    return KvmVerdict::NoDevice;
                }
                let what = STEPS.get(usize::from(*step)).copied().unwrap_or("run");
                if errno == 0 {
                    return KvmVerdict::Refused(format!("did not {what}"));
                }
                refused(what, &std::io::Error::from_raw_os_error(errno))
            }
            _ if ended => KvmVerdict::Refused("the guest's process died".to_owned()),
            _ => KvmVerdict::Hangs,
        }
    }

    /// Five bytes in one write: a step and an errno.
    fn say(writer: &OwnedFd, step: u8, errno: i32) {
        let [a, b, c, d] = errno.to_ne_bytes();
        let _ = rustix::io::write(writer, &[step, a, b, c, d]);
    }

    /// Waits for the child; at the deadline it is killed. Says whether it ended by itself.
    fn wait_until(pid: Pid, until: Instant) -> bool {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty());
        let poll = |until: Instant| {
            let Ok(pidfd) = &pidfd else { return false };
            loop {
                let left = until.saturating_duration_since(Instant::now());
                let Ok(timeout) = rustix::event::Timespec::try_from(left) else { return false };
                match rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
                    Err(rustix::io::Errno::INTR) => {}
                    answer => return answer.is_ok_and(|ready| ready > 0),
                }
            }
        };
        let ended = poll(until);
        if !ended {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            // One that cannot even be killed is left behind rather than waited for.
            if !poll(Instant::now() + Duration::from_secs(2)) {
                return false;
            }
        }
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        ended
    }

    fn errno() -> i32 {
        std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
    }

    fn ioctl(file: &impl AsRawFd, request: u64, argument: usize, step: u8) -> Result<i32, Failure> {
        // SAFETY: each caller passes a number, or the address of a live value of the request's own
        // layout.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
        if answer < 0 { Err((step, errno())) } else { Ok(answer) }
    }

    fn owned(raw: i32) -> OwnedFd {
        // SAFETY: called with descriptors that the kernel has just returned to us.
        unsafe { OwnedFd::from_raw_fd(raw) }
    }

    fn map(length: usize, flags: i32, file: i32, step: u8) -> Result<*mut u8, Failure> {
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0) };
        if address == libc::MAP_FAILED { Err((step, errno())) } else { Ok(address.cast()) }
    }

    /// Makes the machine and runs it. Mappings and descriptors go with the process.
    fn guest(writer: &OwnedFd) -> Result<(), Failure> {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let kvm = rustix::fs::open(c"/dev/kvm", flags, rustix::fs::Mode::empty())
            .map_err(|errno| (1, errno.raw_os_error()))?;
        let machine = owned(ioctl(&kvm, CREATE_VM, 0, 2)?);
        let memory = map(MEMORY, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 3)?;
        fill(memory);
        let region =
            MemoryRegion { slot: 0, flags: 0, guest_address: 0, size: MEMORY as u64, host_address: memory as u64 };
        ioctl(&machine, SET_USER_MEMORY_REGION, (&raw const region) as usize, 3)?;
        let processor = owned(ioctl(&machine, CREATE_VCPU, 0, 4)?);
        let length = ioctl(&kvm, GET_VCPU_MMAP_SIZE, 0, 5)? as usize;
        let state = map(length, libc::MAP_SHARED, processor.as_raw_fd(), 5)?;
        set_registers(&processor)?;
        run_until_output(&processor, state, length, 42)?;
        say(writer, COUNTING, 0);
        run_until_output(&processor, state, length, 43)?;
        ioctl(&processor, RUN, 0, 7)?;
        if word(state, 8) == EXIT_HLT { Ok(()) } else { Err((9, 0)) }
    }

    /// Writes the code, and page tables of three levels with one 2 MiB page.
    fn fill(memory: *mut u8) {
        let code = memory.wrapping_add(CODE_AT);
        // SAFETY: the fresh mapping is writable and longer than the code's end.
        unsafe { std::ptr::copy_nonoverlapping(CODE.as_ptr(), code, CODE.len()) };
        let present_and_writable = 3;
        let large_page = 0x80;
        let entries = [TABLES_AT + 0x1000, TABLES_AT + 0x2000, large_page];
        for (level, entry) in entries.into_iter().enumerate() {
            let at = memory.wrapping_add(TABLES_AT + level * 0x1000).cast::<u64>();
            // SAFETY: the start of a page inside of the fresh, writable mapping.
            unsafe { at.write((entry | present_and_writable) as u64) };
        }
    }

    fn word(state: *mut u8, offset: usize) -> u32 {
        let address = state.wrapping_add(offset).cast::<u32>();
        // SAFETY: every caller asks for an aligned offset inside of the mapping, to which the
        // kernel writes only while we are inside of RUN.
        unsafe { address.read_volatile() }
    }

    /// Runs until the guest writes one byte to our port, which must be this one.
    fn run_until_output(processor: &OwnedFd, state: *mut u8, length: usize, byte: u32) -> Result<(), Failure> {
        ioctl(processor, RUN, 0, 7)?;
        // struct kvm_run: exit_reason at 8; of port IO: the port in the upper half of the word at
        // 32, the data's offset at 40.
        if word(state, 8) != EXIT_IO || word(state, 32) >> 16 != u32::from(PORT) {
            return Err((8, 0));
        }
        let data = word(state, 40) as usize;
        if data + 4 > length || word(state, data & !3) >> (8 * (data & 3)) & 0xff != byte {
            return Err((8, 0));
        }
        Ok(())
    }

    /// Long mode with paging, flat segments, the first instruction at [`CODE_AT`].
    fn set_registers(processor: &OwnedFd) -> Result<(), Failure> {
        // struct kvm_sregs as its 39 words: eight segments of three, two tables of two, then
        // cr0, cr2, cr3, cr4, cr8, efer.
        let mut special = [0_u64; 39];
        ioctl(processor, GET_SREGS, special.as_mut_ptr() as usize, 6)?;
        // base; limit, selector, type and present; flags: a segment, long or 32 bits, in pages.
        let segment =
            |selector: u64, kind: u64, flags: u64| [0, 0xffff_ffff | selector << 32 | kind << 48 | 1 << 56, flags];
        let code = segment(8, 11, 1 << 16 | 1 << 24 | 1 << 32);
        let data = segment(16, 3, 1 << 8 | 1 << 16 | 1 << 32);
        special[..3].copy_from_slice(&code);
        for place in special[3..18].chunks_exact_mut(3) {
            place.copy_from_slice(&data);
        }
        special[28] = 0x8005_0033; // protection, paging, and what every kernel sets beside them
        special[30] = TABLES_AT as u64;
        special[31] = 0x20; // physical address extension
        special[33] = 0x500; // long mode, enabled and active
        ioctl(processor, SET_SREGS, special.as_ptr() as usize, 6)?;
        // struct kvm_regs is 18 words; rip and rflags are the last two. Bit 1 of rflags is always set.
        let mut registers = [0_u64; 18];
        ioctl(processor, GET_REGS, registers.as_mut_ptr() as usize, 6)?;
        registers[16] = CODE_AT as u64;
        registers[17] = 2;
        ioctl(processor, SET_REGS, registers.as_ptr() as usize, 6)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_answer_comes_in_time() {
        let start = Instant::now();
        let verdict = run_guest_instructions(Duration::from_millis(500));

        // Which answer is the host's affair; that there is one is ours. The bound is far above the
        // deadline, so that a loaded host does not matter.
        assert!(start.elapsed() < Duration::from_secs(60), "{verdict:?}");
        if !std::path::Path::new("/dev/kvm").exists() {
            assert_eq!(verdict, KvmVerdict::NoDevice);
        }
    }
}
