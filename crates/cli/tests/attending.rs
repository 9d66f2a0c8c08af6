//! The real binary attends commands of an agent that is a thread here: streams, signals, terminals, exit codes.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use testyard_linux::terminal::{Size, open_pty, set_size};
use testyard_machine::wire::{FrameReader, send_frame};
use testyard_model::{CommandStatus, Problem, ProblemKind, Usage};
use testyard_protocol::{
    Command as Said, Event, Exec, FrameHeader, FrameKind, Request, StreamTarget, VERSION, Welcome,
};

/// A home with a machine `m` whose agent is a thread.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("ty-cli-").tempdir_in("/tmp").expect("a folder");
        let state = folder.path().join("state");
        for path in ["state", "state/run", "state/run/by-name", "state/run/m1"] {
            let path = folder.path().join(path);
            fs::create_dir(&path).expect("made");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("ours");
        }
        let listener = UnixListener::bind(state.join("run/m1/machine.sock")).expect("bound");
        symlink("../m1/machine.sock", state.join("run/by-name/m")).expect("linked");
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                std::thread::spawn(move || serve(client.into()));
            }
        });
        Self { folder }
    }

    fn testyard(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_testyard"));
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("TERM", "vt100");
        command.env("TESTYARD_HOME", self.folder.path().join("state"));
        command
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

fn say(socket: &OwnedFd, stream: u32, event: &Event) {
    let bytes = serde_json::to_vec(event).expect("plain data");
    // The client may be gone by now.
    let _ = send_frame(socket, FrameHeader::message(stream), &bytes, &[]);
}

fn serve(socket: OwnedFd) {
    let mut reader = FrameReader::new(4096);
    let mut running: Option<i32> = None;
    let mut on_terminal = 0;
    while let Ok(received) = reader.receive(&socket) {
        let (header, payload) = (received.frame.header, received.frame.payload);
        if header.kind == FrameKind::Data && on_terminal == header.stream {
            let seen = [b"typed ", &payload[..], b"\n"].concat();
            let data = FrameHeader { kind: FrameKind::Data, channel: 1, attached: 0, stream: header.stream };
            send_frame(&socket, data, &seen, &[]).expect("the client reads");
            if payload.contains(&b'q') {
                let end = FrameHeader { kind: FrameKind::End, ..data };
                send_frame(&socket, end, &[], &[]).expect("the client reads");
                let status = CommandStatus::Exited(9);
                say(&socket, header.stream, &Event::Exited { status, usage: Usage::default(), environment: None });
            }
            continue;
        }
        if header.kind != FrameKind::Message {
            continue;
        }
        if let Ok(said) = serde_json::from_slice::<Said>(&payload) {
            match (said, running) {
                (Said::Signal(signal), Some(pid)) => {
                    let pid = rustix::process::Pid::from_raw(pid).expect("a child's");
                    let signal = rustix::process::Signal::from_named_raw(signal).expect("a usual one");
                    rustix::process::kill_process(pid, signal).expect("it runs");
                }
                (Said::Resize(size), _) => {
                    let text = format!("now {}x{}\n", size.rows, size.columns);
                    let data = FrameHeader { kind: FrameKind::Data, channel: 1, attached: 0, stream: header.stream };
                    send_frame(&socket, data, text.as_bytes(), &[]).expect("the client reads");
                }
                _ => {}
            }
            continue;
        }
        match serde_json::from_slice::<Request>(&payload).expect("a request") {
            Request::Hello(_) => {
                let welcome =
                    Welcome { version: VERSION, server: "a thread".to_owned(), generation: 0, elsewhere: false };
                say(&socket, 0, &Event::Welcome(welcome));
            }
            Request::Exec(exec) if exec.terminal.is_some() => {
                on_terminal = header.stream;
                say(&socket, header.stream, &Event::Started { pid: 5, environment: None });
                let size = exec.terminal.expect("matched above");
                let text = format!("size {}x{} TERM {}\n", size.rows, size.columns, exec.env[0].1.lossy());
                let data = FrameHeader { kind: FrameKind::Data, channel: 1, attached: 0, stream: header.stream };
                send_frame(&socket, data, text.as_bytes(), &[]).expect("the client reads");
            }
            Request::Exec(exec) => {
                running = start(&socket, header.stream, &exec, received.descriptors);
            }
            _ => say(&socket, header.stream, &Event::Done),
        }
    }
}

fn start(socket: &OwnedFd, stream: u32, exec: &Exec, mut attached: Vec<OwnedFd>) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt as _;
    let words: Vec<_> = exec.argv.iter().map(|word| word.as_path().as_os_str().to_owned()).collect();
    let given = |target: StreamTarget| match target {
        StreamTarget::Attached(index) => {
            Stdio::from(attached[usize::from(index)].try_clone().expect("descriptors are left"))
        }
        _ => Stdio::null(),
    };
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(given(exec.stdin)).stdout(given(exec.stdout)).stderr(given(exec.stderr));
    command.envs(exec.env.iter().map(|(name, value)| (name.as_path(), value.as_path())));
    let child = command.spawn();
    drop(command);
    attached.clear();
    match child {
        Ok(mut child) => {
            let pid = child.id() as i32;
            if !exec.quiet {
                say(socket, stream, &Event::Started { pid, environment: None });
            }
            let socket = socket.try_clone().expect("descriptors are left");
            let limit = exec.timeout_ms;
            std::thread::spawn(move || {
                if limit.is_some() {
                    let _ = child.kill();
                }
                let ended = child.wait().expect("our child");
                let status = match limit {
                    Some(_) => CommandStatus::TimedOut,
                    None => CommandStatus::from_wait_status(ended.into_raw()),
                };
                say(&socket, stream, &Event::Exited { status, usage: Usage::default(), environment: None });
            });
            Some(pid)
        }
        Err(error) => {
            let problem = Problem::new(ProblemKind::Command, format!("cannot start {:?}", words[0])).because(error);
            say(socket, stream, &Event::Failed(problem));
            None
        }
    }
}

fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().expect("the binary was just built");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

#[test]
fn streams_and_exit_codes_are_the_commands_own() {
    let home = Home::new();
    let mut command = home.testyard(&["exec", "m", "--", "sh", "-c", "cat; echo \"$0 $A\" >&2; exit 42", "word"]);
    command.args::<[&str; 0], _>([]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("built");
    child.stdin.take().expect("piped").write_all(b"through a pipe\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(output.stdout, b"through a pipe\n");
    assert_eq!(output.stderr, b"word \n");

    let (code, _, _) = run(home.testyard(&["exec", "m", "--", "sh", "-c", "kill -9 $$"]).stdin(Stdio::null()));
    assert_eq!(code, 137);
    let (code, out, _) =
        run(home.testyard(&["exec", "m", "-e", "A=b c", "sh", "-c", "echo \"$A\""]).stdin(Stdio::null()));
    assert_eq!((code, out.as_str()), (0, "b c\n"));
}

#[test]
fn files_are_relayed_whole() {
    let home = Home::new();
    let (input, output) = (home.path().join("in"), home.path().join("out"));
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    fs::write(&input, &bytes).expect("written");
    let mut command = home.testyard(&["exec", "m", "cat"]);
    command.stdin(File::open(&input).expect("there")).stdout(File::create(&output).expect("made"));
    assert!(command.status().expect("built").success());
    assert!(fs::read(&output).expect("there") == bytes);

    // A command that does not read its input ends all the same.
    let mut command = home.testyard(&["exec", "m", "true"]);
    assert!(command.stdin(File::open(&input).expect("there")).status().expect("built").success());
}

#[test]
fn our_errors_are_told_apart() {
    let home = Home::new();
    let (code, out, err) = run(home.testyard(&["exec", "m", "/no/such/program"]).stdin(Stdio::null()));
    assert_eq!((code, out.as_str()), (127, ""));
    assert!(err.starts_with("error: cannot start \"/no/such/program\"\n  because: "), "{err}");

    let (code, _, err) =
        run(home.testyard(&["exec", "m", "--timeout", "50ms", "--", "sleep", "100"]).stdin(Stdio::null()));
    assert_eq!(code, 124);
    assert_eq!(err, "error: the command in machine m was ended because 50ms had passed\n");
}

#[test]
fn json_collects_the_output() {
    let home = Home::new();
    let (code, out, _) = run(home
        .testyard(&["exec", "m", "--json", "--", "sh", "-c", "echo a; echo b >&2; exit 3"])
        .stdin(Stdio::null()));
    assert_eq!(code, 3);
    let json: serde_json::Value = serde_json::from_str(&out).expect("one document");
    assert_eq!((&json["stdout"], &json["stderr"], &json["code"]), (&"a\n".into(), &"b\n".into(), &3.into()));
    assert_eq!((&json["version"], &json["status"]["exited"]), (&1.into(), &3.into()));
}

#[test]
fn signals_are_passed_on() {
    let home = Home::new();
    for (signal, code) in [(rustix::process::Signal::INT, 5), (rustix::process::Signal::TERM, 6)] {
        let script = "trap 'exit 5' INT; trap 'exit 6' TERM; echo ready; while :; do sleep 0.01; done";
        let mut command = home.testyard(&["exec", "m", "--", "sh", "-c", script]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("built");
        let mut ready = [0; 6];
        child.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("it speaks");
        rustix::process::kill_process(pid(&child), signal).expect("it runs");
        assert_eq!(child.wait().expect("it ends").code(), Some(code));
    }
}

fn pid(child: &Child) -> rustix::process::Pid {
    rustix::process::Pid::from_child(child)
}

#[test]
fn a_terminal_is_shown_typed_at_and_resized() {
    let home = Home::new();
    let (controller, terminal) = open_pty(Size { rows: 30, columns: 90 }).expect("devpts is mounted");
    let stdio = || Stdio::from(terminal.try_clone().expect("descriptors are left"));
    let command = home.testyard(&["exec", "-t", "m", "--", "vi"]);
    // A session of its own, so that the terminal can be its controlling one and SIGWINCH reaches it.
    let mut outer = Command::new("setsid");
    outer.arg("-c").arg("-w").arg(command.get_program()).args(command.get_args());
    outer.env_clear();
    for (name, value) in command.get_envs() {
        outer.env(name, value.expect("set"));
    }
    let mut child = outer.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().expect("setsid is everywhere");
    drop((terminal, command));
    let mut screen = Screen { controller: File::from(controller.try_clone().expect("open")), seen: String::new() };
    screen.expect("size 30x90 TERM vt100");
    rustix::io::write(&controller, b"\x03").expect("open");
    screen.expect("typed \u{3}");
    set_size(controller.as_fd(), 40, 100).expect("open");
    screen.expect("now 40x100");
    rustix::io::write(&controller, b"q").expect("open");
    screen.expect("typed q");
    assert_eq!(child.wait().expect("it ends").code(), Some(9));
}

#[test]
fn a_terminal_needs_one() {
    let home = Home::new();
    let (code, _, err) = run(home.testyard(&["exec", "-t", "m", "vi"]).stdin(Stdio::null()));
    assert_eq!(code, 2);
    assert!(err.starts_with("error: standard input is not a terminal\nhint: "), "{err}");
}

struct Screen {
    controller: File,
    seen: String,
}

impl Screen {
    /// Reads until this was shown.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        let mut buffer = [0; 1024];
        while !self.seen.contains(text) {
            let count = self.controller.read(&mut buffer).unwrap_or(0);
            assert!(count > 0, "the screen ended without {text:?}: {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }
}
