//! Mounts, through the kernel's file-descriptor interface.
//!
//! Everything is made detached, as a descriptor: it is seen by nobody, can be attached later, elsewhere, by another
//! process, and vanishes with its last descriptor if nobody attaches it. So a process that dies half way leaves no
//! mount.

mod file_systems;
mod image;
mod overlay;
mod root;
mod table;
#[cfg(test)]
mod tests;
mod tree;

pub use file_systems::{TmpfsOptions, cgroup_v1, cgroup_v2, devpts, message_queues, proc, sysfs, tmpfs};
pub use image::{check_disk_images, disk_image};
pub use overlay::{Layer, OverlaySpec, overlay};
pub use root::{RootMount, detach, make_all_private, pivot_into};
pub use table::{MountEntry, Propagation, mount_table, parse_mount_table};
pub use tree::{Attributes, Target, attach, attach_beneath, bind, clone_tree, set_attributes};
