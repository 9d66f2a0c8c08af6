//! The command line: which command, its options, and the rest. No IO.

use crate::Failure;

/// One option that a command knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    long: &'static str,
    short: Option<char>,
    takes: bool,
}

const fn with(long: &'static str, short: Option<char>) -> Known {
    Known { long, short, takes: true }
}

const fn flag(long: &'static str, short: Option<char>) -> Known {
    Known { long, short, takes: false }
}

const RUN: &[Known] = &[
    with("name", None),
    with("volume", Some('v')),
    with("workdir", Some('w')),
    with("env", Some('e')),
    with("env-file", None),
    with("user", Some('u')),
    with("hostname", Some('h')),
    with("entrypoint", None),
    with("pull", None),
    with("gpus", None),
    with("network", None),
    with("net", None),
    with("label", Some('l')),
    with("platform", None),
    with("publish", Some('p')),
    with("memory", Some('m')),
    with("cpus", None),
    with("shm-size", None),
    with("ipc", None),
    with("pid", None),
    with("ulimit", None),
    with("runtime", None),
    with("restart", None),
    with("cap-add", None),
    with("cap-drop", None),
    with("security-opt", None),
    with("device", None),
    with("stop-timeout", None),
    flag("rm", None),
    flag("interactive", Some('i')),
    flag("tty", Some('t')),
    flag("detach", Some('d')),
    flag("init", None),
    flag("privileged", None),
    flag("quiet", Some('q')),
];
const LISTING: &[Known] = &[
    with("filter", Some('f')),
    with("format", None),
    flag("all", Some('a')),
    flag("quiet", Some('q')),
    flag("no-trunc", None),
];
const FORMAT: &[Known] = &[with("format", Some('f')), with("type", None), flag("size", Some('s'))];
const PRUNE: &[Known] =
    &[flag("force", Some('f')), flag("all", Some('a')), flag("volumes", None), with("filter", None)];
const STOP: &[Known] = &[with("time", Some('t')), with("timeout", None), with("signal", Some('s'))];
const REMOVE: &[Known] = &[flag("force", Some('f')), flag("volumes", Some('v')), flag("link", Some('l'))];
const EXEC: &[Known] = &[
    with("workdir", Some('w')),
    with("env", Some('e')),
    with("user", Some('u')),
    flag("interactive", Some('i')),
    flag("tty", Some('t')),
    flag("detach", Some('d')),
    flag("privileged", None),
];
const PULL: &[Known] = &[with("platform", None), flag("quiet", Some('q')), flag("all-tags", Some('a'))];
const LOGS: &[Known] = &[
    with("tail", Some('n')),
    with("since", None),
    flag("follow", Some('f')),
    flag("timestamps", Some('t')),
    flag("details", None),
];

/// Each command by its one name, what it knows, and whether options end where the first other word comes.
const COMMANDS: &[(&str, &[Known], bool)] = &[
    ("run", RUN, true),
    ("exec", EXEC, true),
    ("ps", LISTING, false),
    ("images", LISTING, false),
    ("inspect", FORMAT, false),
    ("image inspect", FORMAT, false),
    ("version", FORMAT, false),
    ("info", FORMAT, false),
    ("pull", PULL, false),
    ("stop", STOP, false),
    ("kill", STOP, false),
    ("rm", REMOVE, false),
    ("rmi", REMOVE, false),
    ("logs", LOGS, false),
    ("wait", &[], false),
    ("container prune", PRUNE, false),
    ("image prune", PRUNE, false),
    ("system prune", PRUNE, false),
];

/// What docker has and this has not.
const NOT_SERVED: &[&str] = &[
    "attach", "build", "builder", "buildx", "commit", "compose", "cp", "create", "diff", "events", "export", "history",
    "import", "load", "login", "logout", "network", "pause", "plugin", "port", "push", "rename", "restart", "save",
    "search", "start", "stats", "swarm", "tag", "top", "unpause", "update", "volume",
];

/// A command line that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) command: &'static str,
    options: Vec<(&'static str, String)>,
    pub(crate) rest: Vec<String>,
}

impl Line {
    /// Reads the words after the program's name.
    pub(crate) fn read(words: Vec<String>) -> Result<Self, Failure> {
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next_if(|word| word.starts_with('-')) {
            match word.as_str() {
                "-v" | "--version" => return Ok(Self { command: "--version", options: Vec::new(), rest: Vec::new() }),
                "--help" => return Ok(Self { command: "help", options: Vec::new(), rest: Vec::new() }),
                "-D" | "--debug" | "--tls" | "--tlsverify" => {}
                "-H" | "--host" | "-c" | "--context" | "-l" | "--log-level" | "--config" => drop(words.next()),
                other if other.contains('=') => {}
                other => {
                    return Err(Failure { message: format!("unknown flag: {other}\nSee 'docker --help'."), code: 125 });
                }
            }
        }
        let Some(first) = words.next() else {
            return Ok(Self { command: "help", options: Vec::new(), rest: Vec::new() });
        };
        let name = full_name(&first, &mut words);
        if name == "help" {
            return Ok(Self { command: "help", options: Vec::new(), rest: Vec::new() });
        }
        let Some((command, known, ends)) = COMMANDS.iter().find(|(command, ..)| *command == name) else {
            return Err(unknown(&name));
        };
        let (options, rest) = options(command, known, *ends, words)?;
        Ok(Self { command, options, rest })
    }

    /// Whether a flag was given, or an option.
    pub(crate) fn has(&self, long: &str) -> bool {
        self.options.iter().any(|(name, value)| *name == long && value != "false")
    }

    /// An option's last value.
    pub(crate) fn value(&self, long: &str) -> Option<&str> {
        self.values(long).last()
    }

    /// All values of an option, in their order.
    pub(crate) fn values<'a>(&'a self, long: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let option = self.options.iter().map(|(name, _)| *name).find(|name| *name == long);
        self.options.iter().filter(move |(name, _)| Some(*name) == option).map(|(_, value)| value.as_str())
    }

    /// The words that a command must have.
    pub(crate) fn at_least_one(&self) -> Result<&[String], Failure> {
        if self.rest.is_empty() {
            let name = self.command;
            return Err(Failure::new(format!(
                "\"docker {name}\" requires at least 1 argument.\nSee 'docker {name} --help'."
            )));
        }
        Ok(&self.rest)
    }
}

/// The one name of a command that docker knows by several.
fn full_name(first: &str, words: &mut impl Iterator<Item = String>) -> String {
    match first {
        "container" | "image" | "system" => {
            let second = words.next().unwrap_or_default();
            match (first, second.as_str()) {
                ("container", "ls" | "list" | "ps") => "ps".to_owned(),
                (_, "prune") | ("image", "inspect") => format!("{first} {second}"),
                ("image", "ls" | "list") => "images".to_owned(),
                ("image", "rm" | "remove") => "rmi".to_owned(),
                (_, "remove") => "rm".to_owned(),
                _ => second,
            }
        }
        other => other.to_owned(),
    }
}

fn unknown(name: &str) -> Failure {
    if NOT_SERVED.contains(&name) {
        return Failure::new(format!(
            "docker: `{name}` is not served here: this docker is the machine's own, without an engine or a registry"
        ));
    }
    Failure::new(format!("docker: '{name}' is not a docker command.\nSee 'docker --help'"))
}

type Read = (Vec<(&'static str, String)>, Vec<String>);

fn options(
    command: &str,
    known: &'static [Known],
    ends: bool,
    words: impl Iterator<Item = String>,
) -> Result<Read, Failure> {
    let mut words = words.peekable();
    let (mut found, mut rest) = (Vec::new(), Vec::new());
    while let Some(word) = words.next() {
        if let Some(long) = word.strip_prefix("--") {
            if long.is_empty() {
                break;
            }
            let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
            let option = known.iter().find(|one| one.long == name);
            let option = option.ok_or_else(|| bad(command, &format!("unknown flag: --{name}")))?;
            let value = match (option.takes, value) {
                (_, Some(value)) => value.to_owned(),
                (false, None) => "true".to_owned(),
                (true, None) => {
                    words.next().ok_or_else(|| bad(command, &format!("flag needs an argument: --{name}")))?
                }
            };
            found.push((option.long, value));
        } else if word.len() > 1 && word.starts_with('-') {
            short(command, known, &word[1..], &mut words, &mut found)?;
        } else {
            rest.push(word);
            if ends {
                break;
            }
        }
    }
    rest.extend(words);
    Ok((found, rest))
}

/// `-it`, `-e A=1`, `-eA=1`.
fn short(
    command: &str,
    known: &'static [Known],
    letters: &str,
    words: &mut impl Iterator<Item = String>,
    found: &mut Vec<(&'static str, String)>,
) -> Result<(), Failure> {
    for (at, letter) in letters.char_indices() {
        let option = known.iter().find(|one| one.short == Some(letter));
        let option =
            option.ok_or_else(|| bad(command, &format!("unknown shorthand flag: '{letter}' in -{letters}")))?;
        if !option.takes {
            found.push((option.long, "true".to_owned()));
            continue;
        }
        let attached = &letters[at + letter.len_utf8()..];
        let value = match attached.strip_prefix('=').unwrap_or(attached) {
            "" => words
                .next()
                .ok_or_else(|| bad(command, &format!("flag needs an argument: '{letter}' in -{letters}")))?,
            value => value.to_owned(),
        };
        found.push((option.long, value));
        break;
    }
    Ok(())
}

fn bad(command: &str, message: &str) -> Failure {
    Failure { message: format!("{message}\nSee 'docker {command} --help'."), code: 125 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Line, Failure> {
        Line::read(line.split(' ').map(str::to_owned).collect())
    }

    #[test]
    fn what_the_sdk_sends_is_understood() {
        let line = read(
            "run --rm --name n-1 -v /root:/root -w /root --pull missing -e A=1 -e B --gpus all ubuntu:22.04 sh -c true",
        )
        .expect("it is sent");
        assert_eq!(
            (line.command, line.rest.as_slice()),
            ("run", ["ubuntu:22.04", "sh", "-c", "true"].map(String::from).as_slice())
        );
        assert_eq!(line.values("env").collect::<Vec<_>>(), ["A=1", "B"]);
        assert!(line.has("rm") && line.has("gpus") && !line.has("detach"));
        assert_eq!((line.value("name"), line.value("volume")), (Some("n-1"), Some("/root:/root")));
        let line = read("ps -q -f name=flow --format json").expect("it is sent");
        assert!(line.has("quiet") && line.value("filter") == Some("name=flow") && line.value("format") == Some("json"));
        assert_eq!(read("ps -a -q -f name=x").expect("it is sent").rest.len(), 0);
        for (words, command) in [
            ("container prune -f", "container prune"),
            ("image prune -f", "image prune"),
            ("image inspect a", "image inspect"),
        ] {
            assert_eq!(read(words).expect("it is sent").command, command);
        }
    }

    #[test]
    fn options_come_in_every_way() {
        let line = read("run -it -eA=1 --env=B=2 --rm=false img -e x --rm").expect("well-formed");
        assert_eq!(line.values("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        assert!(line.has("interactive") && line.has("tty") && !line.has("rm"));
        assert_eq!(line.rest, ["img", "-e", "x", "--rm"]);
        assert_eq!(read("rm -f a b -v").expect("well-formed").rest, ["a", "b"]);
        assert_eq!(read("exec c -- ls").expect("well-formed").rest, ["c", "--", "ls"]);
    }

    #[test]
    fn mistakes_have_dockers_codes() {
        assert_eq!(read("run --nope img").map_err(|failure| failure.code), Err(125));
        assert_eq!(read("run -e").map_err(|failure| failure.code), Err(125));
        assert_eq!(read("nope").map_err(|failure| failure.code), Err(1));
        assert!(read("build .").expect_err("not served").message.contains("not served"));
        assert!(
            read("stop")
                .expect("parses")
                .at_least_one()
                .expect_err("none")
                .message
                .contains("requires at least 1 argument")
        );
    }
}
