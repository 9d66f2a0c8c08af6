//! Overlays: a list of read-only layers and perhaps one that takes the changes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::file_systems::Configuration;
use crate::error::{Error, Result};

/// A folder that an overlay stands on.
#[derive(Debug, Clone, Copy)]
pub enum Layer<'a> {
    /// By its path.
    Path(&'a Path),
    /// By a descriptor (`O_PATH` is enough). Before Linux 6.13 it is looked up through `/proc/self/fd`, and must then
    /// be attached in this mount namespace.
    Descriptor(BorrowedFd<'a>),
}

impl<'a> From<&'a Path> for Layer<'a> {
    fn from(path: &'a Path) -> Self {
        Self::Path(path)
    }
}

impl<'a> From<&'a PathBuf> for Layer<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self::Path(path)
    }
}

impl<'a> From<BorrowedFd<'a>> for Layer<'a> {
    fn from(descriptor: BorrowedFd<'a>) -> Self {
        Self::Descriptor(descriptor)
    }
}

impl<'a> From<&'a OwnedFd> for Layer<'a> {
    fn from(descriptor: &'a OwnedFd) -> Self {
        Self::Descriptor(descriptor.as_fd())
    }
}

/// What an overlay consists of.
#[derive(Debug, Clone, Default)]
pub struct OverlaySpec<'a> {
    /// The layers that are seen, topmost first.
    pub lower: Vec<Layer<'a>>,
    /// Layers below those that are not seen themselves, but hold the data of files to which metadata above redirects.
    pub data_only: Vec<Layer<'a>>,
    /// Where changes go, and an empty folder on the same file system for work in progress. Nothing makes the overlay
    /// read-only.
    pub upper: Option<(Layer<'a>, Layer<'a>)>,
    /// Keep the overlay's marks in `user.overlay.*`: required in a user namespace.
    pub user_xattr: bool,
    /// Copy only the metadata up where only that changes. Not with `user_xattr`, where the kernel has it on by the
    /// presence of data-only layers alone.
    pub metacopy: bool,
    /// Never flush the upper layer. What is in it is worthless after a crash of the host.
    pub volatile: bool,
    /// Let nobody write through this mount.
    pub read_only: bool,
}

/// An overlay, not attached anywhere.
///
/// # Errors
/// What the kernel says, with its words: `EINVAL` for more than two overlays on top of each other or, in a user
/// namespace, a layer with mounts below it; `ELOOP` where upper and lower overlap.
pub fn overlay(spec: &OverlaySpec<'_>) -> Result<OwnedFd> {
    let configuration = Configuration::open("overlay")?;
    configuration.string("source", "testyard")?;
    if spec.user_xattr {
        configuration.flag("userxattr")?;
    }
    if spec.metacopy {
        configuration.string("metacopy", "on")?;
    }
    if spec.volatile && spec.upper.is_some() {
        configuration.flag("volatile")?;
    }
    set_lower(&configuration, spec)?;
    if let Some((upper, work)) = spec.upper {
        set_one(&configuration, "upperdir", upper)?;
        set_one(&configuration, "workdir", work)?;
    }
    let attributes = if spec.read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    configuration.mount(attributes).map_err(|error| named(error, spec))
}

/// One option a layer where the kernel knows that (6.5; 6.8 for data-only layers), which has no limit of length and
/// nothing to escape; else all in one string.
fn set_lower(configuration: &Configuration, spec: &OverlaySpec<'_>) -> Result<()> {
    let layers = || {
        let seen = spec.lower.iter().map(|layer| ("lowerdir+", *layer));
        seen.chain(spec.data_only.iter().map(|layer| ("datadir+", *layer)))
    };
    for (position, (key, layer)) in layers().enumerate() {
        match try_layer(configuration, key, layer) {
            Ok(()) => {}
            Err(Errno::INVAL) if position == 0 => return configuration.string("lowerdir", joined(spec).as_slice()),
            Err(errno) => return Err(refused(key, layer, errno)),
        }
    }
    Ok(())
}

fn set_one(configuration: &Configuration, key: &'static str, layer: Layer<'_>) -> Result<()> {
    try_layer(configuration, key, layer).map_err(|errno| refused(key, layer, errno))
}

fn try_layer(configuration: &Configuration, key: &str, layer: Layer<'_>) -> rustix::io::Result<()> {
    match layer {
        Layer::Path(path) => configuration.try_string(key, path),
        Layer::Descriptor(descriptor) => match configuration.try_descriptor(key, descriptor) {
            Err(Errno::INVAL) => configuration.try_string(key, descriptor_path(descriptor)),
            other => other,
        },
    }
}

fn refused(key: &str, layer: Layer<'_>, errno: Errno) -> Error {
    Error::new("mount", format_args!("overlay with {key}={}", shown(layer)), io::Error::from(errno))
}

fn named(mut error: Error, spec: &OverlaySpec<'_>) -> Error {
    let lower: Vec<String> = spec.lower.iter().map(|layer| shown(*layer)).collect();
    error.subject = format!("{} of {}", error.subject, lower.join(", "));
    if let Some((upper, _)) = spec.upper {
        error.subject = format!("{} under {}", error.subject, shown(upper));
    }
    error
}

fn shown(layer: Layer<'_>) -> String {
    match layer {
        Layer::Path(path) => path.display().to_string(),
        Layer::Descriptor(descriptor) => std::fs::read_link(descriptor_path(descriptor))
            .map_or_else(|_| descriptor_path(descriptor), |path| path.display().to_string()),
    }
}

fn descriptor_path(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// The value of `lowerdir`: layers separated by a colon, data-only ones by two, with backslashes before those and
/// commas that belong to a name.
fn joined(spec: &OverlaySpec<'_>) -> Vec<u8> {
    let mut value = Vec::new();
    let seen = spec.lower.iter().map(|layer| (&b":"[..], layer));
    let data = spec.data_only.iter().map(|layer| (&b"::"[..], layer));
    for (position, (separator, layer)) in seen.chain(data).enumerate() {
        if position > 0 {
            value.extend_from_slice(separator);
        }
        match layer {
            Layer::Path(path) => {
                for byte in path.as_os_str().as_bytes() {
                    if matches!(byte, b':' | b'\\' | b',') {
                        value.push(b'\\');
                    }
                    value.push(*byte);
                }
            }
            Layer::Descriptor(descriptor) => value.extend_from_slice(descriptor_path(*descriptor).as_bytes()),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_joined_and_escaped() {
        let spec = OverlaySpec {
            lower: vec![Path::new("/a:b").into(), Path::new("/c").into()],
            data_only: vec![Path::new("/d\\e").into(), Path::new("/f").into()],
            ..OverlaySpec::default()
        };
        assert_eq!(String::from_utf8_lossy(&joined(&spec)), r"/a\:b:/c::/d\\e::/f");
    }
}
