//! How this host reaches networks: proxies, certificate authorities, registries and archives. A fresh machine on the
//! same network needs the same, whatever it is; nothing here knows a host by name.
//!
//! Variables are passed by name, so that no value stands on a command line. Tokens stay here.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::cargo::program;
use crate::fault::{Fault, Outcome};

/// Variables that say how to reach what is outside.
const VARIABLES: [&str; 22] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "CARGO_HTTP_CAINFO",
    "CARGO_HTTP_PROXY",
    "CARGO_HTTP_TIMEOUT",
    "CARGO_NET_RETRY",
];
/// Tables of cargo's configuration that are about networks. Others, such as a linker, are this host's own business.
const TABLES: [&str; 5] = ["http", "net", "source", "registries", "registry"];
/// Debian's bundle of authorities.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Where an administrator of Debian adds authorities.
const ADDED: &str = "/usr/local/share/ca-certificates";

/// What is carried over.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// Names of variables that are set here.
    pub(super) variables: Vec<&'static str>,
    /// Files that go to the same place.
    pub(super) files: Vec<PathBuf>,
    /// Files that are made from what is set here: where they go, and what is in them.
    pub(super) made: Vec<(&'static str, String)>,
}

impl Surroundings {
    /// Looks around. `cargo_configuration` is where the machine's cargo will find its own.
    pub(super) fn find(cargo_configuration: &'static str) -> Outcome<Self> {
        let variables: Vec<_> = VARIABLES.into_iter().filter(|name| std::env::var_os(name).is_some()).collect();
        let mut found = Self { files: files(&variables)?, variables, made: Vec::new() };
        if let Some(text) = cargo_home().and_then(|home| read(&home.join("config.toml"))) {
            found.made.push((cargo_configuration, about_networks(&text)));
        }
        if let Some(text) = pip_configuration() {
            found.made.push(("/etc/pip.conf", text));
        }
        if let Some(text) = apt_configuration() {
            found.made.push(("/etc/apt/apt.conf.d/90surroundings", text));
        }
        found.made.retain(|(_, text)| !text.trim().is_empty());
        Ok(found)
    }
}

/// The resolver, added authorities, and every file that one of the variables names.
fn files(variables: &[&str]) -> Outcome<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("/etc/resolv.conf"), PathBuf::from(BUNDLE)];
    files.extend(variables.iter().filter_map(std::env::var_os).map(PathBuf::from));
    if Path::new(ADDED).is_dir() {
        let fault = |error| Fault::file(Path::new(ADDED), &error);
        for entry in std::fs::read_dir(ADDED).map_err(fault)? {
            files.push(entry.map_err(fault)?.path());
        }
    }
    files.retain(|path| path.is_absolute() && path.is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

fn cargo_home() -> Option<PathBuf> {
    std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cargo")))
}

/// The user's goes before the host's, as pip has it.
fn pip_configuration() -> Option<String> {
    let own = home()
        .and_then(|home| [".config/pip/pip.conf", ".pip/pip.conf"].into_iter().find_map(|name| read(&home.join(name))));
    own.or_else(|| read(Path::new("/etc/pip.conf")))
}

/// What apt knows of proxies, authorities and retries, from wherever it has it.
fn apt_configuration() -> Option<String> {
    let mut command = program("apt-config");
    let output = command.args(["dump", "Acquire"]).stderr(Stdio::null()).output().ok()?;
    let kept = |line: &&str| {
        ["Acquire::http", "Acquire::Retries", "Acquire::Force"].iter().any(|start| line.starts_with(start))
            && !line.ends_with(" \"\";")
    };
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().filter(kept).map(|line| format!("{line}\n")).collect())
}

/// The tables of a cargo configuration that are about networks, without tokens.
fn about_networks(configuration: &str) -> String {
    let mut kept = String::new();
    let mut wanted = false;
    for line in configuration.lines() {
        if let Some(header) = line.trim().strip_prefix('[') {
            let table = header.split(['.', ']']).next().unwrap_or_default().trim();
            wanted = TABLES.contains(&table);
        }
        let key = line.split('=').next().unwrap_or_default().trim();
        if wanted && !matches!(key, "token" | "secret-key") {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_about_networks_is_kept_of_cargos_configuration() {
        let text = "[build]\ntarget-dir = \"/fast\"\n[source.crates-io]\nreplace-with = \"near\"\n\
                    [registries.near]\nindex = \"sparse+https://example.org/\"\ntoken = \"secret\"\n\
                    [target.x86_64-unknown-linux-gnu]\nlinker = \"mold\"\n[http]\ncainfo = \"/ca\"\n";
        let kept = "[source.crates-io]\nreplace-with = \"near\"\n[registries.near]\n\
                    index = \"sparse+https://example.org/\"\n[http]\ncainfo = \"/ca\"\n";
        assert_eq!(about_networks(text), kept);
    }

    #[test]
    fn every_file_that_is_carried_over_is_there() {
        let found = Surroundings::find("/config.toml").expect("this host can be looked at");
        assert!(found.files.iter().all(|path| path.is_file()), "{found:?}");
        assert!(found.made.iter().all(|(place, text)| place.starts_with('/') && !text.is_empty()), "{found:?}");
    }
}
