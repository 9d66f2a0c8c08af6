//! Services that machines and clusters are made with: SSH, Slurm, the firewall, a network without privilege.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use testyard_linux::process::CloneFlags;

use crate::finding::{Done, Lacking, Outcome, Step};
use crate::inside::{Users, inside};
use crate::probes::programs::{command, failed, require, succeed, version};
use crate::{host, provide, scratch};

/// A server that greets, with a key made for it.
pub(crate) fn sshd() -> Outcome {
    let program = require("sshd", "openssh-server")?;
    let keygen = require("ssh-keygen", "openssh-client")?;
    if !host::is_full_root() {
        return greet(&program, &keygen, &scratch::folder()?);
    }
    // Root's sshd insists on a folder below /run that a service manager would have made.
    inside(CloneFlags::NEWNS, &Users::Same, || {
        let folder = scratch::tmpfs()?;
        scratch::over(Path::new("/run"))?;
        std::fs::create_dir("/run/sshd").step("making /run/sshd")?;
        greet(&program, &keygen, &folder)
    })
}

fn greet(program: &Path, keygen: &Path, folder: &Path) -> Outcome {
    let key = folder.join("key");
    succeed(command(keygen).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
    // Without input it greets, hears nothing and ends.
    let output = command(program)
        .args(["-i", "-e", "-f", "/dev/null", "-o", "PidFile=none", "-h"])
        .arg(&key)
        .output()
        .step("starting sshd")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match said.lines().next().and_then(|line| line.strip_prefix("SSH-2.0-")) {
        Some(version) => Ok(Done::new(format!("{} greeted", version.trim()))),
        None => {
            let lacking = failed("sshd", &output);
            let wants_folder = lacking.reason.contains("/run/sshd");
            Err(if wants_folder { lacking.provide(provide::as_root("mkdir -p /run/sshd")) } else { lacking })
        }
    }
}

pub(crate) fn ssh() -> Outcome {
    Ok(Done::new(format!("{} starts", version(&require("ssh", "openssh-client")?, "-V")?)))
}

/// The daemons start and look at this host; a whole cluster would be more than a probe.
pub(crate) fn slurm() -> Outcome {
    require("munged", "munge")?;
    require("srun", "slurm-client")?;
    let controller = require("slurmctld", "slurmctld")?;
    let node = require("slurmd", "slurmd")?;
    let version = version(&controller, "-V")?;
    let output = succeed(command(&node).arg("-C"))?;
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    let processors = seen.split_ascii_whitespace().find(|word| word.starts_with("CPUs=")).unwrap_or("no CPUs");
    Ok(Done::new(format!("{version}: slurmctld and slurmd start, slurmd sees {processors}")))
}

/// A table, a chain and a counter, really loaded in a network namespace of our own.
const RULES: &str =
    "table inet testyard {\n chain probe {\n  type filter hook input priority 0;\n  counter accept\n }\n}\n";

pub(crate) fn nftables() -> Outcome {
    let program = require("nft", "nftables")?;
    inside(CloneFlags::NEWNET, &Users::least(), || {
        let mut child = command(&program).args(["-f", "-"]).stdin(Stdio::piped()).spawn().step("starting nft")?;
        if let Some(mut input) = child.stdin.take() {
            let _ = input.write_all(RULES.as_bytes());
        }
        let output = child.wait_with_output().step("waiting for nft")?;
        if !output.status.success() {
            return Err(failed("nft", &output));
        }
        let listed = succeed(command(&program).args(["-j", "list", "ruleset"]))?;
        if String::from_utf8_lossy(&listed.stdout).contains("\"counter\"") {
            Ok(Done::new("a table with a counter was loaded in a network namespace"))
        } else {
            Err(Lacking::new("nft loaded a table, but does not list it"))
        }
    })
    .map_err(|lacking| lacking.provide_or(provide::user_namespaces()))
}

/// pasta makes a network namespace, copies the host's addresses and routes into it, and runs a command there: here
/// one that shows the routes.
pub(crate) fn pasta() -> Outcome {
    let program = require("pasta", "passt")?;
    let show = require("cat", "coreutils")?;
    let mut command = command(&program);
    if rustix::process::geteuid().is_root() {
        // Root's pasta becomes nobody, who then may not enter what root made, and waits for ever.
        command.args(["--runas", "0"]);
    }
    command.args(["--config-net", "--"]).arg(show).arg("/proc/net/route");
    let output = succeed(&mut command).map_err(|lacking| {
        let device = Path::new("/dev/net/tun");
        let may_open = rustix::fs::access(device, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK);
        match (lacking.reason.contains("tun"), device.exists(), may_open.is_ok()) {
            (false, ..) | (true, true, true) => lacking,
            (true, true, false) => {
                Lacking::new("/dev/net/tun may not be opened by this user: no route out of environments")
                    .provide(provide::as_root("chmod 666 /dev/net/tun"))
            }
            (true, false, _) => Lacking::new("/dev/net/tun is not here: no route out of environments")
                .provide("start the outer container with --device /dev/net/tun"),
        }
    })?;
    // The first line is the table's head; without a line below there is no way out.
    let routes = String::from_utf8_lossy(&output.stdout).lines().skip(1).count();
    if routes > 0 {
        Ok(Done::new(format!("a network namespace had {routes} routes of the host")))
    } else {
        Err(Lacking::new("a network namespace was made, but it has no routes: does this host have any?"))
    }
}
