//! What plays the other side and does not keep to the link's rules.

use std::fs;
use std::io::Read as _;
use std::process::Stdio;

use testkit::wait::wait_until;
use testkit::{Ability, TestHome};

use crate::server::PATIENCE;

/// Answers as the shell, the program and the agent there do, up to a machine that is ready; and once a command is asked for,
/// sends more output than it was allowed.
const HOSTILE: &str = r#"
import json, os, re, struct, sys
word = re.search(r"n=(link-[0-9a-f]+);", " ".join(sys.argv)).group(1)
wire = 0xffffffff
def encoded(kind, stream, payload):
    return struct.pack("<IBBBBI", len(payload), kind, 0, 0, 0, stream) + payload
def say(kind, stream, payload):
    rest = encoded(kind, stream, payload)
    while rest:
        rest = rest[os.write(1, rest):]
def exactly(count):
    read = b""
    while len(read) < count:
        more = os.read(0, count - len(read))
        if not more:
            sys.exit(0)
        read += more
    return read
def heard():
    length, kind, _, _, _, stream = struct.unpack("<IBBBBI", exactly(12))
    return kind, stream, exactly(length)
os.write(1, (word + " go\n").encode())
heard()
say(1, wire, json.dumps({"welcome": {"received": 0, "server": "hostile"}}).encode())
say(1, 0, json.dumps({"ready": {"limits": []}}).encode())
while True:
    kind, stream, payload = heard()
    if kind == 2 and payload[12:].startswith(b'{"hello"'):
        version = json.loads(payload[12:])["hello"]["newest"]
        welcome = {"version": version, "server": "hostile", "generation": 0, "elsewhere": True}
        say(2, stream, encoded(1, 0, json.dumps({"welcome": welcome}).encode()))
    if kind == 1 and b"attach" in payload:
        flows = json.loads(payload)["attach"]["flows"]
        output = [flow["channel"] for flow in flows if flow["direction"] == "in"][0]
        for _ in range(64):
            say(2, output, b"y" * 65536)
"#;

#[test]
fn a_side_that_sends_more_than_it_may_is_given_up() {
    if !testkit::programs::are_built() {
        testkit::skip!(module_path!(), "the agent is not built: cargo build -p testyard-agent");
    }
    testkit::require!(Ability::Program("python3"));
    let home = TestHome::new();
    let program = home.work().join("hostile.py");
    fs::write(&program, HOSTILE).expect("a file");
    let through = format!("python3 {}", program.display());
    home.must_run(&["create", "gpu", "--backend", "command", "--through", &through]);
    // Its output is read by nobody, so that what it may send is used up.
    let mut child = home
        .cli(&["exec", "gpu", "--", "true"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert_eq!(child.wait().expect("it ends").code(), Some(69), "{said}");
    assert!(
        said.contains("does not keep to the rules of the link") && said.contains("more than the 1048576 bytes"),
        "{said}"
    );
    assert!(said.contains("hint: start the machine anew: testyard start gpu"), "{said}");
    let told = |info: &str| info.contains("state:      failed") && info.contains("does not keep to the rules");
    assert!(wait_until(PATIENCE, || told(&home.must_run(&["info", "gpu"]))), "{}", home.must_run(&["info", "gpu"]));
    home.must_run(&["delete", "gpu"]);
    home.finish();
}
