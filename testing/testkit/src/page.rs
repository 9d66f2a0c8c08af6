//! The pages of `docs`, whose commands and files tests take as they stand there.

use crate::programs::source_folder;

/// A page as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    text: String,
}

impl Page {
    /// `docs/NAME.md`.
    ///
    /// # Panics
    ///
    /// Where it cannot be read.
    #[must_use]
    pub fn load(name: &str) -> Self {
        let path = source_folder().join("docs").join(name).with_extension("md");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { text }
    }

    /// The same with other words in the place of some.
    #[must_use]
    pub fn replace(&self, words: &str, others: &str) -> Self {
        Self { text: self.text.replace(words, others) }
    }

    /// Its fenced blocks in their order: the language, and the text with its last line's end.
    pub fn blocks(&self) -> impl Iterator<Item = (&str, &str)> {
        self.text.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'))
    }

    /// Its blocks of commands, in their order.
    pub fn commands(&self) -> impl Iterator<Item = &str> {
        self.blocks().filter(|(language, _)| *language == "sh").map(|(_, text)| text)
    }

    /// The first block of commands in which these words are.
    ///
    /// # Panics
    ///
    /// Where none has them: the page no longer shows what a test is about.
    #[must_use]
    #[track_caller]
    pub fn commands_with(&self, words: &str) -> &str {
        self.commands().find(|block| block.contains(words)).unwrap_or_else(|| panic!("the page does not show {words}"))
    }

    /// The first block of a language.
    ///
    /// # Panics
    ///
    /// Where there is none.
    #[must_use]
    #[track_caller]
    pub fn first(&self, language: &str) -> &str {
        let found = self.blocks().find(|(its, _)| *its == language);
        found.unwrap_or_else(|| panic!("the page has no block of {language}")).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_by_their_language_and_words() {
        let text = "# Page\n\n```sh\none\ntwo\n```\n\nText.\n\n```toml\nformat = 1\n```\n\n```sh\nthree\n```\n";
        let page = Page { text: text.to_owned() };
        let all = [("sh", "one\ntwo\n"), ("toml", "format = 1\n"), ("sh", "three\n")];
        assert_eq!(page.blocks().collect::<Vec<_>>(), all);
        assert_eq!(page.commands().collect::<Vec<_>>(), ["one\ntwo\n", "three\n"]);
        assert_eq!((page.first("toml"), page.first("sh")), ("format = 1\n", "one\ntwo\n"));
        assert_eq!(page.replace("three", "four").commands_with("four"), "four\n");
    }
}
