//! The real binary as `orbctl`: what clients of that surface call, over machines of a real Debian.

mod archives;
mod bad_input;
mod details;
mod documentation;
mod life;
mod orb;
mod user_data;
