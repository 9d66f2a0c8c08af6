//! Attempts to get out of environments and machines, and to make Testyard remove what is not its own.
//!
//! There is nothing here but the tests: each attempt is made by the real programs, and must be seen to fail.
