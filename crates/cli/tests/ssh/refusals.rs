//! Connections that do not come to be: each says why, what to do, and leaves nothing.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use crate::server::{Server, ready, server};

/// Creating fails with this code and these words; nothing of it is left.
#[track_caller]
fn refused(server: &Server, words: &[String], variables: &[(&str, &str)], code: i32, expected: &[&str]) {
    let output = server.cli(words, variables);
    assert_eq!(output.code, code, "{output}");
    for text in expected {
        assert!(output.stderr.contains(text), "no {text:?} in {output}");
    }
    assert_eq!(server.home.must_run(&["list", "--names"]), "");
    assert!(server.sessions().is_empty());
}

pub(crate) fn replaced(words: Vec<String>, option: &str, value: &str) -> Vec<String> {
    let mut words = words;
    let at = words.iter().position(|word| word == option).expect("it is there");
    words[at + 1] = value.to_owned();
    words
}

#[test]
fn logins_that_are_refused_say_why() {
    let mut server = server!();
    let stranger = server.file("other").display().to_string();
    let wrong_key = replaced(server.words("gpu"), "--identity", &stranger);
    refused(&server, &wrong_key, &[], 69, &["does not let this user in", "Permission denied", "hint: name a key"]);
    // Passwords: a wrong one, none, and one that others can read.
    let with = |more: &[&str]| {
        let mut words = wrong_key.clone();
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    };
    let variable = with(&["--password-variable", "SECRET"]);
    refused(&server, &variable, &[("SECRET", "wrong")], 69, &["does not let this user in"]);
    refused(&server, &variable, &[], 2, &["the variable SECRET", "is not set"]);
    fs::write(server.file("password"), "wrong\n").expect("a file");
    let file = with(&["--password-file", &server.file("password").display().to_string()]);
    refused(&server, &file, &[], 69, &["others can read the password's file", "hint: chmod 600"]);
    // Host keys: another one than is known, and one that nobody knows.
    server.know("other");
    let known = server.file("known").display().to_string();
    let changed = ["has changed", &format!("{known}:1"), "ssh-keygen -f"];
    refused(&server, &server.words("gpu"), &[], 69, &changed);
    fs::write(server.file("known"), "").expect("a file");
    refused(&server, &server.words("gpu"), &[], 69, &["is not known", "--host-keys accept-new"]);
    let mut believed = server.words("gpu");
    believed.extend(["--host-keys".to_owned(), "accept-new".to_owned()]);
    let _ = server.cli(&believed, &[]).expect_success();
    assert!(fs::read_to_string(server.file("known")).expect("a file").contains("ssh-ed25519"));
    server.home.must_run(&["delete", "gpu"]);
    // Nobody there.
    server.stop();
    refused(&server, &server.words("gpu"), &[], 69, &["nothing accepts SSH connections", "hint: check the port"]);
    server.finish();
}

#[test]
fn servers_that_do_not_answer_are_given_up() {
    let server = server!();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let host = format!("me@127.0.0.1:{}", silent.local_addr().expect("bound").port());
    let words = replaced(server.words("gpu"), "--host", &host);
    refused(&server, &words, &[("TESTYARD_CONNECT_MS", "1200")], 69, &["did not answer in time"]);
    drop(silent);
    // One that closes every connection before it says who it is, as sshd does beyond MaxStartups.
    let full = TcpListener::bind("127.0.0.1:0").expect("a port");
    let host = format!("me@127.0.0.1:{}", full.local_addr().expect("bound").port());
    let closing = std::thread::spawn(move || drop(full.accept()));
    let words = replaced(server.words("gpu"), "--host", &host);
    refused(&server, &words, &[], 69, &["closed the connection before it said who it is", "MaxStartups"]);
    closing.join().expect("one came");
    let words = replaced(server.words("gpu"), "--host", "there-is-no-such-host.invalid");
    refused(&server, &words, &[], 2, &["there is no host"]);
    server.finish();
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let server = server!();
    let with = |more: &[&str]| {
        let mut words = server.words("gpu");
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    };
    for (more, said) in [
        (&["--memory", "1G"][..], "a memory limit"),
        (&["--image", "debian:12"], "from image debian:12"),
        (&["--privileged"], "privileges"),
        (&["--docker"], "a docker of its own"),
        (&["--pass-env", "HOME"], "variables of this host's"),
    ] {
        refused(&server, &with(more), &[], 2, &[said, "hint: "]);
    }
    let plain = |more: &[&str]| ["create", "gpu"].iter().chain(more).map(|word| (*word).to_owned()).collect::<Vec<_>>();
    refused(&server, &plain(&["--host", "gpu"]), &[], 2, &["--host is for a machine on another host"]);
    refused(&server, &plain(&["--backend", "ssh"]), &[], 2, &["told no host", "--host USER@HOST"]);
    refused(&server, &plain(&["--backend", "command"]), &[], 2, &["told no command"]);
    refused(&server, &plain(&["--backend", "ssh", "--host", "-oProxyCommand=x"]), &[], 2, &[]);
    server.finish();
}

#[test]
fn hosts_without_room_or_right_for_programs_say_so() {
    if !testkit::user::is_host_root() {
        testkit::skip!(
            "hosts_without_room_or_right_for_programs_say_so",
            "only root can mount the folders that it needs"
        );
    }
    ready!();
    // Nowhere may a program be run.
    let folders = "for f in /var/tmp /dev/shm \"$HOME/../far\"; do mount -t tmpfs -o noexec,mode=777 none $f; done";
    let server = Server::with("", folders);
    let said = ["no folder there can hold programs that may be run", "may not be run", "hint: "];
    // Plain commands do without, as `plain.rs` shows; a container takes an agent.
    let words = [server.words("gpu"), vec!["--inside".to_owned(), "namespace".to_owned()]].concat();
    refused(&server, &words, &[], 69, &said);
    server.finish();
    // There is no room.
    let server = Server::with("", "mount -t tmpfs -o size=1m none \"$HOME/../far\"");
    refused(
        &server,
        &server.words("gpu"),
        &[],
        69,
        &["there is no room for testyard's programs", "hint: free some space"],
    );
    server.finish();
}

#[test]
fn a_password_opens_the_way() {
    if !testkit::user::is_host_root() {
        testkit::skip!("a_password_opens_the_way", "only root's sshd can look passwords up");
    }
    ready!();
    let server = Server::with_guest();
    let stranger = server.file("other").display().to_string();
    let words = replaced(server.words("gpu"), "--identity", &stranger);
    let words = replaced(words, "--host", &format!("guest@127.0.0.1:{}", server.port));
    let words = [words, vec!["--password-variable".to_owned(), "SECRET".to_owned()]].concat();
    let _ = server.cli(&words, &[("SECRET", "open sesame")]).expect_success();
    // It is nowhere that others see it.
    let lines = std::process::Command::new("ps").args(["-eo", "args"]).output().expect("ps is there");
    assert!(!String::from_utf8_lossy(&lines.stdout).contains("sesame"));
    assert!(!server.home.must_run(&["info", "gpu", "--json"]).contains("sesame"));
    server.home.must_run(&["delete", "gpu"]);
    // The same from a file.
    let file = server.file("secret");
    fs::write(&file, "open sesame\n").expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("ours");
    let from = replaced(words, "--password-variable", &file.display().to_string());
    let from: Vec<String> =
        from.into_iter().map(|word| word.replace("--password-variable", "--password-file")).collect();
    let _ = server.cli(&from, &[]).expect_success();
    assert_eq!(server.sh("gpu", "echo there").stdout, "there\n");
    server.home.must_run(&["delete", "gpu"]);
    server.finish();
}

/// The server is its own jump host: whom it lets in as the target, it would let in before.
#[test]
fn a_jump_host_gets_no_password_of_the_targets() {
    if !testkit::user::is_host_root() {
        testkit::skip!("a_jump_host_gets_no_password_of_the_targets", "only root's sshd can look passwords up");
    }
    ready!();
    let server = Server::with_guest();
    // What a jump host is to know, only the configuration says.
    let jumper = format!(
        "UserKnownHostsFile {}\nGlobalKnownHostsFile /dev/null\nHost jumper\nHostName 127.0.0.1\nPort {}\nUser guest\n",
        server.file("known").display(),
        server.port
    );
    let key = format!("IdentitiesOnly yes\nIdentityFile {}\n", server.file("user").display());
    let stranger = server.file("other").display().to_string();
    fs::write(server.file("jumping"), &jumper).expect("a file");
    let words = replaced(server.words("gpu"), "--ssh-config", &server.file("jumping").display().to_string());
    let words = replaced(words, "--host", &format!("guest@127.0.0.1:{}", server.port));
    let words = replaced(words, "--identity", &stranger);
    let words = [words, ["--jump", "jumper", "--password-variable", "SECRET"].map(str::to_owned).to_vec()].concat();
    refused(&server, &words, &[("SECRET", "open sesame")], 69, &["let a key in there"]);
    // With a key of its own the way is open.
    fs::write(server.file("jumping"), [jumper, key].concat()).expect("a file");
    let _ = server.cli(&words, &[("SECRET", "open sesame")]).expect_success();
    assert_eq!(server.sh("gpu", "echo there").stdout, "there\n");
    server.home.must_run(&["delete", "gpu"]);
    server.finish();
}
