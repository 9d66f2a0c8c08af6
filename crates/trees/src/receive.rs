//! The receiver's part: says what it lacks, makes a layer of what comes, and makes the tree known once it is whole.

use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::list::{Delta, Input, ListError};
use crate::manifest::{Manifest, TreeHash};
use crate::store::{Known, Owner, Store};
use crate::wire::{self, Kind, MAGIC, PIECE, WireError, hear, say};
use crate::work::{Ground, Work};

/// What a sender may have this side remember of the stream, as a power of two.
const MOST_WINDOW: u32 = 23;

/// What was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The tree's hash, computed here.
    pub hash: TreeHash,
    /// Whether it was there before.
    pub known: bool,
}

/// Why a tree was not received. What had come of it and was verified stays for the next one.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The conversation failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The disk is full, or something else about files failed.
    #[error("cannot write {}", path.display())]
    Write {
        /// What was being made.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What came is not what was announced.
    #[error("what came as {} has another content than was announced", .0.display())]
    Content(PathBuf),
    /// The list does not have the announced hash.
    #[error("the list that came is of the tree {0}, not of the one that was announced")]
    Hash(TreeHash),
    /// The sender gave up.
    #[error("the sender gave up: a file changed while it was read")]
    Changed,
}

impl From<io::Error> for ReceiveError {
    fn from(error: io::Error) -> Self {
        Self::Wire(WireError::Stream(error))
    }
}

impl From<ListError> for ReceiveError {
    fn from(error: ListError) -> Self {
        Self::Wire(WireError::List(error))
    }
}

pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> ReceiveError + '_ {
    move |source| ReceiveError::Write { path: path.to_owned(), source }
}

/// Receives one tree into the store.
///
/// `overlays` says whether trees may be made of two layers: whoever shows them can then merge them.
///
/// # Errors
/// See [`ReceiveError`].
pub fn receive(
    store: &Store,
    owner: Owner,
    overlays: bool,
    input: &mut impl Read,
    output: &mut impl Write,
) -> Result<Received, ReceiveError> {
    let mut input = BufReader::with_capacity(PIECE, input);
    wire::hear_magic(&mut input)?;
    output.write_all(MAGIC)?;
    let mut packed = [0];
    input.read_exact(&mut packed)?;
    match packed {
        [0] => follow(store, owner, overlays, &mut input, output),
        [1] => {
            let mut unpacked = zstd::stream::read::Decoder::with_buffer(input)?;
            unpacked.window_log_max(MOST_WINDOW)?;
            follow(store, owner, overlays, &mut unpacked, output)
        }
        _ => Err(WireError::OutOfTurn("a form of packing that is unknown here").into()),
    }
}

/// The conversation, unpacked.
fn follow(
    store: &Store,
    owner: Owner,
    overlays: bool,
    mut input: &mut impl Read,
    output: &mut impl Write,
) -> Result<Received, ReceiveError> {
    let mut body = Vec::new();
    let Some((hash, target, base)) = hear_offer(store, owner, &mut input, output, &mut body)? else {
        let hash = wire::hash(&mut Input(&body))?;
        say(output, Kind::Done, &[&hash.0])?;
        output.flush()?;
        return Ok(Received { hash, known: true });
    };
    let ground = Ground::find(store, owner, base, &target, overlays && store.can_hide());
    let mut work = Work::begin(store, owner, &target, ground)?;
    let needed = work.prepare(store)?;
    work.tell_old(&needed, output)?;
    say(output, Kind::Need, &[&wire::numbers(&needed)])?;
    output.flush()?;
    work.contents(&needed, &mut input, &mut body)?;
    work.keep(store, hash, owner)?;
    say(output, Kind::Done, &[&hash.0])?;
    output.flush()?;
    Ok(Received { hash, known: false })
}

type Offered = (TreeHash, Manifest, Option<Known>);

/// The tree that is offered; none where it is there already, and then the offer is still in `body`.
fn hear_offer(
    store: &Store,
    owner: Owner,
    input: &mut impl Read,
    output: &mut impl Write,
    body: &mut Vec<u8>,
) -> Result<Option<Offered>, ReceiveError> {
    for _ in 0..2 {
        if hear(input, body)? != Kind::Offer {
            return Err(WireError::OutOfTurn("something before an offer").into());
        }
        let mut offer = Input(body);
        let hash = wire::hash(&mut offer)?;
        if store.find(hash, owner).is_some() {
            return Ok(None);
        }
        let base = match offer.byte()? {
            0 => None,
            1 => Some(wire::hash(&mut offer)?),
            _ => return Err(ListError::Form.into()),
        };
        let known = match base {
            None => None,
            Some(base) => match store.load(base, owner) {
                Some(known) => Some(known),
                None => {
                    say(output, Kind::Whole, &[])?;
                    output.flush()?;
                    continue;
                }
            },
        };
        let delta = Delta::decode(offer.0)?;
        let manifest = match &known {
            Some(known) => delta.apply(&known.manifest)?,
            None => delta.into_whole()?,
        };
        let reached = manifest.hash();
        if reached == hash {
            return Ok(Some((hash, manifest, known)));
        }
        if known.is_none() {
            return Err(ReceiveError::Hash(reached));
        }
        // What is kept of the base may be damaged.
        say(output, Kind::Whole, &[])?;
        output.flush()?;
    }
    Err(WireError::OutOfTurn("a base again, where the whole was asked for").into())
}
