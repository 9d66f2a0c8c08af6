//! A machine as one file, and a machine from such a file.
//!
//! The file is a tar archive of the machine's root, plain or compressed as its name ends, so that every other tool reads
//! it too. What a root does not hold, the machine's limits and user, stands before it in a global header, which those
//! tools pass over.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use testyard_images::archive::{self, Compression};
use testyard_images::store::Store;
use testyard_images::{Image, ImportOptions};
use testyard_model::{ByteSize, MachineName, Problem, ProblemKind, UserSpec};
use testyard_protocol::{Exec, StreamTarget};

use crate::machines::Machines;
use crate::yard::now_ms;

/// What an archive says of the machine that it was made from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArchivedMachine {
    /// Its name.
    pub name: String,
    /// The image that it was made from, as it was written.
    pub image: String,
    /// Whom its commands ran as.
    pub user: Option<String>,
    /// Its processors.
    pub cpus: Option<f64>,
    /// Its memory.
    pub memory: Option<ByteSize>,
    /// What its files may take.
    pub disk: Option<ByteSize>,
    /// Whose programs it runs, where that was said.
    pub arch: Option<String>,
    /// What others have noted of it.
    pub notes: serde_json::Value,
}

/// The key in the global header.
const KEY: &str = "TESTYARD.machine";
/// Longer than anything that is written there.
const LONGEST: u64 = 64 << 10;
/// The unit of tar.
const BLOCK: usize = 512;
/// Everything on the root's own file system, with the numbers of its owners.
const PACK: [&str; 9] = [
    "tar",
    "--format=pax",
    "--numeric-owner",
    "--one-file-system",
    "--xattrs",
    "--directory=/",
    "--create",
    "--file=-",
    ".",
];

impl Machines<'_> {
    /// Writes a running machine's root to a file, which appears once it is whole. The machine needs `tar`.
    ///
    /// A name that ends in `.zst` or `.gz` says how the file is compressed.
    pub fn export(&self, name: &MachineName, about: &ArchivedMachine, path: &Path) -> Result<(), Problem> {
        let failed = |error: std::io::Error| {
            Problem::new(ProblemKind::System, format!("cannot write {}", path.display())).because(error)
        };
        let mut machine = self.yard.connect(name)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let beside = folder.join(format!(".{}.{}", path.file_name().unwrap_or_default().display(), std::process::id()));
        let file = File::create_new(&beside).map_err(failed)?;
        let written = write(&mut machine, about, file, Compression::of_name(path), failed);
        let written = written.and_then(|()| std::fs::rename(&beside, path).map_err(failed));
        if written.is_err() {
            // Half a file helps nobody; where even this fails, the first error says why.
            let _ = std::fs::remove_file(&beside);
        }
        written
    }

    /// Stores an archive's root as an image without a name, and says what the archive tells of its machine.
    pub fn unpack(&self, path: &Path) -> Result<(Image, ArchivedMachine), Problem> {
        let store = Store::open(&self.yard.options().home.images_folder()).map_err(|error| error.problem())?;
        let image = store.import_file(path, &ImportOptions::new(now_ms())).map_err(|error| error.problem())?;
        Ok((image, told_of(path)))
    }
}

fn write(
    machine: &mut crate::Machine,
    about: &ArchivedMachine,
    file: File,
    compression: Compression,
    failed: impl Fn(std::io::Error) -> Problem,
) -> Result<(), Problem> {
    let system = |error: rustix::io::Errno| Problem::new(ProblemKind::System, "cannot make a pipe").because(error);
    let (out, out_inside) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
    let (err, err_inside) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
    let exec = Exec {
        argv: PACK.map(Into::into).to_vec(),
        user: Some(UserSpec::Root),
        cwd: Some("/".into()),
        stdout: StreamTarget::Attached(0),
        stderr: StreamTarget::Attached(1),
        ..Exec::default()
    };
    let running = machine.exec(exec, &[out_inside.as_fd(), err_inside.as_fd()])?;
    drop((out_inside, err_inside));
    let (copied, said) = std::thread::scope(|scope| {
        let said = scope.spawn(|| {
            let mut said = Vec::new();
            // What cannot be read of it is missing in an error's text only.
            let _ = File::from(err).read_to_end(&mut said);
            said
        });
        let copied = compression.write(file, |into| {
            into.write_all(&header(about))?;
            std::io::copy(&mut File::from(out), into).map(drop)
        });
        (copied, said.join().unwrap_or_default())
    });
    copied.map_err(failed)?;
    let finished = running.wait().map_err(|error| error.problem())?;
    // 1: something changed while it was read, as in a machine that is at work.
    match finished.status.shell_code() {
        0 | 1 => Ok(()),
        code => {
            let said = String::from_utf8_lossy(&said);
            let message = format!("cannot read all of {}: tar ended with {code}", about.name);
            Err(Problem::new(ProblemKind::System, message).because(said.lines().last().unwrap_or("it said nothing")))
        }
    }
}

/// A global header of the pax format, with one record.
fn header(about: &ArchivedMachine) -> Vec<u8> {
    let value = serde_json::to_string(about).expect("a description is plain data");
    let rest = KEY.len() + value.len() + 3;
    // The length counts its own digits.
    let length = (1..).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length);
    let record = format!("{} {KEY}={value}\n", length.unwrap_or(rest));
    let mut block = [0_u8; BLOCK];
    block[..10].copy_from_slice(b"pax_global");
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{:011o}\0", record.len()).as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[148..156].fill(b' ');
    block[156] = b'g';
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = block.to_vec();
    bytes.extend_from_slice(record.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// What stands before an archive's first entry; nothing where somebody else made it.
fn told_of(path: &Path) -> ArchivedMachine {
    let read = || -> Option<ArchivedMachine> {
        let mut source = archive::uncompressed(File::open(path).ok()?).ok()?;
        let mut block = [0_u8; BLOCK];
        source.read_exact(&mut block).ok()?;
        if block[156] != b'g' {
            return None;
        }
        let digits = std::str::from_utf8(&block[124..135]).ok()?;
        let length = u64::from_str_radix(digits, 8).ok().filter(|length| *length <= LONGEST)?;
        let mut record = String::new();
        source.take(length).read_to_string(&mut record).ok()?;
        let value = record.split_once(' ')?.1.strip_prefix(KEY)?.strip_prefix('=')?;
        serde_json::from_str(value.trim_end_matches('\n')).ok()
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_machine_is_found_again_and_others_pass_over_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (file, memory) in [("a.tar", None), ("b.tar.zst", Some(ByteSize::mebibytes(512))), ("c.tgz", None)] {
            let (name, user) = ("web".into(), Some("dev".into()));
            let about = ArchivedMachine { name, user, memory, disk: memory, ..ArchivedMachine::default() };
            let path = folder.path().join(file);
            let target = File::create(&path).expect("a file");
            let written = Compression::of_name(&path).write(target, |into| {
                into.write_all(&header(&about))?;
                into.write_all(&[0; 2 * BLOCK])
            });
            written.expect("written");
            assert_eq!(told_of(&path), about, "{file}");
        }
        let listed = std::process::Command::new("tar").arg("-tf").arg(folder.path().join("a.tar")).output();
        if let Ok(listed) = listed {
            assert!(listed.status.success() && listed.stdout.is_empty(), "{listed:?}");
        }
        std::fs::write(folder.path().join("d.tar"), "no archive").expect("written");
        assert_eq!(told_of(&folder.path().join("d.tar")), ArchivedMachine::default());
    }
}
