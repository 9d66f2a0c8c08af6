//! From what a client calls an image to one in the store: stored, stood in for, or built now.

use std::path::PathBuf;

use testyard::Testyard;
use testyard_images::{BuildError, BuildOptions, BuildProgress, Image, ImportOptions, Release, Store, StoreError};
use testyard_model::{ImageReference, Problem, ProblemKind};

use super::book::{Book, MadeFrom};
use super::settings::STAND_IN;
use crate::describe::now_ms;
use crate::output::Output;
use crate::yard;

/// Says for one command which image serves for another; before the setting.
const STAND_IN_VARIABLE: &str = "TESTYARD_IMAGE_STANDIN";

/// An image to make a machine of.
pub(super) struct Chosen {
    pub(super) reference: ImageReference,
    pub(super) image: Image,
    pub(super) made_from: MadeFrom,
}

/// `distro:version`, or `distro` alone.
pub(super) fn parse(text: &str) -> Result<ImageReference, Problem> {
    let malformed = || {
        Problem::new(ProblemKind::Usage, format!("not an image: {text:?}"))
            .hint("write distro:version, such as debian:12 or ubuntu:22.04")
    };
    match text.parse::<ImageReference>() {
        // A server's name, or a folder, is no distribution's.
        Ok(ImageReference::Named { name, .. }) if name.contains('/') => Err(malformed()),
        Ok(ImageReference::Host) | Err(_) => Err(malformed()),
        Ok(reference) => Ok(reference),
    }
}

/// The image that serves for a reference. One that is not stored is stood in for where somebody said so, else built.
pub(super) fn choose(yard: &Testyard, book: &Book, wanted: &ImageReference, output: Output) -> Result<Chosen, Problem> {
    let store = yard::images(yard)?;
    match store.find(wanted) {
        Ok(image) => return Ok(chosen(wanted.clone(), image, None)),
        Err(StoreError::NotFound(_)) => {}
        Err(error) => return Err(error.problem()),
    }
    let Some(other) = stand_in(book, wanted)? else {
        let image = build(&store, wanted, output)?;
        return Ok(chosen(wanted.clone(), image, None));
    };
    let image = match store.find(&other) {
        Ok(image) => image,
        Err(StoreError::NotFound(_)) => build(&store, &other, output)?,
        Err(error) => return Err(error.problem()),
    };
    output.warn(format_args!("{other} stands in for {wanted}, which is not stored here"));
    Ok(chosen(other, image, Some(wanted.to_string())))
}

fn chosen(reference: ImageReference, image: Image, stands_in_for: Option<String>) -> Chosen {
    let (distro, version) = distribution(&reference, &image);
    Chosen { reference, image, made_from: MadeFrom { distro, version, stands_in_for } }
}

/// What an image is a release of: by its name, or by what it says of itself.
pub(super) fn distribution(reference: &ImageReference, image: &Image) -> (String, String) {
    let own = |key: &str| {
        let files = ["etc/os-release", "usr/lib/os-release"].into_iter().flat_map(|file| in_layers(image, file));
        let text = files.filter_map(|path| std::fs::read_to_string(path).ok()).next().unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(|value| value.trim_matches('"').to_owned()).unwrap_or_default()
    };
    match reference {
        ImageReference::Named { name, tag } if tag == "latest" => {
            let version = own("VERSION_ID");
            (name.clone(), if version.is_empty() { tag.clone() } else { version })
        }
        ImageReference::Named { name, tag } => (name.clone(), tag.clone()),
        ImageReference::Host | ImageReference::Digest(_) => (own("ID"), own("VERSION_ID")),
    }
}

/// Whether an image brings the real `sudo`.
pub(super) fn has_sudo(image: &Image) -> bool {
    in_layers(image, "usr/bin/sudo").any(|path| path.symlink_metadata().is_ok())
}

/// Where a file would be in each of an image's layers, topmost first.
fn in_layers<'a>(image: &'a Image, file: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    image.layers.iter().map(move |layer| layer.join(file))
}

fn build(store: &Store, reference: &ImageReference, output: Output) -> Result<Image, Problem> {
    let refused = |why: &str| Problem::new(ProblemKind::NotFound, format!("no such image: {reference}")).because(why);
    match Release::of(reference) {
        None => {
            return Err(refused(
                "no image of this name is stored, and only releases of debian and ubuntu can be built",
            )
            .hint(format!("store its root file system: testyard image import {reference} ARCHIVE.tar.gz")));
        }
        Some(Err(error)) => return Err(refused(&error.to_string())),
        Some(Ok(_)) => {}
    }
    let options = BuildOptions { refresh: false, import: ImportOptions::new(now_ms()) };
    let mut told = false;
    let mut progress = |progress| {
        if !told && matches!(progress, BuildProgress::Line(_)) {
            output.say(format_args!("building {reference} from its archive, once"));
            told = true;
        }
    };
    store.build(reference, &options, &mut progress).map_err(|error| unfetched(reference, &error))
}

/// Why a release could not be had, without the tool's own many words.
fn unfetched(reference: &ImageReference, error: &BuildError) -> Problem {
    let why = match error {
        BuildError::Tool { log, .. } => {
            format!("its archive gave nothing usable here; all that was said: {}", log.display())
        }
        error => error.to_string(),
    };
    let mut problem = Problem::new(ProblemKind::Unsupported, format!("image not available: {reference}")).because(why);
    if !matches!(error, BuildError::Tool { .. }) {
        problem.hints = error.problem().hints;
    }
    problem
        .hint(format!("store its root file system: testyard image import {reference} ARCHIVE.tar.gz"))
        .hint(format!("or let another serve for it: orbctl config set {STAND_IN} {reference}=debian:12"))
}

/// Whether a list of stand-ins is well-formed.
pub(super) fn check_stand_ins(text: &str) -> Result<(), Problem> {
    pairs(text).map(drop)
}

/// `WANTED=OTHER`, several with commas between them; `*` as a version means any.
fn pairs(text: &str) -> Result<Vec<(String, ImageReference)>, Problem> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let malformed = || {
                Problem::new(ProblemKind::Usage, format!("not a stand-in: {entry:?}"))
                    .hint("write WANTED=OTHER, such as ubuntu:22.04=debian:12, or ubuntu:*=debian:12 for any version")
            };
            let (wanted, other) = entry.split_once('=').ok_or_else(malformed)?;
            let wanted = match wanted.strip_suffix(":*") {
                Some(name) if parse(name).is_ok() => wanted.to_owned(),
                _ => parse(wanted).map_err(|_| malformed())?.to_string(),
            };
            Ok((wanted, parse(other).map_err(|_| malformed())?))
        })
        .collect()
}

fn stand_in(book: &Book, wanted: &ImageReference) -> Result<Option<ImageReference>, Problem> {
    let from_process = std::env::var(STAND_IN_VARIABLE).unwrap_or_default();
    let set = book.settings.get(STAND_IN).cloned().unwrap_or_default();
    for text in [from_process, set] {
        let pairs = pairs(&text)?;
        if let Some((_, other)) = pairs.into_iter().find(|(pattern, _)| fits(pattern, wanted)) {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

fn fits(pattern: &str, wanted: &ImageReference) -> bool {
    match (pattern.strip_suffix(":*"), wanted) {
        (Some(any), ImageReference::Named { name, .. }) => any == name,
        _ => pattern == wanted.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_a_distribution_and_a_version() {
        assert_eq!(parse("ubuntu:22.04").expect("well-formed").to_string(), "ubuntu:22.04");
        for bad in ["", "host", "invalid:image:tag", "a/b:1", ":12", "debian:"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_stand_in_serves_for_what_it_names() {
        let set = |text: &str| {
            let mut book = Book::default();
            book.settings.insert(STAND_IN.to_owned(), text.to_owned());
            book
        };
        let served = |book: &Book, wanted: &str| {
            stand_in(book, &parse(wanted).expect("an image")).expect("well-formed").map(|other| other.to_string())
        };
        let book = set("ubuntu:22.04=debian:12, fedora:*=debian:13");
        assert_eq!(served(&book, "ubuntu:22.04").as_deref(), Some("debian:12"));
        assert_eq!(served(&book, "fedora:40").as_deref(), Some("debian:13"));
        assert_eq!(served(&book, "fedora").as_deref(), Some("debian:13"));
        assert_eq!(served(&book, "ubuntu:24.04"), None);
        assert_eq!(served(&set("ubuntu=debian:12"), "ubuntu").as_deref(), Some("debian:12"));
        for bad in ["ubuntu", "=debian:12", "ubuntu=", "ubuntu:*=host", "a=b=c"] {
            assert!(check_stand_ins(bad).is_err(), "{bad}");
        }
    }
}
