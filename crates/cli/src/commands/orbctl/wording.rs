//! What is said of mistakes.
//!
//! Clients of this surface try again for many seconds when an error holds one of a few words, *machine* and *network*
//! among them. An error that would be the same a moment later is told without them.

use testyard_model::{MachineName, Problem, ProblemKind};

/// The words that make clients try again, and what is said instead. Whole words only: what a user named is left alone.
const RETRIED: [(&str, &str); 18] = [
    ("machine", "guest"),
    ("machines", "guests"),
    ("machine's", "guest's"),
    ("network", "net"),
    ("networks", "nets"),
    ("connection", "link"),
    ("connections", "links"),
    ("timeout", "limit"),
    ("setup", "preparation"),
    ("download", "fetch"),
    ("downloaded", "fetched"),
    ("tls", "encryption"),
    ("handshake", "greeting"),
    ("cdn", "mirror"),
    ("http", "web"),
    ("https", "web"),
    ("tcp", "stream"),
    ("dns", "name service"),
];

/// There is nothing of this name.
pub(super) fn no_such_name(name: &str) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("no such name: {name}"))
}

/// Something has this name.
pub(super) fn already_exists(name: &MachineName) -> Problem {
    Problem::new(ProblemKind::AlreadyExists, format!("{name} already exists"))
}

/// The problem as clients of this surface may read it.
pub(super) fn plain(problem: Problem) -> Problem {
    if problem.kind.is_transient() {
        return problem;
    }
    if let Some(name) = problem.message.strip_prefix("there is no machine ") {
        return no_such_name(name);
    }
    Problem {
        kind: problem.kind,
        message: plain_text(&problem.message),
        causes: problem.causes.iter().map(|cause| plain_text(cause)).collect(),
        hints: problem.hints.iter().map(|hint| plain_text(hint)).collect(),
    }
}

fn plain_text(text: &str) -> String {
    text.split_inclusive(char::is_whitespace).map(plain_word).collect()
}

fn plain_word(word: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphabetic();
    let Some(start) = word.find(is_part) else { return word.to_owned() };
    let end = word.rfind(is_part).map_or(start, |at| at + 1);
    let bare = word[start..end].to_ascii_lowercase();
    match RETRIED.iter().find(|(retried, _)| *retried == bare) {
        Some((_, said)) => format!("{}{said}{}", &word[..start], &word[end..]),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lasting_errors_hold_no_word_that_is_tried_again() {
        let problem = Problem::new(ProblemKind::WrongState, "machine web is stopped")
            .because("the machine's network, and (Connection): /srv/machine/network.log")
            .hint("see other machines");
        let plain = plain(problem);
        assert_eq!(plain.message, "guest web is stopped");
        assert_eq!(plain.causes, ["the guest's net, and (link): /srv/machine/network.log"]);
        assert_eq!(plain.hints, ["see other guests"]);
    }

    #[test]
    fn what_may_pass_is_told_as_it_is_and_names_are_kept() {
        let passing = Problem::new(ProblemKind::Unavailable, "the connection to machine web was lost");
        assert_eq!(plain(passing.clone()), passing);
        let missing = Problem::new(ProblemKind::NotFound, "there is no machine my-machine").hint("testyard list");
        assert_eq!(plain(missing), no_such_name("my-machine"));
    }
}
