//! Files between here and there, as archives of `tar`: what comes and goes here is a stream of the `transfer` crate, and
//! is a tree in the machine's folder in between.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use testyard_linux::files::remove_tree;
use testyard_model::{Problem, ProblemKind};
use testyard_transfer::{Oversight, UnpackOptions};

use super::keeper::Keeper;
use super::script::as_path;
use super::session::Session;
use crate::connect::random_word;
use crate::shell::quoted;

/// The entry of a staged tree.
const ENTRY: &str = "entry";
/// The last member of an archive: it came whole.
const WHOLE: &str = ".testyard-whole";

/// Where a tree is on its way.
struct Staging {
    folder: OwnedFd,
    name: String,
    path: PathBuf,
}

impl Staging {
    fn make() -> Result<Self, Problem> {
        let failed = |error: std::io::Error| {
            Problem::new(ProblemKind::System, "cannot make a folder for files on their way").because(error)
        };
        let name = random_word();
        std::fs::create_dir(&name).map_err(failed)?;
        let path = std::path::absolute(&name).map_err(failed)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(".", flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        Ok(Self { folder, name, path })
    }

    fn open(&self) -> Result<OwnedFd, Problem> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty()).map_err(|errno| read_failed(errno.into()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What stays goes with the machine's folder.
        let _ = remove_tree(self.folder.as_fd(), &self.name);
    }
}

fn read_failed(error: std::io::Error) -> Problem {
    Problem::new(ProblemKind::System, "cannot read files on their way").because(error)
}

/// Makes files there out of the stream that is the standard input.
pub(super) fn receive(path: &OsStr) -> Result<(), Problem> {
    let keeper = Keeper::reach(None)?;
    let staging = Staging::make()?;
    let name = unpack(&staging)?;
    let entry = staging.path.join(ENTRY);
    let facts = std::fs::symlink_metadata(&entry).map_err(read_failed)?;
    let (folder, mut members) = if facts.is_dir() {
        let entries = std::fs::read_dir(&entry).map_err(read_failed)?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>();
        (entry, names.map_err(read_failed)?)
    } else {
        (staging.path.clone(), vec![OsString::from(ENTRY)])
    };
    File::create(folder.join(WHOLE)).map_err(read_failed)?;
    members.push(WHOLE.into());
    let list = staging.path.join("list");
    let text: Vec<u8> = members.iter().flat_map(|name| [b"./", name.as_bytes(), b"\0"].concat()).collect();
    std::fs::write(&list, text).map_err(read_failed)?;
    let mode = facts.is_dir().then_some(facts.mode() & 0o777);
    let send = move || {
        let mut tar = Command::new("tar");
        tar.arg("-c").args(["-f", "-"]).arg("-C").arg(folder).arg("--null").arg("-T").arg(list);
        tar.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let output = tar.spawn().ok()?.stdout.take()?;
        Some(Box::new(output) as Box<dyn Read>)
    };
    let place = Place { path, name: &name };
    let mut session = Session::begin(|word| place.taking(word, mode), send, Stdio::null())?;
    match session.await_ready(&keeper.host) {
        Ok(_) => {}
        Err(Ok(why)) => return Err(refused(&why, path)),
        Err(Err(problem)) => return Err(problem),
    }
    match session.finish(&keeper.host)? {
        (0, _) => Ok(()),
        (_, said) => {
            let problem = Problem::new(ProblemKind::System, format!("cannot write all of {path:?} on the other host"));
            Err(said.into_iter().fold(problem, Problem::because))
        }
    }
}

/// Unpacks the standard input; the name that the tree brings along.
fn unpack(staging: &Staging) -> Result<Vec<u8>, Problem> {
    let failed = |error: std::io::Error| {
        Problem::new(ProblemKind::Unavailable, "cannot read the stream of files").because(error)
    };
    let mut input = File::from(rustix::stdio::stdin().try_clone_to_owned().map_err(failed)?);
    let mut head = [0; testyard_transfer::HEAD];
    input.read_exact(&mut head).map_err(failed)?;
    let mut name = vec![0; testyard_transfer::name_length(&head)];
    input.read_exact(&mut name).map_err(failed)?;
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
    let begin = [&head[..], &name].concat();
    std::thread::Builder::new()
        .name("files".to_owned())
        .spawn(move || {
            let mut writer = File::from(writer);
            // The other end says what is missing.
            if writer.write_all(&begin).is_ok() {
                let _ = std::io::copy(&mut input, &mut writer);
            }
        })
        .map_err(failed)?;
    rustix::process::umask(Mode::empty());
    let options = UnpackOptions { mask: Some(0), ..UnpackOptions::default() };
    let root = staging.open()?;
    testyard_transfer::unpack_from(reader.as_fd(), root.as_fd(), Path::new(ENTRY), &options, Oversight::default())
        .map_err(|error| error.problem())?;
    Ok(name)
}

/// Makes a stream, on standard output, of files there.
pub(super) fn send(path: &OsStr) -> Result<(), Problem> {
    let keeper = Keeper::reach(None)?;
    let staging = Staging::make()?;
    let place = Place { path, name: b"" };
    let mut session = Session::begin(|word| place.giving(word), || None, Stdio::piped())?;
    let kind = match session.await_ready(&keeper.host) {
        Ok(kind) => kind,
        Err(Ok(why)) => return Err(refused(&why, path)),
        Err(Err(problem)) => return Err(problem),
    };
    let own = Path::new(path).file_name().unwrap_or(OsStr::new(ENTRY));
    let target = if kind == "folder" { staging.path.join(own) } else { staging.path.clone() };
    if kind == "folder" {
        std::fs::create_dir(&target).map_err(read_failed)?;
    }
    rustix::process::umask(Mode::empty());
    let Some(output) = session.output.take() else {
        return Err(Problem::new(ProblemKind::Bug, "a session was begun without its output"));
    };
    // Nothing that comes decides over owners, or bits beyond the permissions.
    let tar = Command::new("tar")
        .args(["-x", "-f", "-", "--no-same-owner", "--no-same-permissions", "-C"])
        .arg(&target)
        .stdin(output)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let tar = tar.map_err(|error| Problem::new(ProblemKind::NotFound, "cannot start tar").because(error))?;
    let (code, said) = session.finish(&keeper.host)?;
    if code != 0 || !tar.success() {
        let problem = Problem::new(ProblemKind::System, format!("cannot read all of {path:?} on the other host"));
        return Err(said.into_iter().fold(problem, Problem::because));
    }
    let whole = path.as_bytes().ends_with(b"/.") || path.as_bytes() == b".";
    let nameless = whole || Path::new(path).file_name().is_none();
    let from = if nameless { Path::new(own).join(".") } else { PathBuf::from(own) };
    let root = staging.open()?;
    let output = rustix::stdio::stdout().try_clone_to_owned().map_err(read_failed)?;
    testyard_transfer::pack(root.as_fd(), &from, &mut File::from(output)).map(drop).map_err(|error| error.problem())
}

fn refused(why: &str, path: &OsStr) -> Problem {
    let (kind, message) = match why {
        "absent" => (ProblemKind::NotFound, format!("there is no {path:?} on the other host")),
        "closed" => (ProblemKind::Denied, format!("cannot read {path:?} on the other host")),
        "special" => (ProblemKind::Usage, format!("{path:?} is neither a file nor a folder")),
        "file" => {
            let message = format!("cannot put a folder at {path:?}: something that is not a folder is there");
            (ProblemKind::AlreadyExists, message)
        }
        "folder" => (ProblemKind::AlreadyExists, format!("cannot put a file at {path:?}: a folder is there")),
        "tar" => return no_tar(),
        _ => {
            (ProblemKind::Denied, format!("cannot make {path:?} on the other host: its folder is not there, or closed"))
        }
    };
    Problem::new(kind, message)
}

fn no_tar() -> Problem {
    Problem::new(ProblemKind::Unsupported, "files cannot be moved: the other host has no tar").hint("install tar there")
}

/// A path there, and the name of what comes.
struct Place<'a> {
    path: &'a OsStr,
    name: &'a [u8],
}

impl Place<'_> {
    /// `t` is the path, `p` its folder and `b` its name there, all absolute.
    fn names(&self, word: &str) -> Vec<u8> {
        let absolute = |path: &OsStr| {
            if path.as_bytes().starts_with(b"/") {
                quoted(path.as_bytes())
            } else {
                [&b"\"$PWD\"/"[..], &quoted(as_path(path))].concat()
            }
        };
        let path = Path::new(self.path);
        let (parent, base) = (path.parent().unwrap_or(path), path.file_name().unwrap_or(OsStr::new(".")));
        let say = format!("exec 3>&2; no() {{ echo \"{word} $1\" >&3; exit 1; }}; ");
        let tar = "command -v tar > /dev/null || no tar; ";
        let pairs = [
            (b"t=", absolute(self.path)),
            (b"p=", absolute(parent.as_os_str())),
            (b"b=", quoted(base.as_bytes())),
            (b"n=", quoted(self.name)),
        ];
        let pairs: Vec<u8> = pairs.into_iter().flat_map(|(name, value)| [&name[..], &value, b"; "].concat()).collect();
        [say.as_bytes(), tar.as_bytes(), &pairs].concat()
    }

    /// Takes an archive, of a folder with this mode or of one entry, as `cp -r` places what it copies. What is new is made
    /// under another name first.
    fn taking(&self, word: &str, mode: Option<u32>) -> Vec<u8> {
        let (mode, is_folder) = (mode.unwrap_or(0), if mode.is_some() { "true" } else { "false" });
        let script = TAKING.replace("@W@", word).replace("@M@", &format!("{mode:o}")).replace("@F@", is_folder);
        [self.names(word), script.into_bytes()].concat()
    }

    fn giving(&self, word: &str) -> Vec<u8> {
        [self.names(word), GIVING.replace("@W@", word).into_bytes()].concat()
    }
}

const TAKING: &str = r#"
f=$t
if [ -d "$t" ] && [ -n "$n" ]; then p=$t; b=$n; f=${t%/}/$n; fi
w=; new=true
if @F@; then
  if [ -d "$f" ]; then new=false; elif [ -e "$f" ] || [ -h "$f" ]; then no file; fi
elif [ -d "$f" ] && ! [ -h "$f" ]; then no folder; fi
gone() { [ -z "$w" ] || rm -rf "$w"; }
trap gone EXIT; trap 'exit 1' HUP INT TERM
if $new; then w=$p/.testyard-@W@; mkdir -m 700 "$w" 2> /dev/null || { w=; no place; }; cd "$w"; else cd "$f" || no place; fi
echo "@W@ ready -" >&3
tar -xpof -; r=$?
[ -e .testyard-whole ] && [ $r = 0 ] || r=1
rm -f .testyard-whole
if [ $r = 0 ] && $new; then
  if @F@; then chmod @M@ . && mv "$w" "$f" && w= || r=1
  else { ! [ -h "$f" ] || rm -f "$f"; } && mv -f entry "$f" || r=1; fi
fi
echo "@W@ end $r" >&3
"#;

const GIVING: &str = r#"
if [ -d "$t" ]; then cd "$t" && ls > /dev/null 2>&1 || no closed; echo "@W@ ready folder" >&3; tar -cf - .
elif [ -f "$t" ]; then cd "$p" && [ -r "$t" ] || no closed; echo "@W@ ready file" >&3; tar -chf - "./$b"
elif [ -e "$t" ]; then no special
else no absent; fi
echo "@W@ end $?" >&3
"#;
