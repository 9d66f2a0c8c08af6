//! The system's OpenSSH: its command line, and what its words mean.
//!
//! Only `ssh` itself knows what `~/.ssh/config` says, so what somebody did not ask for is left to it. What makes a
//! connection safe to start without a terminal is said: it waits for a person only where one is there to be asked
//! ([`crate::asking`]), and believes no new host key unless asked to.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use testyard_model::{HostKeys, PasswordSource, Problem, ProblemKind, SshTransport};

use crate::transport::{Why, last_lines};

/// Tells this program, started by `ssh` to ask for a password, where that is.
pub const ASK_VARIABLE: &str = "TESTYARD_ASKED_BY_SSH";

pub(crate) type Line = (Vec<OsString>, Vec<(OsString, OsString)>);

/// The words behind `ssh`, and the variables of its own.
pub fn command_line(ssh: &SshTransport, patience: Duration) -> Result<Line, Problem> {
    line(ssh, patience, None)
}

/// As [`command_line`]; somebody who listens at `asks` is asked what only a person knows.
pub(crate) fn line(ssh: &SshTransport, patience: Duration, asks: Option<&Path>) -> Result<Line, Problem> {
    let mut words: Vec<OsString> = Vec::new();
    let mut option = |text: String| words.extend([OsString::from("-o"), text.into()]);
    option(format!("ConnectTimeout={}", patience.as_secs().clamp(1, 3600)));
    // The link has signs of life of its own; these end an ssh whose parent is gone.
    option("ServerAliveInterval=15".to_owned());
    option("ServerAliveCountMax=4".to_owned());
    // One connection for everything: nothing to share with others, nothing to forward.
    option("ControlMaster=no".to_owned());
    option("ControlPath=none".to_owned());
    option("ClearAllForwardings=yes".to_owned());
    option("ForwardX11=no".to_owned());
    option("RemoteCommand=none".to_owned());
    option("PermitLocalCommand=no".to_owned());
    option("EscapeChar=none".to_owned());
    option("LogLevel=ERROR".to_owned());
    option(match ssh.host_keys {
        HostKeys::Strict => "StrictHostKeyChecking=yes".to_owned(),
        HostKeys::AcceptNew => "StrictHostKeyChecking=accept-new".to_owned(),
    });
    if let Some(file) = &ssh.known_hosts {
        option(format!("UserKnownHostsFile={}", quoted(file)));
        option("GlobalKnownHostsFile=/dev/null".to_owned());
    }
    let mut variables = Vec::new();
    match (&ssh.password, asks) {
        (None, None) => option("BatchMode=yes".to_owned()),
        // Keys first, and as many tries as it says, as on a terminal.
        (None, Some(person)) => variables = asking(&Asked::Person(person.to_owned()))?,
        (Some(source), _) => {
            option("NumberOfPasswordPrompts=1".to_owned());
            option("PreferredAuthentications=publickey,password,keyboard-interactive".to_owned());
            password(source)?;
            variables = asking(&Asked::Kept(source.clone()))?;
        }
    }
    if ssh.identity.is_some() {
        option("IdentitiesOnly=yes".to_owned());
    }
    for (flag, value) in [("-i", &ssh.identity), ("-F", &ssh.config)] {
        words.extend(value.iter().flat_map(|value| [OsString::from(flag), value.clone().into()]));
    }
    let port = ssh.port.map(|port| port.to_string());
    for (flag, value) in [("-l", &ssh.user), ("-p", &port), ("-J", &ssh.jump)] {
        words.extend(value.iter().flat_map(|value| [OsString::from(flag), value.into()]));
    }
    words.extend(["-T".into(), "--".into(), OsString::from(&ssh.host)]);
    Ok((words, variables))
}

/// As OpenSSH's configuration reads a path with spaces.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

/// Whom the program asks that `ssh` starts.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Asked {
    /// What somebody said beforehand.
    Kept(PasswordSource),
    /// Who listens there.
    Person(PathBuf),
}

/// `ssh` asks this very program, which knows whom to ask: see [`answer_ssh`].
fn asking(asked: &Asked) -> Result<Vec<(OsString, OsString)>, Problem> {
    let own = std::env::current_exe()
        .map_err(|error| Problem::new(ProblemKind::System, "cannot find the running program").because(error))?;
    let asked = serde_json::to_string(asked).map_err(|error| Problem::from_error(ProblemKind::Bug, &error))?;
    Ok(vec![
        ("SSH_ASKPASS".into(), own.into()),
        ("SSH_ASKPASS_REQUIRE".into(), "force".into()),
        (ASK_VARIABLE.into(), asked.into()),
    ])
}

/// The answer to what `ssh` asks, where this process was started to give it: a person's, or the password that is known, to
/// questions for one only.
#[must_use]
pub fn answer_ssh(question: &str) -> Option<Result<String, Problem>> {
    let asked = std::env::var(ASK_VARIABLE).ok()?;
    let source = match serde_json::from_str(&asked) {
        Ok(Asked::Kept(source)) => source,
        // What is confirmed by a key press has no answer to be typed.
        Ok(Asked::Person(_)) if std::env::var_os("SSH_ASKPASS_PROMPT").is_some() => {
            return Some(Err(Problem::new(ProblemKind::Denied, format!("ssh asks what nobody types: {question}"))));
        }
        Ok(Asked::Person(listens)) => return Some(crate::asking::ask(&listens, question)),
        Err(error) => return Some(Err(Problem::from_error(ProblemKind::Usage, &error))),
    };
    if asks_for_jump_host() {
        let message = format!("the jump host asks for a password, and the one given is the target's: {question}");
        return Some(Err(Problem::new(ProblemKind::Denied, message).hint("let a key in there: ssh-copy-id")));
    }
    // Not to the passphrase of a key, and not to whether a host key is right.
    if !question.to_ascii_lowercase().contains("password") {
        return Some(Err(Problem::new(ProblemKind::Denied, format!("ssh asks what is not known here: {question}"))));
    }
    Some(password(&source))
}

/// Whether the `ssh` that asks is the one that only passes another's connection on: OpenSSH starts it with `-W`, and
/// with the variables of the first.
fn asks_for_jump_host() -> bool {
    let Some(asking) = rustix::process::getppid() else { return false };
    let words = std::fs::read(format!("/proc/{}/cmdline", asking.as_raw_nonzero())).unwrap_or_default();
    words.split(|byte| *byte == 0).skip(1).any(|word| word == b"-W")
}

/// The password itself.
pub fn password(source: &PasswordSource) -> Result<String, Problem> {
    match source {
        PasswordSource::Variable(name) => std::env::var(name).map_err(|_| {
            Problem::new(ProblemKind::Usage, format!("the variable {name}, which is to hold the password, is not set"))
                .hint(format!("set it for this command: read -rs {name}; export {name}"))
        }),
        PasswordSource::File(path) => {
            let failed = |error: std::io::Error| {
                Problem::new(ProblemKind::Usage, format!("cannot read the password's file {}", path.display()))
                    .because(error)
            };
            let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path).map_err(failed)?);
            if mode & 0o077 != 0 {
                let message =
                    format!("others can read the password's file {} (mode {:o})", path.display(), mode & 0o777);
                return Err(Problem::new(ProblemKind::Denied, message).hint(format!("chmod 600 {}", path.display())));
            }
            let text = std::fs::read_to_string(path).map_err(failed)?;
            Ok(text.lines().next().unwrap_or_default().to_owned())
        }
    }
}

/// What it means that `ssh` itself failed (its exit code was 255), having said this.
#[must_use]
pub fn problem(host: &str, said: &str) -> Problem {
    explain(host, Why::Closed { exit: None }, said)
}

/// Whether the other host would have let somebody in who has a password: OpenSSH says in which ways it can be tried.
pub(crate) fn wants_password(said: &str) -> bool {
    let ways = said.lines().filter_map(|line| line.rsplit_once("Permission denied (")).map(|(_, ways)| ways);
    ways.into_iter().any(|ways| ways.contains("password") || ways.contains("keyboard-interactive"))
}

/// What OpenSSH's own words mean.
pub(crate) fn explain(host: &str, why: Why, said: &str) -> Problem {
    let has = |words: &str| said.to_ascii_lowercase().contains(&words.to_ascii_lowercase());
    let problem = if let Why::Closed { exit: Some(code) } = why
        && code != 255
    {
        // OpenSSH itself ends with 255: whatever was said, the shell there said it.
        let message = format!("the shell on {host} ended with {code} in place of starting testyard");
        Problem::new(ProblemKind::Unavailable, message)
    } else if has("REMOTE HOST IDENTIFICATION HAS CHANGED") || has("host key for") && has("has changed") {
        let line = said.lines().find_map(|line| line.trim().strip_prefix("Offending "));
        let line = line.and_then(|line| line.split_once(" in ")).map(|(_, place)| place.to_owned());
        let mut problem = Problem::new(ProblemKind::Denied, format!("the host key of {host} has changed"));
        if let Some(place) = &line {
            problem = problem.because(format!("another one is in {place}"));
        }
        let file =
            line.as_deref().and_then(|place| place.rsplit_once(':')).map_or("~/.ssh/known_hosts", |(file, _)| file);
        let bare = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let known = bare.rsplit_once(':').map_or_else(|| bare.to_owned(), |(name, port)| format!("[{name}]:{port}"));
        problem
            .hint("ask whoever runs the host whether it was installed anew; if not, somebody else answers in its place")
            .hint(format!("then remove the old key: ssh-keygen -f '{file}' -R '{known}'"))
    } else if has("host key verification failed") || has("no") && has("host key is known for") {
        Problem::new(ProblemKind::Denied, format!("the host key of {host} is not known"))
            .hint(format!("look at it and believe it: ssh {}", command_words(host)))
            .hint("or believe the first one: --host-keys accept-new")
    } else if has("permission denied") || has("too many authentication failures") {
        Problem::new(ProblemKind::Denied, format!("{host} does not let this user in"))
            .hint("name a key (--identity), or where the password is (--password-file, --password-variable)")
    } else if has("could not resolve hostname") && has("temporary failure") {
        Problem::new(ProblemKind::Unavailable, format!("the name of {host} cannot be looked up now"))
            .hint("see whether this host's name server answers")
    } else if has("could not resolve hostname") {
        Problem::new(ProblemKind::NotFound, format!("there is no host {host}")).hint("check how it is spelled")
    } else if has("connection refused") {
        Problem::new(ProblemKind::Unavailable, format!("nothing accepts SSH connections at {host}"))
            .hint("check the port (HOST:PORT), and that sshd runs there")
    } else if has("exceeded maxstartups")
        || has("kex_exchange_identification")
        || has("banner exchange") && !has("timed out")
    {
        Problem::new(ProblemKind::Unavailable, format!("{host} closed the connection before it said who it is"))
            .hint("it may have too many logins at once: raise MaxStartups in its sshd_config, or try again")
    } else if has("timed out") || matches!(why, Why::Late { .. }) {
        Problem::new(ProblemKind::TimedOut, format!("{host} did not answer in time"))
            .hint("check the address, and what lies between (firewall, VPN)")
    } else if has("no route to host") || has("network is unreachable") {
        Problem::new(ProblemKind::Unavailable, format!("there is no way to {host}"))
    } else {
        Problem::new(ProblemKind::Unavailable, format!("the connection to {host} was closed"))
    };
    last_lines(said).into_iter().fold(problem, Problem::because)
}

fn command_words(host: &str) -> String {
    let (user, rest) = host.rsplit_once('@').map_or((String::new(), host), |(user, rest)| (format!("{user}@"), rest));
    match rest.rsplit_once(':') {
        Some((name, port)) => format!("-p {port} {user}{name}"),
        None => format!("{user}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_shell_there_prints_is_not_read_as_words_of_ssh() {
        let ended = |exit| explain("h", Why::Closed { exit: Some(exit) }, "sh: 1: /opt/x: Permission denied");
        assert_eq!(ended(126).kind, ProblemKind::Unavailable);
        assert!(ended(126).message.contains("ended with 126"), "{:?}", ended(126));
        assert_eq!(ended(255).kind, ProblemKind::Denied);
    }

    #[test]
    fn a_host_that_wants_a_password_says_so() {
        assert!(wants_password("me@h: Permission denied (publickey,password).\n"));
        assert!(!wants_password("me@h: Permission denied (publickey).\nthe password is wrong\n"));
    }

    #[test]
    fn a_name_server_that_is_silent_says_nothing_of_the_host() {
        let kind = |said: &str| problem("h", &format!("ssh: Could not resolve hostname h: {said}")).kind;
        assert_eq!(kind("Temporary failure in name resolution"), ProblemKind::Unavailable);
        assert_eq!(kind("Name or service not known"), ProblemKind::NotFound);
    }
}
