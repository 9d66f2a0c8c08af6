//! User data of a new machine, as cloud-init takes it: a script, or a part of `#cloud-config`.
//!
//! There is no cloud-init in the machine: what is asked for is done here, in its order, and the machine is not made where
//! a step fails. A key that is not understood is refused before anything is made, so that nothing is left out unsaid.

use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;
use testyard::Machine;
use testyard_model::{Problem, ProblemKind, UserSpec};
use testyard_protocol::{Carrier, RawText, Transfer};
use testyard_transfer::pack_bytes;

use super::user::{as_root, check_user};
use crate::moving;

/// More than anybody writes by hand.
const LONGEST: u64 = 16 << 20;
/// Where a script lies while it runs.
const SCRIPT: &str = "/run/testyard-user-data";

/// What is to be done in a new machine.
#[derive(Debug, PartialEq)]
pub(super) enum UserData {
    /// A program for the interpreter that its first line names.
    Script(Vec<u8>),
    /// `#cloud-config`
    Config(Box<CloudConfig>),
}

/// The keys that are understood.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CloudConfig {
    package_update: bool,
    package_upgrade: bool,
    packages: Vec<String>,
    users: Vec<User>,
    write_files: Vec<WrittenFile>,
    runcmd: Vec<Command>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Command {
    Line(String),
    Words(Vec<String>),
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum User {
    /// `default`: the machine's own, who is there anyway.
    Known(String),
    New(NewUser),
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUser {
    name: String,
    #[serde(default)]
    gecos: Option<String>,
    #[serde(default)]
    shell: Option<String>,
    #[serde(default)]
    groups: Option<Several>,
    #[serde(default)]
    sudo: Option<Several>,
    #[serde(default)]
    ssh_authorized_keys: Vec<String>,
    #[serde(default)]
    lock_passwd: Option<bool>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Several {
    Listed(Vec<String>),
    Written(String),
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile {
    path: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    owner: Option<String>,
    #[serde(default)]
    permissions: Option<String>,
}

impl UserData {
    /// Reads a file of it.
    pub(super) fn load(path: &Path) -> Result<Self, Problem> {
        let kind = |error: &std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => ProblemKind::NotFound,
            _ => ProblemKind::Denied,
        };
        let failed = |error: std::io::Error| {
            Problem::new(kind(&error), format!("cannot read {}", path.display())).because(error)
        };
        if std::fs::metadata(path).map_err(failed)?.len() > LONGEST {
            return Err(Problem::new(ProblemKind::Usage, format!("{} is too long for user data", path.display())));
        }
        Self::parse(&std::fs::read(path).map_err(failed)?).map_err(|why| {
            Problem::new(ProblemKind::Usage, format!("{} is no user data that can be followed", path.display()))
                .because(why)
                .hint("begin it with #! and an interpreter, or with #cloud-config")
        })
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        if text.starts_with(b"#!") {
            return Ok(Self::Script(text.to_vec()));
        }
        let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
        if text.lines().next().map(str::trim_end) != Some("#cloud-config") {
            return Err("it begins neither with #! nor with #cloud-config".to_owned());
        }
        let only_comments = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        let config: CloudConfig = match only_comments {
            true => CloudConfig::default(),
            false => serde_saphyr::from_str(text).map_err(|error| first_line(&error.to_string()))?,
        };
        config.check()?;
        Ok(Self::Config(Box::new(config)))
    }

    /// Does it.
    pub(super) fn follow(&self, machine: &mut Machine) -> Result<(), Problem> {
        match self {
            Self::Script(script) => {
                write(machine, SCRIPT, script, 0o700)?;
                done(machine, "the script of the user data", &[SCRIPT])?;
                done(machine, "the script's removal", &["/bin/rm", "-f", SCRIPT])
            }
            Self::Config(config) => config.follow(machine),
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

impl CloudConfig {
    fn check(&self) -> Result<(), String> {
        for user in &self.users {
            match user {
                User::Known(name) if name == "default" => {}
                User::Known(name) => return Err(format!("user {name:?}: write `default`, or `name: {name}`")),
                User::New(user) => check_user(&user.name).map_err(|problem| problem.message)?,
            }
        }
        for file in &self.write_files {
            file.mode()?;
            if !file.path.starts_with('/') {
                return Err(format!("write_files: {:?} is not an absolute path", file.path));
            }
        }
        let bad_package = |name: &&String| name.is_empty() || name.starts_with('-');
        match self.packages.iter().find(bad_package) {
            Some(name) => Err(format!("packages: {name:?} is not a package's name")),
            None => Ok(()),
        }
    }

    fn follow(&self, machine: &mut Machine) -> Result<(), Problem> {
        for user in &self.users {
            if let User::New(user) = user {
                user.make(machine)?;
            }
        }
        for file in &self.write_files {
            file.make(machine)?;
        }
        if self.package_update || self.package_upgrade || !self.packages.is_empty() {
            apt(machine, &["update"])?;
        }
        if self.package_upgrade {
            apt(machine, &["upgrade"])?;
        }
        if !self.packages.is_empty() {
            let words: Vec<&str> =
                ["install", "--"].into_iter().chain(self.packages.iter().map(String::as_str)).collect();
            apt(machine, &words)?;
        }
        for (index, command) in self.runcmd.iter().enumerate() {
            let what = format!("command {} of runcmd", index + 1);
            match command {
                Command::Line(line) => done(machine, &what, &["/bin/sh", "-c", line])?,
                Command::Words(words) => done(machine, &what, &words.iter().map(String::as_str).collect::<Vec<_>>())?,
            }
        }
        Ok(())
    }
}

impl Several {
    fn texts(&self) -> Vec<&str> {
        match self {
            Self::Listed(all) => all.iter().map(String::as_str).collect(),
            Self::Written(text) => vec![text],
        }
    }
}

impl NewUser {
    fn make(&self, machine: &mut Machine) -> Result<(), Problem> {
        let name = self.name.as_str();
        let shell = self.shell.as_deref().unwrap_or("/bin/sh");
        let groups = self.groups.as_ref().map(|groups| groups.texts().join(",").replace(' ', "")).unwrap_or_default();
        let mut words = vec!["/usr/sbin/useradd", "--create-home", "--shell", shell];
        if !groups.is_empty() {
            words.extend(["--groups", &groups]);
        }
        if let Some(gecos) = &self.gecos {
            words.extend(["--comment", gecos]);
        }
        words.push(name);
        done(machine, &format!("user {name}"), &words)?;
        if let Some(rights) = &self.sudo {
            let mut text = String::new();
            for right in rights.texts().into_iter().filter(|right| !matches!(*right, "false" | "False")) {
                writeln!(text, "{name} {right}").expect("writing to a string");
            }
            write(machine, &format!("/etc/sudoers.d/90-{name}"), text.as_bytes(), 0o440)?;
        }
        if !self.ssh_authorized_keys.is_empty() {
            let keys = self.ssh_authorized_keys.join("\n") + "\n";
            let folder = format!("/home/{name}/.ssh");
            done(machine, &folder, &["/bin/mkdir", "-p", "-m", "700", &folder])?;
            write(machine, &format!("{folder}/authorized_keys"), keys.as_bytes(), 0o600)?;
            done(machine, &folder, &["/bin/chown", "-R", &format!("{name}:"), &folder])?;
        }
        Ok(())
    }
}

impl WrittenFile {
    fn mode(&self) -> Result<u32, String> {
        let Some(written) = &self.permissions else { return Ok(0o644) };
        let digits = written.trim_start_matches("0o");
        let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| format!("write_files: {written:?} is not a mode such as '0644'"))
    }

    fn make(&self, machine: &mut Machine) -> Result<(), Problem> {
        let what = format!("file {}", self.path);
        let folder = Path::new(&self.path).parent().unwrap_or(Path::new("/")).display().to_string();
        done(machine, &what, &["/bin/mkdir", "-p", &folder])?;
        let mode = self.mode().map_err(|why| Problem::new(ProblemKind::Usage, why))?;
        write(machine, &self.path, self.content.as_bytes(), mode)?;
        // A mask of the machine's may have taken bits away.
        done(machine, &what, &["/bin/chmod", &format!("{mode:o}"), &self.path])?;
        match &self.owner {
            Some(owner) => done(machine, &what, &["/bin/chown", owner, &self.path]),
            None => Ok(()),
        }
    }
}

fn apt(machine: &mut Machine, words: &[&str]) -> Result<(), Problem> {
    let line = ["/usr/bin/env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q", "--no-install-recommends"];
    let line: Vec<&str> = line.into_iter().chain(words.iter().copied()).collect();
    done(machine, &format!("apt-get {}", words.join(" ")), &line)
}

/// Runs one step as the machine's root.
fn done(machine: &mut Machine, what: &str, argv: &[&str]) -> Result<(), Problem> {
    let said = as_root(machine, argv, None)?;
    if said.is_empty() {
        return Ok(());
    }
    // Not as a command of the caller's, which has an exit code of its own.
    Err(Problem::new(ProblemKind::System, format!("user data failed at {what}")).because(said))
}

fn write(machine: &mut Machine, path: &str, content: &[u8], mode: u32) -> Result<(), Problem> {
    let transfer = Transfer {
        path: RawText::from(path),
        user: Some(UserSpec::Root),
        carrier: Carrier::Attached,
        environment: None,
    };
    let mut content = content;
    let pushed = machine.connection().push(transfer, |out| pack_bytes(&mut content, mode, out).map(drop));
    pushed.map_err(moving::told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        UserData::parse(text.as_bytes()).expect_err(text)
    }

    #[test]
    fn scripts_and_a_part_of_cloud_config_are_followed() {
        assert_eq!(UserData::parse(b"#!/bin/sh\ntrue\n"), Ok(UserData::Script(b"#!/bin/sh\ntrue\n".to_vec())));
        assert_eq!(UserData::parse(b"#cloud-config\n"), Ok(UserData::Config(Box::default())));
        let text = "#cloud-config\npackages: [git, curl]\nusers:\n  - default\n  - name: dev\n    groups: sudo, adm\n    \
                    sudo: ALL=(ALL) NOPASSWD:ALL\nwrite_files:\n  - path: /etc/app.conf\n    content: |\n      a = 1\n    \
                    permissions: '0600'\nruncmd:\n  - touch /done\n  - [echo, two words]\n";
        let UserData::Config(config) = UserData::parse(text.as_bytes()).expect("understood") else {
            panic!("a configuration");
        };
        assert_eq!(config.packages, ["git", "curl"]);
        assert_eq!((config.users.len(), config.runcmd.len()), (2, 2));
        assert_eq!((config.write_files[0].content.as_str(), config.write_files[0].mode()), ("a = 1\n", Ok(0o600)));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        assert!(refused("packages: [git]").contains("neither"));
        for (text, named) in [
            ("#cloud-config\nswap: {size: 1G}\n", "swap"),
            ("#cloud-config\npackages: [--yes]\n", "--yes"),
            ("#cloud-config\nusers: [{name: Bad Name}]\n", "Bad Name"),
            ("#cloud-config\nwrite_files: [{path: etc/x}]\n", "etc/x"),
            ("#cloud-config\nwrite_files: [{path: /etc/x, permissions: rw}]\n", "rw"),
        ] {
            let said = refused(text);
            assert!(said.contains(named), "{text}: {said}");
        }
    }
}
