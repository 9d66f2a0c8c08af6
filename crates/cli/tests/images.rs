//! The real binaries with images that other tools make: from archives, from a real server, and out again.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use testkit::{Ability, Output, TestHome, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// Skips where only this crate was built, or a tool is missing.
macro_rules! home {
    ($($program:literal),*) => {{
        testkit::require_programs!();
        $(testkit::require!(Ability::Program($program));)*
        testkit::require!(Ability::UserNamespaces);
        TestHome::new()
    }};
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Runs a tool in the home's work folder.
#[track_caller]
fn tool(home: &TestHome, line: &str) {
    let mut words = line.split_whitespace();
    let mut command = home.command(words.next().expect("a program"));
    let output =
        command.env("REGISTRY_AUTH_FILE", home.work().join("auth.json")).args(words).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {told}");
}

fn shell(home: &TestHome, script: &str) {
    let output = home.command("sh").args(["-euc", script]).output().expect("a shell");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An OCI layout `oci` with the image `app`: a root of busybox's, and a layer that changes it.
fn make_image(home: &TestHome) {
    let rootless = if is_root() { "" } else { "--rootless" };
    tool(home, "umoci init --layout oci");
    tool(home, "umoci new --image oci:app");
    tool(home, &format!("umoci unpack {rootless} --image oci:app one"));
    shell(
        home,
        "cd one/rootfs && mkdir -p bin etc srv/data/deep tmp home/app && chmod 1777 tmp && cp $(command -v busybox) bin/
         for name in sh cat ls stat id pwd test env; do ln -s busybox bin/$name; done
         echo 'root:x:0:0::/root:/bin/sh' > etc/passwd && echo 'app:x:1234:1234::/home/app:/bin/sh' >> etc/passwd
         echo lower > lower && echo gone > srv/gone && echo old > srv/data/old && echo x > srv/data/deep/x && chmod 2755 srv",
    );
    tool(home, "umoci repack --image oci:app one");
    tool(home, "umoci tag --image oci:app base");
    tool(home, &format!("umoci unpack {rootless} --image oci:app two"));
    shell(
        home,
        "cd two/rootfs && rm srv/gone && rm -r srv/data && mkdir srv/data && echo new > srv/data/new && echo upper > lower
         echo upper > file-from-upper-layer && ln file-from-upper-layer hard && mkdir tmp/made && touch tmp/made/x",
    );
    tool(home, "umoci repack --image oci:app two");
    tool(home, &format!("umoci config --image oci:app --os linux --architecture {}", architecture()));
    tool(home, &format!("umoci config --image oci:base --os linux --architecture {}", architecture()));
    tool(
        home,
        "umoci config --image oci:app --config.env GREETING=hello --config.env PATH=/bin --config.workingdir /srv --config.user app",
    );
}

fn is_root() -> bool {
    testkit::user::is_root()
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn archive(home: &TestHome, form: &str) -> PathBuf {
    let path = home.work().join(format!("{form}.tar"));
    tool(home, &format!("skopeo copy --quiet --insecure-policy oci:oci:app {form}:{}:app:1", text(&path)));
    path
}

/// The image as a machine and its environments see it.
fn check_machine(home: &TestHome, image: &str) {
    home.must_run(&["create", "m", "--backend", "namespace", "--image", image]);
    let seen =
        "cat /lower /hard /file-from-upper-layer; ls /srv /srv/data; stat -c %a /tmp /srv; pwd; echo $GREETING; id -un";
    let expected = "upper\nupper\nupper\n/srv:\ndata\n\n/srv/data:\nnew\n1777\n2755\n/srv\nhello\napp\n";
    assert_eq!(home.must_run(&["exec", "m", "--", "cat", "/file-from-upper-layer"]), "upper\n");
    assert_eq!(home.must_run(&["exec", "m", "--", "sh", "-c", seen]), expected);
    assert_eq!(home.must_run(&["env", "run", "m", "--", "sh", "-c", seen]), expected);
    // What the image says yields to what is asked for.
    let other = [
        "exec",
        "m",
        "--user",
        "root",
        "--cwd",
        "/tmp",
        "-e",
        "GREETING=x",
        "--",
        "sh",
        "-c",
        "pwd; id -un; echo $GREETING",
    ];
    assert_eq!(home.must_run(&other), "/tmp\nroot\nx\n");
    // Whiteouts of the machine's own over those of its image.
    let changed = "rm /srv/data/new /lower && mkdir /srv/data/deep && test ! -e /srv/data/deep/x && ls /srv/data";
    assert_eq!(home.must_run(&["exec", "m", "--user", "root", "--", "sh", "-c", changed]), "deep\n");
    let after = "ls /srv/data; test ! -e /lower && echo gone";
    assert_eq!(home.must_run(&["env", "run", "m", "--", "sh", "-c", after]), "deep\ngone\n");
    home.must_run(&["stop", "m"]);
    home.must_run(&["start", "m"]);
    home.must_run(&["clone", "m", "copy"]);
    assert_eq!(home.must_run(&["exec", "copy", "--", "sh", "-c", after]), "deep\ngone\n");
    home.must_run(&["delete", "m", "copy"]);
}

fn layers(home: &TestHome) -> usize {
    std::fs::read_dir(home.state().join("images/layers")).map_or(0, Iterator::count)
}

fn images(home: &TestHome) -> Vec<Value> {
    let list = home.run_cli(&["image", "list", "--json"]).expect_success().json();
    list["images"].as_array().cloned().expect("a list")
}

#[test]
fn what_other_tools_save_is_an_image_of_shared_layers() {
    let home = home!("umoci", "skopeo", "busybox");
    make_image(&home);
    let saved = archive(&home, "docker-archive");
    let imported = home.run_cli(&["image", "import", "app:1", text(&saved), "--json"]).expect_success().json();
    assert_eq!(imported["image"]["layers"].as_array().map(Vec::len), Some(2), "{imported}");
    check_machine(&home, "app:1");
    // The same as an archive of a layout, from standard input, and as its folder.
    let layout = archive(&home, "oci-archive");
    home.must_run(&["image", "import", "team/app:2", text(&layout)]);
    let mut child = home.cli(&["image", "import", "localhost:5000/team/app:3", "-"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let packed = home.command("gzip").arg("-c").arg(&layout).output().expect("gzip");
    child.stdin.take().expect("piped").write_all(&packed.stdout).expect("it reads");
    assert!(child.wait().expect("it ends").success());
    let several = home.run_cli(&["image", "import", "app:4", "oci"]);
    assert!(several.stderr.contains("it holds several images: app, base"), "{several}");
    home.must_run(&["image", "import", "app:4", "oci", "--pick", "app"]);
    home.must_run(&["image", "import", "base:1", "oci", "--pick", "base"]);
    let all = images(&home);
    assert_eq!((all.len(), layers(&home)), (2, 2), "{all:?}");
    let names: Vec<usize> = all.iter().map(|image| image["references"].as_array().map_or(0, Vec::len)).collect();
    assert!(names.contains(&4) && names.contains(&1), "{names:?}");
    home.must_run(&["create", "m", "--backend", "namespace", "--image", "localhost:5000/team/app:3"]);
    let refused = home.run_cli(&["image", "delete", "sha256:"]);
    assert_eq!(refused.code, 2, "{refused}");
    for name in ["app:1", "team/app:2", "localhost:5000/team/app:3"] {
        home.must_run(&["image", "delete", name]);
    }
    let refused = home.run_cli(&["image", "delete", "app:4"]);
    assert!(refused.stderr.contains("in use by a machine"), "{refused}");
    home.must_run(&["delete", "m"]);
    home.must_run(&["image", "delete", "app:4"]);
    assert_eq!((images(&home).len(), layers(&home)), (1, 1), "the shared layer stays");
    home.must_run(&["image", "delete", "base:1"]);
    assert_eq!(layers(&home), 0);
    let missing = home.run_cli(&["create", "m", "--image", "localhost:5000/team/app:3"]);
    assert!(missing.stderr.contains("hint: fetch it: testyard image pull localhost:5000/team/app:3\n"), "{missing}");
    home.finish();
}

#[test]
fn what_is_exported_is_read_by_others_and_by_us() {
    let home = home!("umoci", "skopeo", "busybox");
    make_image(&home);
    home.must_run(&["image", "import", "app:1", "oci", "--pick", "app"]);
    let told = home.run_cli(&["image", "export", "app:1", "out.tar", "--json"]).expect_success().json();
    let bytes = std::fs::metadata(home.work().join("out.tar")).expect("it is there").len();
    assert_eq!(told["exported"]["bytes"], bytes);
    for form in ["oci-archive", "docker-archive"] {
        let output = home.command("skopeo").args(["inspect", &format!("{form}:out.tar")]).output().expect("skopeo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let facts: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(facts["Env"], serde_json::json!(["GREETING=hello", "PATH=/bin"]), "{facts}");
        tool(&home, &format!("skopeo copy --quiet --insecure-policy {form}:out.tar oci:again:{form}"));
    }
    // umoci applies the layers in its own way and compares every file with what the archive says.
    let rootless = if is_root() { "" } else { "--rootless" };
    tool(&home, &format!("umoci unpack {rootless} --image again:oci-archive three"));
    shell(
        &home,
        "cd three/rootfs && test \"$(cat lower)\" = upper && test ! -e srv/gone && test \"$(ls srv/data)\" = new
         test \"$(stat -c %a tmp)\" = 1777 && test \"$(stat -c %h hard)\" = 2",
    );
    home.must_run(&["image", "import", "app:2", "out.tar"]);
    check_machine(&home, "app:2");
    // A second round changes nothing.
    home.must_run(&["image", "export", "app:2", "second.tar"]);
    home.must_run(&["image", "import", "app:3", "second.tar"]);
    assert_eq!(images(&home).len(), 2);
    // A root without layers becomes one.
    shell(&home, "tar -C three/rootfs -cf root.tar . && mkdir empty");
    home.must_run(&["image", "import", "root:1", "root.tar"]);
    let output = home.cli(&["image", "export", "root:1", "-"]).output().expect("it runs");
    std::fs::write(home.work().join("root-out.tar"), output.stdout).expect("write");
    home.must_run(&["image", "import", "root:2", "root-out.tar"]);
    home.must_run(&["create", "m", "--backend", "namespace", "--image", "root:2"]);
    assert_eq!(home.must_run(&["exec", "m", "--user", "root", "--", "/bin/cat", "/lower"]), "upper\n");
    home.must_run(&["delete", "m"]);
    let refused = home.run_cli(&["image", "export", "host", "x.tar"]);
    assert!(refused.stderr.contains("never stored"), "{refused}");
    let refused = home.run_cli(&["image", "export", "app:1", "nowhere/x.tar"]);
    assert!(refused.stderr.contains("cannot write nowhere/x.tar"), "{refused}");
    home.finish();
}

/// A real server on this host, with its files in the home's work folder.
struct Server {
    child: Child,
    port: String,
}

impl Server {
    /// With these lines in its configuration below `http` or beside it.
    fn start(home: &TestHome, name: &str, http: &str, beside: &str) -> Self {
        let (folder, log) = (home.work().join("registry"), home.work().join(format!("{name}.log")));
        let configuration = home.work().join(format!("{name}.yml"));
        let lines = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: 127.0.0.1:0\n{http}{beside}",
            folder.display()
        );
        std::fs::write(&configuration, lines).expect("the home is ours");
        let told = std::fs::File::create(&log).expect("the home is ours");
        let child = home
            .command("docker-registry")
            .arg("serve")
            .arg(&configuration)
            .stdout(told.try_clone().expect("a copy"))
            .stderr(told)
            .spawn()
            .expect("the server starts");
        let port = testkit::wait_for(Duration::from_secs(30), || {
            let told = std::fs::read_to_string(&log).ok()?;
            let (_, behind) = told.split_once("listening on 127.0.0.1:")?;
            let end = behind.find(|c: char| !c.is_ascii_digit())?;
            Some(behind[..end].to_owned())
        });
        Self { child, port: port.expect("the server listens") }
    }

    /// An image's name there.
    fn name(&self, rest: &str) -> String {
        format!("localhost:{}/{rest}", self.port)
    }

    fn stop(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only where the test failed; it is gone already otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_image_is_pulled_from_a_real_server() {
    let home = home!("umoci", "skopeo", "busybox", "docker-registry");
    make_image(&home);
    let server = Server::start(&home, "plain", "", "");
    for (image, tag) in [("app", "team/app:1"), ("base", "base:1")] {
        let target = server.name(tag);
        tool(
            &home,
            &format!("skopeo copy --quiet --insecure-policy --dest-tls-verify=false oci:oci:{image} docker://{target}"),
        );
    }
    let name = server.name("team/app:1");
    let pulled = home.run_cli(&["image", "pull", &name, "--json"]).expect_success();
    assert_eq!(pulled.stderr.matches("fetching").count(), 0, "quiet with --json: {pulled}");
    let image = pulled.json()["image"].clone();
    assert_eq!((&image["references"][0], &image["origin"]["kind"]), (&name.as_str().into(), &"pulled".into()));
    check_machine(&home, &name);
    // What is there is not fetched again, also for another image.
    let again = home.run_cli(&["image", "pull", &server.name("base:1"), "--name", "short:1"]).expect_success();
    assert!(!again.stderr.contains("fetching"), "{again}");
    assert_eq!(layers(&home), 2);
    let digest = format!("sha256:{}", image["origin"]["manifest"].as_str().expect("a digest"));
    let pinned = format!("{}@{digest}", server.name("team/app"));
    home.must_run(&["image", "pull", &pinned, "--name", "pinned:1"]);
    assert_eq!(images(&home).len(), 2);
    for (wrong, told) in [
        (server.name("team/app:2"), "has no manifest 2 of team/app"),
        (server.name("nothing"), "has no manifest latest of nothing"),
        (format!("{}@sha256:{}", server.name("team/app"), "0".repeat(64)), "has no manifest sha256:000"),
        ("debian:12".to_owned(), "does not say from which server"),
        ("localhost:1/x".to_owned(), "localhost:1 does not answer as it should"),
    ] {
        let refused = home.run_cli(&["image", "pull", &wrong]);
        assert!(refused.code != 0 && refused.stderr.contains(told), "{refused}");
        assert_eq!(refused.stderr.matches("error:").count(), 1, "{refused}");
    }
    let gone = home.run_cli(&["image", "pull", &name, "--scheme", "https"]);
    assert!(gone.stderr.contains("does not answer as it should"), "{gone}");
    server.stop();
    home.finish();
}

#[test]
fn a_server_that_knows_its_users_is_told_who_asks() {
    let home = home!("umoci", "skopeo", "busybox", "docker-registry");
    make_image(&home);
    // The user `tester` with the password `secret`.
    let passwords = home.work().join("passwords");
    std::fs::write(&passwords, "tester:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n").expect("write");
    let authentication = format!("auth:\n  htpasswd:\n    realm: testyard\n    path: {}\n", passwords.display());
    let server = Server::start(&home, "private", "", &authentication);
    let name = server.name("app:1");
    tool(
        &home,
        &format!(
            "skopeo copy --quiet --insecure-policy --dest-tls-verify=false --dest-creds tester:secret oci:oci:app docker://{name}"
        ),
    );
    let refused = home.run_cli(&["image", "pull", &name]);
    assert!(refused.stderr.contains("not to everybody") && refused.stderr.contains("--user NAME"), "{refused}");
    let refused = home.run_cli(&["image", "pull", &name, "--user", "tester"]);
    assert!(refused.code == 2 && refused.stderr.contains("needs a password"), "{refused}");
    let as_tester = |password: &str| {
        let mut command = home.cli(&["image", "pull", &name, "--user", "tester"]);
        command.env("TESTYARD_REGISTRY_PASSWORD", password).output().expect("it runs")
    };
    let wrong = as_tester("wrong");
    assert!(
        !wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("check the name and the password")
    );
    assert!(as_tester("secret").status.success());
    assert_eq!(images(&home).len(), 1);
    server.stop();
    home.finish();
}

#[test]
fn a_server_is_known_by_its_certificate() {
    let home = home!("umoci", "skopeo", "busybox", "docker-registry", "openssl");
    make_image(&home);
    let configuration = "[req]\ndistinguished_name=name\nprompt=no\nx509_extensions=more\n[name]\nCN=localhost\n\
                         [more]\nsubjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n";
    std::fs::write(home.work().join("openssl.cnf"), configuration).expect("the home is ours");
    tool(
        &home,
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out certificate.pem -days 2 -config openssl.cnf",
    );
    let work = home.work();
    let tls = format!("  tls:\n    certificate: {0}/certificate.pem\n    key: {0}/key.pem\n", work.display());
    let server = Server::start(&home, "encrypted", &tls, "");
    let name = server.name("app:1");
    tool(&home, &format!("skopeo copy --quiet --insecure-policy --dest-tls-verify=false oci:oci:app docker://{name}"));
    let arguments = ["image", "pull", &name, "--scheme", "https"];
    let stranger = home.run_cli(&arguments);
    assert!(stranger.code != 0 && stranger.stderr.contains("does not answer as it should"), "{stranger}");
    let mut command = home.cli(&arguments);
    let known = command.env("SSL_CERT_FILE", work.join("certificate.pem")).output().expect("it runs");
    assert!(known.status.success(), "{}", String::from_utf8_lossy(&known.stderr));
    server.stop();
    home.finish();
}

#[test]
fn the_pages_commands_work_as_written() {
    let home = home!("umoci", "skopeo", "busybox", "docker-registry", "python3");
    make_image(&home);
    let server = Server::start(&home, "page", "", "");
    let target = server.name("team/app:1");
    tool(
        &home,
        &format!("skopeo copy --quiet --insecure-policy --dest-tls-verify=false oci:oci:app docker://{target}"),
    );
    tool(&home, "skopeo copy --quiet --insecure-policy oci:oci:app oci:layout:app");
    let saved = archive(&home, "docker-archive");
    // What `docker save` writes, without the engine that it asks.
    shell(
        &home,
        "cp docker-archive.tar app.tar; mkdir bin; printf '#!/bin/sh\nexec cat docker-archive.tar\n' > bin/docker; chmod +x bin/docker",
    );
    let sources = testkit::programs::source_folder();
    let page = testkit::Page::load("images").replace("localhost:5000", server.name("").trim_end_matches('/'));
    assert_eq!(page.blocks().map(|(language, _)| language).collect::<Vec<_>>(), ["sh", "sh", "python", "sh"]);
    let programs = home.program("testyard");
    let path = format!("{}:bin:/usr/local/bin:/usr/bin:/bin", programs.parent().expect("a folder").display());
    let mut said = String::new();
    for (language, block) in page.blocks() {
        let (program, flag) = if language == "sh" { ("/bin/sh", "-euc") } else { ("python3", "-c") };
        let mut command = home.command(program);
        command.args([flag, block]).env("PATH", &path).env("TESTYARD_BINARY", &programs);
        command.env("PYTHONPATH", sources.join("python/src")).env("PYTHONDONTWRITEBYTECODE", "1");
        let output = Output::of(&mut command, Duration::from_secs(120));
        assert_eq!(output.code, 0, "{block}: {output}");
        said += &output.stdout;
    }
    assert!(said.lines().any(|line| line == "upper"), "{said}");
    let mut names: Vec<String> = images(&home)
        .iter()
        .flat_map(|image| image["references"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    names.sort();
    assert_eq!(names, ["app:1", "app:2", "app:3", "app:4", &target]);
    // Both programs' words end in an archive that others read.
    assert_ne!(std::fs::read(home.work().join("app.tar")).expect("exported"), std::fs::read(saved).expect("kept"));
    for exported in ["app.tar", "out.tar"] {
        tool(&home, &format!("skopeo inspect oci-archive:{exported}"));
    }
    home.must_run(&["delete", "web", "other"]);
    server.stop();
    home.finish();
}

/// In the place of mmdebstrap: it mounts as that does, and starts what would outlive it.
const TOOL: &str = r#"#!/bin/sh
set -e
made=$(mktemp -d)
mkdir "$made/proc" "$made/dev"
: > "$made/dev/null"
mount -t proc proc "$made/proc"
mount --bind /dev/null "$made/dev/null"
head -c 100000 /dev/zero > "$made/file"
tail -f /dev/null &
setsid tail -f /dev/null &
echo "unpacked in $made" >&2
wait
"#;

/// A build that came to where its tool waits, and where that unpacks.
fn begin_build(home: &TestHome) -> (Child, String) {
    let bin = home.work().join("bin");
    if !bin.exists() {
        std::fs::create_dir(&bin).expect("the home is ours");
        std::fs::write(bin.join("mmdebstrap"), TOOL).expect("the home is ours");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(bin.join("mmdebstrap"), mode).expect("ours");
    }
    let log = home.state().join("images/bookworm.log");
    // That of an earlier one.
    let _ = std::fs::remove_file(&log);
    let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", text(&bin));
    let mut command = home.cli(&["image", "build", "debian:12"]);
    let child = command.env("PATH", path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut made = String::new();
    let came = wait_until(DEADLINE, || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        made = log.trim_end().strip_prefix("unpacked in ").unwrap_or_default().to_owned();
        !made.is_empty()
    });
    assert!(came, "the tool is started");
    (child, made)
}

/// The processes of a home that have this program's name.
fn processes(home: &TestHome, name: &str) -> Vec<i32> {
    let mark = format!("TESTYARD_HOME={}", text(&home.state()));
    let of_home = |pid: &i32| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let named = String::from_utf8_lossy(&read("comm")).trim_end() == name;
        named && read("environ").split(|byte| *byte == 0).any(|one| one == mark.as_bytes())
    };
    let all = std::fs::read_dir("/proc").expect("it is mounted").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(of_home).collect()
}

/// Whoever is killed: the tool, or the build itself.
#[test]
fn nothing_stays_of_a_build_that_is_killed() {
    let home = home!();
    testkit::require!(Ability::Root);
    for name in ["mmdebstrap", "testyard"] {
        let (mut child, made) = begin_build(&home);
        assert!(wait_until(DEADLINE, || processes(&home, "tail").len() == 2), "what it has started runs");
        let mounts = || std::fs::read_to_string("/proc/mounts").expect("it is mounted");
        assert!(!mounts().contains(&made), "the host does not see what it mounts");
        testkit::processes::signal(&processes(&home, name), Signal::KILL);
        let ended = Output::of_child(&mut child, "a build", DEADLINE);
        if name == "mmdebstrap" {
            assert!(ended.code == 69 && ended.stderr.contains("mmdebstrap could not build bookworm"), "{ended}");
        } else {
            assert_ne!(ended.code, 0, "{ended}");
        }
        let gone = || ["mmdebstrap", "unshare", "tail"].iter().all(|name| processes(&home, name).is_empty());
        assert!(wait_until(DEADLINE, gone), "what it has started ends");
        assert!(!mounts().contains(&made) && !Path::new(&made).exists(), "{made}");
        home.must_run(&["reap"]);
        let left = std::fs::read_dir(home.state().join("images/temporary")).expect("the store's").count();
        assert_eq!(left, 0, "after {name} was killed");
    }
    home.finish();
}
