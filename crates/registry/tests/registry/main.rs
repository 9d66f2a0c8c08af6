//! The registry in real folders, with real processes.

mod damage;
mod history;
mod holders;
mod homes;
mod kept;
mod leases;
mod machines;
mod ports;
mod resources;
mod support;
