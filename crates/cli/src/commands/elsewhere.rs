//! Where a machine is that is not on this host: options of `testyard create`, and those of logging in also of
//! `testyard run --on slurm`.

use std::path::PathBuf;

use super::slurm::JobOptions;
use testyard_model::{
    AgentUse, BackendName, HostKeys, Inside, PasswordSource, Problem, ProblemKind, Remote, Span, SshTransport,
    Transport,
};

/// How another host is logged in to.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "On another host")]
pub(super) struct Login {
    /// Which host (backend ssh), or on which Slurm's commands are; the rest is said by your ~/.ssh/config
    #[arg(long, value_name = "[USER@]HOST[:PORT]")]
    host: Option<String>,
    /// Log in with this private key only
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Go over these hosts, separated by commas
    #[arg(long, value_name = "[USER@]HOST[:PORT]")]
    jump: Option<String>,
    /// In place of ~/.ssh/config
    #[arg(long, value_name = "FILE")]
    ssh_config: Option<PathBuf>,
    /// Look host keys up here only, in place of your own files
    #[arg(long, value_name = "FILE")]
    known_hosts: Option<PathBuf>,
    /// What to do with a host whose key is not known: strict, or accept-new
    #[arg(long, value_name = "POLICY")]
    host_keys: Option<Policy>,
    /// A file that only you can read, whose first line is the password
    #[arg(long, value_name = "FILE", conflicts_with = "password_variable")]
    password_file: Option<PathBuf>,
    /// The variable that holds the password
    #[arg(long, value_name = "NAME")]
    password_variable: Option<String>,
}

/// How another host is reached.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "On another host")]
pub(super) struct Elsewhere {
    #[command(flatten)]
    login: Login,
    /// Whether Testyard's programs run there (backend ssh): auto (unless that host forbids them), or never (plain ssh)
    #[arg(long, value_name = "WHEN")]
    agent: Option<AgentWord>,
    /// The command that leads to the other host (backend command), such as "srun -N1"; words are split at spaces
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    through: Option<String>,
    /// The partition (backend slurm-allocation) [default: the cluster's]
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
    /// A whole node (backend slurm-allocation), whatever it has
    #[arg(long)]
    exclusive: bool,
    #[command(flatten)]
    job: JobOptions,
    /// What its commands run in: host (that host itself), or namespace (a container there)
    #[arg(long, value_name = "WHAT")]
    inside: Option<InsideWord>,
    /// How long what runs there lives on when the connection is lost [default: 2m]
    #[arg(long, value_name = "DURATION")]
    grace: Option<Span>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Policy {
    Strict,
    AcceptNew,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum AgentWord {
    Auto,
    Never,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum InsideWord {
    Host,
    Namespace,
}

impl Elsewhere {
    /// The way to the other host, for a backend that has one; what is asked for in vain is refused.
    pub(super) fn remote(&self, backend: &BackendName) -> Result<Option<Remote>, Problem> {
        let is_ssh = *backend == BackendName::ssh();
        let is_command = *backend == BackendName::command();
        let is_slurm = *backend == BackendName::slurm_allocation();
        let login = &self.login;
        self.refuse_unless(is_ssh || (is_slurm && login.host.is_some()), "ssh", &login.given())?;
        self.refuse_unless(is_ssh, "ssh", &[("--agent", self.agent.is_some())])?;
        let of_job = [("--partition", self.partition.is_some()), ("--exclusive", self.exclusive)];
        self.refuse_unless(is_slurm, "slurm-allocation", &of_job)?;
        self.refuse_unless(is_slurm, "slurm-allocation", &self.job.given())?;
        self.refuse_unless(is_command, "command", &[("--through", self.through.is_some())])?;
        let both = [("--inside", self.inside.is_some()), ("--grace", self.grace.is_some())];
        self.refuse_unless(is_ssh || is_command || is_slurm, "ssh", &both)?;
        let transport = match (is_ssh, is_command) {
            (true, _) => Transport::Ssh(SshTransport { agent: self.agent_use(), ..login.ssh()? }),
            (_, true) => Transport::Command(self.words()?),
            _ if is_slurm => Transport::Slurm(self.job.job(self.partition.clone(), self.exclusive, login.to_host()?)),
            _ => return Ok(None),
        };
        let inside = match self.inside {
            Some(InsideWord::Namespace) => Inside::Namespace,
            None if is_slurm => Inside::Strongest,
            _ => Inside::Host,
        };
        Ok(Some(Remote { transport, inside, grace: self.grace }))
    }

    fn agent_use(&self) -> AgentUse {
        match self.agent {
            Some(AgentWord::Never) => AgentUse::Never,
            Some(AgentWord::Auto) | None => AgentUse::Auto,
        }
    }

    #[expect(clippy::unused_self, reason = "reads as what these options refuse")]
    fn refuse_unless(&self, fits: bool, backend: &str, given: &[(&str, bool)]) -> Result<(), Problem> {
        match given.iter().find(|(_, given)| *given && !fits) {
            None => Ok(()),
            Some((option, _)) => {
                Err(Problem::new(ProblemKind::Usage, format!("{option} is for a machine on another host"))
                    .hint(format!("ask for one: --backend {backend}")))
            }
        }
    }

    fn words(&self) -> Result<Vec<String>, Problem> {
        let words: Vec<String> =
            self.through.iter().flat_map(|text| text.split_ascii_whitespace()).map(str::to_owned).collect();
        if words.is_empty() {
            return Err(Problem::new(ProblemKind::Usage, "backend command is told no command")
                .hint("say what leads to the other host: --through \"srun -N1\""));
        }
        Ok(words)
    }
}

impl Login {
    /// Each option, and whether it was given.
    pub(super) fn given(&self) -> [(&'static str, bool); 8] {
        [
            ("--host", self.host.is_some()),
            ("--identity", self.identity.is_some()),
            ("--jump", self.jump.is_some()),
            ("--ssh-config", self.ssh_config.is_some()),
            ("--known-hosts", self.known_hosts.is_some()),
            ("--host-keys", self.host_keys.is_some()),
            ("--password-file", self.password_file.is_some()),
            ("--password-variable", self.password_variable.is_some()),
        ]
    }

    /// The host, where one was named.
    pub(super) fn to_host(&self) -> Result<Option<SshTransport>, Problem> {
        self.host.is_some().then(|| self.ssh()).transpose()
    }

    fn ssh(&self) -> Result<SshTransport, Problem> {
        let host = self.host.as_deref().ok_or_else(|| {
            Problem::new(ProblemKind::Usage, "backend ssh is told no host").hint("say which: --host USER@HOST")
        })?;
        let (user, host, port) = parts(host)?;
        let password = match (&self.password_file, &self.password_variable) {
            (Some(file), _) => Some(PasswordSource::File(absolute(file)?)),
            (None, Some(name)) => Some(PasswordSource::Variable(name.clone())),
            (None, None) => None,
        };
        Ok(SshTransport {
            host,
            user,
            port,
            identity: self.identity.as_deref().map(existing).transpose()?,
            jump: self.jump.clone(),
            config: self.ssh_config.as_deref().map(existing).transpose()?,
            known_hosts: self.known_hosts.as_deref().map(absolute).transpose()?,
            host_keys: if matches!(self.host_keys, Some(Policy::AcceptNew)) {
                HostKeys::AcceptNew
            } else {
                HostKeys::Strict
            },
            password,
            agent: AgentUse::Auto,
        })
    }
}

/// `[USER@]HOST[:PORT]`, an IPv6 address with a port in brackets.
fn parts(text: &str) -> Result<(Option<String>, String, Option<u16>), Problem> {
    let wrong = |why: &str| {
        Problem::new(ProblemKind::Usage, format!("--host {text:?}: {why}")).hint("write it as USER@HOST:PORT")
    };
    let (user, rest) = match text.rsplit_once('@') {
        Some((user, rest)) => (Some(user.to_owned()), rest),
        None => (None, text),
    };
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match rest.split_once(':') {
            // More than one colon is an address.
            Some((_, port)) if port.contains(':') => (rest, None),
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let port =
        port.map(|port| port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| wrong("that is no port")));
    if host.is_empty() || user.as_ref().is_some_and(String::is_empty) {
        return Err(wrong("a name is missing"));
    }
    if host.starts_with('-') || text.contains(char::is_whitespace) {
        return Err(wrong("that is no host's name"));
    }
    Ok((user, host.to_owned(), port.transpose()?))
}

fn absolute(path: &std::path::Path) -> Result<PathBuf, Problem> {
    std::path::absolute(path)
        .map_err(|error| Problem::new(ProblemKind::Usage, format!("{}: no path", path.display())).because(error))
}

fn existing(path: &std::path::Path) -> Result<PathBuf, Problem> {
    if path.exists() {
        return absolute(path);
    }
    Err(Problem::new(ProblemKind::NotFound, format!("there is no file {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_ssh_users_write_them() {
        let read = |text| parts(text).map(|(user, host, port)| (user.unwrap_or_default(), host, port.unwrap_or(0)));
        let is = |user: &str, host: &str, port| Ok((user.to_owned(), host.to_owned(), port));
        assert_eq!(read("gpu"), is("", "gpu", 0));
        assert_eq!(read("me@gpu:2222"), is("me", "gpu", 2222));
        assert_eq!(read("me@example.org@gpu"), is("me@example.org", "gpu", 0));
        assert_eq!(read("[fe80::1]:22"), is("", "fe80::1", 22));
        assert_eq!(read("::1"), is("", "::1", 0));
        for wrong in ["", "@gpu", "gpu:", "gpu:0", "gpu:x", "gpu:70000", "-oProxyCommand=x", "me@-x", "a b"] {
            assert_eq!(read(wrong).expect_err(wrong).kind, ProblemKind::Usage, "{wrong}");
        }
    }
}
