//! Attempts from inside, as the test's user and as its root, to reach what is not theirs. Each fails, and is seen to.

use testyard_model::{EnvironmentSpec, Isolation, UserSpec};
use testyard_protocol::{Exec, Place};

use super::ground::{Broken, Ground, environment, fresh, holds, said, same, shell};
use super::{Ability, Case};
use crate::client::caller;

const INSIDE: &[Ability] = &[Ability::Environments];
const MACHINE: &[Ability] = &[Ability::OwnRoot];

pub(super) const CASES: &[Case] = &[
    Case { name: "the kernel's settings cannot be written", needs: INSIDE, run: kernel_settings },
    Case { name: "the host's devices cannot be reached", needs: INSIDE, run: devices },
    Case { name: "cgroups of the host cannot be changed", needs: INSIDE, run: cgroups },
    Case { name: "the agent and the host's processes are out of reach", needs: INSIDE, run: processes },
    Case { name: "another environment's files are out of reach", needs: INSIDE, run: other_files },
    Case { name: "a mount goes with its environment", needs: INSIDE, run: mounts },
    Case { name: "dangerous system calls are refused", needs: INSIDE, run: system_calls },
    Case { name: "a machine does not show what is masked", needs: MACHINE, run: secrets },
    Case { name: "a machine's root is not the host's", needs: MACHINE, run: machine_root },
];

/// The test's user, and root where there is one.
fn everybody(ground: &Ground<'_>) -> Vec<EnvironmentSpec> {
    let mut users = vec![environment(Isolation::Namespace, caller())];
    if ground.has(Ability::Root) {
        users.push(environment(Isolation::Namespace, UserSpec::Root));
    }
    users
}

/// Runs each attempt as everybody; it must not print `escaped`.
fn none_escapes(ground: &Ground<'_>, attempts: &[&str]) -> Result<(), Broken> {
    for spec in everybody(ground) {
        for attempt in attempts {
            let captured = ground.run(fresh(&format!("{{ {attempt}; }} && echo escaped"), &spec))?;
            let output = String::from_utf8_lossy(&captured.stdout);
            if output.contains("escaped") {
                return Err(Broken::new(format!("`{attempt}` worked as {:?}", spec.user)));
            }
        }
    }
    Ok(())
}

fn kernel_settings(ground: &Ground<'_>) -> Result<(), Broken> {
    // What is written is what is there, so that even a success changes nothing.
    let rewrite = |path: &str| format!("value=$(cat {path}) && printf %s \"$value\" > {path}");
    let attempts = [
        rewrite("/proc/sys/kernel/core_pattern"),
        rewrite("/proc/sys/kernel/modprobe"),
        rewrite("/proc/sys/vm/overcommit_memory"),
        rewrite("/proc/sys/fs/binfmt_misc/status"),
        rewrite("/sys/kernel/uevent_helper"),
        rewrite("/sys/block/*/queue/read_ahead_kb"),
        "printf '' > /sys/power/state".to_owned(),
        "printf h > /proc/sysrq-trigger".to_owned(),
        "printf '' > /proc/kcore".to_owned(),
        "head -c 1 /proc/kcore".to_owned(),
        "head -c 1 /dev/mem".to_owned(),
        "head -c 1 /dev/kmsg".to_owned(),
    ];
    none_escapes(ground, &attempts.iter().map(String::as_str).collect::<Vec<_>>())
}

fn devices(ground: &Ground<'_>) -> Result<(), Broken> {
    let attempts = [
        "mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk",
        "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk",
        "mknod /tmp/memory c 1 1 && head -c 1 /tmp/memory",
        "ls /dev/sda /dev/vda /dev/nvme0n1 /dev/mem /dev/port /dev/kvm 2>/dev/null | grep -q .",
    ];
    none_escapes(ground, &attempts)?;
    for spec in everybody(ground) {
        let usual = "echo x > /dev/null && head -c 1 /dev/zero | wc -c && test -c /dev/urandom && test -d /dev/shm";
        same("the usual devices", ground.told(fresh(usual, &spec))?, "1".to_owned())?;
    }
    Ok(())
}

fn cgroups(ground: &Ground<'_>) -> Result<(), Broken> {
    none_escapes(
        ground,
        &[
            "for f in /sys/fs/cgroup/release_agent /sys/fs/cgroup/*/release_agent; do printf %s /tmp/x > $f && exit 0; done 2>/dev/null; false",
            "mkdir /tmp/cg && mount -t cgroup -o rdma cgroup /tmp/cg && printf /tmp/x > /tmp/cg/release_agent",
            "grep -l . /sys/fs/cgroup/*/tasks /sys/fs/cgroup/cgroup.procs 2>/dev/null | xargs -r cat | grep -qx 1 && test $(ls -d /proc/[0-9]* | wc -l) -gt 20",
        ],
    )
}

fn processes(ground: &Ground<'_>) -> Result<(), Broken> {
    let own = std::process::id();
    let attempts = [
        format!("grep -qs contract /proc/{own}/cmdline"),
        "ls /proc/1/root/scratch /proc/1/root/store /proc/1/root/layers 2>/dev/null | grep -q .".to_owned(),
        "for p in /proc/[0-9]*; do ls $p/root/store/upper 2>/dev/null | grep -q . && exit 0; done; false".to_owned(),
        "nsenter -t 1 -m true && test -e /proc/1/root/store".to_owned(),
    ];
    none_escapes(ground, &attempts.iter().map(String::as_str).collect::<Vec<_>>())
}

fn other_files(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    let mut connection = ground.connect()?;
    let id = connection.environment(&environment(Isolation::Namespace, caller()))?;
    let exec = Exec {
        place: Place::Environment(id),
        ..shell(&format!("echo secret > /tmp/secret-{mark}; chmod 666 /tmp/secret-{mark}"))
    };
    said(&connection.capture(exec, &[])?)?;
    let attempts = [
        format!("cat /tmp/secret-{mark}"),
        format!("cat /proc/*/root/tmp/secret-{mark} 2>/dev/null | grep -q secret"),
        format!("find /tmp /var/tmp /dev /run /home /mnt /opt -name secret-{mark} 2>/dev/null | grep -q ."),
    ];
    none_escapes(ground, &attempts.iter().map(String::as_str).collect::<Vec<_>>())?;
    connection.release(id)?;
    Ok(())
}

fn mounts(ground: &Ground<'_>) -> Result<(), Broken> {
    let before = ground.told(shell("wc -l < /proc/self/mounts"))?;
    let host = std::fs::read_to_string("/proc/self/mounts")?;
    for spec in everybody(ground) {
        ground.run(fresh(
            "mount -t tmpfs contract-mount /mnt; mount --make-rshared /; mount -t tmpfs contract-mount /opt; :",
            &spec,
        ))?;
    }
    same("the machine's mounts", ground.told(shell("wc -l < /proc/self/mounts"))?, before)?;
    let leaked =
        std::fs::read_to_string("/proc/self/mounts")?.contains("contract-mount") && !host.contains("contract-mount");
    holds("the host's mounts are without it", !leaked)
}

fn system_calls(ground: &Ground<'_>) -> Result<(), Broken> {
    // By number on x86_64; elsewhere they are other calls, which need other privileges that are not there either.
    if std::env::consts::ARCH != "x86_64" {
        return Ok(());
    }
    // kexec_load, init_module, delete_module, bpf, perf_event_open, open_by_handle_at, swapon, acct, keyctl
    let calls: [(u32, &str); 9] = [
        (246, "0, 0, 0, 0"),
        (175, "0, 0, 0"),
        (176, "0, 0"),
        (321, "0, 0, 0"),
        (298, "0, 0, -1, -1, 0"),
        (304, "0, 0, 0"),
        (167, "0, 0"),
        (163, "0"),
        (250, "0, 0, 0, 0, 0"),
    ];
    for spec in everybody(ground) {
        for (number, arguments) in calls {
            let script =
                format!("perl -e 'my $r = syscall({number}, {arguments}); print $r == -1 ? $!+0 : \"worked\"'");
            let seen = ground.told(fresh(&script, &spec))?;
            // EPERM, EACCES or ENOSYS: refused before its arguments were looked at.
            holds(
                format!("system call {number} is refused, not answered with {seen}"),
                ["1", "13", "38"].contains(&seen.as_str()),
            )?;
        }
    }
    Ok(())
}

fn secrets(ground: &Ground<'_>) -> Result<(), Broken> {
    for path in ground.fixture.secrets() {
        let mut users = vec![caller()];
        if ground.has(Ability::Root) {
            users.push(UserSpec::Root);
        }
        for user in users {
            let mut exec =
                shell(r#"if test -d "$SECRET"; then ls -A "$SECRET"; else cat "$SECRET"; fi 2>/dev/null; :"#);
            exec.env.push(("SECRET".into(), path.as_path().into()));
            exec.user = Some(user);
            let seen = ground.told(exec)?;
            // A stand-in may be shown; what the host has may not.
            let truth = if path.is_dir() { None } else { std::fs::read_to_string(&path).ok() };
            let shown = match truth {
                Some(truth) => seen == truth.trim(),
                None => !seen.is_empty(),
            };
            holds(format!("{} is hidden: {seen:.60}", path.display()), !shown || path.metadata().is_err())?;
        }
    }
    Ok(())
}

fn machine_root(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    let path = format!("/var/tmp/contract-{mark}");
    said(&ground.sh(&format!("echo inside > {path}"))?)?;
    holds("the host does not have the machine's file", !std::path::Path::new(&path).exists())?;
    said(&ground.sh(&format!("rm {path}"))?).map(|_| ())
}
