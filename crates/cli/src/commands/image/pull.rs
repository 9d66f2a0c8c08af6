//! `testyard image pull`

use std::path::PathBuf;

use testyard_images::{ImportOptions, PullOptions, PullProgress, RemoteImage, Scheme};
use testyard_model::{ByteSize, ImageReference, Problem, ProblemKind, Span};

use super::{Outcome, name_given, tell};
use crate::describe::now_ms;
use crate::output::{Output, printable};
use crate::yard;

/// The variable that holds the password for the server.
const PASSWORD: &str = "TESTYARD_REGISTRY_PASSWORD";

/// Fetch an image from a server that speaks the OCI distribution protocol.
///
/// It is called as on the server, server and all, unless --name says otherwise. Layers that are
/// stored are not fetched, others several at a time; an interrupted fetch is continued by the next.
/// A server that asks who you are is told what `docker login` wrote down, unless --user says.
///
/// Examples:
///     testyard image pull registry.example/team/app:1
///     testyard image pull localhost:5000/app:1 --name app:1
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Pull {
    /// SERVER/PATH[:TAG], or SERVER/PATH@sha256:… for exactly that one
    image: String,
    /// What to call it here: name or name:tag
    #[arg(long, value_name = "IMAGE")]
    name: Option<ImageReference>,
    /// Speak to it in the clear, or encrypted [default: http on this host itself, https elsewhere]
    #[arg(long, value_parser = ["http", "https"], value_name = "SCHEME", hide_possible_values = false)]
    scheme: Option<String>,
    /// Who you are there; the password is in TESTYARD_REGISTRY_PASSWORD
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// How long all of it may take
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    timeout: Span,
    /// Refuse an image that unpacks to more than this [default: 64G]
    #[arg(long, value_name = "SIZE")]
    limit: Option<ByteSize>,
}

impl Pull {
    pub(super) fn run(self, output: Output) -> Outcome {
        let image: RemoteImage = self.image.parse().map_err(|error: testyard_images::RemoteImageError| {
            Problem::from_error(ProblemKind::Usage, &error)
                .hint("write the server before it: testyard image pull registry.example/team/app:1")
                .hint("build a Debian release without one: testyard image build debian:12")
        })?;
        let mut import = ImportOptions::new(now_ms());
        import.limit = self.limit.unwrap_or(import.limit);
        import.name = self.name.map(name_given).transpose()?;
        let mut options = PullOptions::new(import);
        options.timeout = self.timeout.0;
        options.scheme = self.scheme.map(|scheme| if scheme == "http" { Scheme::Http } else { Scheme::Https });
        options.credentials = self.user.map(credentials).transpose()?;
        options.docker_config = docker_config();
        let mut progress = |progress| match progress {
            PullProgress::Layers(count) => output.say(format_args!("{image}: {count} layers")),
            PullProgress::Fetching { layer, size } => {
                output.say(format_args!("fetching {} ({})", printable(&layer), ByteSize(size)));
            }
        };
        let pulled = yard::images(&yard::open()?)?.pull(&image, &options, &mut progress);
        tell("pulled", &pulled.map_err(|error| error.problem())?, output)
    }
}

/// Where `docker login` writes names and passwords of servers.
fn docker_config() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    Some(set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")))?.join("config.json"))
}

/// A name, and its password from the environment: on a command line everybody could read it.
fn credentials(user: String) -> Result<(String, String), Problem> {
    match std::env::var(PASSWORD) {
        Ok(password) => Ok((user, password)),
        Err(_) => Err(Problem::new(ProblemKind::Usage, format!("--user {user} needs a password"))
            .hint(format!("put it into a variable: {PASSWORD}=… testyard image pull --user {user} …"))),
    }
}
