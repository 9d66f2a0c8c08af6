//! Which image is what: the machine's own root, a name for which that root stands in, or nothing that is here.

use std::path::Path;

use crate::Failure;

/// Names under which suites ask for "some usual Linux": the machine's own root stands in for any tag of them.
const STOOD_IN: [&str; 6] = ["ubuntu", "debian", "buildpack-deps", "python", "nvidia/cuda", "nvidia/cuda-runtime"];
/// More names, separated by commas: for images of which a suite needs only that commands run.
const MORE: &str = "TESTYARD_DOCKER_STAND_INS";
/// Tags that are no numbers.
const TAGS: [&str; 21] = [
    "latest",
    "slim",
    "stable",
    "oldstable",
    "testing",
    "unstable",
    "sid",
    "rolling",
    "devel",
    "trixie",
    "bookworm",
    "bullseye",
    "buster",
    "oracular",
    "noble",
    "mantic",
    "jammy",
    "focal",
    "bionic",
    "xenial",
    "base",
];

/// What an image is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The machine's own root.
    Own,
    /// Another image, for which the machine's root stands in.
    StandIn,
    /// Not here.
    Unknown,
}

/// What the machine's root is, from its `/etc/os-release`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) id: String,
    pub(crate) version: String,
    pub(crate) codename: String,
    pub(crate) pretty: String,
}

impl System {
    pub(crate) fn here() -> Self {
        Self::read(&std::fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn read(text: &str) -> Self {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        let pretty = value("PRETTY_NAME");
        let pretty = if pretty.is_empty() { "an unnamed Linux".to_owned() } else { pretty };
        Self { id: value("ID"), version: value("VERSION_ID"), codename: value("VERSION_CODENAME"), pretty }
    }
}

/// A reference in its parts: `docker.io/library/ubuntu:22.04` and `ubuntu:22.04` are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) tag: String,
}

impl Reference {
    pub(crate) fn read(text: &str) -> Result<Self, Failure> {
        let short =
            ["docker.io/", "index.docker.io/"].iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
        let short = short.strip_prefix("library/").unwrap_or(short);
        let short = short.split_once('@').map_or(short, |(name, _)| name);
        let (name, tag) = match short.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (short, "latest"),
        };
        let fine = |part: &str, more: &[char]| {
            let inner = |c: char| c.is_ascii_alphanumeric() || more.contains(&c);
            !part.is_empty()
                && part.chars().all(inner)
                && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        };
        if !fine(name, &['.', '_', '-', '/', ':'])
            || name.chars().any(|c| c.is_ascii_uppercase())
            || !fine(tag, &['.', '_', '-'])
        {
            return Err(Failure { message: "docker: invalid reference format".to_owned(), code: 125 });
        }
        Ok(Self { name: name.to_owned(), tag: tag.to_owned() })
    }

    /// `ubuntu:22.04`.
    pub(crate) fn shown(&self) -> String {
        format!("{}:{}", self.name, self.tag)
    }

    /// What it is on a machine with this root.
    pub(crate) fn standing(&self, system: &System, more: &str) -> Standing {
        let Self { name, tag } = self;
        let own = *name == system.id && !tag.is_empty() && (*tag == system.version || *tag == system.codename);
        if own || name == "host" {
            return Standing::Own;
        }
        let begins_like_a_tag = tag.starts_with(|c: char| c.is_ascii_digit())
            || TAGS
                .iter()
                .any(|known| tag == known || tag.strip_prefix(known).is_some_and(|rest| rest.starts_with('-')));
        let named = more.split(',').map(str::trim).any(|one| one == name || one == self.shown());
        if named || (STOOD_IN.contains(&name.as_str()) && begins_like_a_tag) {
            return Standing::StandIn;
        }
        Standing::Unknown
    }

    /// What it is here. A `python` only where there is one.
    pub(crate) fn standing_here(&self) -> Standing {
        let more = std::env::var(MORE).unwrap_or_default();
        match self.standing(&System::here(), &more) {
            Standing::StandIn if self.name == "python" && !has_python() => Standing::Unknown,
            standing => standing,
        }
    }

    /// What docker says of an image that it cannot get, and what to do about that here.
    pub(crate) fn denied(&self) -> String {
        format!(
            "pull access denied for {name}, repository does not exist or may require 'docker login'\nhint: this docker has \
             no registry: its images are the machine's own root ({own}) and names for which that stands in ({known}; \
             more in {MORE})\nhint: for another system, make the machine from an image: testyard image build, import or list",
            name = self.name,
            own = System::here().pretty,
            known = STOOD_IN.join(", "),
        )
    }
}

fn has_python() -> bool {
    ["/usr/bin/python3", "/usr/local/bin/python3"].iter().any(|path| Path::new(path).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian() -> System {
        System::read(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n",
        )
    }

    #[test]
    fn references_are_shortened() {
        for (text, shown) in [
            ("ubuntu", "ubuntu:latest"),
            ("docker.io/library/ubuntu:22.04", "ubuntu:22.04"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("localhost:5000/a:1", "localhost:5000/a:1"),
            ("debian:12@sha256:abc", "debian:12"),
        ] {
            assert_eq!(Reference::read(text).expect(text).shown(), shown);
        }
        for bad in ["", ":", "UPPER", "a b", "-x", "a:"] {
            assert!(Reference::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_stands_in_is_told_from_what_is_own() {
        for (text, standing) in [
            ("debian:12", Standing::Own),
            ("debian:bookworm", Standing::Own),
            ("debian:11", Standing::StandIn),
            ("ubuntu:22.04", Standing::StandIn),
            ("nvidia/cuda:12.1.0-runtime-ubuntu22.04", Standing::StandIn),
            ("ubuntu:no-such-tag-1", Standing::Unknown),
            ("alpine:3", Standing::Unknown),
            ("nonexistent/image:latest", Standing::Unknown),
        ] {
            assert_eq!(Reference::read(text).expect(text).standing(&debian(), ""), standing, "{text}");
        }
        let more = Reference::read("node:18").expect("well-formed");
        assert_eq!(more.standing(&debian(), "rust, node:18"), Standing::StandIn);
        assert_eq!(more.standing(&debian(), "rust"), Standing::Unknown);
    }
}
