//! The kernel's own switches, devices, and ways around every mask.

use crate::attempt::{Prison, jailers};

#[test]
fn switches_of_the_whole_host_cannot_be_turned() {
    for user in jailers() {
        Prison::of(user).refuses(&[
            "echo '|/bin/evil' > /proc/sys/kernel/core_pattern",
            "echo h > /proc/sysrq-trigger",
            "echo 3 > /proc/sys/vm/drop_caches",
            "echo 1 > /proc/sys/kernel/panic",
            "echo /bin/evil > /proc/sys/kernel/modprobe",
            "echo mem > /sys/power/state",
            "mount -o remount,bind,rw /sys; echo mem > /sys/power/state",
            "mount -o remount,rw /sys; echo 64 > $(ls -d /sys/block/*/queue/nr_requests | head -1)",
            "mount -t sysfs x /mnt && echo mem > /mnt/power/state",
            "mount -t proc x /mnt && echo x > /mnt/sys/kernel/core_pattern",
            "mount -t debugfs x /mnt",
            "mount -t tracefs x /mnt",
            "mount -t securityfs x /mnt",
            "dmesg | grep .",
            "cat /proc/kcore | head -c 1 | grep -q .",
            "head -c 1 /proc/kmsg",
            "swapoff -a && test -n \"$(cat /proc/swaps | tail -n +2)\"",
            "date -s 2001-01-01",
            "echo -1000 > /proc/self/oom_score_adj",
        ]);
    }
}

#[test]
fn no_release_agent_can_be_set() {
    for user in jailers() {
        let controllers = ["cpu", "memory", "devices", "freezer", "pids", "blkio", "cpuset"];
        let attempts: Vec<String> = controllers
            .iter()
            .map(|name| format!("mkdir -p /tmp/{name} && mount -t cgroup -o {name} x /tmp/{name} && echo /evil > /tmp/{name}/release_agent"))
            .collect();
        Prison::of(user).refuses(&attempts.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn disks_cannot_be_reached() {
    for user in jailers() {
        Prison::of(user).refuses(&[
            "mknod /tmp/disk b 254 0",
            "mknod /tmp/disk b 8 0",
            "mknod /tmp/memory c 1 1",
            "ls /dev/vda /dev/sda /dev/mem /dev/kvm /dev/fuse /dev/loop-control 2>/dev/null | grep .",
            "umount -l /dev; ls /dev/vda /dev/sda /dev/mem 2>/dev/null | grep .",
            "mount -t devtmpfs x /mnt",
            "mount -t ext4 /dev/vda /mnt",
        ]);
    }
}

#[test]
fn nothing_of_ours_is_inherited_or_can_be_looked_into() {
    for user in jailers() {
        // Root of a container is root inside as well, and to it the kernel shows the numbers, but not what they are.
        if user.uid != 0 || testkit::user::is_host_root() {
            Prison::of(user).refuses(&["ls /proc/1/fd/"]);
        }
        Prison::of(user).refuses(&[
            "ls /proc/self/fd | grep -vxE '[0123]'",
            "readlink /proc/1/fd/*",
            "ls /proc/1/root/",
            "head -c 1 /proc/1/environ",
            "head -c 1 /proc/1/mem",
            "readlink /proc/1/exe",
            "nsenter --target 1 --mount true",
            "nsenter --target 1 --user true",
            "kill -9 1; kill -STOP 1; false",
        ]);
    }
}

/// What was covered when the root was made stays out of reach for who can unmount.
#[test]
fn what_lies_below_cannot_be_uncovered() {
    for user in jailers() {
        Prison::of(user).refuses(&[
            "umount -l /proc; umount -l /sys; umount -l /dev; ls /layers /store /scratch /host /submounts",
            "umount -l /; ls /layers /store /scratch /host",
            "unshare --user --map-root-user --mount sh -c 'umount -l /; ls /layers /store /scratch /host'",
            "unshare --user --map-root-user --mount sh -c 'mount -o remount,bind,rw /sys; echo mem > /sys/power/state'",
            "unshare --user --map-root-user --mount sh -c 'umount /dev; ls /dev/vda /dev/mem'",
            "mkdir -p /tmp/o/u /tmp/o/w && mount -t overlay x -o lowerdir=/layers/1,upperdir=/tmp/o/u,workdir=/tmp/o/w /mnt",
            "mkdir -p /tmp/p; cd /tmp/p && pivot_root . . && ls /layers",
        ]);
    }
}

/// A mask is only a path: a file handle would lead around it.
#[test]
fn files_cannot_be_opened_by_handle() {
    let script = "import ctypes,os,sys\n\
        c=ctypes.CDLL(None,use_errno=True)\n\
        h=(ctypes.c_char*136)();ctypes.memmove(h,(128).to_bytes(4,'little'),4)\n\
        m=ctypes.c_int()\n\
        r=c.syscall(303,-100,b'/etc/passwd',h,ctypes.byref(m),0)\n\
        d=os.open('/',os.O_RDONLY)\n\
        f=c.syscall(304,d,h,os.O_RDONLY)\n\
        sys.exit(0 if f>=0 else 1)\n";
    if !cfg!(target_arch = "x86_64") || testkit::Ability::Program("python3").check().is_err() {
        testkit::skip!("files cannot be opened by handle", "needs python3 on x86-64");
    }
    let attempt = format!("python3 -c \"{script}\"");
    for user in jailers() {
        Prison::of(user).refuses(&[&attempt]);
    }
}
