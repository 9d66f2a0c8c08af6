//! The command of a container, and `docker exec`: one more in a container that runs.

use std::ffi::{CString, OsStr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::identity;
use testyard_linux::namespace::{self, Kind};
use testyard_linux::process::{self, CloneFlags, CloneOptions, Credentials, Forked, SingleThreaded};
use testyard_linux::{Error, user};

use crate::arguments::Line;
use crate::records::Records;
use crate::{Failure, Outcome};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command as docker describes it.
pub(crate) struct Command {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) folder: Option<PathBuf>,
    /// Whether the folder is made where it is missing.
    pub(crate) make_folder: bool,
    pub(crate) user: Option<String>,
    /// Whether it reads the caller's standard input.
    pub(crate) with_input: bool,
}

impl Command {
    /// `-e` and `--env-file`; a name alone takes the caller's value.
    pub(crate) fn environment(line: &Line) -> Result<Vec<(String, String)>, Failure> {
        let mut texts = Vec::new();
        for file in line.values("env-file") {
            let content = std::fs::read_to_string(file)
                .map_err(|error| Failure { message: format!("docker: open {file}: {error}"), code: 125 })?;
            let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            texts.extend(lines.map(str::to_owned));
        }
        texts.extend(line.values("env").map(str::to_owned));
        Ok(texts.iter().filter_map(|text| variable(text)).collect())
    }

    /// Becomes the command; returns only why that failed.
    pub(crate) fn become_it(&self) -> Error {
        match self.prepare() {
            Ok((argv, env, candidates)) => process::execute_first(&candidates, &argv, &env),
            Err(error) => error,
        }
    }

    fn prepare(&self) -> Result<Prepared, Error> {
        let account = self.user.as_deref().map(account_of).transpose()?;
        let home = account.as_ref().map_or_else(|| PathBuf::from("/root"), |(_, home)| home.clone());
        let mut env = vec![("PATH".to_owned(), PATH.to_owned()), ("HOME".to_owned(), home.display().to_string())];
        env.push(("HOSTNAME".to_owned(), rustix::system::uname().nodename().to_string_lossy().into_owned()));
        for (name, value) in &self.env {
            env.retain(|(other, _)| other != name);
            env.push((name.clone(), value.clone()));
        }
        let folder = self.folder.clone().unwrap_or_else(|| PathBuf::from("/"));
        let failed = |error| Error::new("enter", folder.display(), error);
        if self.make_folder && !folder.exists() {
            std::fs::create_dir_all(&folder).map_err(failed)?;
        }
        if !self.with_input {
            let null = std::fs::File::open("/dev/null").map_err(failed)?;
            process::install_standard_streams([null.as_fd(), rustix::stdio::stdout(), rustix::stdio::stderr()])?;
        }
        if let Some((credentials, _)) = account {
            process::become_user(&credentials, false)?;
        }
        rustix::process::chdir(&folder).map_err(|errno| Error::new("enter", folder.display(), errno))?;
        let search = env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| OsStr::new(value));
        let name = self.argv.first().map(OsStr::new).unwrap_or_default();
        let candidates = process::resolve_program(name, search, Path::new("."));
        let words =
            |texts: &mut dyn Iterator<Item = String>| texts.filter_map(|text| CString::new(text).ok()).collect();
        let argv: Vec<CString> = words(&mut self.argv.iter().cloned());
        let env: Vec<CString> = words(&mut env.iter().map(|(name, value)| format!("{name}={value}")));
        Ok((argv, env, candidates))
    }
}

/// Arguments, variables, and where the program may be.
type Prepared = (Vec<CString>, Vec<CString>, Vec<CString>);

fn variable(text: &str) -> Option<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Some((name.to_owned(), value.to_owned())),
        Some(_) => None,
        None => std::env::var(text).ok().map(|value| (text.to_owned(), value)),
    }
}

/// `1000`, `1000:1000` or a name, with its home.
fn account_of(text: &str) -> Result<(Credentials, PathBuf), Error> {
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let known = user::account_in(Path::new("/"), name);
    let numbers = (name.parse().ok(), group.and_then(|group| group.parse().ok()));
    match (known, numbers) {
        (Some(known), (_, gid)) => {
            let credentials = Credentials { uid: known.uid, gid: gid.unwrap_or(known.gid), groups: known.groups };
            Ok((credentials, known.home))
        }
        (None, (Some(uid), gid)) => {
            Ok((Credentials { uid, gid: gid.unwrap_or(0), groups: Vec::new() }, PathBuf::from("/")))
        }
        (None, (None, _)) => Err(Error::new("find user", text, Errno::NOENT)),
    }
}

/// What a wait status means as an exit code.
pub(crate) fn code_of(status: i32) -> u8 {
    let signal = status & 0x7f;
    let code = if signal == 0 { status >> 8 & 0xff } else { 128 + signal };
    u8::try_from(code).unwrap_or(255)
}

/// Why a command could not be started, with docker's code: 127 where it is not there, 126 where it may not run.
pub(crate) fn explain(command: &Command, errno: Errno) -> Failure {
    let name = command.argv.first().map_or("", String::as_str);
    let (what, code) = match errno {
        Errno::NOENT | Errno::NOTDIR => (format!("exec: \"{name}\": executable file not found in $PATH"), 127),
        Errno::ACCESS | Errno::PERM | Errno::NOEXEC => {
            (format!("exec: \"{name}\": {}", std::io::Error::from(errno)), 126)
        }
        _ => (format!("exec: \"{name}\": {}", std::io::Error::from(errno)), 126),
    };
    Failure { code, ..Failure::daemon(format!("failed to create task for container: {what}: unknown")) }
}

/// `docker exec`.
pub(crate) fn exec(line: &Line) -> Outcome {
    let Some((name, argv)) = line.rest.split_first().filter(|(_, argv)| !argv.is_empty()) else {
        return Err(Failure::new("\"docker exec\" requires at least 2 arguments.\nSee 'docker exec --help'."));
    };
    let record = Records::open()?.find(name)?;
    let Some(process) = record.process.as_ref().filter(|_| record.is_running()) else {
        return Err(Failure::new(format!("Error response from daemon: container {} is not running", record.id)));
    };
    let command = Command {
        argv: argv.to_vec(),
        env: Command::environment(line)?,
        folder: line.value("workdir").map(PathBuf::from),
        make_folder: false,
        user: line.value("user").map(str::to_owned),
        with_input: line.has("interactive"),
    };
    let pid = rustix::process::Pid::from_raw(process.pid);
    let pid = pid.ok_or_else(|| Failure::new(format!("Error response from daemon: No such container: {name}")))?;
    // Opened before the first is joined: from then on `/proc` is another.
    let kinds = [Kind::User, Kind::Ipc, Kind::Uts, Kind::Pid, Kind::Mount];
    let opened = kinds.map(|kind| namespace::open(Some(pid), kind).map(|fd| (kind, fd)));
    let own = identity::namespace_inode(Path::new("/proc/self/ns/user")).ok();
    for one in opened {
        let (kind, fd) = one?;
        if kind != Kind::User || identity::namespace_inode_of(fd.as_fd()).ok() != own {
            namespace::enter(fd.as_fd(), kind.flag())?;
        }
    }
    wait_for(&command, line.has("detach"))
}

fn wait_for(command: &Command, detached: bool) -> Outcome {
    let broken = |errno| Error::new("make", "a pipe", errno);
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC).map_err(broken)?;
    match process::clone3(SingleThreaded::check()?, CloneFlags::NONE, CloneOptions::default())? {
        Forked::Child => {
            drop(told);
            let errno = command.become_it().errno();
            let _ = rustix::io::write(&tell, &errno.raw_os_error().to_le_bytes());
            process::exit_immediately(127)
        }
        Forked::Parent(child) => {
            drop(tell);
            let mut said = [0; 4];
            if rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut said)).unwrap_or(0) == said.len() {
                let _ = process::pidfd_wait(child.pidfd.as_fd(), false);
                return Err(explain(command, Errno::from_raw_os_error(i32::from_le_bytes(said))));
            }
            if detached {
                return Ok(0);
            }
            Ok(process::pidfd_wait(child.pidfd.as_fd(), false)?.map_or(255, code_of))
        }
    }
}
