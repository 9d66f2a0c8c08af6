//! Exec, and the search for a program along `PATH`.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use crate::error::Error;

/// Replaces this process by a program; returns only the error.
pub fn execute(program: &CStr, arguments: &[CString], environment: &[CString]) -> Error {
    let arguments = pointers(arguments);
    let environment = pointers(environment);
    // SAFETY: the path and every string end in NUL, both arrays end in a null pointer, and all outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Error::new("execute", program.to_string_lossy(), io::Error::last_os_error())
}

/// Tries the candidates of [`resolve_program`] in their order, as execvp would: one that is missing is passed over,
/// one that may not be executed too but is remembered, and any other answer ends the search. Returns only the error:
/// `ENOENT` when nothing was found, `EACCES` when something was but may not be run.
pub fn execute_first(candidates: &[CString], arguments: &[CString], environment: &[CString]) -> Error {
    let mut denied = None;
    let mut missing = None;
    for candidate in candidates {
        let error = execute(candidate, arguments, environment);
        match error.errno() {
            Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::STALE | Errno::TIMEDOUT => missing = Some(error),
            Errno::ACCESS => denied = denied.or(Some(error)),
            _ => return error,
        }
    }
    let name = || arguments.first().map_or_else(|| "a program".into(), |name| name.to_string_lossy().into_owned());
    match (denied, missing) {
        (Some(error), _) => error,
        (None, Some(error)) if candidates.len() == 1 => error,
        _ => Error::new("find", name(), Errno::NOENT),
    }
}

/// Where a program may be, in the order to try. A name with a slash is itself; others are looked for in each folder
/// of `search` (the value of `PATH`; `/usr/local/bin:/usr/bin:/bin` where there is none), an empty one meaning `cwd`.
/// Relative names are taken from `cwd`. Empty for an empty name or one that holds a NUL.
#[must_use]
pub fn resolve_program(name: &OsStr, search: Option<&OsStr>, cwd: &Path) -> Vec<CString> {
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        return Vec::new();
    }
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).ok();
    if bytes.contains(&b'/') {
        return path(&cwd.join(name)).into_iter().collect();
    }
    let search = search.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"));
    let folders = search.as_bytes().split(|byte| *byte == b':');
    folders.filter_map(|folder| path(&cwd.join(OsStr::from_bytes(folder)).join(name))).collect()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, search: Option<&str>, expected: &[&str]) {
        let found = resolve_program(OsStr::new(name), search.map(OsStr::new), Path::new("/here"));
        let found: Vec<&str> = found.iter().map(|path| path.to_str().expect("the test's paths are UTF-8")).collect();
        assert_eq!(found, expected, "{name} in {search:?}");
    }

    #[test]
    fn programs_are_looked_for_as_a_shell_does() {
        check("true", Some("/bin:/usr/bin"), &["/bin/true", "/usr/bin/true"]);
        check("true", Some(":bin"), &["/here/true", "/here/bin/true"]);
        check("./true", Some("/bin"), &["/here/./true"]);
        check("/bin/true", Some("/usr/bin"), &["/bin/true"]);
        check("true", None, &["/usr/local/bin/true", "/usr/bin/true", "/bin/true"]);
        check("", Some("/bin"), &[]);
        check("a\0b", Some("/bin"), &[]);
    }

    #[test]
    fn what_is_missing_and_what_may_not_run_are_told_apart() {
        let arguments = [c"nothing-of-this-name".to_owned()];
        let error = execute_first(&[c"/bin/nothing-1".to_owned(), c"/bin/nothing-2".to_owned()], &arguments, &[]);
        assert_eq!(error.errno(), Errno::NOENT);
        assert_eq!(error.to_string(), "cannot find nothing-of-this-name");
        let error = execute_first(&[c"/etc/passwd".to_owned(), c"/bin/nothing-2".to_owned()], &arguments, &[]);
        assert_eq!(error.errno(), Errno::ACCESS);
        assert_eq!(error.to_string(), "cannot execute /etc/passwd");
    }
}
