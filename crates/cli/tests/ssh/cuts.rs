//! Connections that break while something runs.

use std::fs;
use std::process::Stdio;

use rustix::process::Signal;
use testkit::processes;
use testkit::wait::wait_until;

use crate::server::{PATIENCE, Server, server};

fn signal(pids: &[i32], signal: Signal) {
    assert!(!pids.is_empty(), "there is no such process");
    processes::signal(pids, signal);
}

/// The client's `ssh`.
pub(crate) fn clients(server: &Server) -> Vec<i32> {
    server.processes("ssh -o ConnectTimeout")
}

#[test]
fn what_runs_goes_on_over_a_cut() {
    let server = server!();
    server.create("gpu");
    // In the middle of a command: its output is whole, and it ran once.
    let script = "echo run >> ~/runs; for i in 1 2 3 4 5 6; do echo $i; touch ~/at-$i; sleep 0.2; done; exit 5";
    let child = server.script("gpu", script).stdout(Stdio::piped()).spawn();
    let child = child.expect("it starts");
    assert!(wait_until(PATIENCE, || server.far().join("at-2").exists()));
    signal(&clients(&server), Signal::KILL);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(5), &b"1\n2\n3\n4\n5\n6\n"[..]));
    assert_eq!(fs::read_to_string(server.far().join("runs")).expect("a file"), "run\n");
    // In the middle of a transfer.
    let content: Vec<u8> =
        (0..40_000_000_u32).flat_map(|word| (word.wrapping_mul(2_654_435_761) as u8).to_le_bytes()).collect();
    fs::write(server.home.work().join("big"), &content).expect("a file");
    let there = server.far().join("big");
    let push = server.home.cli(&["push", "gpu", "big", there.to_str().expect("text")]).spawn();
    let mut push = push.expect("it starts");
    let begun = || {
        fs::read_dir(server.far())
            .expect("a folder")
            .flatten()
            .any(|entry| entry.metadata().is_ok_and(|facts| facts.len() > 1_000_000))
    };
    assert!(wait_until(PATIENCE, || begun() || push.try_wait().expect("ours").is_some()));
    signal(&clients(&server), Signal::KILL);
    assert!(push.wait().expect("it ends").success());
    assert!(fs::read(&there).expect("a file") == content, "it arrived otherwise than it was sent");
    server.home.must_run(&["delete", "gpu"]);
    server.finish();
}

#[test]
fn a_connection_that_hangs_is_made_anew() {
    let server = server!();
    let _ = server.cli(&server.words("gpu"), &[("TESTYARD_ALIVE_MS", "1500")]).expect_success();
    let nap = format!("sleep 3.{}", 900_000 + std::process::id());
    let child = server.script("gpu", &format!("echo on; {nap}; echo off")).stdout(Stdio::piped()).spawn();
    let child = child.expect("it starts");
    assert!(wait_until(PATIENCE, || processes::runs(&nap)));
    // The client's end stands still, as when the network swallows everything.
    let stopped = clients(&server);
    signal(&stopped, Signal::STOP);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"on\noff\n"[..]));
    assert!(wait_until(PATIENCE, || clients(&server).iter().all(|pid| !stopped.contains(pid))), "the old one is left");
    server.home.must_run(&["delete", "gpu"]);
    server.finish();
}

#[test]
fn a_session_that_is_lost_is_told_and_begun_anew() {
    let server = server!();
    server.create("gpu");
    let child = server.script("gpu", &format!("exec {}", Server::nap(22))).stderr(Stdio::piped()).spawn();
    let child = child.expect("it starts");
    assert!(wait_until(PATIENCE, || Server::sleeps(22)));
    signal(&server.processes("far-keep"), Signal::KILL);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(
        said.contains("is lost") && said.contains("how commands ended there that were running is not known"),
        "{said}"
    );
    assert!(said.contains("hint: start the machine anew: testyard start gpu"), "{said}");
    assert!(
        wait_until(PATIENCE, || server.home.run_cli(&["list", "--json"]).json()["machines"][0]["state"] == "failed")
    );
    // The next session removes what the killed one left there.
    server.home.must_run(&["start", "gpu"]);
    assert_eq!(server.sh("gpu", "echo again").stdout, "again\n");
    server.home.must_run(&["delete", "gpu"]);
    server.finish();
}

#[test]
fn both_sides_end_when_the_connection_stays_away() {
    let mut server = server!();
    let words = [server.words("gpu"), vec!["--grace".to_owned(), "1s".to_owned()]].concat();
    let _ = server.cli(&words, &[]).expect_success();
    server.stop();
    signal(&clients(&server), Signal::KILL);
    assert!(
        wait_until(PATIENCE, || server.home.run_cli(&["list", "--json"]).json()["machines"][0]["state"] == "failed")
    );
    // What its supervisor writes down last.
    assert!(wait_until(PATIENCE, || server.home.must_run(&["info", "gpu"]).contains("is lost")));
    assert!(wait_until(PATIENCE, || server.sessions().is_empty()), "left there: {:?}", server.sessions());
    server.home.must_run(&["delete", "gpu"]);
    server.finish();
}

#[test]
fn a_killed_near_side_leaves_nothing() {
    let server = server!();
    let words = [server.words("gpu"), vec!["--grace".to_owned(), "1s".to_owned()]].concat();
    let _ = server.cli(&words, &[]).expect_success();
    let home = server.home.state().display().to_string();
    let near =
        processes::all().filter(|process| process.command_line().ends_with(" near") && process.environment_has(&home));
    let near: Vec<i32> = near.map(|process| process.pid).collect();
    signal(&near, Signal::KILL);
    assert!(wait_until(PATIENCE, || server.sessions().is_empty()), "left there: {:?}", server.sessions());
    server.home.must_run(&["reap"]);
    server.home.must_run(&["delete", "gpu", "--force"]);
    server.finish();
}
