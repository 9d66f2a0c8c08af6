//! Names in a machine with a network of its own: whom it asks for those outside.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use testyard_linux::{Error, Result, mount};

/// An address that pasta answers for with the host's own resolver, where that listens on the host's loopback.
pub(crate) const FORWARDED: &str = "169.254.213.53";

/// Where the host says whom to ask; the second one is what stands behind a resolver on the loopback.
const ON_HOST: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What a machine's `/etc/resolv.conf` says: the host's resolvers that a machine reaches, else one that pasta is.
pub(crate) fn resolvers() -> String {
    let texts: Vec<String> = ON_HOST.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    let reached = texts.iter().find(|text| text.lines().filter_map(resolver).any(|address| !address.is_loopback()));
    let kept = |line: &&str| match resolver(line) {
        Some(address) => !address.is_loopback(),
        None => ["search", "options", "domain"].iter().any(|word| line.starts_with(word)),
    };
    let text = reached.or(texts.first()).map_or("", String::as_str);
    let mut lines: Vec<&str> = text.lines().filter(kept).collect();
    let forwarded = format!("nameserver {FORWARDED}");
    if reached.is_none() {
        lines.insert(0, &forwarded);
    }
    lines.join("\n") + "\n"
}

fn resolver(line: &str) -> Option<IpAddr> {
    let rest = line.trim().strip_prefix("nameserver")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The folder `/etc` of a root that is about to become a machine's, whose links lead nowhere else.
pub(crate) fn etc_of(root: &Path) -> Result<OwnedFd> {
    let failed = |error| Error::new("open /etc in", root.display(), error);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(&root, "etc", flags, Mode::empty(), ResolveFlags::IN_ROOT).map_err(failed)
}

/// Writes whom to ask into a machine's `/etc`; what was there may be a link that leads nowhere.
pub(crate) fn write_resolvers(etc: &OwnedFd, text: &str) -> Result<()> {
    const NAME: &str = "resolv.conf";
    let failed = |error: std::io::Error| Error::new("write", "/etc/resolv.conf", error);
    match rustix::fs::unlinkat(etc, NAME, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(failed(error.into())),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(etc, NAME, flags, Mode::from_raw_mode(0o644)).map_err(|error| failed(error.into()))?;
    std::fs::File::from(file).write_all(text.as_bytes()).map_err(failed)
}

/// Shows the table of hosts that all members have, in the place of a machine's own.
pub(crate) fn show_hosts(etc: &OwnedFd, hosts: &Path) -> Result<()> {
    const NAME: &str = "hosts";
    let failed = |error: Errno| Error::new("make", "/etc/hosts", error);
    let facts = rustix::fs::statat(etc, NAME, AtFlags::SYMLINK_NOFOLLOW);
    if !facts.is_ok_and(|facts| FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile) {
        match rustix::fs::unlinkat(etc, NAME, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(etc, NAME, flags, Mode::from_raw_mode(0o644)).map_err(failed)?;
    }
    let shown = mount::clone_tree(hosts, false)?;
    let at = Path::new("/proc/self/fd").join(etc.as_raw_fd().to_string()).join(NAME);
    mount::attach(shown.as_fd(), &at)
}
