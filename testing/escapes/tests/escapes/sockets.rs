//! A machine's socket: whose it is, and what it takes from those who do not speak the protocol.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use testkit::{Ability, Output, User};

use crate::attempt::{Prison, jailers};

fn sockets(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            sockets(&entry.path(), found);
        } else if entry.file_name() == "machine.sock" || entry.file_name() == "agent.sock" {
            found.push(entry.path());
        }
    }
}

fn machine_sockets(prison: &Prison) -> Vec<PathBuf> {
    let mut found = Vec::new();
    sockets(&prison.home.state(), &mut found);
    assert!(!found.is_empty(), "the machine runs, so it listens");
    found
}

#[test]
fn nobody_else_can_talk_to_a_machine() {
    testkit::require!(Ability::Root);
    testkit::require!(Ability::OrdinaryUser);
    let stranger = User::ordinary().expect("just required");
    let prison = Prison::of(User::current());
    for socket in machine_sockets(&prison) {
        let facts = std::fs::metadata(&socket).expect("it is there");
        assert_eq!((facts.permissions().mode() & 0o077, facts.uid()), (0, prison.home.user().uid));
        if socket.ends_with("agent.sock") {
            // The agent cannot tell users of the host apart: its wall are these modes.
            continue;
        }
        // Even with every folder and the socket itself thrown open, its owner looks at who is there.
        let ways: Vec<&Path> = socket.ancestors().take_while(|path| path.starts_with(prison.home.path())).collect();
        for path in &ways {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("ours");
        }
        let mut command = std::process::Command::new("python3");
        let script = format!(
            "import socket\ns=socket.socket(socket.AF_UNIX);s.settimeout(5);s.connect('{}')\n\
            h=b'{{\"hello\":{{\"oldest\":1,\"newest\":9,\"role\":\"supervisor\",\"client\":\"x\"}}}}'\n\
            s.sendall(len(h).to_bytes(4,'little')+bytes(8)+h)\nprint(s.recv(100))",
            socket.display()
        );
        command.args(["-c", &script]).current_dir("/");
        stranger.apply(&mut command);
        let output = Output::of(&mut command, Duration::from_secs(20));
        for path in &ways {
            let mode = if *path == socket { 0o600 } else { 0o700 };
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
        }
        let refused = output.code != 0 || output.stdout.trim() == "b''" || output.stdout.contains("denied");
        assert!(refused, "{}: {output}", socket.display());
    }
}

/// What is no protocol is sent away, and the machine goes on.
#[test]
fn garbage_does_no_harm() {
    for user in jailers() {
        let prison = Prison::of(user);
        let hello = |role: &str, rest: &[u8]| {
            let text = format!(r#"{{"hello":{{"oldest":1,"newest":9,"role":"{role}","client":"x"}}}}"#);
            let length = u32::try_from(text.len()).expect("short");
            [&length.to_le_bytes()[..], &[1, 0, 0, 0, 0, 0, 0, 0], text.as_bytes(), rest].concat()
        };
        let garbage: [Vec<u8>; 7] = [
            vec![0xff; 1 << 16],
            vec![0; 1 << 16],
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            hello("agent", &[0xff; 4096]),
            hello("supervisor", &[0xff; 4096]),
            hello("agent", &[0, 0, 0, 0x40, 1, 0, 0, 0, 1, 0, 0, 0]),
            hello("agent", &[&8u32.to_le_bytes()[..], &[1, 0, 250, 0, 1, 0, 0, 0], b"\"status\""].concat()),
        ];
        for socket in machine_sockets(&prison).into_iter().filter(|socket| socket.ends_with("machine.sock")) {
            for bytes in &garbage {
                let mut stream = UnixStream::connect(&socket).expect("it listens");
                stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a plain socket");
                stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a plain socket");
                // It may hang up in the middle.
                let _ = stream.write_all(bytes);
                let _ = stream.read(&mut [0; 4096]);
            }
            // Silent ones, and ones that never read.
            let silent: Vec<UnixStream> = (0..200).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
            let output = prison.run("root", &[], "echo fine");
            assert_eq!(output.stdout.trim(), "fine", "beside {} silent clients: {output}", silent.len());
        }
        assert_eq!(prison.run("root", &[], "echo fine").stdout.trim(), "fine");
    }
}
