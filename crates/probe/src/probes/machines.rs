//! Other ways to machines: virtual processors, QEMU, OCI runtimes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use testyard_linux::kvm::{KvmVerdict, run_guest_instructions};
use testyard_linux::mount;
use testyard_linux::process::CloneFlags;

use crate::finding::{Done, Lacking, Outcome, Step};
use crate::inside::{Users, inside};
use crate::probes::programs::{command, failed, find, require};
use crate::{host, provide, scratch};

/// What a real processor needs twenty milliseconds for, on a host that is busy.
const GUEST_DEADLINE: Duration = Duration::from_secs(1);

pub(crate) fn kvm() -> Outcome {
    match run_guest_instructions(GUEST_DEADLINE) {
        KvmVerdict::Runs => Ok(Done::new("a guest ran 40 million instructions")),
        KvmVerdict::NoDevice => Err(Lacking::new("there is no /dev/kvm")
            .provide("enable virtualization in the firmware, or nested virtualization on the outer host")),
        KvmVerdict::Refused(reason) => {
            let lacking = Lacking::new(reason);
            let may_open = rustix::fs::access("/dev/kvm", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK);
            if may_open.is_ok() {
                Err(lacking)
            } else {
                Err(lacking.provide(provide::as_root("usermod -aG kvm \"$USER\"")))
            }
        }
        KvmVerdict::Hangs => Err(Lacking::new(format!(
            "/dev/kvm opens, but a guest's first instructions did not run within {GUEST_DEADLINE:?}"
        ))),
    }
}

pub(crate) fn qemu() -> Outcome {
    let architecture = std::env::consts::ARCH;
    let package = if architecture == "aarch64" { "qemu-system-arm" } else { "qemu-system-x86" };
    let program = require(&format!("qemu-system-{architecture}"), package)?;
    let mut child = command(&program)
        .args(["-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .spawn()
        .step("starting QEMU")?;
    if let Some(mut input) = child.stdin.take() {
        // One that ended at once has said why on stderr.
        let _ = input.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n");
    }
    let output = child.wait_with_output().step("waiting for QEMU")?;
    let version = String::from_utf8_lossy(&output.stdout).lines().find_map(|line| {
        let greeting: Value = serde_json::from_str(line).ok()?;
        let version = greeting.get("QMP")?.get("version")?.get("qemu")?;
        Some(format!("{}.{}.{}", version.get("major")?, version.get("minor")?, version.get("micro")?))
    });
    match version {
        Some(version) if output.status.success() => Ok(Done::new(format!("QEMU {version} started and answered"))),
        _ => Err(failed("QEMU", &output)),
    }
}

const RUNTIMES: [&str; 3] = ["crun", "runc", "youki"];

/// The first runtime that runs a container wins; what the others said is told too.
pub(crate) fn oci_runtime() -> Outcome {
    let mut refusals = Vec::new();
    let mut works = Vec::new();
    for name in RUNTIMES {
        let Some(program) = find(name) else { continue };
        match run_container(name, &program) {
            Ok(how) => works.push(format!("{name}{how}")),
            Err(lacking) => refusals.push(lacking.reason),
        }
    }
    let refused = refusals.join("; ");
    match (works.is_empty(), refusals.is_empty()) {
        (true, true) => {
            Err(Lacking::new("neither crun nor runc nor youki is installed").provide(provide::package("crun", "crun")))
        }
        (true, false) => Err(Lacking::new(refused)),
        (false, true) => Ok(Done::new(format!("a container was run by {}", works.join(" and by ")))),
        (false, false) => Ok(Done::new(format!("a container was run by {}", works.join(" and by "))).detail(refused)),
    }
}

fn run_container(name: &str, program: &Path) -> Result<&'static str, Lacking> {
    let folder = scratch::folder()?;
    let plain = run_bundle(name, program, &folder.join(name));
    let Err(lacking) = plain else { return Ok("") };
    // crun refuses controllers of version 1 beside an empty version 2; without the sight of the latter it runs.
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !host::is_full_root() || !unified.is_dir() {
        return Err(lacking);
    }
    let program = program.to_owned();
    let hidden = inside(CloneFlags::NEWNS, &Users::Same, || {
        mount::make_all_private()?;
        mount::detach(unified)?;
        run_bundle(name, &program, &folder.join(format!("{name}-hidden")))?;
        Ok(Done::new(""))
    });
    hidden.map(|_| " (with the empty /sys/fs/cgroup/unified hidden)").map_err(|_| lacking)
}

/// Runs `true` in a container whose root is made of the host's system folders.
fn run_bundle(name: &str, program: &Path, folder: &Path) -> Result<(), Lacking> {
    let root = folder.join("rootfs");
    for made in ["proc", "dev", "usr"] {
        std::fs::create_dir_all(root.join(made)).step("making a bundle")?;
    }
    let mut binds = vec!["/usr".to_owned()];
    for top in ["bin", "sbin", "lib", "lib64"] {
        let host = PathBuf::from("/").join(top);
        if let Ok(target) = std::fs::read_link(&host) {
            std::os::unix::fs::symlink(target, root.join(top)).step("making a bundle")?;
        } else if host.is_dir() {
            std::fs::create_dir_all(root.join(top)).step("making a bundle")?;
            binds.push(host.display().to_string());
        }
    }
    std::fs::write(folder.join("config.json"), configuration(&binds).to_string()).step("writing a bundle")?;
    let id = format!("testyard-probe-{}", std::process::id());
    let state = folder.join("state");
    let output = command(program)
        .arg("--root")
        .arg(&state)
        .args(["run", "--bundle"])
        .arg(folder)
        .arg(&id)
        .output()
        .step(format_args!("starting {name}"))?;
    if output.status.success() {
        return Ok(());
    }
    let _ = command(program).arg("--root").arg(&state).args(["delete", "--force", &id]).output();
    Err(failed(name, &output))
}

/// The smallest configuration that is a container.
fn configuration(binds: &[String]) -> Value {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
    ];
    mounts.extend(
        binds
            .iter()
            .map(|path| json!({"destination": path, "type": "bind", "source": path, "options": ["bind", "ro"]})),
    );
    let mut namespaces =
        vec![json!({"type": "pid"}), json!({"type": "mount"}), json!({"type": "ipc"}), json!({"type": "uts"})];
    let mut linux = json!({});
    if !host::is_full_root() {
        namespaces.push(json!({"type": "user"}));
        let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
        linux["uidMappings"] = map(rustix::process::geteuid().as_raw());
        linux["gidMappings"] = map(rustix::process::getegid().as_raw());
    }
    linux["namespaces"] = Value::Array(namespaces);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["/usr/bin/true"],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "testyard-probe",
        "mounts": mounts,
        "linux": linux,
    })
}
