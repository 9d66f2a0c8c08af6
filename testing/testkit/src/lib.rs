//! What the tests of this workspace share: a home of their own, the host seen before and after, honest skips.
//!
//! ```no_run
//! # fn body() {
//! let home = testkit::TestHome::new();
//! testkit::require!(testkit::Ability::UserNamespaces);
//! let output = home.run_cli(&["create", "m", "--json"]);
//! assert_eq!(output.code, 0, "{output}");
//! # }
//! // The home's drop deletes what is left, reaps, and fails the test if anything of it is still there.
//! ```
//!
//! Tests that look at the whole host take [`TestHome::alone`], which waits until no other test has a home.
//!
//! | variable | meaning |
//! |---|---|
//! | `TESTYARD_TEST_BIN` | the folder with `testyard` and `testyard-agent`; else that of the build this test is from |
//! | `TESTYARD_TEST_SOURCE` | the folder with `examples`; else this workspace |
//! | `TESTYARD_SKIP_LOG` | the file to which each skip is appended as a line of JSON |
#![allow(clippy::print_stderr, reason = "a skip must be loud, and a drop can only report")]

pub mod ability;
pub mod home;
pub mod lock;
pub mod output;
pub mod page;
pub mod processes;
pub mod programs;
pub mod project;
pub mod skip;
pub mod snapshot;
pub mod sshd;
pub mod user;
pub mod wait;

pub use ability::Ability;
pub use home::TestHome;
pub use output::Output;
pub use page::Page;
pub use project::PythonProject;
pub use snapshot::{Difference, HostSnapshot, Kind};
pub use sshd::Sshd;
pub use user::User;
pub use wait::{wait_for, wait_until};
