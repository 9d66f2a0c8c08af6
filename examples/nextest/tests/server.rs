//! Two servers on one port, each told by a whole test program.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

fn answers(text: &str) {
    let listener = TcpListener::bind("127.0.0.1:8080").expect("nobody else is here");
    let mut client = TcpStream::connect("127.0.0.1:8080").expect("it listens");
    let (mut server, _) = listener.accept().expect("somebody has come");
    server.write_all(text.as_bytes()).expect("written");
    drop(server);
    let mut heard = String::new();
    client.read_to_string(&mut heard).expect("read");
    assert_eq!(heard, text);
}

#[test]
fn one_answers() {
    answers("one");
}

#[test]
fn another_answers() {
    answers("another");
}

#[test]
fn both_count_from_one() {
    assert_eq!(counter::count().expect("counted"), 1);
}
