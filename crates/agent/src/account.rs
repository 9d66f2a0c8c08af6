//! Whom a command runs as, found in the root that it will see.

use std::path::{Path, PathBuf};

use testyard_linux::process::Credentials;
use testyard_linux::user;
use testyard_model::{Problem, ProblemKind, UserSpec};

/// A user as a command needs it.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) credentials: Credentials,
    pub(crate) name: Option<String>,
    pub(crate) home: Option<PathBuf>,
    pub(crate) shell: Option<PathBuf>,
    /// Root keeps the capabilities of its namespace.
    pub(crate) capable: bool,
}

/// Looks `user` up below `root`. Root and numbers need not be known there.
pub(crate) fn resolve(user: &UserSpec, root: &Path) -> Result<Account, Problem> {
    match user {
        UserSpec::Machine => Err(Problem::new(ProblemKind::Bug, "whom a command runs as was not looked up")),
        UserSpec::Root => Ok(Account {
            credentials: Credentials { uid: 0, gid: 0, groups: Vec::new() },
            name: Some("root".to_owned()),
            home: Some("/root".into()),
            shell: None,
            capable: true,
        }),
        UserSpec::Named(name) => {
            let known = user::account_in(root, name).ok_or_else(|| {
                Problem::new(ProblemKind::NotFound, format!("no user `{name}` in the machine's /etc/passwd"))
                    .hint("use a user that the image has, a number, or `root`")
            })?;
            Ok(Account {
                capable: known.uid == 0,
                credentials: Credentials { uid: known.uid, gid: known.gid, groups: known.groups },
                name: Some(known.name),
                home: Some(known.home),
                shell: Some(known.shell),
            })
        }
        UserSpec::Numbered { uid, gid, groups } => {
            let known = user::account_in(root, &uid.to_string());
            Ok(Account {
                credentials: Credentials { uid: *uid, gid: *gid, groups: groups.clone() },
                name: known.as_ref().map(|known| known.name.clone()),
                home: known.as_ref().map(|known| known.home.clone()),
                shell: known.map(|known| known.shell),
                capable: false,
            })
        }
    }
}
