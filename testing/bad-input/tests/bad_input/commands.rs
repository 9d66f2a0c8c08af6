//! Commands that cannot be run, streams that are closed or full, and words that are no text.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};

use testkit::{Output, TestHome};

use crate::{DEADLINE, NOT_STARTED, USAGE, check_refusal, end, make, refused, start, until_it_runs};

/// In the machine, and in an environment of it.
const BOTH: [&[&str]; 2] = [&["exec", "m"], &["env", "run", "m"]];

/// The real binary's command line with these words at the end.
fn command(home: &TestHome, how: &[&str], words: &[&str]) -> Command {
    home.cli(&[how, words].concat())
}

#[test]
fn what_cannot_be_started_is_named() {
    let home = TestHome::new();
    make(&home, "m");
    for how in BOTH {
        for (words, expected) in [
            (&["--", "no-such-command"][..], "cannot run `no-such-command`"),
            (&["--", ""], "cannot run ``"),
            (&["--", "/etc/passwd"], "cannot run `/etc/passwd`"),
            (&["--", "/etc"], "cannot run `/etc`"),
            (&["--cwd", "/no/such", "--", "true"], "cannot enter the working folder /no/such"),
            (&["--cwd", "/etc/passwd", "--", "true"], "cannot enter the working folder /etc/passwd"),
        ] {
            let output = Output::of(&mut command(&home, how, words), DEADLINE);
            check_refusal(&words.join(" "), &output, NOT_STARTED, &[expected, "because: ", "hint: "]);
        }
    }
    refused(&home, &["exec", "m", "-t", "--", "true"], USAGE, &["not a terminal", "hint: "]);
    refused(&home, &["exec", "m"], USAGE, &["ARGV"]);
    home.finish();
}

#[test]
fn a_source_must_be_a_folder_that_is_there() {
    let home = TestHome::new();
    make(&home, "m");
    let run = |source| ["env", "run", "m", "--source", source, "--", "true"];
    refused(&home, &run("/no/such"), USAGE, &["the source /no/such", "hint: "]);
    refused(&home, &run("/etc/passwd"), USAGE, &["/etc/passwd is not a folder", "hint: "]);
    home.finish();
}

#[test]
fn words_that_are_no_text_arrive_as_they_are() {
    let home = TestHome::new();
    make(&home, "m");
    let bytes = OsStr::from_bytes(b"\xff\xfe\x80");
    for how in BOTH {
        let mut printed = command(&home, how, &["--", "sh", "-c", "printf %s \"$1\" | od -An -tx1", "x"]);
        let output = Output::of(printed.arg(bytes), DEADLINE).expect_success();
        assert_eq!(output.stdout.trim(), "ff fe 80");
        let mut unknown = command(&home, how, &["--"]);
        let output = Output::of(unknown.arg(OsStr::from_bytes(b"/bin/\xff")), DEADLINE);
        check_refusal("/bin/\\xff", &output, NOT_STARTED, &["cannot run `/bin/"]);
    }
    home.finish();
}

#[test]
fn long_arguments_arrive_and_too_long_ones_are_refused() {
    let home = TestHome::new();
    make(&home, "m");
    for how in BOTH {
        // The kernel's limit for one is 128 KiB, for all of them 2 MB.
        let one = "a".repeat(131_000);
        let output = Output::of(&mut command(&home, how, &["--", "sh", "-c", "echo ${#1}", "x", &one]), DEADLINE);
        assert_eq!(output.expect_success().stdout, "131000\n");
        let mut many = command(&home, how, &["--", "sh", "-c", "echo $#", "x"]);
        let output = Output::of(many.args(vec!["a"; 50_000]), DEADLINE);
        assert_eq!(output.expect_success().stdout, "50000\n");
        let mut all = command(&home, how, &["--", "true"]);
        let output = Output::of(all.args(vec!["a".repeat(100_000); 19]), DEADLINE);
        assert_eq!(output.expect_success().stdout, "");
        let mut variable = command(&home, how, &["--env", "LONG", "--", "sh", "-c", "echo ${#LONG}"]);
        let output = Output::of(variable.env("LONG", "a".repeat(131_000)), DEADLINE);
        assert_eq!(output.expect_success().stdout, "131000\n");
    }
    home.finish();
}

#[test]
fn a_hundred_megabytes_arrive_whole() {
    let home = TestHome::new();
    make(&home, "m");
    for how in BOTH {
        let mut child = command(&home, how, &["--", "sh", "-c", "head -c 104857600 /dev/zero; exit 5"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary was built");
        let mut output = child.stdout.take().expect("piped");
        let mut buffer = vec![0; 1 << 16];
        let mut total = 0;
        loop {
            let count = output.read(&mut buffer).expect("a pipe");
            if count == 0 {
                break;
            }
            assert!(buffer[..count].iter().all(|byte| *byte == 0));
            total += count;
        }
        assert_eq!((total, child.wait().expect("our child").code()), (104_857_600, Some(5)));
    }
    home.finish();
}

#[test]
fn output_that_is_no_text_and_a_reader_that_leaves() {
    let home = TestHome::new();
    make(&home, "m");
    for how in BOTH {
        let file = home.work().join("output");
        let to = File::create(&file).expect("the home is ours");
        let mut binary = command(&home, how, &["--", "printf", "\\377\\000\\001"]);
        assert!(binary.stdout(to).status().expect("the binary was built").success());
        assert_eq!(std::fs::read(&file).expect("just written"), b"\xff\x00\x01");

        let mut flood = command(&home, how, &["--", "yes"]).stdout(Stdio::piped()).spawn().expect("it was built");
        let mut some = [0; 10];
        flood.stdout.take().expect("piped").read_exact(&mut some).expect("yes says y");
        // The reader is gone: the command gets SIGPIPE, as from a shell.
        assert_eq!(end(&mut flood, "yes").code, 141);
    }
    home.finish();
}

#[test]
fn output_that_finds_no_room_is_an_error() {
    let home = TestHome::new();
    make(&home, "m");
    let full = || File::options().write(true).open("/dev/full").expect("always there");
    for how in BOTH {
        let mut child = command(&home, how, &["--", "sh", "-c", "head -c 1000000 /dev/zero"])
            .stdout(full())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary was built");
        let output = end(&mut child, "a full disk");
        let words = ["cannot write what the command printed", "No space left", "hint: "];
        check_refusal("a full disk", &output, crate::INFRASTRUCTURE, &words);
    }
    let list = home.cli(&["list"]).stdout(full()).stderr(Stdio::piped()).spawn();
    let output = end(&mut list.expect("the binary was built"), "list");
    check_refusal("list", &output, crate::INFRASTRUCTURE, &["standard output", "No space left"]);
    home.finish();
}

#[test]
fn closed_streams_do_not_matter() {
    let home = TestHome::new();
    make(&home, "m");
    for how in BOTH {
        for (closed, stdout, stderr) in [("<&-", "out\n", "err\n"), (">&-", "", "err\n"), ("2>&-", "out\n", "")] {
            let ours = command(&home, how, &["--", "sh", "-c", "echo out; echo err >&2; cat; exit 4"]);
            let mut shell = home.command("/bin/sh");
            shell
                .arg("-c")
                .arg(format!("exec \"$@\" {closed}"))
                .arg("sh")
                .arg(ours.get_program())
                .args(ours.get_args());
            let output = Output::of(&mut shell, DEADLINE);
            assert_eq!(output, Output { code: 4, stdout: stdout.into(), stderr: stderr.into() }, "{closed}");
        }
    }
    home.finish();
}

#[test]
fn signals_to_the_client_reach_the_command() {
    use rustix::process::Signal;
    let home = TestHome::new();
    make(&home, "m");
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let mut child = start(&home, &["exec", "m", "--", "sh", "-c", "touch /tmp/runs; exec sleep 1000"]);
        until_it_runs(&home, "m", "/tmp/runs");
        crate::signal(child.id().cast_signed(), signal);
        assert_eq!(end(&mut child, "exec").code, code);
        home.must_run(&["exec", "m", "--", "rm", "/tmp/runs"]);
    }
    // Without a client there is no command.
    let mut child = start(&home, &["exec", "m", "--", "sh", "-c", "touch /tmp/runs; exec sleep 1009"]);
    until_it_runs(&home, "m", "/tmp/runs");
    child.kill().expect("our child");
    child.wait().expect("our child");
    crate::wait("its command's end", || {
        home.run_cli(&["exec", "m", "--", "sh", "-c", "grep -lz '^1009' /proc/[0-9]*/cmdline"]).stdout.is_empty()
    });
    home.finish();
}

#[test]
fn files_go_only_where_files_can_be() {
    let home = TestHome::new();
    make(&home, "m");
    let pipe = home.work().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).expect("ours");
    let pipe = pipe.display().to_string();
    let file = home.work().join("file");
    std::fs::write(&file, "mine").expect("ours");
    let file = file.display().to_string();
    // Never put a file in the place of /dev/null.
    refused(&home, &["pull", "m", "/etc/passwd", &pipe], USAGE, &["cannot put a file at", "a device, pipe or socket"]);
    refused(&home, &["pull", "m", "/etc/apt", &file], USAGE, &["cannot put a folder at", "not a folder"]);
    refused(&home, &["pull", "m", "/no/such", "."], USAGE, &["/no/such", "hint: "]);
    refused(&home, &["pull", "m", "/etc/passwd", "/no/such/x"], USAGE, &["/no/such", "hint: "]);
    refused(&home, &["pull", "m", "/dev/null", "."], USAGE, &["/dev/null", "neither a file nor a folder"]);
    refused(&home, &["push", "m", "/no/such", "/tmp"], USAGE, &["/no/such"]);
    refused(&home, &["push", "m", &file, "/no/such/x"], USAGE, &["/no/such", "hint: "]);
    refused(&home, &["push", "m", &pipe, "/tmp"], USAGE, &["neither a file nor a folder"]);
    assert_eq!(std::fs::read_to_string(&file).expect("ours"), "mine");
    home.finish();
}
