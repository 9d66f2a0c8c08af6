//! The keeper of the connection: one `ssh`, over which relays open their sessions, and with it a shell on the other
//! host that takes orders.
//!
//! It lives as long as the machine's agent. A connection that broke is made anew when a relay asks for one. A relay that
//! goes without a word has been killed: then what its command started there is killed too.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use testyard_linux::signal::{self, Signal};
use testyard_linux::{process, socket};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::start::{CONFIGURATION, LINK};

use super::{CONTROL, KEEPER, script};
use crate::connect::{self, Connected};
use crate::near::NearStart;
use crate::shell::quoted_text;

/// A relay's line that it tells the keeper, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    /// Is there a connection? With the mark of the command, where one is to be ended if the relay is killed.
    Begin(Option<String>),
    /// Send a signal to a process there.
    Signal { number: i32, process: u32 },
    /// It ended by itself.
    Over,
}

/// The keeper's answer: there is a connection.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Begun {
    /// What people call the other host.
    host: String,
    /// The mark of all that the command starts there.
    mark: String,
}

/// A relay's side of the talk.
pub(super) struct Keeper {
    stream: BufReader<UnixStream>,
    /// What people call the other host.
    pub(super) host: String,
    /// The mark of all that the command starts there; empty where none was asked for.
    pub(super) mark: String,
}

impl Keeper {
    /// Reaches the keeper, which makes a connection where there is none.
    pub(super) fn reach(mark: Option<&str>) -> Result<Self, Problem> {
        let gone = |error: std::io::Error| {
            Problem::new(ProblemKind::Unavailable, "the keeper of the connection is not there")
                .because(error)
                .hint("start the machine anew: testyard stop NAME, then testyard start NAME")
        };
        let mut keeper = Self {
            stream: BufReader::new(UnixStream::connect(KEEPER).map_err(gone)?),
            host: String::new(),
            mark: String::new(),
        };
        keeper.tell(&Word::Begin(mark.map(str::to_owned)));
        let mut line = String::new();
        keeper.stream.read_line(&mut line).map_err(gone)?;
        let answer = serde_json::from_str::<Result<Begun, Problem>>(&line);
        let Begun { host, mark } = answer.map_err(|error| gone(error.into()))??;
        Ok(Self { host, mark, ..keeper })
    }

    pub(super) fn signal(&mut self, number: i32, process: u32) {
        self.tell(&Word::Signal { number, process });
    }

    pub(super) fn over(mut self) {
        self.tell(&Word::Over);
    }

    fn tell(&mut self, word: &Word) {
        let mut line = serde_json::to_vec(word).unwrap_or_default();
        line.push(b'\n');
        // A keeper that is gone has ended what runs there.
        let _ = self.stream.get_mut().write_all(&line);
    }
}

/// A relay as the keeper sees it.
struct Relay {
    stream: BufReader<UnixStream>,
    /// What its command started there has it.
    mark: Option<String>,
    /// The connection over which it began.
    connection: String,
    gone: bool,
}

struct Serving {
    start: NearStart,
    grace: Duration,
    listener: OwnedFd,
    up: Option<Connected>,
    /// The last connection's word. What an earlier one's shell still ends is nothing of a later one's.
    connection: String,
    relays: Vec<Relay>,
}

/// Runs until the agent is gone.
pub(super) fn run() -> Result<(), Problem> {
    let inherited = process::inherited_descriptors([LINK, CONFIGURATION]);
    let [owner, configuration] =
        inherited.ok_or_else(|| Problem::new(ProblemKind::Usage, "`plain` is started by testyard itself only"))?;
    let start: NearStart = serde_json::from_reader(File::from(configuration))
        .map_err(|error| Problem::from_error(ProblemKind::Protocol, &error))?;
    signal::ignore(Signal::PIPE).map_err(|error| error.problem())?;
    // Here, where its path is short: a socket's may not be long.
    let listener = socket::listen(Path::new(KEEPER), 0o600).map_err(|error| error.problem())?;
    let grace = start.grace();
    let mut serving = Serving { start, grace, listener, up: None, connection: String::new(), relays: Vec::new() };
    let outcome = serving.connect();
    let mut line = serde_json::to_vec(&outcome).map_err(|error| Problem::from_error(ProblemKind::Bug, &error))?;
    line.push(b'\n');
    let mut told = File::from(owner);
    // Whoever started this is gone: then so is this.
    if told.write_all(&line).is_ok() && outcome.is_ok() {
        serving.serve(&told)?;
    }
    serving.hang_up();
    Ok(())
}

impl Serving {
    fn connect(&mut self) -> Result<(), Problem> {
        if self.up.is_some() {
            return Ok(());
        }
        let (mut dialled, patience) = self.start.dialled(self.connection.is_empty())?;
        // What is said first counts.
        for option in ["ControlMaster=yes", "ControlPersist=no", &format!("ControlPath={CONTROL}")] {
            dialled.words.splice(0..0, ["-o".into(), option.into()]);
        }
        // Of a connection that was cut off.
        let _ = std::fs::remove_file(CONTROL);
        let word = connect::random_word();
        let text = script::keeping(self.machine(), &word, self.grace.as_secs().max(1));
        self.up = Some(connect::connect_shell(&dialled, &text, &format!("{word} up"), patience)?);
        self.connection = word;
        Ok(())
    }

    fn machine(&self) -> &str {
        self.start.plain.as_ref().map_or("", |plain| &plain.agent.machine)
    }

    fn serve(&mut self, owner: &File) -> Result<(), Problem> {
        let mut told = Instant::now();
        loop {
            let left = (told + self.grace / 3).saturating_duration_since(Instant::now());
            let mut polled = vec![PollFd::new(owner, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
            polled.extend(self.relays.iter().map(|relay| PollFd::new(relay.stream.get_ref(), PollFlags::IN)));
            let relays = polled.len();
            if let Some(connected) = &self.up {
                polled.push(PollFd::new(&connected.input, PollFlags::IN));
                polled.extend(connected.errors.iter().map(|errors| PollFd::new(errors, PollFlags::IN)));
            }
            match rustix::event::poll(&mut polled, left.try_into().ok().as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Problem::new(ProblemKind::System, "cannot wait for relays").because(errno)),
            }
            let happened: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(polled);
            // First: what is said of a connection is of no other.
            self.attend(&happened[relays..]);
            for (relay, _) in happened[2..relays].iter().enumerate().filter(|(_, happened)| **happened) {
                self.hear(relay);
            }
            self.relays.retain(|relay| !relay.gone);
            if happened[1]
                && let Ok(stream) = socket::accept(&self.listener)
            {
                self.relays.push(Relay {
                    stream: BufReader::new(stream.into()),
                    mark: None,
                    connection: String::new(),
                    gone: false,
                });
            }
            if happened[0] {
                return Ok(());
            }
            if told.elapsed() >= self.grace / 3 {
                self.order(":");
                told = Instant::now();
            }
        }
    }

    /// Looks after the connection: its output has ended, or it says something.
    fn attend(&mut self, happened: &[bool]) {
        let Some(connected) = &mut self.up else { return };
        if happened.get(1) == Some(&true)
            && let Some(errors) = &connected.errors
            && !connect::hear(errors.as_fd(), &mut Vec::new())
        {
            connected.errors = None;
        }
        if happened.first() == Some(&true) {
            let ended = matches!(rustix::io::read(&connected.input, &mut [0; 256]), Ok(0) | Err(_));
            if ended {
                self.hang_up();
            }
        }
    }

    /// A relay's next lines.
    fn hear(&mut self, index: usize) {
        loop {
            self.hear_line(index);
            let relay = &self.relays[index];
            if relay.gone || relay.stream.buffer().is_empty() {
                return;
            }
        }
    }

    fn hear_line(&mut self, index: usize) {
        let mut line = String::new();
        let read = self.relays[index].stream.read_line(&mut line).unwrap_or(0);
        let word = serde_json::from_str(&line);
        match (read, word) {
            (1.., Ok(Word::Begin(mark))) => self.begin(index, mark),
            // A number of an earlier connection's may be anybody's by now.
            (1.., Ok(Word::Signal { number, process })) if self.relays[index].connection == self.connection => {
                self.order(&format!("kill -{number} {process}"));
            }
            (1.., Ok(Word::Signal { .. })) => {}
            (1.., Ok(Word::Over)) => self.relays[index].gone = true,
            // Killed, or broken.
            _ => {
                self.relays[index].gone = true;
                if let Some(mark) = self.relays[index].mark.take() {
                    self.order(&format!("end {}", quoted_text(&mark)));
                }
            }
        }
    }

    fn begin(&mut self, index: usize, mark: Option<String>) {
        let outcome = self.connect().map(|()| Begun {
            host: self.start.remote.transport.name(),
            mark: mark.map(|mark| script::far_mark(self.machine(), &self.connection, &mark)).unwrap_or_default(),
        });
        let mut answer = serde_json::to_vec(&outcome).unwrap_or_default();
        answer.push(b'\n');
        let relay = &mut self.relays[index];
        relay.connection.clone_from(&self.connection);
        relay.mark = outcome.ok().map(|begun| begun.mark).filter(|mark| !mark.is_empty());
        // One that is gone is noticed by the next read.
        let _ = relay.stream.get_mut().write_all(&answer);
    }

    /// Tells the shell there. Where there is no connection, that shell has ended everything.
    fn order(&mut self, line: &str) {
        if let Some(connected) = &self.up {
            let line = format!("{line}\n");
            // A connection that broke is noticed by its output's end.
            let _ = rustix::io::write(&connected.output, line.as_bytes());
        }
    }

    /// Ends the connection; the shell there ends what runs.
    fn hang_up(&mut self) {
        let Some(Connected { child, input, output, .. }) = self.up.take() else { return };
        drop(output);
        let mut polled = [PollFd::new(&input, PollFlags::IN)];
        let moment = rustix::event::Timespec { tv_sec: 3, tv_nsec: 0 };
        // Its output ends with it; what takes longer is not waited for.
        let _ = rustix::event::poll(&mut polled, Some(&moment));
        connect::end(child);
    }
}
