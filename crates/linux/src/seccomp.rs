//! The system call filter of machines and environments.
//!
//! Everything is allowed but a list: calls that reach the whole host without asking for a capability in a user
//! namespace that counts, or whose capability `privileged` machines have. It is the second wall: the first is that
//! root inside is not root outside. Filters are inherited and cannot be taken off.
//!
//! The programs are classic BPF, built by the compiler: installing one is one system call. The kernel works out
//! beforehand which calls a filter always allows, so those that tests are made of cost nothing.

use crate::error::{Context, Result, checked};

/// Which filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// For everything that runs in a machine or an environment.
    Confined,
    /// For `privileged` machines: only what no test needs is refused, input into another's terminal and foreign
    /// system call tables.
    Privileged,
}

/// Installs the filter for this thread and everything below it. Needs [`crate::process::set_no_new_privileges`]
/// before, or `CAP_SYS_ADMIN` in this user namespace.
///
/// # Errors
/// `EACCES` without either of the two, `EINVAL` where the kernel has no filters.
pub fn install_default(profile: Profile) -> Result<()> {
    let program: &[libc::sock_filter] = match profile {
        Profile::Confined => &CONFINED,
        Profile::Privileged => &PRIVILEGED,
    };
    let program = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        // The kernel only reads, its structure just does not say so.
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program's pointer and length are those of a static array, which the kernel copies.
    let returned = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    checked(returned).map(drop).context("install", || "the system call filter")
}

/// Refused with `EPERM`, as the kernel itself refuses them to an ordinary user.
const DENIED: [libc::c_long; 21] = [
    // Another kernel, or code in this one.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_bpf,
    // Looks into other processes and the kernel, and has been a way in more than once.
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_syslog,
    libc::SYS_lookup_dcookie,
    // Opens any file of a file system, past every mask.
    libc::SYS_open_by_handle_at,
    // The host's swap, accounting, quotas, clock, terminals.
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
    libc::SYS_reboot,
];

/// Refused with `ENOSYS`: programs then do without. Keyrings belong to user ids, not to namespaces, and container
/// runtimes inside a machine take only this answer for "not here".
const ABSENT: [libc::c_long; 3] = [libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Numbers from here on are of the x32 table, which lives under the same architecture on x86-64. (No other
/// architecture has numbers that large.)
const FOREIGN_TABLE: u32 = 0x4000_0000;

/// Where the kernel puts the number, the architecture, and the low half of the second argument.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const SECOND_ARGUMENT: u32 = 24;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const NOT_PERMITTED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const NOT_IMPLEMENTED: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Load and compare the architecture, load and compare the number's table, compare with `ioctl`, load and compare
/// its request twice, and the three answers.
const FRAME: usize = 11;

static CONFINED: [libc::sock_filter; FRAME + DENIED.len() + ABSENT.len()] = program(&DENIED, &ABSENT);
static PRIVILEGED: [libc::sock_filter; FRAME] = program(&[], &[]);

const fn instruction(code: u16, k: u32, jt: usize, jf: usize) -> libc::sock_filter {
    assert!(jt < 256 && jf < 256, "a jump is at most 255 instructions long");
    libc::sock_filter { code, jt: jt as u8, jf: jf as u8, k }
}

/// The program with these lists, N instructions long.
///
/// ```text
///   0  load architecture
///   1  other than ours: to NOT_IMPLEMENTED
///   2  load number
///   3  of the x32 table: to NOT_IMPLEMENTED
///   4… one of ABSENT: to NOT_IMPLEMENTED
///   …  one of DENIED: to NOT_PERMITTED
///   …  other than ioctl: to ALLOWED
///   …  load the request; TIOCSTI, TIOCLINUX: to NOT_PERMITTED
///  -3  ALLOWED
///  -2  NOT_PERMITTED
///  -1  NOT_IMPLEMENTED
/// ```
const fn program<const N: usize>(denied: &[libc::c_long], absent: &[libc::c_long]) -> [libc::sock_filter; N] {
    assert!(N == FRAME + denied.len() + absent.len(), "the program's length is that of its lists");
    let (allowed, not_permitted, not_implemented) = (N - 3, N - 2, N - 1);
    let mut program = [instruction(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0); N];
    program[0] = instruction(LOAD, ARCH, 0, 0);
    program[1] = instruction(IF_EQUAL, ARCHITECTURE, 0, not_implemented - 2);
    program[2] = instruction(LOAD, NUMBER, 0, 0);
    program[3] = instruction(IF_AT_LEAST, FOREIGN_TABLE, not_implemented - 4, 0);
    let mut at = 4;
    let mut index = 0;
    while index < absent.len() {
        program[at] = instruction(IF_EQUAL, absent[index] as u32, not_implemented - at - 1, 0);
        at += 1;
        index += 1;
    }
    index = 0;
    while index < denied.len() {
        program[at] = instruction(IF_EQUAL, denied[index] as u32, not_permitted - at - 1, 0);
        at += 1;
        index += 1;
    }
    program[at] = instruction(IF_EQUAL, libc::SYS_ioctl as u32, 0, allowed - at - 1);
    program[at + 1] = instruction(LOAD, SECOND_ARGUMENT, 0, 0);
    program[at + 2] = instruction(IF_EQUAL, libc::TIOCSTI as u32, not_permitted - at - 3, 0);
    program[at + 3] = instruction(IF_EQUAL, libc::TIOCLINUX as u32, not_permitted - at - 4, 0);
    program[not_permitted] = instruction(RETURN, NOT_PERMITTED, 0, 0);
    program[not_implemented] = instruction(RETURN, NOT_IMPLEMENTED, 0, 0);
    program
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::process::{set_no_new_privileges, set_session};
    use crate::trial::in_child;

    /// Makes a call by number with zeroes and returns how it failed.
    fn refusal(number: libc::c_long, second: libc::c_ulong) -> Errno {
        // SAFETY: none of the calls tried here is let through by the filter, so no argument is looked at.
        let returned = unsafe { libc::syscall(number, -1, second, 0, 0, 0) };
        assert_eq!(returned, -1, "call {number} was let through");
        Errno::from_io_error(&std::io::Error::last_os_error()).expect("a failed call has a number")
    }

    #[test]
    fn the_confined_filter_refuses_its_list_and_nothing_else() {
        in_child(|| {
            set_no_new_privileges().expect("anybody may give privileges up");
            install_default(Profile::Confined).expect("a filter can be installed");
            for number in ABSENT {
                assert_eq!(refusal(number, 0), Errno::NOSYS, "call {number}");
            }
            for number in DENIED {
                assert_eq!(refusal(number, 0), Errno::PERM, "call {number}");
            }
            assert_eq!(refusal(libc::SYS_ioctl, libc::TIOCSTI), Errno::PERM);
            // The kernel looks at the request's low half only: so must the filter.
            assert_eq!(refusal(libc::SYS_ioctl, libc::TIOCSTI | 0xffff_ffff_0000_0000), Errno::PERM);
            assert_eq!(refusal(libc::SYS_ioctl, libc::TIOCLINUX), Errno::PERM);
            // Let through, and refused by the kernel itself for the descriptor.
            assert_eq!(refusal(libc::SYS_ioctl, libc::TIOCGWINSZ), Errno::BADF);
            assert_eq!(refusal(libc::SYS_getpid | 0x4000_0000, 0), Errno::NOSYS);
            set_session().expect("ordinary calls go on");
            install_default(Profile::Confined).expect("filters can be stacked");
        });
    }

    #[test]
    fn the_privileged_filter_refuses_terminal_input_only() {
        in_child(|| {
            // A filter that is in force already refuses more, and cannot be taken off.
            if refusal(libc::SYS_keyctl, 0) == Errno::NOSYS {
                crate::trial::skip("a process without a system call filter");
            }
            set_no_new_privileges().expect("anybody may give privileges up");
            install_default(Profile::Privileged).expect("a filter can be installed");
            assert_eq!(refusal(libc::SYS_ioctl, libc::TIOCSTI), Errno::PERM);
            assert_ne!(refusal(libc::SYS_keyctl, 0), Errno::NOSYS);
        });
    }

    #[test]
    fn without_giving_up_privileges_an_ordinary_user_gets_no_filter() {
        in_child(|| {
            crate::trial::become_ordinary();
            let error = install_default(Profile::Confined).expect_err("the kernel insists");
            assert_eq!(error.errno(), Errno::ACCESS);
        });
    }
}
