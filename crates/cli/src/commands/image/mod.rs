//! `testyard image`

mod export;
mod pull;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testyard_images::{BuildOptions, BuildProgress, Image as Stored, ImportOptions, Origin};
use testyard_model::{ByteSize, ImageReference, Problem, ProblemKind};

use super::{DONE, Outcome};
use crate::describe::{age, now_ms};
use crate::output::{Output, printable, table};
use crate::yard;

/// Images: root file systems to start machines from.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Image {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ImageCommand {
    List(List),
    Build(Build),
    Import(Import),
    Pull(pull::Pull),
    Export(export::Export),
    Delete(Delete),
    Prune(Prune),
}

impl Image {
    pub(crate) fn run(self, output: Output) -> Outcome {
        match self.command {
            ImageCommand::List(command) => command.run(output),
            ImageCommand::Build(command) => command.run(output),
            ImageCommand::Import(command) => command.run(output),
            ImageCommand::Pull(command) => command.run(output),
            ImageCommand::Export(command) => command.run(output),
            ImageCommand::Delete(command) => command.run(output),
            ImageCommand::Prune(command) => command.run(output),
        }
    }
}

/// List the stored images.
///
/// Example:
///     testyard image list
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, visible_alias = "ls")]
struct List {}

/// Build a distribution's release from its archive, and store it.
///
/// Needs mmdebstrap, and root or newuidmap. `slurm` is Debian 12 with what nodes of clusters need.
///
/// Examples:
///     testyard image build debian:12
///     testyard image build slurm
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Build {
    /// The release, such as debian:12
    image: ImageReference,
    /// Build it even where an equal one is stored
    #[arg(long)]
    refresh: bool,
}

/// Store an image from an archive, or this host's own root.
///
/// The archive is a root file system's (a tar file, plain or compressed with gzip or zstd), what
/// `docker save` writes, or an OCI image layout, also as a folder. Layers are shared between images.
///
/// With --from-host the image is what a machine of image `host` sees now, without what is masked
/// there, and changes no more. What you may not read is left out.
///
/// Examples:
///     testyard image import mine:1 rootfs.tar.zst
///     docker save app:1 | testyard image import app:1 -
///     podman export NAME | testyard image import mine:2 -
///     testyard image import frozen:1 --from-host
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Import {
    /// What to call it: name or name:tag
    image: ImageReference,
    /// The archive or the folder, or `-` for standard input
    #[arg(required_unless_present = "from_host", conflicts_with = "from_host")]
    archive: Option<PathBuf>,
    /// Freeze this host's own root, as a machine sees it
    #[arg(long)]
    from_host: bool,
    /// Which image, where there are several: its name or digest as the archive has it
    #[arg(long, value_name = "NAME", conflicts_with = "from_host")]
    pick: Option<String>,
    /// Refuse an archive that unpacks to more than this [default: 64G]
    #[arg(long, value_name = "SIZE")]
    limit: Option<ByteSize>,
}

/// Delete images that no machine uses.
///
/// Example:
///     testyard image delete debian:12
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, visible_alias = "rm")]
struct Delete {
    /// The images: names or sha256:…
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<ImageReference>,
}

/// Delete every image without a name that no machine uses, and what interrupted builds left.
///
/// Example:
///     testyard image prune
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Prune {}

impl List {
    fn run(self, output: Output) -> Outcome {
        let images = yard::images(&yard::open()?)?.list().map_err(|error| error.problem())?;
        if output.json {
            output.json("images", &images.iter().map(facts).collect::<Vec<_>>())?;
        } else if images.is_empty() {
            output.say("no images; `host` needs none. Make one: testyard image build debian:12");
        } else {
            let now = now_ms();
            let rows: Vec<_> = images.iter().map(|image| row(image, now)).collect();
            output.data(&table(&["IMAGE", "DIGEST", "ARCH", "SIZE", "AGE"], &rows))?;
        }
        DONE
    }
}

impl Build {
    fn run(self, output: Output) -> Outcome {
        let options = BuildOptions { refresh: self.refresh, import: ImportOptions::new(now_ms()) };
        let mut progress = |progress| match progress {
            BuildProgress::Found => output.say("an equal build is stored"),
            BuildProgress::Line(line) => output.say(printable(&line)),
        };
        let built = yard::images(&yard::open()?)?.build(&self.image, &options, &mut progress);
        tell("built", &built.map_err(|error| error.problem())?, output)
    }
}

impl Import {
    fn run(self, output: Output) -> Outcome {
        let mut options = ImportOptions { name: Some(name_given(self.image)?), ..ImportOptions::new(now_ms()) };
        options.limit = self.limit.unwrap_or(options.limit);
        options.pick = self.pick;
        let yard = yard::open()?;
        let store = yard::images(&yard)?;
        let Some(archive) = self.archive else {
            let view = yard::host_view(&yard)?;
            let frozen = store.freeze(&view, &options).map_err(|error| error.problem())?;
            if let Origin::Frozen { unread: 1.., .. } = &frozen.record.origin {
                output.warn("what you may not read is not in it; as root nothing would be left out");
            }
            return tell("imported", &frozen, output);
        };
        let imported = if archive.as_os_str() == "-" {
            store.import(std::io::stdin().lock(), None, &options)
        } else {
            store.import_file(&archive, &options)
        };
        tell("imported", &imported.map_err(|error| named(&archive, error.problem()))?, output)
    }
}

/// What an image is to be called.
fn name_given(image: ImageReference) -> Result<(String, String), Problem> {
    match image {
        ImageReference::Named { name, tag } => Ok((name, tag)),
        other => {
            let message = format!("`{other}` cannot be given to an image: write a name or name:tag");
            Err(Problem::new(ProblemKind::Usage, message))
        }
    }
}

/// What is wrong with an archive, told with the archive's name.
fn named(archive: &Path, mut problem: Problem) -> Problem {
    let name = archive.display().to_string();
    if name != "-" && !problem.message.contains(&name) {
        problem.message = format!("{name}: {}", problem.message);
    }
    problem
}

impl Delete {
    fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        let store = yard::images(&yard)?;
        let in_use = yard::images_in_use(&yard, &store)?;
        for image in &self.images {
            let whole = store.delete(image, &in_use).map_err(|error| error.problem())?;
            let what = if whole { "image" } else { "the name" };
            output.say(format_args!("deleted {what} {image}"));
        }
        if output.json {
            output.json("deleted", &self.images)?;
        }
        DONE
    }
}

impl Prune {
    fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        let store = yard::images(&yard)?;
        let pruned = store.prune(&yard::images_in_use(&yard, &store)?).map_err(|error| error.problem())?;
        for path in &pruned.unknown {
            output.warn(format_args!("left alone, because nothing proves that it is Testyard's: {}", path.display()));
        }
        if output.json {
            output.json_object(json!({
                "images": pruned.images,
                "layers": pruned.layers,
                "temporary": pruned.temporary,
                "bytes": pruned.bytes,
                "unknown": pruned.unknown,
            }))?;
        } else {
            let (images, layers) = (pruned.images.len(), pruned.layers);
            output.say(format_args!(
                "deleted {images} images, {layers} layers that no image has, and {} unfinished ones: {}",
                pruned.temporary,
                ByteSize(pruned.bytes)
            ));
        }
        DONE
    }
}

fn facts(image: &Stored) -> Value {
    let mut facts = json!(image.record);
    facts["references"] = json!(image.references);
    facts["root"] = json!(image.root);
    facts["trees"] = json!(image.layers);
    facts
}

fn row(image: &Stored, now_ms: i64) -> Vec<String> {
    let record = &image.record;
    vec![
        if image.references.is_empty() { "-".to_owned() } else { image.references.join(",") },
        format!("sha256:{}", &record.digest.as_str()[..12]),
        record.arch.clone().unwrap_or_else(|| "-".to_owned()),
        ByteSize(record.bytes).to_string(),
        age(record.created_ms, now_ms),
    ]
}

/// What has become of an image.
fn tell(done: &str, image: &Stored, output: Output) -> Outcome {
    for warning in &image.record.warnings {
        output.warn(printable(warning));
    }
    if output.json {
        output.json("image", &facts(image))?;
    } else {
        let names = image.references.join(", ");
        output.say(format_args!("{done} {names} ({}, {})", image.record.digest, ByteSize(image.record.bytes)));
    }
    DONE
}
