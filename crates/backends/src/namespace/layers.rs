//! From an image to the flat list of layers that the agent mounts roots from.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use testyard_images::store::{ImageConfig, Ownership, Store};
use testyard_images::{HostOptions, HostView, write_mask_layer};
use testyard_linux::{Error, files};
use testyard_machine::backend::{BackendError, MachinePlace};
use testyard_model::{Access, Exposure, ImageReference, Problem, ProblemKind};
use testyard_protocol::start::{ExposedStart, LayerStart, SubmountStart};

use super::ids::{self, Sort};

/// What roots of a machine are made from.
pub(super) struct Layers {
    pub(super) layers: Vec<LayerStart>,
    pub(super) data: Vec<PathBuf>,
    pub(super) submounts: Vec<SubmountStart>,
    pub(super) exposed: Vec<ExposedStart>,
    /// What a working tree must not show either.
    pub(super) hidden: Vec<PathBuf>,
    /// Sentences on what such roots cannot do.
    pub(super) limits: Vec<String>,
    /// A lock that keeps a layer from being pruned; for the agent to hold.
    pub(super) lease: Option<OwnedFd>,
    /// What the image says of the commands that run in it.
    pub(super) config: ImageConfig,
}

fn host<'a>(place: &'a MachinePlace, operation: &'static str) -> impl Fn(Error) -> BackendError + 'a {
    move |source| BackendError::Host { operation, machine: place.name.clone(), source }
}

/// Refuses an image that is not there, before anything is made.
pub(super) fn check_image(place: &MachinePlace) -> Result<(), BackendError> {
    match &place.spec.image {
        ImageReference::Host => Ok(()),
        _ => stored(place).map(drop),
    }
}

/// The layers of a stored image, topmost first, and what it says of its commands.
fn stored(place: &MachinePlace) -> Result<(Vec<LayerStart>, ImageConfig), BackendError> {
    let reference = &place.spec.image;
    let store = Store::open(&place.images).map_err(|error| error.problem())?;
    let image = store.find(&place.spec.stands_on()).map_err(|error| error.problem())?;
    let single = image.record.ownership == Ownership::SingleOwner;
    match (ids::sort_of(&place.spec), single) {
        (Sort::Single | Sort::Granted, false) => Err(Problem::new(
            ProblemKind::Unsupported,
            format!("image {reference} keeps many users' files, and {} has one user", ids::whose_machine()),
        )
        .hint("import the image again as this user, or run testyard as root of a host")
        .into()),
        (_, single) => {
            let layer = |path| LayerStart { path, mapped: !single, copied: false };
            Ok((image.layers.into_iter().map(layer).collect(), image.record.config.unwrap_or_default()))
        }
    }
}

/// The layers for a start: those of the host are looked at anew each time.
pub(super) fn find(place: &MachinePlace) -> Result<Layers, BackendError> {
    if place.spec.image == ImageReference::Host {
        return host_layers(place);
    }
    let (layers, config) = stored(place)?;
    Ok(Layers {
        hidden: HostView::load(&options(place)).map_err(|error| error.problem())?.hidden,
        layers,
        data: Vec::new(),
        submounts: Vec::new(),
        exposed: place.spec.expose.iter().map(shown).collect(),
        limits: Vec::new(),
        lease: None,
        config,
    })
}

/// What the machine's owner shows and hides of this host.
fn options(place: &MachinePlace) -> HostOptions {
    let sockets = ["SSH_AUTH_SOCK", "DOCKER_HOST", "GPG_AGENT_INFO", "DBUS_SESSION_BUS_ADDRESS"];
    let sockets = sockets.into_iter().filter_map(std::env::var_os).map(PathBuf::from).filter(|path| path.is_absolute());
    HostOptions {
        expose: place.spec.expose.iter().map(|one| one.path.clone()).collect(),
        mount_points: Vec::new(),
        own: place.masked.clone(),
        sockets: sockets.collect(),
    }
}

fn host_layers(place: &MachinePlace) -> Result<Layers, BackendError> {
    let options = options(place);
    let view = HostView::load(&options).map_err(|error| error.problem())?;
    let masks = fresh_masks(place)?;
    let failed = |error: Error| host(place, "write the mask")(error);
    let exposed = exposed_elsewhere(place, &view);
    match ids::sort_of(&place.spec) {
        Sort::Single | Sort::Granted => super::layers_of_user::find(place, &options, &view, &masks, exposed),
        Sort::Range | Sort::Host => {
            let mut layers = Vec::new();
            let mut submounts = Vec::new();
            for (index, layer) in view.layers.iter().enumerate() {
                let target = masks.join(index.to_string());
                make(&target).map_err(failed)?;
                let mask = write_mask_layer(&layer.masks, &layer.path, &target).map_err(failed)?;
                if index == 0 {
                    layers.push(LayerStart { path: mask.path, mapped: true, copied: true });
                    layers.push(LayerStart { path: layer.path.clone(), mapped: true, copied: false });
                } else {
                    let mask = (mask.entries > 0).then_some(mask.path);
                    submounts.push(SubmountStart { path: layer.path.clone(), mask });
                }
            }
            let hidden = view.hidden.clone();
            Ok(Layers {
                layers,
                data: Vec::new(),
                submounts,
                exposed,
                hidden,
                limits: Vec::new(),
                lease: None,
                config: ImageConfig::default(),
            })
        }
    }
}

/// Exposed paths on file systems that are not seen otherwise, and those that are the host's own files: what is seen of
/// the others is copy-on-write.
fn exposed_elsewhere(place: &MachinePlace, view: &HostView) -> Vec<ExposedStart> {
    let skipped = |path: &Path| view.skipped.iter().any(|(point, _)| path.starts_with(point));
    place.spec.expose.iter().filter(|one| one.access != Access::CopyOnWrite || skipped(&one.path)).map(shown).collect()
}

fn shown(one: &Exposure) -> ExposedStart {
    ExposedStart { path: one.path.clone(), writable: one.access == Access::Writable }
}

fn make(path: &Path) -> Result<(), Error> {
    std::fs::create_dir(path).map_err(|error| Error::new("make folder", path.display(), error))
}

/// An empty folder for the masks of this start.
fn fresh_masks(place: &MachinePlace) -> Result<PathBuf, BackendError> {
    use std::os::fd::AsFd as _;

    let failed = host(place, "prepare the mask");
    let masks = place.folder.join("masks");
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let folder = rustix::fs::open(&place.folder, flags, rustix::fs::Mode::empty())
        .map_err(|errno| failed(Error::new("open", place.folder.display(), errno)))?;
    match files::remove_tree(folder.as_fd(), "masks") {
        Ok(_) => {}
        Err(error) if error.is_absent() => {}
        Err(error) => return Err(failed(error)),
    }
    make(&masks).map_err(failed)?;
    Ok(masks)
}
