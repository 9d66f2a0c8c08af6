//! What the tests need from the host: Debian packages and an ordinary user. Says what it installs, or what is missing.

use std::process::Stdio;

use crate::cargo::{has_program, program, succeeds};
use crate::fault::Outcome;

/// A Debian package and the program by which it is recognised.
struct Requirement {
    package: &'static str,
    program: &'static str,
    why: &'static str,
}

const REQUIREMENTS: [Requirement; 37] = [
    Requirement { package: "uidmap", program: "newuidmap", why: "ranges of user ids for ordinary users" },
    Requirement { package: "mmdebstrap", program: "mmdebstrap", why: "images of Debian releases" },
    Requirement { package: "passt", program: "pasta", why: "a route out of ordinary users' environments" },
    Requirement { package: "bubblewrap", program: "bwrap", why: "probes inside containers of somebody else's" },
    Requirement { package: "iproute2", program: "ip", why: "tests that look at networks from outside" },
    Requirement { package: "util-linux", program: "setpriv", why: "tests as an ordinary user" },
    Requirement { package: "procps", program: "pgrep", why: "tests that look for processes" },
    Requirement { package: "git", program: "git", why: "tests of the source's tree hash" },
    Requirement { package: "libxml2-utils", program: "xmllint", why: "JUnit reports against their schema" },
    // 65 MB to fetch: the browser without its windows.
    Requirement {
        package: "chromium-headless-shell",
        program: "chromium-headless-shell",
        why: "the HTML report in a real browser",
    },
    Requirement { package: "python3", program: "python3", why: "examples in Python" },
    Requirement { package: "postgresql", program: "pg_lsclusters", why: "examples/services" },
    Requirement { package: "redis-server", program: "redis-server", why: "examples/services" },
    Requirement { package: "docker-registry", program: "docker-registry", why: "images pulled from a real server" },
    Requirement { package: "skopeo", program: "skopeo", why: "images written and read by another tool" },
    Requirement { package: "umoci", program: "umoci", why: "images of layers that another tool makes" },
    Requirement { package: "openssl", program: "openssl", why: "images pulled from an encrypted server" },
    Requirement { package: "busybox-static", program: "busybox", why: "images that are small and run" },
    Requirement { package: "runc", program: "runc", why: "a container runtime in the pytest fixture `vm`" },
    Requirement { package: "openssh-server", program: "sshd", why: "machines behind SSH, and clusters" },
    Requirement { package: "curl", program: "curl", why: "servers in the pytest fixture `vm`" },
    Requirement { package: "elfutils", program: "eu-stack", why: "stacks of tests that hang" },
    Requirement { package: "zsh", program: "zsh", why: "completions are read by the shell itself" },
    Requirement { package: "fish", program: "fish", why: "completions are read by the shell itself" },
    Requirement { package: "python3-pytest", program: "pytest-3", why: "examples/shapes" },
    Requirement { package: "slurmctld", program: "slurmctld", why: "clusters" },
    Requirement { package: "python3-pip", program: "pip3", why: "public suites that install packages on a node" },
    Requirement { package: "slurmd", program: "slurmd", why: "clusters" },
    Requirement { package: "slurm-client", program: "srun", why: "clusters" },
    Requirement { package: "munge", program: "munged", why: "clusters" },
    Requirement { package: "openssh-client", program: "ssh", why: "logins to clusters" },
    Requirement { package: "slurmdbd", program: "slurmdbd", why: "clusters with accounting" },
    Requirement {
        package: "slurm-wlm-mysql-plugin",
        program: "accounting_storage_mysql.so",
        why: "clusters with accounting",
    },
    Requirement { package: "mariadb-server", program: "mariadbd", why: "clusters with accounting" },
    Requirement { package: "slurmrestd", program: "slurmrestd", why: "clusters that answer HTTP" },
    Requirement { package: "slurm-wlm-jwt-plugin", program: "auth_jwt.so", why: "clusters that answer HTTP" },
    Requirement { package: "python3-venv", program: "python3", why: "examples/real makes a virtual environment" },
];

/// Servers are wanted as programs; Debian would start the host's own as soon as they are installed. While this file says
/// so, it does not.
const APT: &str = "policy=/usr/sbin/policy-rc.d
test -e $policy || {
    trap 'rm $policy' EXIT
    printf '#!/bin/sh\\nexit 101\\n' > $policy && chmod 755 $policy
}
apt-get \"$@\"";

/// The user whom the suite also runs as, where root runs it.
pub(crate) const ORDINARY_USER: &str = "tester";

/// Installs what is missing, and names what could not be installed.
pub(crate) fn provide() -> Outcome<()> {
    let missing: Vec<&Requirement> = REQUIREMENTS.iter().filter(|requirement| !present(requirement)).collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    for requirement in missing.iter().filter(|requirement| !present(requirement)) {
        println!("MISSING  package {}: {} will be skipped", requirement.package, requirement.why);
    }
    if is_root() && user_id(ORDINARY_USER).is_none() {
        println!("install  user `{ORDINARY_USER}` (useradd): the suite runs as an ordinary user too");
        let mut command = program("useradd");
        if !succeeds(command.args(["--create-home", ORDINARY_USER]))? {
            println!("MISSING  user `{ORDINARY_USER}`: nothing will run as an ordinary user");
        }
    }
    if is_root() && user_id(ORDINARY_USER).is_some() {
        grant_ids()?;
    }
    Ok(())
}

/// Gives the ordinary user a range of ids, where `useradd` gave none.
fn grant_ids() -> Outcome<()> {
    let lists = ["/etc/subuid", "/etc/subgid"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    if lists.iter().all(|list| has_range(list, ORDINARY_USER)) {
        return Ok(());
    }
    let first = first_free(&lists);
    let range = format!("{first}-{}", first + 65_535);
    println!("install  ids {range} for user `{ORDINARY_USER}` (usermod): clusters of an ordinary user");
    let mut command = program("usermod");
    if !succeeds(command.args(["--add-subuids", &range, "--add-subgids", &range, ORDINARY_USER]))? {
        println!("MISSING  ids for user `{ORDINARY_USER}`: clusters of an ordinary user will be skipped");
    }
    Ok(())
}

fn has_range(list: &str, user: &str) -> bool {
    list.lines().any(|line| {
        let mut fields = line.split(':');
        fields.next() == Some(user) && fields.nth(1).and_then(|count| count.parse().ok()).unwrap_or(0) >= 65_536
    })
}

/// The first id beyond all that somebody has.
fn first_free(lists: &[String]) -> u32 {
    let ends = lists.iter().flat_map(|list| list.lines()).filter_map(|line| {
        let mut numbers = line.split(':').skip(1).map(str::parse::<u32>);
        numbers.next()?.ok()?.checked_add(numbers.next()?.ok()?)
    });
    ends.max().unwrap_or_default().max(100_000)
}

fn install(missing: &[&Requirement]) -> Outcome<()> {
    for requirement in missing {
        println!("install  package {}: {}", requirement.package, requirement.why);
    }
    let prefix: &[&str] = match (is_root(), may_sudo()) {
        (true, _) => &["sh", "-c", APT, "apt-get"],
        (false, true) => &["sudo", "-n", "sh", "-c", APT, "apt-get"],
        (false, false) => {
            println!("install  nothing: not root, and `sudo` does not let us without a password");
            return Ok(());
        }
    };
    if !has_program("apt-get") {
        println!("install  nothing: this host has no apt-get");
        return Ok(());
    }
    let apt = |words: &[&str]| {
        let mut command = program(prefix[0]);
        command.args(&prefix[1..]).args(words).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        println!("install  $ apt-get {}", words.join(" "));
        succeeds(&mut command)
    };
    apt(&["update", "--quiet"])?;
    let packages = missing.iter().map(|requirement| requirement.package);
    let words: Vec<&str> =
        ["install", "--yes", "--quiet", "--no-install-recommends"].into_iter().chain(packages).collect();
    apt(&words)?;
    Ok(())
}

fn present(requirement: &Requirement) -> bool {
    match requirement.package {
        // A package without a program of its own: the module that Debian splits off is what is asked for.
        "python3-venv" => {
            let mut command = program("/usr/bin/python3");
            command.args(["-c", "import ensurepip, venv"]).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        }
        // So has a plugin: its file is looked for.
        _ if requirement.program.ends_with(".so") => std::fs::read_dir("/usr/lib").is_ok_and(|folders| {
            let plugin = |folder: std::fs::DirEntry| folder.path().join("slurm-wlm").join(requirement.program);
            folders.flatten().any(|folder| plugin(folder).exists())
        }),
        _ => has_program(requirement.program),
    }
}

fn may_sudo() -> bool {
    has_program("sudo")
        && program("sudo").args(["-n", "true"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

/// The id of a user in `/etc/passwd`.
pub(crate) fn user_id(name: &str) -> Option<u32> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.first() == Some(&name)).and_then(|fields| fields.get(2)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name() {
        assert_eq!(user_id("root"), Some(0));
        assert_eq!(user_id("nobody-of-this-name"), None);
    }

    #[test]
    fn ids_are_granted_once_and_beyond_those_of_others() {
        let list = "ann:100000:65536\nbob:165536:10\nbroken\n";
        assert!(has_range(list, "ann") && !has_range(list, "bob") && !has_range(list, "eve"));
        assert_eq!(first_free(&[list.to_owned(), String::new()]), 165_546);
        assert_eq!(first_free(&[String::new()]), 100_000);
    }
}
