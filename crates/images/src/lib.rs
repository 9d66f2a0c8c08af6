//! Images: root file systems to start machines from.
//!
//! - [`store`]: immutable images by the digest of their tree, shared by all machines of a home;
//! - [`import`]: root file system archives and images of layers from anybody;
//! - [`pull`]: images of layers from servers;
//! - what a view of the host shows, frozen: [`Store::freeze`];
//! - [`debian`]: a release of Debian built from its archive;
//! - [`export`]: images for other tools;
//! - [`host`]: the live view of this host's own root, and what is masked in it;
//! - [`tree`]: that view as a tree which an ordinary user owns and can change.
//!
//! It makes no machine and mounts nothing: what it gives are folders, and lists of folders, that a backend mounts.

pub mod archive;
pub mod debian;
pub mod export;
mod freeze;
pub mod host;
pub mod import;
mod manifest;
mod oci;
mod problem;
pub mod pull;
pub mod store;
pub mod tree;

pub use archive::{ArchiveError, Compression};
pub use debian::{BuildError, BuildOptions, BuildProgress, Release};
pub use export::ExportError;
pub use freeze::FreezeError;
pub use host::{
    HostError, HostLayer, HostOptions, HostView, MaskEffect, MaskEntry, MaskFacts, MaskLayer, mask_plan,
    write_mask_layer,
};
pub use import::{ImportError, ImportOptions, Refusal};
pub use oci::{BundleError, MemberRefusal};
pub use pull::{PullError, PullOptions, PullProgress, RemoteImage, RemoteImageError, Scheme};
pub use store::{
    Digest, Image, ImageConfig, ImageHold, ImageRecord, LayerRecord, Origin, Ownership, Pruned, Store, StoreError,
};
pub use tree::{HostTree, TreeCache, TreeError, TreeOptions, TreeReport, TreesPruned};
