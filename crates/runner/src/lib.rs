//! Testyard's runner: suite → plan → dispatcher → executor → reports.
//!
//! ```text
//! suite    what testyard.toml says                      (pure: text in, values out)
//! filter   which tests are meant                        (pure)
//! plan     paths + suites + filter → the tests of a run (reads folders)
//! schedule which test is next                           (pure)
//! dispatch what happens when something has happened     (pure)
//! run      threads and channels around the dispatcher
//! service  what runs beside a test                       (pure)
//! cluster  what a test may reach besides                 (pure)
//! job      the Executor that does the work; process is the one for plain processes
//! report   terminal, JUnit, JSON lines                  (a thread of its own)
//! ```
//!
//! It does no machine work itself and knows no engine: [`job::Executor`] is all that it asks for.

pub mod backoff;
pub mod cancel;
pub mod capture;
pub mod clock;
pub mod cluster;
pub mod dispatch;
pub mod filter;
pub mod history;
pub mod inspect;
pub mod job;
pub mod order;
pub mod plan;
pub mod process;
pub mod report;
pub mod result;
pub mod run;
pub mod schedule;
pub mod service;
pub mod suite;
