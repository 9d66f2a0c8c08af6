//! Commands in the agent's books: from the request to the one `exited` or `failed` that ends its stream.

use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::process::Pid;
use testyard_linux::signal::Signal;
use testyard_linux::step;
use testyard_model::step::Step;
use testyard_model::{EnvironmentId, Problem, ProblemKind};
use testyard_protocol::{Event, FrameHeader, FrameKind};

use crate::agent::{Agent, Token, unwatch, watch};
use crate::early::Word;
use crate::environment::MACHINE;
use crate::environment::order::Order;
use crate::relay::{Input, Output, Read};
use crate::timers::Due;

/// A command that was asked for.
pub(crate) struct Command {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
    /// The environment in which it runs, or [`crate::environment::MACHINE`].
    pub(crate) place: EnvironmentId,
    pub(crate) detach: bool,
    /// What it writes may be passed on: the client was told that it runs, or does not want to be told.
    pub(crate) told: bool,
    pub(crate) started: Instant,
    pub(crate) timed_out: bool,
    pub(crate) terminal: bool,
    pub(crate) input: Option<Input>,
    pub(crate) outputs: Vec<Output>,
    /// How it ended, while its output is still on its way.
    pub(crate) ended: Option<Event>,
    /// The file worker whose bytes these are, where it is no command at all.
    pub(crate) worker: Option<Pid>,
}

impl Command {
    /// A file worker's bytes, which are relayed as if they were a command's.
    pub(crate) fn of_worker((connection, stream): (u64, u32), place: EnvironmentId, worker: Pid) -> Self {
        Self {
            connection,
            stream,
            place,
            detach: false,
            told: true,
            started: Instant::now(),
            timed_out: false,
            terminal: false,
            input: None,
            outputs: Vec::new(),
            ended: None,
            worker: Some(worker),
        }
    }
}

pub(crate) fn channels_of(command: &Command) -> Vec<u8> {
    command.outputs.iter().map(|output| output.channel).collect()
}

impl Agent {
    /// Registers a command's relays and deadline.
    pub(crate) fn track(&mut self, number: u32, command: Command, timeout_ms: Option<u64>) {
        if let Some(timeout) = timeout_ms {
            self.timers.add(Instant::now() + Duration::from_millis(timeout), Due::Deadline(number));
        }
        let channels = if command.told { channels_of(&command) } else { Vec::new() };
        self.commands.insert(number, command);
        for channel in channels {
            self.watch_output(number, channel);
        }
    }

    /// Sends the last event, once all output is on its way.
    pub(crate) fn finish(&mut self, number: u32, event: Event) {
        let Some(command) = self.commands.get_mut(&number) else { return };
        command.ended = Some(event);
        command.told = true;
        let channels = channels_of(command);
        self.timers.forget(Due::Deadline(number));
        for channel in channels {
            self.relay_output(number, channel);
        }
        self.finish_if_drained(number);
    }

    fn finish_if_drained(&mut self, number: u32) {
        let Some(command) = self.commands.get(&number) else { return };
        if command.ended.is_none() || !command.outputs.is_empty() {
            return;
        }
        let Some(command) = self.commands.remove(&number) else { return };
        if let Some(connection) = self.connections.get_mut(&command.connection)
            && let Some(event) = &command.ended
        {
            connection.event(command.stream, event);
        }
        self.rewatch(command.connection);
        if command.place != MACHINE {
            step::reach(Step::AgentEnvironmentStatus);
        }
    }

    /// Sends output that is there and that the client has credit for.
    pub(crate) fn relay_output(&mut self, number: u32, channel: u8) {
        let Some(command) = self.commands.get_mut(&number).filter(|command| command.told) else { return };
        let Some(place) = command.outputs.iter().position(|output| output.channel == channel) else { return };
        let header = FrameHeader { kind: FrameKind::Data, channel, attached: 0, stream: command.stream };
        let client = command.connection;
        let over = loop {
            let output = &mut command.outputs[place];
            let connection = self.connections.get_mut(&client);
            if let (Some(connection), Some(pipe)) = (&connection, output.pipe())
                && connection.is_full()
            {
                unwatch(&self.epoll, pipe);
                break None;
            }
            match (output.read(), connection) {
                (Read::Bytes(bytes), Some(connection)) => connection.send_frame(header, &bytes, Vec::new()),
                // A detached command whose client is gone: it goes on, and nobody reads it.
                (Read::Bytes(bytes), None) => drop(output.grant(bytes.len() as u64)),
                // After the command's end nobody waits for what its daemons may still say.
                (Read::Nothing, _) => break Some(command.ended.is_some()),
                (Read::NoCredit, _) => {
                    if let Some(pipe) = output.pipe() {
                        unwatch(&self.epoll, pipe);
                    }
                    break Some(false);
                }
                (Read::End, _) => break Some(true),
            }
        };
        match over {
            Some(true) => self.end_output(number, place),
            Some(false) => {}
            None => {
                if let Some(connection) = self.connections.get_mut(&client) {
                    connection.paused = true;
                }
            }
        }
        self.rewatch(client);
    }

    /// An output has ended, or nobody waits for it any more.
    fn end_output(&mut self, number: u32, place: usize) {
        let Some(command) = self.commands.get_mut(&number) else { return };
        let output = command.outputs.remove(place);
        // A pipe that was closed at its end is no longer watched either.
        if let Some(pipe) = output.pipe() {
            unwatch(&self.epoll, pipe);
        }
        if let Some(connection) = self.connections.get_mut(&command.connection) {
            let channel = output.channel;
            let header = FrameHeader { kind: FrameKind::End, channel, attached: 0, stream: command.stream };
            connection.send_frame(header, &[], Vec::new());
        }
        self.finish_if_drained(number);
    }

    /// The client reads again: so are the outputs of its commands.
    pub(crate) fn resume_outputs(&mut self, connection: u64) {
        let own = self.commands.iter().filter(|(_, command)| command.connection == connection);
        let channels: Vec<(u32, u8)> =
            own.flat_map(|(number, command)| channels_of(command).into_iter().map(|one| (*number, one))).collect();
        for (number, channel) in channels {
            self.watch_output(number, channel);
            self.relay_output(number, channel);
        }
    }

    pub(crate) fn watch_output(&self, number: u32, channel: u8) {
        let command = self.commands.get(&number).filter(|command| command.told);
        let output = command.and_then(|command| command.outputs.iter().find(|output| output.channel == channel));
        if let Some(pipe) = output.and_then(Output::pipe) {
            // Already watched is as good; what cannot be watched (none of ours) is drained at the end.
            let _ = watch(&self.epoll, pipe, Token::Output(number, channel), EventFlags::IN);
        }
    }

    /// Gives an output credit, and sends what waited for it.
    pub(crate) fn credit(&mut self, connection: u64, stream: u32, channel: u8, bytes: u32) {
        let Some((number, command)) = self.command_of(connection, stream) else { return };
        let Some(output) = command.outputs.iter_mut().find(|output| output.channel == channel) else { return };
        if output.grant(u64::from(bytes)).is_err() {
            self.close_connection(connection);
            return;
        }
        self.watch_output(number, channel);
        self.relay_output(number, channel);
    }

    /// Bytes for a command's input.
    pub(crate) fn input(&mut self, connection: u64, stream: u32, bytes: Option<&[u8]>) {
        let Some((number, command)) = self.command_of(connection, stream) else {
            // Input of a command that has ended is nobody's.
            self.keep_early(connection, stream, Word::Input(bytes.map(<[u8]>::to_vec)));
            return;
        };
        let Some(input) = &mut command.input else { return };
        let granted = match bytes {
            Some(bytes) => input.feed(bytes),
            None => {
                input.end();
                Ok(None)
            }
        };
        match granted {
            Ok(credit) => self.after_input(number, credit),
            Err(_) => self.close_connection(connection),
        }
    }

    /// A command's input has room again.
    pub(crate) fn relay_input(&mut self, number: u32) {
        let Some(command) = self.commands.get_mut(&number) else { return };
        let Some(input) = &mut command.input else { return };
        if let Some(pipe) = input.wanting() {
            unwatch(&self.epoll, pipe);
        }
        let credit = input.write();
        self.after_input(number, credit);
    }

    pub(crate) fn after_input(&mut self, number: u32, credit: Option<u64>) {
        let Some(command) = self.commands.get_mut(&number) else { return };
        if let Some(pipe) = command.input.as_ref().and_then(Input::wanting) {
            let _ = watch(&self.epoll, pipe, Token::Input(number), EventFlags::OUT);
        }
        if let (Some(credit), Some(connection)) = (credit, self.connections.get_mut(&command.connection)) {
            connection.grant(command.stream, 0, credit);
        }
        let connection = command.connection;
        self.rewatch(connection);
    }

    /// The command of a stream.
    pub(crate) fn command_of(&mut self, connection: u64, stream: u32) -> Option<(u32, &mut Command)> {
        self.commands
            .iter_mut()
            .find(|(_, command)| command.connection == connection && command.stream == stream)
            .map(|(number, command)| (*number, command))
    }

    /// A command's time is up.
    pub(crate) fn deadline(&mut self, number: u32) {
        if let Some(command) = self.commands.get_mut(&number) {
            command.timed_out = true;
            self.kill(number);
        }
    }

    /// Ends a command and all that it started.
    pub(crate) fn kill(&mut self, number: u32) {
        let Some(command) = self.commands.get(&number) else { return };
        match command.worker {
            Some(_) => {
                let (connection, stream) = (command.connection, command.stream);
                self.end_transfer(connection, stream);
            }
            None => self.kill_in_environment(number, command.place),
        }
    }

    /// Sends a signal to a command; to its group where it has a terminal.
    pub(crate) fn signal_command(
        &mut self,
        number: u32,
        place: EnvironmentId,
        signal: i32,
        terminal: bool,
    ) -> Result<(), Problem> {
        if Signal::from_number(signal).is_none() {
            return Err(Problem::new(ProblemKind::Usage, format!("{signal} is not a signal: 1 to 64 are")));
        }
        let order = Order::Signal { command: number, signal, group: terminal };
        self.order(place, &order, &[]).map_err(|error| error.problem())
    }

    /// Asks commands on the machine to end.
    pub(crate) fn terminate_commands(&mut self) {
        let on_machine: Vec<u32> =
            self.commands.iter().filter(|(_, command)| command.place == MACHINE).map(|(number, _)| *number).collect();
        for number in on_machine {
            // One that just ended needs no signal.
            let _ = self.signal_command(number, MACHINE, Signal::TERM.number(), true);
        }
    }
}
