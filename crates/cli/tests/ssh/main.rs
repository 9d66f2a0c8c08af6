//! Machines behind a real OpenSSH server, which each test starts on 127.0.0.1 with its own configuration and keys.

mod asking;
mod cuts;
mod hostile;
mod machine;
mod plain;
mod refusals;
mod server;
