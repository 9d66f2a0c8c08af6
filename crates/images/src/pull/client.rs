//! Asking a server: the reading half of the OCI distribution protocol.

use std::io::{ErrorKind, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::challenge::{self, Challenge};
use super::{PullError, PullOptions, RemoteImage, Scheme, docker};
use crate::oci::DOCUMENT_LIMIT;
use testyard_linux::Error as SystemError;

/// What manifests may look like.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How long one answer may take; a download that takes longer is continued with the next.
const PIECE: Duration = Duration::from_secs(300);
/// How often one thing is asked for while the server is out of breath.
const TRIES: u32 = 3;
/// Half of the time after which it is asked again; twice as long with each try.
const PAUSE: Duration = Duration::from_millis(200);
/// The most bytes of a token's document and of what a server says of an error.
const WORDS_LIMIT: u64 = 64 << 10;
/// The server in images' names whose registry answers under a name before it, and whose own images have a folder.
pub(super) const SHORT: (&str, &str, &str) = ("docker.io", "registry-1.", "library/");

/// Where the registry of an image's server answers, and the image's path there.
fn address(server: &str, path: &str) -> (String, String) {
    let (short, before, folder) = SHORT;
    let folder = if server == short && !path.contains('/') { folder } else { "" };
    let before = if server == short { before } else { "" };
    (format!("{before}{server}"), format!("{folder}{path}"))
}

/// One repository of one server. Clones have one end.
#[derive(Clone)]
pub(super) struct Client<'o> {
    agent: Agent,
    image: &'o RemoteImage,
    options: &'o PullOptions,
    base: String,
    encrypted: bool,
    /// The header by which the server knows us.
    authorization: Option<String>,
    begun: Instant,
    stopped: Arc<AtomicBool>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// Whether a server is this host itself.
fn is_loopback(server: &str) -> bool {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    host == "localhost" || host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// Those whom this host trusts.
fn trusted() -> Result<RootCerts, PullError> {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return Err(PullError::NoCertificates);
    }
    let certificates = found.iter().map(|one| Certificate::from_der(one.as_ref()).to_owned()).collect();
    Ok(RootCerts::Specific(Arc::new(certificates)))
}

impl<'o> Client<'o> {
    pub(super) fn new(image: &'o RemoteImage, options: &'o PullOptions) -> Result<Self, PullError> {
        let loopback = is_loopback(&image.server);
        let encrypted = match options.scheme {
            Some(scheme) => scheme == Scheme::Https,
            None => !loopback,
        };
        let mut configuration = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(encrypted)
            .max_redirects(5)
            .user_agent(concat!("testyard/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(SILENCE))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_recv_body(Some(PIECE));
        if loopback {
            configuration = configuration.proxy(None);
        }
        if encrypted {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider).root_certs(trusted()?);
            configuration = configuration.tls_config(tls.build());
        }
        let scheme = if encrypted { "https" } else { "http" };
        let (server, path) = address(&image.server, &image.path);
        Ok(Self {
            agent: configuration.build().into(),
            image,
            options,
            base: format!("{scheme}://{server}/v2/{path}"),
            encrypted,
            authorization: None,
            begun: Instant::now(),
            stopped: Arc::default(),
        })
    }

    /// A manifest or an index, by tag or digest, and what the server says its digest is.
    pub(super) fn manifest(&mut self, wanted: &str) -> Result<(Vec<u8>, Option<String>), PullError> {
        let what = format!("manifest {} of {}", wanted, self.image.path);
        let answer = self.get(&format!("manifests/{wanted}"), &what, Some(MANIFESTS), 0)?;
        let said = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let said = said.map(str::to_owned);
        Ok((self.text(answer, &what)?, said))
    }

    /// A small blob.
    pub(super) fn document(&mut self, digest: &str) -> Result<Vec<u8>, PullError> {
        let what = format!("blob {digest}");
        let answer = self.get(&format!("blobs/{digest}"), &what, None, 0)?;
        self.text(answer, &what)
    }

    /// A blob from this byte on, and whether the answer begins there; else it begins at the beginning.
    pub(super) fn blob(&mut self, digest: &str, from: u64) -> Result<(Body, bool), PullError> {
        let answer = self.get(&format!("blobs/{digest}"), &format!("blob {digest}"), None, from)?;
        let partial = answer.status() == StatusCode::PARTIAL_CONTENT;
        let range = answer.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let continued = partial && range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")));
        if partial && !continued {
            return Err(self.answer("a part of a blob", "another part"));
        }
        Ok((answer.into_body(), continued))
    }

    /// There is no time left for what still comes.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Fails once there is no time left.
    pub(super) fn check_time(&self) -> Result<(), PullError> {
        if self.stopped.load(Ordering::Relaxed) || self.begun.elapsed() > self.options.timeout {
            Err(PullError::Late(self.options.timeout))
        } else {
            Ok(())
        }
    }

    pub(super) fn connection(&self, source: ureq::Error) -> PullError {
        PullError::Connection { server: self.image.server.clone(), source: Box::new(source) }
    }

    fn answer(&self, what: &str, said: &str) -> PullError {
        PullError::Answer { server: self.image.server.clone(), what: what.to_owned(), said: said.to_owned() }
    }

    fn text(&self, answer: Response<Body>, what: &str) -> Result<Vec<u8>, PullError> {
        let mut text = Vec::new();
        let read = answer.into_body().into_reader().take(DOCUMENT_LIMIT + 1).read_to_end(&mut text);
        read.map_err(|error| self.connection(error.into()))?;
        if text.len() as u64 > DOCUMENT_LIMIT {
            return Err(crate::oci::BundleError::TooLarge { what: what.to_owned() }.into());
        }
        Ok(text)
    }

    fn get(&mut self, path: &str, what: &str, accept: Option<&str>, from: u64) -> Result<Response<Body>, PullError> {
        let url = format!("{}/{path}", self.base);
        let mut introduced = false;
        let mut tries = 0;
        loop {
            self.check_time()?;
            let mut request = self.agent.get(&url);
            if let Some(accept) = accept {
                request = request.header(header::ACCEPT, accept);
            }
            if let Some(authorization) = &self.authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let answer = request.call();
            tries += 1;
            let again = match &answer {
                Ok(answer) => answer.status().is_server_error() || answer.status() == StatusCode::TOO_MANY_REQUESTS,
                Err(error) => is_passing(error),
            };
            if again && tries < TRIES {
                // Longer with each try.
                testyard_linux::pause(PAUSE * (1 << tries));
                continue;
            }
            let answer = answer.map_err(|error| self.connection(error))?;
            match answer.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(answer),
                StatusCode::UNAUTHORIZED if !introduced => {
                    introduced = true;
                    self.introduce(&answer, what)?;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied(what)),
                StatusCode::NOT_FOUND => {
                    let (server, what) = (self.image.server.clone(), what.to_owned());
                    return Err(PullError::NotFound { server, what });
                }
                status => return Err(self.answer(what, &format!("{status} {}", words(answer)))),
            }
        }
    }

    fn denied(&self, what: &str) -> PullError {
        let known = self.options.credentials.is_some();
        PullError::Denied { server: self.image.server.clone(), what: what.to_owned(), known }
    }

    /// Who we are: as was said, else as `docker login` wrote it down, which nobody else shall read on the way.
    fn credentials(&self) -> Result<Option<(String, String)>, PullError> {
        let file = self.options.docker_config.as_ref().filter(|_| self.encrypted || is_loopback(&self.image.server));
        let (None, Some(file)) = (&self.options.credentials, file) else { return Ok(self.options.credentials.clone()) };
        let text = match std::fs::read_to_string(file) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            text => text.map_err(|error| SystemError::new("read", file.display(), error))?,
        };
        docker::credentials(&text, &self.image.server)
            .map_err(|why| PullError::Credentials { file: file.clone(), why: why.to_string() })
    }

    /// Answers a server that asks who we are.
    fn introduce(&mut self, answer: &Response<Body>, what: &str) -> Result<(), PullError> {
        let headers = answer.headers().get_all(header::WWW_AUTHENTICATE).iter();
        let challenge = headers.filter_map(|header| challenge::parse(header.to_str().ok()?)).next();
        let basic = self.credentials()?.map(|(name, password)| basic(&name, &password));
        match challenge {
            None => Err(self.denied(what)),
            Some(Challenge::Basic) => {
                self.authorization = Some(basic.ok_or_else(|| self.denied(what))?);
                Ok(())
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                if self.encrypted && !realm.starts_with("https://") {
                    return Err(PullError::Realm { server: self.image.server.clone(), realm });
                }
                let mut request = self.agent.get(&realm);
                for (key, value) in [("service", service), ("scope", scope)] {
                    if let Some(value) = value {
                        request = request.query(key, value);
                    }
                }
                if let Some(basic) = basic {
                    request = request.header(header::AUTHORIZATION, basic);
                }
                let answer = request.call().map_err(|error| self.connection(error))?;
                if answer.status() != StatusCode::OK {
                    return Err(self.denied(what));
                }
                let text = words(answer);
                let token = serde_json::from_str(&text).ok().and_then(|Token { token, access_token }| {
                    token.or(access_token).filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()))
                });
                let token = token.ok_or_else(|| self.answer("a token", "something else"))?;
                self.authorization = Some(format!("Bearer {token}"));
                Ok(())
            }
        }
    }
}

/// Whether it may be better a moment later.
fn is_passing(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Io(_) | ureq::Error::Timeout(_))
}

fn words(answer: Response<Body>) -> String {
    let mut text = Vec::new();
    // What cannot be read is no more said.
    let _ = answer.into_body().into_reader().take(WORDS_LIMIT).read_to_end(&mut text);
    String::from_utf8_lossy(&text).trim().to_owned()
}

fn basic(name: &str, password: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = "Basic ".to_owned();
    for three in format!("{name}:{password}").into_bytes().chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_passwords_are_written_in_base_64() {
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(basic("a", "b"), "Basic YTpi");
        assert_eq!(basic("a", "bc"), "Basic YTpiYw==");
        assert_eq!(basic("ab", "cd"), "Basic YWI6Y2Q=");
    }

    #[test]
    fn loopback_is_this_host() {
        assert!(is_loopback("localhost:5000") && is_loopback("localhost") && is_loopback("127.0.0.1:80"));
        assert!(!is_loopback("localhost.example") && !is_loopback("registry.example:5000"));
    }
}
