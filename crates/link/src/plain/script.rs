//! What is said to a shell on the other host. Every text of a user's is quoted; nothing else of these scripts varies.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use testyard_protocol::start::relay::MARK;

use crate::shell::{quoted, quoted_text};

/// A command as it is to be started there.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) mark: &'a str,
    /// Empty: at home.
    pub(super) cwd: &'a OsStr,
    pub(super) env: &'a [(Vec<u8>, Vec<u8>)],
    pub(super) argv: &'a [std::ffi::OsString],
}

impl Wanted<'_> {
    /// The mark, the variables, the folder. A name that no shell knows as a variable's is left to `env`.
    fn prepared(&self, no_folder: &str) -> (Vec<u8>, Vec<u8>) {
        let mut text = format!("export {MARK}={}; ", quoted_text(self.mark)).into_bytes();
        let mut words = Vec::new();
        for (name, value) in self.env {
            if is_variable(name) {
                text.extend([&b"export "[..], name, b"=", &quoted(value), b"; "].concat());
            } else {
                words.extend(quoted([&name[..], b"=", value].concat()));
                words.push(b' ');
            }
        }
        if !words.is_empty() {
            words.splice(0..0, *b"env ");
        }
        if !self.cwd.is_empty() {
            text.extend(
                [&b"cd "[..], &quoted(as_path(self.cwd)), b" > /dev/null || ", no_folder.as_bytes(), b"; "].concat(),
            );
        }
        for word in self.argv {
            words.extend(quoted(word.as_bytes()));
            words.push(b' ');
        }
        (text, words)
    }

    /// Says, on error output, `WORD ready PID`, `WORD end CODE`, and why not: `WORD folder` where that is not there,
    /// `WORD program` where there is none that may be run.
    pub(super) fn script(&self, word: &str) -> Vec<u8> {
        let (prepared, words) = self.prepared(&format!("{{ echo \"{word} folder\" >&3; exit 1; }}"));
        // Looked for before, as a shell that fails to run one only says so with a code that is a command's, too.
        let found = "case $1 in */*) [ -f \"$1\" ] && [ -x \"$1\" ];; *) command -v \"$1\" > /dev/null 2>&1;; esac";
        let run = format!(
            "{found} || {{ echo \"{word} program\" >&2; exit 127; }}; echo \"{word} ready $$\" >&2; exec \"$@\""
        );
        // The shell stays: how a command ended that a signal killed, only its parent can say.
        // What it says of that itself is nobody's.
        let start = format!("(exec 2>&3 3>&-; exec sh -c '{run}' sh ");
        let end = format!("); echo \"{word} end $?\" >&3\n");
        [b"exec 3>&2 2> /dev/null; ", &prepared[..], start.as_bytes(), &words, end.as_bytes()].concat()
    }

    /// On a terminal, which has one stream for everything. A key that interrupts is the command's alone.
    pub(super) fn on_terminal(&self) -> Vec<u8> {
        let (prepared, words) = self.prepared("exit 1");
        [&prepared[..], b"trap : INT QUIT; ", &words, b"; exit $?"].concat()
    }
}

/// What begins with the mark of one command, or of one connection, is no other's; nor is it the relay's, which may be on the
/// same host.
pub(super) fn far_mark(machine: &str, connection: &str, mark: &str) -> String {
    format!("over.{machine}.{connection}.{mark}.")
}

fn is_variable(name: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    name.iter().all(plain) && name.first().is_some_and(|byte| !byte.is_ascii_digit())
}

/// A path that no program takes for an option.
pub(super) fn as_path(path: &OsStr) -> Vec<u8> {
    let bytes = path.as_bytes();
    if bytes.starts_with(b"/") { bytes.to_vec() } else { [b"./", bytes].concat() }
}

/// The keeper's shell: it obeys lines, which are shell themselves, and at their end, or when none came for so long, it ends
/// all that was started over its connection; what an earlier one left it ends first. `end` kills what has a mark that begins so.
const KEEPING: &str = r#"exec 2> /dev/null
end() {
  i=0
  while [ $i -lt 50 ]; do
    i=$((i+1)); found=$(grep -lsF "@V@=$1" /proc/[0-9]*/environ)
    [ -n "$found" ] || return 0
    for f in $found; do p=${f#/proc/}; kill -9 "${p%/environ}"; done
  done
}
end over.@M@.
all=over.@M@.@W@.
trap 'kill -9 $watch; end $all' EXIT
trap 'exit 1' HUP INT TERM
me=$$
( trap - EXIT; trap 'heard=1' USR1; export @V@=${all}watch.; echo "@W@ up"; exec > /dev/null < /dev/null
  while heard=; sleep @G@; [ -n "$heard" ]; do :; done
  unset @V@; kill -9 $me; end $all ) &
watch=$!
while IFS= read -r line; do kill -USR1 $watch; eval "$line"; done
"#;

/// See [`KEEPING`]. `machine` is a number, `word` plain letters.
pub(super) fn keeping(machine: &str, word: &str, grace_seconds: u64) -> String {
    KEEPING.replace("@V@", MARK).replace("@M@", machine).replace("@W@", word).replace("@G@", &grace_seconds.to_string())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_command_gets_its_variables_folder_and_words() {
        let env = [(b"PLAIN".to_vec(), b"it's".to_vec()), (b"a.b".to_vec(), b"c d".to_vec())];
        let argv = ["sh", "-c", "echo $PLAIN $PWD $1; echo e >&2; kill -9 $$", "x", "y  z"];
        let argv = argv.map(OsString::from);
        let wanted = Wanted { mark: "m.1", cwd: OsStr::new("/"), env: &env, argv: &argv };
        let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&wanted.script("w0rd"))).output();
        let output = output.expect("a shell");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it's / y z\n");
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].starts_with("w0rd ready "), "{said}");
        assert_eq!(lines[1..], ["e", "w0rd end 137"]);
        // What is no name for a shell's variable, a shell would drop on the way.
        let argv = ["env"].map(OsString::from);
        let wanted = Wanted { argv: &argv, ..wanted };
        let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&wanted.script("w0rd"))).output();
        assert!(String::from_utf8_lossy(&output.expect("a shell").stdout).lines().any(|line| line == "a.b=c d"));
        // No program: none of that name, none that may be run, a folder.
        for program in ["there-is-no-such-program", "/etc/passwd", "/usr"] {
            let argv = [program].map(OsString::from);
            let wanted = Wanted { argv: &argv, env: &[], ..wanted };
            let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&wanted.script("w0rd"))).output();
            let said = output.expect("a shell").stderr;
            assert_eq!(String::from_utf8_lossy(&said), "w0rd program\nw0rd end 127\n", "{program}");
        }
        let wanted = Wanted { cwd: OsStr::new("/there/is/nothing"), ..wanted };
        let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&wanted.script("w0rd"))).output();
        assert_eq!(String::from_utf8_lossy(&output.expect("a shell").stderr), "w0rd folder\n");
    }
}
