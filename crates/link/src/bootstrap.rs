//! What runs on the other host before any program of ours is there: a shell, which takes the programs when it has not
//! got them, and becomes them.
//!
//! It answers in lines that begin with a word of this connection's own, so that whatever a login prints is no answer:
//! `want SYSTEM ARCHITECTURE`, `one` (the first program has come), `go` (frames follow), and why not: `nowhere …`,
//! `full FOLDER`, `damaged`.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use testyard_model::{Problem, ProblemKind};

use crate::sums::{Sums, hexadecimal};

/// How the folder is called in which programs are kept; the user's number may follow. [`SCRIPT`] knows it, too.
pub(crate) const FOLDER: &str = "testyard-programs";
/// Versions of the programs that stay in the cache of a host, the newest and this one among them.
const KEPT: u32 = 4;

/// The shell's part. One line, without quotes of the kind that it is itself quoted with, so that any login shell
/// passes it on.
///
/// A folder of ours is 0700 and ours, so that what is in it was put there by us; a program in it is known by the folder's
/// name, which is made from both programs' contents, and by its length: it was moved there whole, after its sum was checked.
/// Where that is there and may be run (which a file system without programs denies), nothing is tried: each command is a
/// process more, before anything of ours runs. Other hosts may share the folder, so that a process number says nothing of
/// who is still at it: what was begun a day ago is given up.
const SCRIPT: &str = concat!(
    "umask 077; n=@N@; h=@H@; a=@A@; b=@B@; s=@S@; t=@T@; : ${HOME:=/nonexistent}; ",
    "say() { echo \"$n $*\"; }; ",
    "ours() { [ -d \"$1\" ] && [ -O \"$1\" ] && if [ -h \"$1\" ]; then false; fi ",
    "&& case $(ls -ld \"$1\") in drwx------*) true;; *) false;; esac; }; ",
    "runs() { f=\"$1/.try.$$\"; : > \"$f\" && chmod 700 \"$f\" && \"$f\"; r=$?; rm -f \"$f\"; return $r; }; ",
    "file() { [ -f \"$1\" ] && [ -O \"$1\" ] && if [ -h \"$1\" ]; then false; fi && [ $(wc -c < \"$1\") -eq $2 ]; }; ",
    "whole() { ours \"$1\" && file \"$1/testyard\" $a && file \"$1/testyard-agent\" $b; }; ",
    "sum() { if command -v sha256sum > /dev/null; then [ $(sha256sum < \"$1\" | cut -d\" \" -f1) = $2 ]; fi; }; ",
    "gone() { rm -rf \"$u\"; }; ",
    "take() { head -c $2 > \"$u/$1\" && file \"$u/$1\" $2 || { gone; say full \"$d\"; exit 75; }; ",
    "chmod 700 \"$u/$1\"; sum \"$u/$1\" $3 || { gone; say damaged; exit 76; }; }; ",
    "d=; k=; w=; i=$(id -u); for c in \"${XDG_CACHE_HOME:-$HOME/.cache}/testyard-programs\" ",
    "/var/tmp/testyard-programs-$i /dev/shm/testyard-programs-$i; do ",
    "case $c in /dev/null/*) continue;; esac; ",
    "[ -d \"$c\" ] || { mkdir -p \"${c%/*}\"; mkdir \"$c\"; } 2> /dev/null; ",
    "if ours \"$c\"; then if whole \"$c/$h\" && [ -x \"$c/$h/testyard\" ]; then d=$c; k=1; break; fi; ",
    "if runs \"$c\" 2> /dev/null; then d=$c; break; fi; w=\"$w noexec:$c\"; ",
    "elif [ -e \"$c\" ] || [ -h \"$c\" ]; then w=\"$w foreign:$c\"; else w=\"$w closed:$c\"; fi; done; ",
    "[ -n \"$d\" ] || { say nowhere $w; exit 77; }; p=$d/$h; ",
    "if [ -n \"$k\" ]; then touch \"$p\"; else say want $(uname -s) $(uname -m); ",
    "find \"$d\" -maxdepth 1 -name \".new.*\" -mtime +0 -exec rm -rf {} + 2> /dev/null; ",
    "u=$d/.new.$n.$$; mkdir \"$u\" || { say full \"$d\"; exit 75; }; trap gone EXIT HUP TERM; ",
    "take testyard $a $s; say one; take testyard-agent $b $t; ",
    "if whole \"$p\"; then gone; else rm -rf \"$p\"; mv \"$u\" \"$p\" || { say full \"$d\"; exit 75; }; fi; ",
    "trap - EXIT HUP TERM; ",
    "ls -1t \"$d\" | tail -n +@K@ | while read -r o; do rm -rf \"$d/$o\"; done; fi; ",
    "say go; exec \"$p/testyard\" far",
);

/// The programs that run on the other host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// `testyard`.
    pub testyard: PathBuf,
    /// `testyard-agent`.
    pub agent: PathBuf,
    /// Where their sums are kept; none sums them each time.
    #[serde(default)]
    pub sums: Option<PathBuf>,
}

/// The folder that holds this program, where it was delivered: it stays between sessions, and goes with the program.
#[must_use]
pub fn programs_folder() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let folder = program.parent()?;
    let name = folder.parent()?.file_name()?.to_str()?;
    name.starts_with(FOLDER).then(|| folder.to_owned())
}

/// The programs as they are delivered: opened, so that an update meanwhile changes nothing.
#[derive(Debug)]
pub struct Bundle {
    files: [Delivered; 2],
    name: String,
}

#[derive(Debug)]
struct Delivered {
    file: File,
    length: u64,
    sum: String,
}

impl Bundle {
    /// Opens both, and sums what has changed since it was summed last.
    pub fn load(programs: &Programs) -> Result<Self, Problem> {
        let mut sums = Sums::load(programs.sums.as_deref());
        let files = [load(&programs.testyard, &mut sums)?, load(&programs.agent, &mut sums)?];
        sums.keep();
        let name = hexadecimal(&Sha256::digest(format!("{} {}", files[0].sum, files[1].sum).as_bytes()));
        Ok(Self { files, name: name[..32].to_owned() })
    }

    /// The name of the programs' folder there.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Both programs' contents, in the order in which they are asked for.
    pub(crate) fn file(&self, index: usize) -> Option<(&File, u64)> {
        self.files.get(index).map(|one| (&one.file, one.length))
    }

    /// What the shell there is told to do. `word` begins its answers.
    #[must_use]
    pub fn script(&self, word: &str) -> String {
        let [testyard, agent] = &self.files;
        SCRIPT
            .replace("@N@", word)
            .replace("@H@", &self.name)
            .replace("@A@", &testyard.length.to_string())
            .replace("@B@", &agent.length.to_string())
            .replace("@S@", &testyard.sum)
            .replace("@T@", &agent.sum)
            .replace("@K@", &(KEPT + 1).to_string())
    }
}

fn load(path: &Path, sums: &mut Sums) -> Result<Delivered, Problem> {
    let failed = |error: std::io::Error| {
        Problem::new(ProblemKind::NotFound, format!("the program {} cannot be delivered", path.display()))
            .because(error)
            .hint("install it: cargo xtask install")
    };
    let mut file = File::open(path).map_err(failed)?;
    let (length, sum) = sums.of(path, &mut file).map_err(failed)?;
    Ok(Delivered { file, length, sum })
}

/// What the shell said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// It has not got the programs; its system and architecture.
    Want(String, String),
    /// The first program has come.
    One,
    /// Frames follow.
    Go,
    /// It cannot keep or run programs, in its own words.
    Nowhere(String),
    /// No room in this folder.
    Full(String),
    /// What came has another sum.
    Damaged,
}

/// The answer in a line; none where it is not one.
pub(crate) fn answer(line: &str, word: &str) -> Option<Said> {
    let mut words = line.trim_end().strip_prefix(word)?.split_ascii_whitespace();
    let mut next = || words.next().unwrap_or_default().to_owned();
    Some(match next().as_str() {
        "want" => Said::Want(next(), next()),
        "one" => Said::One,
        "go" => Said::Go,
        "nowhere" => Said::Nowhere(words.collect::<Vec<_>>().join(" ")),
        "full" => Said::Full(next()),
        "damaged" => Said::Damaged,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_login_shell_passes_the_script_on() {
        assert!(!SCRIPT.contains(['\'', '\n', '!', '\\']), "{SCRIPT}");
    }

    #[test]
    fn programs_are_kept_where_they_are_looked_for() {
        assert_eq!(SCRIPT.matches(FOLDER).count(), 3);
    }

    #[test]
    fn what_a_login_prints_is_no_answer() {
        assert_eq!(answer("Welcome to the machine go", "w0rd"), None);
        assert_eq!(answer("w0rd want Linux x86_64\n", "w0rd"), Some(Said::Want("Linux".into(), "x86_64".into())));
        assert_eq!(answer("w0rd go", "w0rd"), Some(Said::Go));
        assert_eq!(answer("w0rd what", "w0rd"), None);
    }
}
