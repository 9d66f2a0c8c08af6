//! What containers there are: a file each, in memory, in a folder that is this user's alone.
//!
//! A record is written before its container is made. Whether it runs is asked of the kernel: a container whose init is
//! gone has ended, whoever was killed with it.

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use testyard_linux::identity::ProcessIdentity;
use testyard_linux::lock::{FileLock, Mode, Patience};
use testyard_linux::{Error, Result, files};

use crate::Failure;
use crate::clock;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) argv: Vec<String>,
    pub(crate) created: u64,
    /// Gone once it ends.
    pub(crate) auto_remove: bool,
    #[serde(default)]
    pub(crate) mounts: Vec<String>,
    /// Its init, once that was made.
    #[serde(default)]
    pub(crate) process: Option<Process>,
    /// How it ended, once it has.
    #[serde(default)]
    pub(crate) exit_code: Option<u8>,
    #[serde(default)]
    pub(crate) ended: u64,
}

/// A process, so that it is never taken for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    start_ticks: u64,
    boot_id: String,
    pid_namespace_inode: u64,
}

impl Process {
    pub(crate) fn of(pid: rustix::process::Pid) -> Result<Self> {
        let ProcessIdentity { pid, start_ticks, boot_id, pid_namespace_inode } = ProcessIdentity::of(pid)?;
        Ok(Self { pid, start_ticks, boot_id, pid_namespace_inode })
    }

    fn identity(&self) -> ProcessIdentity {
        let Self { pid, start_ticks, boot_id, pid_namespace_inode } = self.clone();
        ProcessIdentity { pid, start_ticks, boot_id, pid_namespace_inode }
    }
}

impl Record {
    /// A descriptor of its init, while it runs.
    pub(crate) fn pidfd(&self) -> Option<OwnedFd> {
        self.process.as_ref()?.identity().open_pidfd().ok().flatten()
    }

    /// Whether its init is there.
    pub(crate) fn is_running(&self) -> bool {
        self.exit_code.is_none()
            && self.process.as_ref().is_some_and(|process| process.identity().is_alive().unwrap_or(false))
    }

    fn is_being_made(&self) -> bool {
        // Between the two are milliseconds; whoever died in them leaves a record that nobody misses.
        self.process.is_none() && self.exit_code.is_none() && clock::now() < self.created + 60
    }

    /// The first twelve digits, as docker shows it.
    pub(crate) fn short_id(&self) -> &str {
        &self.id[..12.min(self.id.len())]
    }

    /// `running`, `created` or `exited`.
    pub(crate) fn state(&self) -> &'static str {
        match (self.is_running(), self.is_being_made()) {
            (true, _) => "running",
            (false, true) => "created",
            (false, false) => "exited",
        }
    }

    fn status(&self) -> String {
        let now = clock::now();
        match self.state() {
            "running" => format!("Up {}", clock::span(now.saturating_sub(self.created))),
            "created" => "Created".to_owned(),
            _ => format!(
                "Exited ({}) {} ago",
                self.exit_code.unwrap_or(137),
                clock::span(now.saturating_sub(self.ended))
            ),
        }
    }

    /// As `docker ps` shows it.
    pub(crate) fn listed(&self, whole: bool) -> Value {
        let command = self.argv.join(" ");
        let command = match command.char_indices().nth(20).filter(|_| !whole) {
            Some((at, _)) => format!("{}…", &command[..at.saturating_sub(1)]),
            None => command,
        };
        json!({
            "Command": format!("\"{command}\""),
            "CreatedAt": clock::date(self.created),
            "ID": if whole { &self.id } else { self.short_id() },
            "Image": self.image,
            "Labels": "",
            "LocalVolumes": "0",
            "Mounts": self.mounts.join(","),
            "Names": self.name,
            "Networks": "host",
            "Ports": "",
            "RunningFor": format!("{} ago", clock::span(clock::now().saturating_sub(self.created))),
            "Size": "0B",
            "State": self.state(),
            "Status": self.status(),
        })
    }

    /// As `docker inspect` shows it.
    pub(crate) fn inspected(&self) -> Value {
        let state = self.state();
        let pid = self.process.as_ref().filter(|_| state == "running").map_or(0, |process| process.pid);
        json!({
            "Id": self.id,
            "Created": clock::date(self.created),
            "Name": format!("/{}", self.name),
            "Path": self.argv.first(),
            "Args": self.argv.get(1..),
            "Image": self.image,
            "State": {
                "Status": state,
                "Running": state == "running",
                "Paused": false,
                "Restarting": false,
                "OOMKilled": false,
                "Dead": false,
                "Pid": pid,
                "ExitCode": self.exit_code.unwrap_or(0),
            },
            "HostConfig": { "AutoRemove": self.auto_remove, "Binds": self.mounts, "NetworkMode": "host" },
            "Config": { "Image": self.image, "Cmd": self.argv },
        })
    }
}

/// All records of this user.
pub(crate) struct Records {
    folder: PathBuf,
}

impl Records {
    pub(crate) fn open() -> Result<Self> {
        let folder = PathBuf::from(format!("/dev/shm/testyard-docker-{}", rustix::process::geteuid().as_raw()));
        files::verified_private_directory(&folder)?;
        Ok(Self { folder })
    }

    /// An empty folder on which a container's root is put together.
    pub(crate) fn root(&self) -> Result<PathBuf> {
        let path = self.folder.join("root");
        files::verified_private_directory(&path)?;
        Ok(path)
    }

    /// Where a container writes that nobody watches.
    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.log"))
    }

    /// The images that were asked for and are there since.
    pub(crate) fn pulled(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join("images")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Remembers an image, or forgets it.
    pub(crate) fn set_pulled(&self, image: &str, here: bool) -> Result<()> {
        let _lock = self.lock()?;
        let mut all = self.pulled();
        all.retain(|one| one != image);
        if here {
            all.push(image.to_owned());
        }
        let text: String = all.iter().map(|one| format!("{one}\n")).collect();
        self.replace(&self.folder.join("images"), text.as_bytes())
    }

    /// Whether this is asked for the first time, of this word, since the machine started.
    pub(crate) fn is_first(&self, word: &str) -> bool {
        OpenOptions::new().write(true).create_new(true).open(self.folder.join(format!("told-{word}"))).is_ok()
    }

    fn lock(&self) -> Result<Option<FileLock>> {
        FileLock::acquire(&self.folder.join("lock"), Mode::Exclusive, Patience::Wait)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    fn replace(&self, path: &Path, content: &[u8]) -> Result<()> {
        let failed = |error| Error::new("write", path.display(), error);
        let new = path.with_extension(format!("new{}", rustix::process::getpid().as_raw_nonzero()));
        fs::write(&new, content).map_err(failed)?;
        fs::rename(&new, path).map_err(failed)
    }

    fn write(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.id);
        let text = serde_json::to_vec(record).map_err(|error| Error::new("write", path.display(), error))?;
        self.replace(&path, &text)
    }

    /// Every container, oldest first; those that have ended and were to go are gone.
    pub(crate) fn all(&self) -> Vec<Record> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let paths = entries.flatten().map(|entry| entry.path());
        let read = |path: PathBuf| serde_json::from_slice::<Record>(&fs::read(path).ok()?).ok();
        let mut all: Vec<Record> =
            paths.filter(|path| path.extension().is_some_and(|end| end == "json")).filter_map(read).collect();
        all.retain(|one| {
            let stays = !one.auto_remove || one.state() != "exited";
            if !stays {
                self.remove(one);
            }
            stays
        });
        all.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        all
    }

    /// Writes a new one down. Refused where its name is taken.
    pub(crate) fn add(&self, record: &Record) -> std::result::Result<(), Failure> {
        let _lock = self.lock()?;
        if let Some(other) = self.all().iter().find(|other| other.name == record.name) {
            return Err(Failure::daemon(format!(
                "Conflict. The container name \"/{}\" is already in use by container \"{}\". You have to remove (or rename) that \
                 container to be able to reuse that name.",
                record.name, other.id
            )));
        }
        self.write(record)?;
        Ok(())
    }

    /// Writes what has become of one, unless it was removed meanwhile.
    pub(crate) fn update(&self, record: &Record) -> Result<()> {
        let _lock = self.lock()?;
        if self.path(&record.id).exists() { self.write(record) } else { Ok(()) }
    }

    pub(crate) fn remove(&self, record: &Record) {
        for path in [self.path(&record.id), self.log(&record.id)] {
            // What is gone already is as it should be.
            let _ = fs::remove_file(path);
        }
    }

    /// The container of this name, or of an id that begins like this.
    pub(crate) fn find(&self, text: &str) -> std::result::Result<Record, Failure> {
        let all = self.all();
        let wanted = text.strip_prefix('/').unwrap_or(text);
        let named = all.iter().find(|one| one.name == wanted);
        let found = named.or_else(|| all.iter().find(|one| !wanted.is_empty() && one.id.starts_with(wanted)));
        found.cloned().ok_or_else(|| Failure::new(format!("Error response from daemon: No such container: {text}")))
    }
}

/// 64 hexadecimal digits that nobody else has.
pub(crate) fn fresh_id() -> String {
    testyard_linux::random::<32>().iter().map(|byte| format!("{byte:02x}")).collect()
}
