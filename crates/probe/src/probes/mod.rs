//! The probes. Each runs in a process of its own, single-threaded, and may fork and mount as it likes.

pub(crate) mod cgroups;
pub(crate) mod facts;
pub(crate) mod machines;
pub(crate) mod namespaces;
pub(crate) mod overlays;
pub(crate) mod programs;
pub(crate) mod services;
