//! `docker run`: a container from its command line to its exit code.

use std::path::PathBuf;

use crate::arguments::Line;
use crate::images::{Reference, Standing, System};
use crate::joining::Command;
use crate::records::{Record, Records, fresh_id};
use crate::root::Volume;
use crate::running::{self, Making};
use crate::{Failure, Outcome, clock, say, warn};

/// What is taken, and changes nothing here.
const WITHOUT_EFFECT: [&str; 12] = [
    "publish",
    "memory",
    "cpus",
    "shm-size",
    "ulimit",
    "restart",
    "cap-add",
    "cap-drop",
    "security-opt",
    "device",
    "ipc",
    "pid",
];

/// Runs a container, to its end unless it is detached.
pub(crate) fn run(line: &Line) -> Outcome {
    let Some((image, command)) = line.rest.split_first() else {
        return Err(Failure { code: 125, ..requires_image() });
    };
    let reference = Reference::read(image)?;
    let records = Records::open().map_err(|error| Failure { code: 125, ..Failure::from(error) })?;
    obtain(&records, &reference, line.value("pull").unwrap_or("missing"))?;
    // Once each, or every failure of a command would begin with it.
    for option in WITHOUT_EFFECT.into_iter().filter(|option| line.has(option) && records.is_first(option)) {
        warn(format_args!(
            "docker: --{option} has no effect here: containers have the machine's limits, devices and network"
        ));
    }
    if line.has("gpus") && !std::path::Path::new("/dev/nvidiactl").exists() && records.is_first("gpus") {
        warn("docker: this machine has no GPU: containers run without one");
    }
    let id = fresh_id();
    let name = line.value("name").map_or_else(|| format!("testyard-{}", &id[..8]), str::to_owned);
    check_name(&name)?;
    let volumes = line.values("volume").map(volume).collect::<Result<Vec<_>, _>>()?;
    let argv = argv_of(line.value("entrypoint"), command);
    let record = Record {
        id,
        name,
        image: image.clone(),
        argv: argv.clone(),
        created: clock::now(),
        auto_remove: line.has("rm"),
        mounts: volumes.iter().map(|one| one.source.display().to_string()).collect(),
        process: None,
        exit_code: None,
        ended: 0,
    };
    let making = Making {
        host_name: line.value("hostname").map_or_else(|| record.short_id().to_owned(), str::to_owned),
        volumes,
        command: Command {
            argv,
            env: Command::environment(line)?,
            folder: line.value("workdir").map(PathBuf::from),
            make_folder: true,
            user: line.value("user").map(str::to_owned),
            with_input: line.has("interactive"),
        },
    };
    records.add(&record)?;
    if line.has("detach") {
        running::detach(&records, record, &making)
    } else {
        running::attend(&records, record, &making)
    }
}

fn requires_image() -> Failure {
    Failure::new("\"docker run\" requires at least 1 argument.\nSee 'docker run --help'.")
}

fn argv_of(entrypoint: Option<&str>, command: &[String]) -> Vec<String> {
    let mut argv: Vec<String> = entrypoint.filter(|one| !one.is_empty()).map(str::to_owned).into_iter().collect();
    argv.extend(command.iter().cloned());
    if argv.is_empty() {
        argv.push("/bin/sh".to_owned());
    }
    argv
}

/// Makes sure that the image is there, as `--pull` says.
fn obtain(records: &Records, reference: &Reference, pull: &str) -> Result<(), Failure> {
    let standing = reference.standing_here();
    let shown = reference.shown();
    let here = standing == Standing::Own || records.pulled().contains(&shown);
    match (standing, pull) {
        (Standing::Unknown, _) => {
            warn(format_args!("Unable to find image '{shown}' locally"));
            Err(Failure::daemon(format!("{}\n\nRun 'docker run --help' for more information", reference.denied())))
        }
        (_, "missing" | "always" | "never") if here => Ok(()),
        (_, "never") => Err(Failure::daemon(format!("No such image: {shown}"))),
        (_, "missing" | "always") => {
            warn(format_args!("Unable to find image '{shown}' locally"));
            stand_in(records, reference)
        }
        (_, other) => Err(Failure {
            message: format!("invalid pull option: '{other}': must be one of \"always\", \"missing\" or \"never\""),
            code: 125,
        }),
    }
}

/// From here on the image is there; says what it is.
fn stand_in(records: &Records, reference: &Reference) -> Result<(), Failure> {
    let shown = reference.shown();
    warn(format_args!(
        "docker: {shown} is stood in for by this machine's own root, {}: no registry was asked",
        System::here().pretty
    ));
    records.set_pulled(&shown, true)?;
    Ok(())
}

/// `docker pull`.
pub(crate) fn pull(line: &Line) -> Outcome {
    let records = Records::open()?;
    for image in line.at_least_one()? {
        let reference = Reference::read(image)?;
        let shown = reference.shown();
        let path =
            if reference.name.contains('/') { reference.name.clone() } else { format!("library/{}", reference.name) };
        let status = match reference.standing_here() {
            Standing::Unknown => {
                return Err(Failure::new(format!("Error response from daemon: {}", reference.denied())));
            }
            Standing::StandIn if !records.pulled().contains(&shown) => {
                stand_in(&records, &reference)?;
                "Downloaded newer image"
            }
            Standing::Own | Standing::StandIn => "Image is up to date",
        };
        if !line.has("quiet") {
            say(format_args!("{}: Pulling from {path}\nStatus: {status} for {shown}", reference.tag));
        }
        say(format_args!("docker.io/{path}:{}", reference.tag));
    }
    Ok(0)
}

/// `-v SOURCE:TARGET[:ro]`. A source without a slash is a volume of that name.
fn volume(text: &str) -> Result<Volume, Failure> {
    let bad = || Failure::daemon(format!("invalid volume specification: '{text}'"));
    let mut parts = text.split(':');
    let (source, target) = match (parts.next(), parts.next()) {
        (Some(source), Some(target)) => (source.to_owned(), target.to_owned()),
        (Some(target), None) => (format!("anonymous-{}", &fresh_id()[..12]), target.to_owned()),
        _ => return Err(bad()),
    };
    let modes: Vec<&str> = parts.flat_map(|part| part.split(',')).collect();
    let known = ["ro", "rw", "z", "Z", "cached", "delegated", "consistent", "nocopy", "rshared", "rslave", "rprivate"];
    let is_plain = |path: &str| !path.split('/').any(|part| part == "..");
    if !target.starts_with('/') || !is_plain(&target) || target == "/" || modes.iter().any(|mode| !known.contains(mode))
    {
        return Err(bad());
    }
    let source = if source.starts_with('/') {
        PathBuf::from(source)
    } else if !source.is_empty() && !source.contains('/') && is_plain(&source) {
        PathBuf::from("/var/lib/testyard-docker/volumes").join(source)
    } else {
        return Err(bad());
    };
    Ok(Volume { source, target: target.into(), read_only: modes.contains(&"ro") })
}

fn check_name(name: &str) -> Result<(), Failure> {
    let fine = name.len() > 1
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if fine {
        return Ok(());
    }
    Err(Failure::daemon(format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read_as_docker_reads_them() {
        let read = volume("/envs/a:/workspace").expect("well-formed");
        assert_eq!(
            (read.source.to_str(), read.target.to_str(), read.read_only),
            (Some("/envs/a"), Some("/workspace"), false)
        );
        assert!(volume("/root:/shared:ro").expect("well-formed").read_only);
        assert!(volume("data:/data").expect("well-formed").source.ends_with("volumes/data"));
        for bad in ["/a:b", "a/b:/c", "/a:/", "/a:/b:odd", "/a:/../b", "../a:/b", ""] {
            assert_eq!(volume(bad).map_err(|failure| failure.code), Err(125), "{bad}");
        }
    }

    #[test]
    fn names_are_dockers() {
        for (name, fine) in [("flow-dev-exec-1a", true), ("a", false), ("-ab", false), ("a b", false), ("a/b", false)] {
            assert_eq!(check_name(name).is_ok(), fine, "{name}");
        }
    }
}
