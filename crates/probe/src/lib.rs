//! What this host can do, found out by doing it.
//!
//! Each [`Ability`] has a small thing that is really done: a namespace made, a whiteout written, a guest's
//! instructions run. Each is done in a process of its own with a deadline, so that a hang is an answer, what
//! crashes takes nothing along, and what it made goes with it. The answers are kept for the boot (see [`Prober`]),
//! and [`choose_tier`] decides from them, and from nothing else, what `backend = "auto"` means here.
//!
//! ```text
//! Prober::load ── key unchanged ──► the stored answers ─┐
//!      │ else: one process an ability                   ├─► Report { host, probes, tier }
//!      └── program probe-child NAME ──► one line of JSON ┘
//! ```
//!
//! Probes fork, and whoever asks may have threads, so they are made by running the program again:
//! `testyard probe-child NAME`, a hidden command that calls [`probe_child`] and nothing before it.
//!
//! This crate knows no backend: a backend asks the [`Report`] for the abilities that it needs.

mod ability;
mod cache;
mod finding;
mod host;
mod inside;
mod prober;
mod probes;
mod provide;
mod report;
mod scratch;
mod tier;

pub use ability::{Ability, abilities};
pub use host::{CgroupLayout, HostFacts};
pub use prober::{ProbeError, Prober, probe_child};
pub use report::{Answer, Probe, REPORT_VERSION, Report, UnknownAbility};
pub use tier::{RootKind, Tier, choose_tier};
