//! Rows over a network of machines, against what it is made of: a bridge and two veth pairs, made by hand as root.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use testyard_model::{Problem, ProblemKind};

use crate::Options;
use crate::programs::{Compared, Testyard, compared, failed, or_skip};
use crate::report::{Goal, Row};

/// Echoes single bytes, or takes whatever comes and says at its end that all came.
const SERVER: &str = "
import socket
listener = socket.create_server(('', 9000))
print('ready', flush=True)
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    kind = connection.recv(1)
    into = bytearray(1 << 18)
    while connection.recv_into(into, 1 if kind == b't' else 0):
        if kind == b't':
            connection.send(b'x')
    connection.send(b'x')
    connection.close()
";

/// Says how many seconds it took.
const CLIENT: &str = "
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 9000), 30)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
trips = sys.argv[2] == 'trips'
connection.send(b't' if trips else b'b')
begin = time.perf_counter()
if trips:
    for _ in range(2000):
        connection.send(b'x')
        connection.recv(1)
else:
    block = bytes(1 << 18)
    for _ in range(1600):
        connection.sendall(block)
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
print(time.perf_counter() - begin, flush=True)
";

/// Two namespaces on a bridge, in a third of their own; a client's run for each line of standard input.
const BY_HAND: &str = r#"
set -e
ip link add members type bridge
ip link set members up
unshare --net sleep 3600 & a=$!
unshare --net sleep 3600 & b=$!
trap 'kill $a $b $s' EXIT
own=$(readlink /proc/self/ns/net)
for end in $a:1 $b:2; do
    pid=${end%:*} number=${end#*:}
    for try in $(seq 1000); do [ "$(readlink /proc/$pid/ns/net)" != "$own" ] && break; done
    ip link add port$number type veth peer name net0 netns $pid
    ip link set port$number master members up
    nsenter --target $pid --net ip address add 10.1.1.$number/24 dev net0
    nsenter --target $pid --net ip link set net0 up
done
nsenter --target $a --net python3 -c "$SERVER" & s=$!
while read kind; do nsenter --target $b --net python3 -c "$CLIENT" 10.1.1.1 $kind; done
"#;

/// A process that measures once for each line that it is given.
struct ByHand {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl ByHand {
    fn start() -> Result<Self, Problem> {
        if !rustix::process::geteuid().is_root() {
            return Err(Problem::new(ProblemKind::Denied, "only root can link namespaces by hand"));
        }
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", BY_HAND]).env("SERVER", SERVER).env("CLIENT", CLIENT);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let missing = || Problem::new(ProblemKind::Bug, "a pipe that was asked for is missing");
        let (input, output) = (child.stdin.take(), child.stdout.take().ok_or_else(missing)?);
        let mut started = Self { child, input, output: BufReader::new(output) };
        started.line()?;
        Ok(started)
    }

    fn line(&mut self) -> Result<String, Problem> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(failed)?;
        Ok(line)
    }

    fn once(&mut self, kind: &str) -> Result<Duration, Problem> {
        if let Some(input) = &mut self.input {
            writeln!(input, "{kind}").map_err(failed)?;
        }
        seconds(&self.line()?)
    }

    fn end(mut self) {
        drop(self.input.take());
        // It ends its own processes at the end of its input.
        let _ = self.child.wait();
    }
}

fn seconds(line: &str) -> Result<Duration, Problem> {
    let read = line.trim().parse().map(Duration::from_secs_f64);
    read.map_err(|_| Problem::new(ProblemKind::Command, "the client did not say how long it took").because(line.trim()))
}

fn between_machines(testyard: &Testyard, kind: &str) -> Result<Duration, Problem> {
    let mut command = testyard.command("exec net-b -- python3 -c");
    let output = command.args([CLIENT, "net-a", kind]).output().map_err(failed)?;
    seconds(&String::from_utf8_lossy(&output.stdout))
}

/// Measures them all.
pub(crate) fn rows(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    let measured = compare(options, testyard);
    let named = [
        ("2,000 round trips over TCP between two machines of a network, against a bridge made by hand", 0),
        ("400 MiB over TCP between two machines of a network, against a bridge made by hand", 1),
    ];
    for (name, place) in named {
        let one = measured.as_ref().map(|both| both[place].clone()).map_err(Clone::clone);
        or_skip(name, Goal::AtMost(1.2), "×", row, one);
    }
    for name in ["net-a", "net-b"] {
        // One that was never made is no machine.
        let _ = testyard.run(&format!("delete {name} --force"));
    }
}

fn compare(options: &Options, testyard: &Testyard) -> Result<[(f64, String); 2], Problem> {
    for name in ["net-a", "net-b"] {
        testyard.run(&format!("create {name} --backend namespace --network private:bench"))?;
    }
    let mut server = testyard.command("exec net-a -- python3 -c");
    let mut server = server.arg(SERVER).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut ready = String::new();
    if let Some(output) = &mut server.stdout {
        BufReader::new(output).read_line(&mut ready).map_err(failed)?;
    }
    let mut by_hand = ByHand::start()?;
    let mut both = Vec::new();
    for kind in ["trips", "bytes"] {
        let theirs = || by_hand.once(kind);
        let ours = || between_machines(testyard, kind);
        both.push(compared(options.rounds(30), "by hand", theirs, ours, Compared::Slower)?);
    }
    by_hand.end();
    // Its command ends with it.
    let _ = server.kill();
    let _ = server.wait();
    both.try_into().map_err(|_| Problem::new(ProblemKind::Bug, "two comparisons are two figures"))
}
