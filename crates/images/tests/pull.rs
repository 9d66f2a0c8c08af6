//! Fetching from servers that are out of breath, wrong or hostile: each answer here is written by the test.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use support::layers::{Layered, Packing, descriptor, hexadecimal};
use support::{Archive, root};
use testyard_images::{Image, ImportOptions, PullError, PullOptions, PullProgress, Store};
use testyard_model::ByteSize;

/// What came in: the first line, and the headers in lower case.
#[derive(Debug, Clone)]
struct Request {
    path: String,
    headers: BTreeMap<String, String>,
}

/// What goes out.
#[derive(Debug, Clone)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// What the header says, where it is not the body's length.
    length: Option<usize>,
}

impl Answer {
    fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into(), length: None }
    }

    fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

type Script = dyn Fn(&Request) -> Answer + Send + Sync;

struct Server {
    address: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers until the test ends, one request after another.
    fn start(script: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let script = Mutex::new(script);
        Self::start_several(move |request| (script.lock().expect("unpoisoned"))(request))
    }

    /// Answers until the test ends, many requests at once.
    fn start_several(script: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let seen = Arc::<Mutex<Vec<Request>>>::default();
        let (log, script): (_, Arc<Script>) = (Arc::clone(&seen), Arc::new(script));
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (log, script) = (Arc::clone(&log), Arc::clone(&script));
                // Whoever goes away in the middle is who is tested.
                std::thread::spawn(move || serve(connection.expect("a connection"), &log, &*script).ok());
            }
        });
        Self { address, seen }
    }

    fn paths(&self) -> Vec<String> {
        self.seen.lock().expect("unpoisoned").iter().map(|request| request.path.clone()).collect()
    }
}

fn serve(mut connection: TcpStream, log: &Mutex<Vec<Request>>, script: &Script) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let request = Request { path: first.split(' ').nth(1).unwrap_or_default().to_owned(), headers };
    log.lock().expect("unpoisoned").push(request.clone());
    let answer = script(&request);
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", answer.status);
    head += &format!("content-length: {}\r\n", answer.length.unwrap_or(answer.body.len()));
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    connection.write_all(head.as_bytes())?;
    connection.write_all(b"\r\n")?;
    connection.write_all(&answer.body)?;
    connection.shutdown(std::net::Shutdown::Write)?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    connection.read_to_end(&mut Vec::new()).map(drop)
}

struct Home {
    _folder: tempfile::TempDir,
    store: Store,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(&folder.path().join("images")).expect("a new store");
        Self { _folder: folder, store }
    }

    fn pull(&self, image: &str, options: &PullOptions) -> Result<Image, PullError> {
        self.store.pull(&image.parse().expect("a name"), options, &mut |_| ())
    }

    /// Refused, with this in the message or its causes, and nothing to be seen.
    #[track_caller]
    fn refuses(&self, server: &Server, message: &str) {
        let error = self.pull(&format!("{}/app:1", server.address), &options()).expect_err("must be refused").problem();
        let all = format!("{}; {}", error.message, error.causes.join("; "));
        assert!(all.contains(message), "{all:?} does not say {message:?}");
        assert!(self.store.list().expect("list").is_empty());
        assert_eq!(self.left("temporary"), 0);
    }

    fn left(&self, folder: &str) -> usize {
        std::fs::read_dir(self.store.path().join(folder)).expect("list").count()
    }
}

fn options() -> PullOptions {
    let import = ImportOptions { flush: false, reserve: ByteSize(1), ..ImportOptions::new(0) };
    PullOptions { timeout: Duration::from_secs(60), ..PullOptions::new(import) }
}

/// An image with a layer that does not shrink.
fn image() -> Layered {
    let mut noise = Vec::new();
    let mut state = 1_u64;
    while noise.len() < 1 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&state.to_be_bytes());
    }
    let upper = Archive::default().entry(b'0', "noise", "", &noise);
    Layered::new(&[root(), upper], Packing::Gzip)
}

/// What a server has, by path.
type Served = BTreeMap<String, Vec<u8>>;

/// Everything that a well-behaved server has of an image.
fn served(image: &Layered) -> Served {
    let (manifest, config) = (image.manifest().to_string(), image.config.to_string());
    let mut all = BTreeMap::from([("/v2/app/manifests/1".to_owned(), manifest.clone().into_bytes())]);
    let blobs = image.layers.iter().map(|(_, packed)| packed.clone()).chain([config.into_bytes()]);
    all.extend(blobs.map(|blob| (format!("/v2/app/blobs/sha256:{}", hexadecimal(&blob)), blob)));
    all.insert(format!("/v2/app/manifests/sha256:{}", hexadecimal(manifest.as_bytes())), manifest.into_bytes());
    all
}

fn plainly(all: &Served, request: &Request) -> Answer {
    all.get(&request.path).map_or_else(|| Answer::status(404), |body| Answer::ok(body.clone()))
}

fn blob_path(image: &Layered, layer: usize) -> String {
    format!("/v2/app/blobs/sha256:{}", hexadecimal(&image.layers[layer].1))
}

#[test]
fn a_token_is_fetched_where_the_server_says() {
    let image = image();
    let all = served(&image);
    let server = Server::start(move |request| {
        if request.path.starts_with("/token?") {
            assert!(request.path.contains("service=here") && request.path.contains("scope=repository"), "{request:?}");
            // Z2V0OnRoaXM= is get:this.
            assert_eq!(request.headers.get("authorization").map(String::as_str), Some("Basic Z2V0OnRoaXM="));
            return Answer::ok(r#"{"access_token": "abc"}"#);
        }
        match request.headers.get("authorization").map(String::as_str) {
            Some("Bearer abc") => plainly(&all, request),
            _ => {
                let host = &request.headers["host"];
                let challenge =
                    format!("Bearer realm=\"http://{host}/token\",service=\"here\",scope=\"repository:app:pull\"");
                Answer::status(401).header("www-authenticate", challenge)
            }
        }
    });
    let home = Home::new();
    let options = PullOptions { credentials: Some(("get".to_owned(), "this".to_owned())), ..options() };
    let pulled = home.pull(&format!("{}/app:1", server.address), &options).expect("pulled");
    assert_eq!(pulled.references, [format!("{}/app:1", server.address)]);
    assert_eq!(server.paths().iter().filter(|path| path.starts_with("/token")).count(), 1, "asked for once");
    assert_eq!(home.left("downloads"), 0);
}

#[test]
fn a_download_goes_on_where_it_was() {
    let image = image();
    let (all, cut) = (served(&image), blob_path(&image, 1));
    let size = image.layers[1].1.len();
    let path = cut.clone();
    let server = Server::start(move |request| {
        let mut answer = plainly(&all, request);
        if request.path == path {
            let from = request
                .headers
                .get("range")
                .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
            let from: usize = from.unwrap_or(0);
            // A third more with each try.
            let end = (from + size / 3 + 1).min(size);
            let (body, length) = (answer.body[from..end].to_vec(), Some(size - from));
            let range = format!("bytes {from}-{}/{size}", size - 1);
            answer = Answer { status: if from > 0 { 206 } else { 200 }, body, length, ..answer };
            if from > 0 {
                answer = answer.header("content-range", range);
            }
        }
        answer
    });
    let home = Home::new();
    home.pull(&format!("{}/app:1", server.address), &options()).expect("pulled");
    assert_eq!(server.paths().iter().filter(|path| **path == cut).count(), 3);
    assert_eq!(home.left("downloads"), 0);
}

#[test]
fn what_was_fetched_before_a_failure_is_kept_for_the_next_try_and_pruned() {
    let image = image();
    let (all, cut) = (served(&image), blob_path(&image, 1));
    let (whole, size) = (Arc::new(Mutex::new(false)), image.layers[1].1.len());
    let (now_whole, path) = (Arc::clone(&whole), cut.clone());
    let server = Server::start(move |request| {
        let answer = plainly(&all, request);
        let range = request.headers.get("range").cloned();
        if request.path != path {
            return answer;
        }
        if !*now_whole.lock().expect("unpoisoned") {
            // Half of it once, and then nothing more.
            let body = if range.is_some() { Vec::new() } else { answer.body[..size / 2].to_vec() };
            return Answer { body, length: Some(size), ..answer };
        }
        // A server that knows no ranges begins again.
        answer
    });
    let home = Home::new();
    home.refuses(&server, "does not answer as it should");
    assert_eq!(home.left("downloads"), 1);
    let pruned = home.store.prune(&std::collections::BTreeSet::new()).expect("prune");
    assert!(pruned.temporary == 1 && home.left("downloads") == 0, "{pruned:?}");
    home.refuses(&server, "does not answer as it should");
    *whole.lock().expect("unpoisoned") = true;
    home.pull(&format!("{}/app:1", server.address), &options()).expect("pulled");
    assert_eq!(home.left("downloads"), 0);
}

#[test]
fn several_layers_come_at_once_and_are_unpacked_in_their_order() {
    let layers: Vec<Archive> = std::iter::once(root())
        .chain((0..4).map(|number| Archive::default().entry(b'0', "same", "", format!("{number}").as_bytes())))
        .collect();
    let image = Layered::new(&layers, Packing::Gzip);
    let all = served(&image);
    let blobs: Vec<String> = (0..layers.len()).map(|layer| blob_path(&image, layer)).collect();
    let (first, third) = (blobs[0].clone(), blobs[2].clone());
    // The first layer is answered once the third was asked for, too.
    let asked = Arc::new((Mutex::new(false), std::sync::Condvar::new()));
    let server = Server::start_several(move |request| {
        let (seen, changed) = &*asked;
        if request.path == third {
            *seen.lock().expect("unpoisoned") = true;
            changed.notify_all();
        } else if request.path == first {
            let seen = seen.lock().expect("unpoisoned");
            let waited = changed.wait_timeout_while(seen, Duration::from_secs(30), |seen| !*seen).expect("unpoisoned");
            assert!(*waited.0, "the third layer is not asked for meanwhile");
        }
        plainly(&all, request)
    });
    let home = Home::new();
    let mut told = Vec::new();
    let name = format!("{}/app:1", server.address).parse().expect("a name");
    let pulled = home.store.pull(&name, &options(), &mut |progress| told.push(progress)).expect("pulled");
    assert!(told.len() == 1 + layers.len() && told[0] == PullProgress::Layers(layers.len()), "{told:?}");
    let topmost = pulled.layers.iter().find_map(|layer| std::fs::read_to_string(layer.join("same")).ok());
    assert_eq!(topmost.as_deref(), Some("3"));
    assert!(blobs.iter().all(|blob| server.paths().iter().filter(|path| *path == blob).count() == 1), "each once");
    assert_eq!(home.left("downloads"), 0);
}

#[test]
fn what_docker_login_wrote_is_told_to_servers_that_ask() {
    let image = image();
    let all = served(&image);
    let server = Server::start(move |request| {
        match request.headers.get("authorization").map(String::as_str) {
            // get:this
            Some("Basic Z2V0OnRoaXM=") => plainly(&all, request),
            _ => Answer::status(401).header("www-authenticate", "Basic realm=\"x\""),
        }
    });
    let home = Home::new();
    let file = home.store.path().join("config.json");
    let options = PullOptions { docker_config: Some(file.clone()), ..options() };
    let name = format!("{}/app:1", server.address);
    let refused = |says: &str| {
        let error = home.pull(&name, &options).expect_err("nobody knows us").problem();
        assert!(error.message.contains(says) && error.hints[0].contains("--user"), "{error:?}");
    };
    refused("not to everybody");
    std::fs::write(&file, format!(r#"{{"credHelpers": {{"{}": "vault"}}}}"#, server.address)).expect("written");
    refused("is kept by docker-credential-vault, which is not asked");
    std::fs::write(&file, format!(r#"{{"auths": {{"{}": {{"auth": "Z2V0OnRoaXM="}}}}}}"#, server.address))
        .expect("written");
    home.pull(&name, &options).expect("pulled");
    // What is said comes first.
    let said = PullOptions { credentials: Some(("get".to_owned(), "that".to_owned())), ..options.clone() };
    let error = home.pull(&name, &said).expect_err("another password").problem();
    assert!(error.message.contains("not to everybody"), "{error:?}");
}

#[test]
fn a_server_out_of_breath_is_asked_again() {
    let image = image();
    let all = served(&image);
    let mut count = 0;
    let server = Server::start(move |request| {
        count += 1;
        match count {
            1 => Answer::status(503),
            2 => Answer::status(429),
            _ => plainly(&all, request),
        }
    });
    Home::new().pull(&format!("{}/app:1", server.address), &options()).expect("pulled");
    let tired = Server::start(|_| Answer { body: b"busy".to_vec(), ..Answer::status(503) });
    Home::new().refuses(&tired, "503 Service Unavailable busy");
    assert_eq!(tired.paths().len(), 3);
}

#[test]
fn what_is_not_what_it_should_be_is_refused() {
    let image = image();
    let with = |change: &dyn Fn(&mut Served)| {
        let mut all = served(&image);
        change(&mut all);
        Server::start(move |request| plainly(&all, request))
    };
    let (blob, manifest) = (blob_path(&image, 1), "/v2/app/manifests/1");
    let home = Home::new();
    let damaged = with(&|all| {
        if let Some(byte) = all.get_mut(&blob).and_then(|bytes| bytes.get_mut(1000)) {
            *byte ^= 1;
        }
    });
    home.refuses(&damaged, "is damaged or forged: its digest should be sha256:");
    assert_eq!(home.left("downloads"), 0, "nothing to continue");
    let longer = with(&|all| all.get_mut(&blob).expect("there").push(0));
    home.refuses(&longer, "is damaged or truncated: it should be");
    let config = format!("/v2/app/blobs/sha256:{}", hexadecimal(image.config.to_string().as_bytes()));
    let forged = with(&|all| all.get_mut(&config).expect("there")[3] ^= 1);
    home.refuses(&forged, "is damaged or");
    home.refuses(&with(&|all| drop(all.remove(&blob))), "has no blob sha256:");
    let huge = with(&|all| drop(all.insert(manifest.to_owned(), vec![b' '; 5 << 20])));
    home.refuses(&huge, "is larger than 4M");
    home.refuses(&with(&|all| drop(all.insert(manifest.to_owned(), b"<html>".to_vec()))), "is not what an image's");
    let mut claims = image.manifest();
    claims["layers"][1]["size"] = json!(1_u64 << 50);
    let claims = claims.to_string();
    let large = with(&|all| drop(all.insert(manifest.to_owned(), claims.clone().into_bytes())));
    home.refuses(&large, "unpacks to more than");
    for digest in ["sha256:../../etc/passwd", "sha512:ab", "sha256:ABC"] {
        let mut manifest_of = image.manifest();
        manifest_of["config"]["digest"] = json!(digest);
        let text = manifest_of.to_string();
        let server = with(&|all| drop(all.insert(manifest.to_owned(), text.clone().into_bytes())));
        home.refuses(&server, "is not a digest that Testyard reads");
    }
    let all = served(&image);
    let liar = Server::start(move |request| {
        plainly(&all, request).header("docker-content-digest", format!("sha256:{}", "0".repeat(64)))
    });
    home.refuses(&liar, "manifest 1 is damaged or forged");
    let pinned = with(&|all| {
        all.insert(format!("/v2/app/manifests/sha256:{}", "0".repeat(64)), image.manifest().to_string().into_bytes());
    });
    let named = format!("{}/app@sha256:{}", pinned.address, "0".repeat(64));
    let error = home.pull(&named, &options()).expect_err("another manifest").to_string();
    assert!(error.contains("is damaged or forged"), "{error}");
}

#[test]
fn hostile_answers_end() {
    let home = Home::new();
    home.refuses(
        &Server::start(|request| Answer::status(302).header("location", request.path.clone())),
        "does not answer as it should",
    );
    home.refuses(&Server::start(|_| Answer::status(401)), "gives manifest 1 of app not to everybody");
    home.refuses(&Server::start(|_| Answer::status(401).header("www-authenticate", "Negotiate")), "not to everybody");
    let nobody = Server::start(|request| {
        let realm = format!("Bearer realm=\"http://{}/token\"", request.headers["host"]);
        if request.path == "/token" { Answer::ok("{}") } else { Answer::status(401).header("www-authenticate", realm) }
    });
    home.refuses(&nobody, "answers a token with `something else`");
    home.refuses(&Server::start(|_| Answer::status(418)), "answers manifest 1 of app with `418");
    let image = image();
    let (all, path) = (served(&image), blob_path(&image, 1));
    let elsewhere = Server::start(move |request| match request.headers.get("range") {
        Some(_) => Answer { status: 206, ..plainly(&all, request) }.header("content-range", "bytes 5-9/10"),
        None if request.path == path => {
            let answer = plainly(&all, request);
            Answer { body: answer.body[..1000].to_vec(), length: Some(answer.body.len()), ..answer }
        }
        None => plainly(&all, request),
    });
    home.refuses(&elsewhere, "answers a part of a blob with `another part`");
    let late = PullOptions { timeout: Duration::ZERO, ..options() };
    let error = home.pull(&format!("{}/app:1", nobody.address), &late).expect_err("late").problem();
    assert!(error.hints.iter().any(|hint| hint.contains("--timeout")), "{error:?}");
}

#[test]
fn of_an_index_the_one_for_this_host_is_fetched() {
    let image = image();
    let mut all = served(&image);
    let own = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut this = descriptor(&image.manifest().to_string());
    this["platform"] = json!({"os": "linux", "architecture": own});
    let mut other = descriptor("other");
    other["platform"] = json!({"os": "linux", "architecture": "mips"});
    let index =
        |manifests: serde_json::Value| json!({"schemaVersion": 2, "manifests": manifests}).to_string().into_bytes();
    all.insert("/v2/app/manifests/1".to_owned(), index(json!([other, this])));
    let foreign = all.clone();
    let server = Server::start(move |request| plainly(&all, request));
    Home::new().pull(&format!("{}/app:1", server.address), &options()).expect("pulled");
    assert!(!server.paths().iter().any(|path| path.contains(&hexadecimal(b"other"))));
    let mut all = foreign;
    all.insert("/v2/app/manifests/1".to_owned(), index(json!([other])));
    Home::new().refuses(&Server::start(move |request| plainly(&all, request)), "it has nothing for linux/");
}
