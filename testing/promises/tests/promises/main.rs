//! What the design promises of everything that was ever made: nothing is left, whoever dies; nothing grows.

mod apart;
mod kill_matrix;
mod killed_outside;
mod nested;
mod scale;
mod yard;
