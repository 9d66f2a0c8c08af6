//! Two environments of one machine, side by side.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::attempt::{Prison, jailers};

/// Something in the first environment for the second to find.
const BAIT: &str = "echo bait > /tmp/bait; echo bait > /dev/shm/bait; echo bait > /var/tmp/bait; \
    ipcmk --shmem 4096 >/dev/null 2>&1; \
    python3 -c \"import socket,time,sys\n\
t=socket.socket();t.bind(('127.0.0.1',18099));t.listen()\n\
a=socket.socket(socket.AF_UNIX);a.bind(b'\\0escape-bait');a.listen()\n\
print('ready');sys.stdout.flush()\n\
time.sleep(7131)\"";

fn bait(prison: &Prison) -> Child {
    let words = ["env", "run", "m", "--user", "root", "--", "sh", "-c", BAIT];
    let mut child = prison.home.cli(&words).stdout(Stdio::piped()).spawn().expect("the program starts");
    let mut line = String::new();
    let output = child.stdout.take().expect("it is piped");
    BufReader::new(output).read_line(&mut line).expect("it says when it is ready");
    assert_eq!(line, "ready\n");
    child
}

#[test]
fn neighbours_share_nothing() {
    testkit::require!(testkit::Ability::Program("python3"));
    for user in jailers() {
        let prison = Prison::of(user);
        let mut child = bait(&prison);
        let abstract_socket = "import socket;socket.socket(socket.AF_UNIX).connect(b'\\0escape-bait')";
        let attempts = [
            "cat /tmp/bait /dev/shm/bait /var/tmp/bait".to_owned(),
            "cat /proc/*/root/tmp/bait".to_owned(),
            "grep -aq 7131 /proc/[0-9]*/cmdline".replace("7131", "time.sleep.713[1]"),
            "ipcs -m | grep 0x".to_owned(),
            "python3 -c \"import socket;socket.create_connection(('127.0.0.1',18099),1)\"".to_owned(),
            format!("python3 -c \"{abstract_socket}\""),
            "grep escape-bait /proc/net/unix".to_owned(),
        ];
        let script: String = attempts
            .iter()
            .map(|one| format!("( {one} ) >/dev/null 2>&1 && echo 'ESCAPED: {}'\n", one.replace('\'', "\"")))
            .collect();
        for inside in ["root", "1000"] {
            let output = prison.run(inside, &[], &format!("{script}kill -9 -1 2>/dev/null; echo tried"));
            assert_eq!(output.stdout.trim(), "tried", "{output}");
        }
        // Nor does the machine's own root see or end what is in an environment.
        let script = format!("{script}kill -9 -1; echo tried");
        let output = prison.home.run_cli(&["exec", "m", "--user", "root", "--", "sh", "-c", &script]);
        assert_eq!(output.stdout.trim(), "tried", "{output}");
        assert!(child.try_wait().expect("our child").is_none(), "the neighbour was ended");
        child.kill().expect("our child");
        child.wait().expect("our child");
        prison.home.finish();
    }
}

/// Nobody on the host is seen from inside either.
#[test]
fn processes_of_the_host_are_not_there() {
    for user in jailers() {
        let prison = Prison::of(user);
        let mut outside = Command::new("sleep").arg("7132").spawn().expect("sleep starts");
        let script = "for p in /proc/[0-9]*; do cat $p/cmdline 2>/dev/null | tr '\\0' ' '; done; kill -9 -1; true";
        for words in [["env", "run"].as_slice(), ["exec"].as_slice()] {
            let mut words = words.to_vec();
            words.extend_from_slice(&["m", "--user", "root", "--", "sh", "-c", script]);
            let output = prison.home.run_cli(&words);
            assert!(!output.stdout.contains("sleep 7132"), "{output}");
        }
        assert!(outside.try_wait().expect("our child").is_none(), "a process of the host was ended");
        outside.kill().expect("our child");
        outside.wait().expect("our child");
    }
}
