//! `testyard image export`

use std::path::PathBuf;

use serde_json::json;
use testyard_model::{ByteSize, ImageReference, Problem, ProblemKind};

use super::{DONE, Outcome};
use crate::output::Output;
use crate::yard;

/// Write an image to an archive that `docker load`, skopeo and `testyard image import` read.
///
/// Examples:
///     testyard image export app:1 app.tar
///     testyard image export debian:12 - | zstd > debian.tar.zst
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Export {
    /// The image: a name or sha256:…
    image: ImageReference,
    /// The archive, or `-` for standard output
    archive: PathBuf,
}

impl Export {
    pub(super) fn run(self, output: Output) -> Outcome {
        if self.image == ImageReference::Host {
            return Err(Problem::new(ProblemKind::Usage, "the image `host` is this host itself and is never stored")
                .hint("freeze it first: testyard image import frozen:1 --from-host"));
        }
        let store = yard::images(&yard::open()?)?;
        if self.archive.as_os_str() == "-" {
            if output.json {
                return Err(Problem::new(
                    ProblemKind::Usage,
                    "--json and the archive cannot both be on standard output",
                ));
            }
            store.export(&self.image, std::io::stdout().lock()).map_err(|error| error.problem())?;
            return DONE;
        }
        let bytes = store.export_file(&self.image, &self.archive).map_err(|error| error.problem())?;
        if output.json {
            output.json("exported", &json!({"image": self.image, "archive": self.archive, "bytes": bytes}))?;
        } else {
            output.say(format_args!("exported {} to {} ({})", self.image, self.archive.display(), ByteSize(bytes)));
        }
        DONE
    }
}
