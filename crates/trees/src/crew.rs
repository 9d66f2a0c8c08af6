//! Small files are made by several threads: making one costs more than receiving it.

use std::num::NonZero;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Scope};

use crate::making::Layer;
use crate::manifest::ContentHash;
use crate::receive::ReceiveError;

/// So many files, or bytes of them, make a batch.
const FILES: usize = 64;
const BYTES: usize = 256 << 10;
/// More threads than this only wait for the same file system.
const MOST: usize = 4;
/// So few files are made by the one who follows the stream, after it: to start a thread costs more. They must all fit
/// between the two.
const FEW: usize = MOST;

/// A whole file that is yet to be made.
pub(crate) struct Small<'t> {
    pub(crate) path: &'t Path,
    pub(crate) executable: bool,
    pub(crate) time: i64,
    pub(crate) content: ContentHash,
    pub(crate) bytes: Vec<u8>,
}

type Batch<'t> = Vec<Small<'t>>;

/// The threads' end.
pub(crate) struct Orders<'t> {
    batches: Mutex<Receiver<Batch<'t>>>,
    failed: Mutex<Option<ReceiveError>>,
}

/// The end of the one who follows the stream.
pub(crate) struct Crew<'t> {
    batch: Batch<'t>,
    bytes: usize,
    sender: SyncSender<Batch<'t>>,
}

/// Both ends.
pub(crate) fn crew<'t>() -> (Crew<'t>, Orders<'t>) {
    let (sender, receiver) = sync_channel(2 * FEW);
    let orders = Orders { batches: Mutex::new(receiver), failed: Mutex::new(None) };
    (Crew { batch: Vec::new(), bytes: 0, sender }, orders)
}

impl<'t> Crew<'t> {
    /// Has a file made. What fails is told by [`Orders::failure`].
    pub(crate) fn make(&mut self, file: Small<'t>) {
        self.bytes += file.bytes.len();
        self.batch.push(file);
        if self.batch.len() >= FILES || self.bytes >= BYTES {
            self.hand_out();
        }
    }

    fn hand_out(&mut self) {
        self.bytes = 0;
        // Nobody takes it where all have failed, and then that is told.
        let _ = self.sender.send(std::mem::take(&mut self.batch));
    }

    /// Nothing more comes.
    pub(crate) fn end(mut self) {
        self.hand_out();
    }
}

impl<'t> Orders<'t> {
    /// Starts the threads for so many files, where they are worth it; false where none could be had.
    pub(crate) fn start<'s>(&'s self, files: usize, layer: &'s Layer, scope: &'s Scope<'s, '_>) -> bool
    where
        't: 's,
    {
        if files <= FEW {
            return true;
        }
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST).min(files.div_ceil(FILES));
        let mut started = false;
        for _ in 0..threads {
            started |= thread::Builder::new().spawn_scoped(scope, || self.work(layer)).is_ok();
        }
        started
    }

    /// Makes what is still to be made, once the crew's end is closed.
    pub(crate) fn work(&self, layer: &Layer) {
        while let Some(batch) = self.next() {
            for file in batch {
                if let Err(error) = layer.make(&file) {
                    self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    // The others of the batch are not made; the batches after it still have to be taken.
                    break;
                }
            }
        }
    }

    fn next(&self) -> Option<Batch<'t>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    /// What failed first.
    pub(crate) fn failure(&self) -> Option<ReceiveError> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
