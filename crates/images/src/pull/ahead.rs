//! Blobs fetched ahead of need by a few threads, while those before them are unpacked.
//!
//! A thread holds no more than the one blob that it fetches: two pulls that want the same blobs in another order never
//! wait for each other. What is there is found, whole, by [`Store::download`] when its turn comes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

use super::client::Client;
use super::{PullError, PullProgress};
use crate::import::ImportOptions;
use crate::oci::Blob;
use crate::store::Store;

/// How many blobs come at the same time. More is no faster from most servers, and impolite to all.
const AT_ONCE: usize = 3;

enum Event {
    Begun(usize),
    Ended(usize, Result<(), PullError>),
}

/// Blobs that are on their way.
pub(super) struct Ahead<'a> {
    blobs: &'a [&'a Blob],
    events: Receiver<Event>,
    ended: Vec<Option<Result<(), PullError>>>,
}

impl Ahead<'_> {
    /// Waits until this blob was fetched, or failed; at once where nobody fetches it. Tells meanwhile what begins.
    pub(super) fn wait(&mut self, blob: &Blob, progress: &mut dyn FnMut(PullProgress)) -> Result<(), PullError> {
        let Some(wanted) = self.blobs.iter().position(|one| one.digest == blob.digest) else { return Ok(()) };
        while self.ended[wanted].is_none() {
            match self.events.recv() {
                Ok(Event::Begun(number)) => {
                    let Blob { name, size, .. } = self.blobs[number];
                    progress(PullProgress::Fetching { layer: name.clone(), size: size.unwrap_or_default() });
                }
                Ok(Event::Ended(number, outcome)) => self.ended[number] = Some(outcome),
                // Whoever fetched it has panicked: the caller fetches it.
                Err(_) => return Ok(()),
            }
        }
        // Asked for again, it is there.
        self.ended[wanted].replace(Ok(())).unwrap_or(Ok(()))
    }
}

impl Store {
    /// Does `work` while these blobs are fetched, in their order. None is fetched any more when this returns.
    pub(super) fn while_fetching<T>(
        &self,
        client: &Client<'_>,
        blobs: &[&Blob],
        options: &ImportOptions,
        work: impl FnOnce(&mut Ahead<'_>) -> T,
    ) -> T {
        let next = AtomicUsize::new(0);
        let (tell, events) = channel();
        std::thread::scope(|scope| {
            for _ in 0..blobs.len().min(AT_ONCE) {
                let (mut client, tell, next) = (client.clone(), tell.clone(), &next);
                scope.spawn(move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(blob) = blobs.get(number) else { return };
                        if tell.send(Event::Begun(number)).is_err() {
                            return;
                        }
                        let outcome = self.download(&mut client, blob, options).map(drop);
                        // Whoever does not listen any more has failed.
                        let _ = tell.send(Event::Ended(number, outcome));
                    }
                });
            }
            drop(tell);
            let done = work(&mut Ahead { blobs, events, ended: blobs.iter().map(|_| None).collect() });
            client.stop();
            done
        })
    }
}
