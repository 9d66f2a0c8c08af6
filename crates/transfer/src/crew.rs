//! Small files are made by several threads: making one costs much more than receiving it.
//!
//! The thread that follows the stream collects whole, checked files into batches; the crew makes them. What depends
//! on files being there (a hard link, a folder's own name) waits for the crew first. Without a second processor, or
//! without threads to be had, the one thread does it all.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::UnpackOptions;
use crate::error::TransferError;
use crate::failure::Failure;
use crate::making::{Made, Place};

/// So many files, or bytes of them, make a batch.
const FILES: usize = 64;
const BYTES: usize = 256 * 1024;
/// No more folders than this stand open for one batch.
const PLACES: usize = 16;
/// More threads than this only wait for the same file system.
const MOST: usize = 4;

/// A whole file that is yet to be made.
struct Waiting {
    place: Arc<Place>,
    made: Made,
    content: Range<usize>,
}

#[derive(Default)]
struct Batch {
    number: u64,
    files: Vec<Waiting>,
    contents: Vec<u8>,
    places: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.files.len() >= FILES || self.contents.len() >= BYTES || self.places >= PLACES
    }
}

/// What the threads share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    finished: Condvar,
}

#[derive(Default)]
struct State {
    /// Batches that were handed out and are not done.
    at_work: usize,
    /// The failure of the earliest batch that failed.
    failed: Option<(u64, TransferError)>,
}

pub(crate) struct Crew {
    options: UnpackOptions,
    batch: Batch,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    orders: Option<SyncSender<Batch>>,
    /// Whether it was tried to start any.
    started: bool,
}

impl Crew {
    pub(crate) fn new(options: UnpackOptions) -> Self {
        Self {
            options,
            batch: Batch::default(),
            shared: Arc::default(),
            threads: Vec::new(),
            orders: None,
            started: false,
        }
    }

    /// Where the next file's content is put together, after what is there.
    pub(crate) fn contents(&mut self) -> &mut Vec<u8> {
        &mut self.batch.contents
    }

    /// A whole file, whose content lies in [`Self::contents`] from `start` on.
    pub(crate) fn add(&mut self, place: &Arc<Place>, made: Made, start: usize) -> Result<(), Failure> {
        place.expect_one();
        let content = start..self.batch.contents.len();
        let same = self.batch.files.last().is_some_and(|last| Arc::ptr_eq(&last.place, place));
        self.batch.places += usize::from(!same);
        self.batch.files.push(Waiting { place: Arc::clone(place), made, content });
        if !self.batch.is_full() {
            return Ok(());
        }
        self.start();
        self.hand_out()
    }

    /// Waits until everything that was added is made.
    pub(crate) fn drain(&mut self) -> Result<(), Failure> {
        self.hand_out()?;
        let mut state = lock(&self.shared);
        while state.at_work > 0 {
            state = self.shared.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.failed.is_some() { Err(Failure::Crew) } else { Ok(()) }
    }

    /// Ends the threads, which may still finish what they have; the first thing that failed there.
    pub(crate) fn end(mut self) -> Option<TransferError> {
        self.orders = None;
        for thread in self.threads.drain(..) {
            // A panic in there was reported by the hook; here it is one more failure.
            let _ = thread.join();
        }
        lock(&self.shared).failed.take().map(|(_, error)| error)
    }

    fn hand_out(&mut self) -> Result<(), Failure> {
        if lock(&self.shared).failed.is_some() {
            return Err(Failure::Crew);
        }
        if self.batch.files.is_empty() {
            return Ok(());
        }
        let next = Batch { number: self.batch.number + 1, ..Batch::default() };
        let batch = std::mem::replace(&mut self.batch, next);
        let Some(orders) = &self.orders else {
            return work(&batch, &self.options).map_err(Failure::Told);
        };
        lock(&self.shared).at_work += 1;
        orders.send(batch).map_err(|_| {
            // All threads have panicked.
            lock(&self.shared).at_work -= 1;
            Failure::System("make files in", rustix::io::Errno::CANCELED)
        })
    }

    fn start(&mut self) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let wanted = std::thread::available_parallelism().map_or(1, usize::from).min(MOST);
        if wanted < 2 {
            return;
        }
        let (orders, todo) = sync_channel(wanted * 2);
        let todo = Arc::new(Mutex::new(todo));
        for _ in 0..wanted {
            let (todo, shared, options) = (Arc::clone(&todo), Arc::clone(&self.shared), self.options);
            let thread = std::thread::Builder::new().name("files".to_owned()).stack_size(256 * 1024);
            match thread.spawn(move || serve(&todo, &shared, &options)) {
                Ok(thread) => self.threads.push(thread),
                // Those that there are do the work.
                Err(_) => break,
            }
        }
        self.orders = (!self.threads.is_empty()).then_some(orders);
    }
}

fn serve(todo: &Mutex<Receiver<Batch>>, shared: &Shared, options: &UnpackOptions) {
    loop {
        let next = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(batch) = next else { return };
        let _done = Done(shared);
        if let Err(error) = work(&batch, options) {
            let mut state = lock(shared);
            if state.failed.as_ref().is_none_or(|(number, _)| batch.number < *number) {
                state.failed = Some((batch.number, error));
            }
        }
    }
}

/// Says that a batch is done, whatever became of it: somebody waits for that.
struct Done<'a>(&'a Shared);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        lock(self.0).at_work -= 1;
        self.0.finished.notify_all();
    }
}

/// Makes the files of a batch, up to the first that cannot be.
fn work(batch: &Batch, options: &UnpackOptions) -> Result<(), TransferError> {
    for file in &batch.files {
        let made = file.made.make(&file.place, &batch.contents[file.content.clone()], options);
        made.map_err(|failure| failure.at(shown(file)))?;
        file.place.done_with_one(options).map_err(|failure| failure.at(file.place.shown.clone()))?;
    }
    Ok(())
}

fn shown(file: &Waiting) -> PathBuf {
    let name = file.made.becomes.as_ref().unwrap_or(&file.made.made_as);
    file.place.shown.join(OsStr::from_bytes(name))
}

// What is changed under this lock is complete in itself, so a panic elsewhere leaves it sound.
fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}
