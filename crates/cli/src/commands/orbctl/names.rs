//! Names that machines find each other by: `web` and `web.orb.local`, in each one's `/etc/hosts`.
//!
//! Machines share the host's network, so an address is one of the loopback network: what listens on all addresses answers
//! on it, from the host too. The host's own resolver is never touched.

use testyard::Testyard;
use testyard_model::{MachineInfo, MachineState};

use super::book::Book;
use super::{settings, user};

/// What comes after a name.
const DOMAIN: &str = "orb.local";
/// So many machines are told at once.
const AT_ONCE: usize = 4;

/// The lines that every machine gets: those of all that were made here.
pub(super) fn hosts(book: &Book, machines: &[MachineInfo]) -> String {
    let lines = machines.iter().filter_map(|machine| {
        let note = book.about(&machine.id)?;
        let address = settings::address(book, note.address);
        let name = machine.name.as_str();
        Some(format!("{address} {name}.{DOMAIN} {name}\n"))
    });
    lines.collect()
}

/// Tells the running machines, but for one that knows already, who there is now. One that cannot be told, because it is
/// just going away, learns it at its next start.
pub(super) fn tell(yard: &Testyard, but: Option<&MachineInfo>) {
    let (Ok(book), Ok(machines)) = (Book::load(yard), yard.machines().list()) else { return };
    let hosts = hosts(&book, &machines);
    let told: Vec<&MachineInfo> = machines
        .iter()
        .filter(|one| one.state == MachineState::Running && book.about(&one.id).is_some())
        .filter(|one| but.is_none_or(|but| but.id != one.id))
        .collect();
    for some in told.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            for machine in some {
                scope.spawn(|| {
                    if let Ok(mut machine) = yard.connect(&machine.name) {
                        // As above.
                        let _ = user::prepare(&mut machine, "", &hosts);
                    }
                });
            }
        });
    }
}

/// Tells one machine that has just started.
pub(super) fn tell_one(yard: &Testyard, machine: &MachineInfo) {
    let (Ok(book), Ok(machines)) = (Book::load(yard), yard.machines().list()) else { return };
    if book.about(&machine.id).is_none() {
        return;
    }
    if let Ok(mut connected) = yard.connect(&machine.name) {
        // Without its neighbours' names it works all the same.
        let _ = user::prepare(&mut connected, "", &hosts(&book, &machines));
    }
}
