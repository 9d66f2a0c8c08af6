//! What people use instead, each with its own defaults, as whole processes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use testyard_model::{Problem, ProblemKind};

use crate::Options;
use crate::environments::{PAYLOAD, make_folder, told_in_one_line};
use crate::programs::failed;
use crate::report::{Goal, Row};
use testyard_measure::{Contender, alternate, shown};

/// One of them.
struct Peer {
    name: &'static str,
    /// How many times faster an environment shall be; none is only for the record.
    goal: Option<f64>,
    argv: Vec<String>,
}

/// Mounts a file system without version 2 of control groups for one program: crun and podman refuse hosts with both.
const WITHOUT_V2: &str = "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec \"$@\"";

fn hybrid() -> bool {
    Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists()
}

fn peers(folder: &Path) -> Vec<Peer> {
    let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let bundle = folder.join("bundle").display().to_string();
    let conf = folder.join("containers.conf").display().to_string();
    let container = format!("testyard-bench-{}", std::process::id());
    let plain = |name, goal, line: &str| Peer { name, goal, argv: words(line) };
    let mut peers = vec![
        plain(
            "unshare",
            None,
            &format!("unshare --mount --pid --ipc --uts --net --cgroup --fork --mount-proc {PAYLOAD}"),
        ),
        plain(
            "bubblewrap",
            Some(3.0),
            &format!("bwrap --unshare-all --die-with-parent --bind / / --proc /proc --dev /dev --tmpfs /tmp {PAYLOAD}"),
        ),
        plain("crun", Some(6.0), &format!("crun run --bundle {bundle} {container}-crun")),
        plain("runc", Some(17.0), &format!("runc run --bundle {bundle} {container}-runc")),
        plain(
            "systemd-nspawn",
            Some(40.0),
            &format!(
                "systemd-nspawn --quiet --volatile=overlay --private-network --pipe --register=no --keep-unit --directory={bundle}/rootfs {PAYLOAD}"
            ),
        ),
        plain(
            "podman run",
            Some(90.0),
            &format!("env CONTAINERS_CONF={conf} podman run --rm --network=none --rootfs {bundle}/rootfs:O {PAYLOAD}"),
        ),
    ];
    if hybrid() {
        for peer in peers.iter_mut().filter(|peer| ["crun", "runc", "podman run"].contains(&peer.name)) {
            let mut argv = words("unshare --mount --propagation slave sh -c");
            argv.extend([WITHOUT_V2.to_owned(), "sh".to_owned()]);
            argv.append(&mut peer.argv);
            peer.argv = argv;
        }
    }
    peers
}

/// Measures each against `block`, which makes so many environments one after another.
pub(crate) fn rows(
    options: &Options,
    block: &mut dyn FnMut() -> Result<u32, Problem>,
    row: &mut dyn FnMut(Row),
) -> Result<(), Problem> {
    let folder = options.folder.join("peers");
    make_folder(&folder)?;
    make_bundle(&folder)?;
    for peer in peers(&folder) {
        let name = format!("environment: how many times faster than {}", peer.name);
        let goal = Goal::AtLeast(peer.goal.unwrap_or(1.0));
        // The first try also fills the peer's caches.
        if let Err(problem) = run(&peer.argv).and_then(|()| run(&peer.argv)) {
            row(Row::skipped(&name, goal, "×", told_in_one_line(&problem)));
            continue;
        }
        let contenders = vec![
            Contender::new(peer.name, || {
                let start = Instant::now();
                run(&peer.argv)?;
                Ok(start.elapsed())
            }),
            Contender::new("environment", || {
                let start = Instant::now();
                let count = block()?;
                Ok(start.elapsed() / count)
            }),
        ];
        let times = alternate(options.rounds(30).clamp(5, 30), contenders)?;
        let detail = format!("{} / {}", shown(times[0].median()), shown(times[1].median()));
        row(Row::measured(&name, goal, "×", times[0].ratio_to(&times[1]), detail));
    }
    let _ = std::fs::remove_dir(folder.join("bundle/rootfs"));
    Ok(())
}

/// A container of the host's own programs, for those that want one described.
fn make_bundle(folder: &Path) -> Result<(), Problem> {
    let bundle = folder.join("bundle");
    make_folder(&bundle)?;
    let root = bundle.join("rootfs");
    make_folder(&root)?;
    copy_payload(&root)?;
    for name in ["etc", "proc", "sys", "dev", "tmp", "run", "usr"] {
        std::fs::create_dir_all(root.join(name)).map_err(failed)?;
    }
    std::fs::write(root.join("etc/os-release"), "ID=bench\n").map_err(failed)?;
    let limits = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";
    std::fs::write(folder.join("containers.conf"), limits).map_err(failed)?;
    let mut command = Command::new("runc");
    command.arg("spec").current_dir(&bundle).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !command.status().is_ok_and(|status| status.success()) {
        return Ok(()); // neither runc nor its bundle: both runtimes are skipped by name
    }
    let path = bundle.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let mut config: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| Problem::from_error(ProblemKind::System, &error))?;
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!([PAYLOAD]);
    // Raising hard limits is not everybody's to do.
    config["process"]["rlimits"] = serde_json::json!([]);
    std::fs::write(&path, config.to_string()).map_err(failed)
}

/// The payload and what it is linked with.
fn copy_payload(root: &Path) -> Result<(), Problem> {
    let listed = Command::new("ldd").arg(PAYLOAD).output().map_err(failed)?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let libraries = listed.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for path in libraries.chain([PathBuf::from(PAYLOAD)]) {
        let to = root.join(path.strip_prefix("/").unwrap_or(&path));
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        std::fs::copy(&path, &to).map_err(failed)?;
    }
    Ok(())
}

fn run(argv: &[String]) -> Result<(), Problem> {
    let Some((program, arguments)) = argv.split_first() else { return Ok(()) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.output().map_err(|error| {
        Problem::new(ProblemKind::NotFound, format!("{program} is not installed, or cannot be started")).because(error)
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(Problem::new(ProblemKind::Command, format!("{program} ended with {}", output.status)).because(said))
        }
    }
}
