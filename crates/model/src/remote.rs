//! How a machine is reached that is not on this host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::slurm::SlurmJob;
use crate::units::Span;

/// The way to a machine on another host, and what it is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// Over what.
    pub transport: Transport,
    /// What plain commands run in.
    #[serde(default)]
    pub inside: Inside,
    /// How long the other side keeps what runs there when the link is cut; none means two minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<Span>,
}

/// What carries the bytes to the other host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// The system's OpenSSH.
    Ssh(SshTransport),
    /// A command that starts what its last arguments say on the other host, with its own standard streams:
    /// `srun --nodes=1`, `nsenter …`.
    Command(Vec<String>),
    /// A job of a Slurm cluster; the machine is its node, as long as the job lasts.
    Slurm(SlurmJob),
}

/// What plain commands of a remote machine run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inside {
    /// That host itself, as whoever logged in; environments are isolated copies over its root, where it can.
    #[default]
    Host,
    /// A namespace machine on that host.
    Namespace,
    /// What that host can isolate best.
    Strongest,
}

/// Whom to ask for a host by SSH. What is not said here says `~/.ssh/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshTransport {
    /// A host name, an address, or a `Host` of the configuration.
    pub host: String,
    /// Whom to log in as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// A private key's file, the only one that is offered then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PathBuf>,
    /// Hosts to jump over, as `ssh -J` takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump: Option<String>,
    /// In place of `~/.ssh/config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
    /// Where host keys are looked up, in place of the user's own file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<PathBuf>,
    /// What happens with a host key that is not known.
    #[serde(default)]
    pub host_keys: HostKeys,
    /// Where the password is taken from, each time that the host is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordSource>,
    /// Whether programs of Testyard's run there.
    #[serde(default, skip_serializing_if = "AgentUse::is_auto")]
    pub agent: AgentUse,
}

/// Whether programs of Testyard's run on the other host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentUse {
    /// They do, unless that host forbids programs that are brought there: then as with `never`.
    #[default]
    Auto,
    /// They do not: commands and files go over plain `ssh`.
    Never,
}

impl AgentUse {
    /// Whether the other host decides.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// What happens with a host key that is not known. One that has changed is always refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKeys {
    /// It is refused.
    #[default]
    Strict,
    /// It is believed the first time, and written down.
    AcceptNew,
}

/// Where a password is taken from. It is never itself in a command line, a row or a file of Testyard's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PasswordSource {
    /// A file that only its owner can read; its first line.
    File(PathBuf),
    /// A variable of whoever creates or starts the machine.
    Variable(String),
}

impl Transport {
    /// How people call the other host: `user@host:port`, or the command's first word.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Ssh(ssh) => {
                let user = ssh.user.as_ref().map_or_else(String::new, |user| format!("{user}@"));
                let port = ssh.port.map_or_else(String::new, |port| format!(":{port}"));
                format!("{user}{}{port}", ssh.host)
            }
            Self::Slurm(job) => match &job.partition {
                Some(partition) => format!("Slurm partition {partition}"),
                None => "Slurm".to_owned(),
            },
            Self::Command(words) => words.first().cloned().unwrap_or_default(),
        }
    }
}
