//! Typed reading of TOML tables, with the place of everything that is refused.

use std::ops::Range;
use std::str::FromStr;

use toml_edit::{Item, TableLike, Value};

use super::Located;
use super::error::{ConfigError, ConfigFault, nearest};
use super::source::SuiteSource;

/// A table whose keys have all been found to exist in the format.
pub(super) struct TableReader<'a> {
    pub(super) source: &'a SuiteSource,
    table: &'a dyn TableLike,
    name: &'static str,
    span: Range<usize>,
}

impl<'a> TableReader<'a> {
    /// Refuses the first key that is not among the known ones.
    pub(super) fn new(
        source: &'a SuiteSource,
        table: &'a dyn TableLike,
        name: &'static str,
        span: Range<usize>,
        known: &'static [&'static str],
    ) -> Result<Self, ConfigError> {
        for (key, item) in table.iter() {
            if item.is_none() || known.contains(&key) {
                continue;
            }
            let place = table.key(key).and_then(toml_edit::Key::span).or_else(|| item.span()).unwrap_or(span.clone());
            let nearest = nearest(key, known.iter().copied());
            return Err(
                source.fault(place, ConfigFault::UnknownKey { key: shortened(key), table: name, nearest, known })
            );
        }
        Ok(Self { source, table, name, span })
    }

    /// The value of a key, where it is written.
    pub(super) fn get(&self, key: &str) -> Option<&'a Item> {
        self.table.get(key).filter(|item| !item.is_none())
    }

    /// Where a key's value stands, else the key, else the table.
    pub(super) fn span_of(&self, key: &str) -> Range<usize> {
        let item = self.get(key).and_then(Item::span);
        item.or_else(|| self.table.key(key).and_then(toml_edit::Key::span)).unwrap_or_else(|| self.span.clone())
    }

    /// Where the table is.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    pub(super) fn missing(&self, key: &'static str, example: &'static str) -> ConfigError {
        self.source.fault(self.span.clone(), ConfigFault::MissingKey { key, table: self.name, example })
    }

    pub(super) fn bad(&self, key: &str, reason: impl Into<String>, hint: impl Into<String>) -> ConfigError {
        let fault = ConfigFault::BadValue { key: shortened(key), reason: reason.into(), hint: hint.into() };
        self.source.fault(self.span_of(key), fault)
    }

    pub(super) fn wrong_type(&self, key: &str, item: &Item, expected: &'static str) -> ConfigError {
        let span = item.span().unwrap_or_else(|| self.span_of(key));
        let fault = ConfigFault::WrongType { key: shortened(key), expected, found: type_of(item) };
        self.source.fault(span, fault)
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<Located<String>>, ConfigError> {
        let Some(item) = self.get(key) else { return Ok(None) };
        let text = item.as_str().ok_or_else(|| self.wrong_type(key, item, "a string"))?;
        self.refuse_nul(key, text)?;
        Ok(Some(Located { value: text.to_owned(), span: self.span_of(key) }))
    }

    /// A string, or an array of strings.
    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<Located<String>>>, ConfigError> {
        let Some(item) = self.get(key) else { return Ok(None) };
        if let Some(text) = item.as_str() {
            self.refuse_nul(key, text)?;
            return Ok(Some(vec![Located { value: text.to_owned(), span: self.span_of(key) }]));
        }
        let array = item.as_array().ok_or_else(|| self.wrong_type(key, item, "a string or an array of strings"))?;
        let read = |value: &Value| {
            let span = value.span().unwrap_or_else(|| self.span_of(key));
            let Some(text) = value.as_str() else {
                let fault = ConfigFault::WrongType {
                    key: shortened(key),
                    expected: "an array of strings only",
                    found: type_of_value(value),
                };
                return Err(self.source.fault(span, fault));
            };
            self.refuse_nul(key, text)?;
            Ok(Located { value: text.to_owned(), span })
        };
        array.iter().map(read).collect::<Result<Vec<_>, _>>().map(Some)
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some(item) = self.get(key) else { return Ok(None) };
        item.as_bool().map(Some).ok_or_else(|| self.wrong_type(key, item, "true or false"))
    }

    /// A whole number in a range.
    pub(super) fn count(&self, key: &str, range: std::ops::RangeInclusive<u32>) -> Result<Option<u32>, ConfigError> {
        let Some(item) = self.get(key) else { return Ok(None) };
        let number = item.as_integer().ok_or_else(|| self.wrong_type(key, item, "a whole number"))?;
        let fits = u32::try_from(number).ok().filter(|count| range.contains(count));
        let hint = || format!("write a whole number from {} to {}", range.start(), range.end());
        fits.map(Some).ok_or_else(|| self.bad(key, format!("{number} is out of range"), hint()))
    }

    /// A number above zero, whole or not.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(item) = self.get(key) else { return Ok(None) };
        let number = item.as_float().or_else(|| item.as_integer().map(|whole| whole as f64));
        let number = number.ok_or_else(|| self.wrong_type(key, item, "a number"))?;
        if number.is_finite() && number > 0.0 && number <= 1e6 {
            Ok(Some(number))
        } else {
            Err(self.bad(key, format!("{number} is out of range"), "write a number above 0, such as 0.5 or 2"))
        }
    }

    /// A string that says a value of this type.
    pub(super) fn parsed<T>(&self, key: &str, hint: &str) -> Result<Option<Located<T>>, ConfigError>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let Some(text) = self.string(key)? else { return Ok(None) };
        match text.value.parse() {
            Ok(value) => Ok(Some(Located { value, span: text.span })),
            Err(error) => Err(self.bad(key, error.to_string(), hint)),
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(
        &self,
        key: &str,
        choices: &[(&'static str, T)],
    ) -> Result<Option<Located<T>>, ConfigError> {
        let Some(text) = self.string(key)? else { return Ok(None) };
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text.value) {
            return Ok(Some(Located { value: *value, span: text.span }));
        }
        let words = choices.iter().map(|(word, _)| *word);
        let fault = ConfigFault::UnknownWord {
            key: shortened(key),
            word: shortened(&text.value),
            nearest: nearest(&text.value, words.clone()).map(str::to_owned),
            known: words.collect::<Vec<_>>().join(", "),
        };
        Err(self.source.fault(text.span, fault))
    }

    /// A table below this one.
    pub(super) fn table(
        &self,
        key: &'static str,
        name: &'static str,
        known: &'static [&'static str],
    ) -> Result<Option<TableReader<'a>>, ConfigError> {
        let Some(item) = self.get(key) else { return Ok(None) };
        let table = item.as_table_like().ok_or_else(|| self.wrong_type(key, item, "a table"))?;
        TableReader::new(self.source, table, name, self.span_of(key), known).map(Some)
    }

    /// Each table of an array of tables, `[[key]]` or `key = [{…}]`.
    pub(super) fn tables(
        &self,
        key: &'static str,
        name: &'static str,
        known: &'static [&'static str],
    ) -> Result<Vec<TableReader<'a>>, ConfigError> {
        let Some(item) = self.get(key) else { return Ok(Vec::new()) };
        let mut readers = Vec::new();
        if let Some(array) = item.as_array_of_tables() {
            for table in array.iter() {
                let span = table.span().unwrap_or_else(|| self.span_of(key));
                readers.push(TableReader::new(self.source, table, name, span, known)?);
            }
            return Ok(readers);
        }
        let expected = "an array of tables: write [[…]] with two brackets";
        let array = item.as_array().ok_or_else(|| self.wrong_type(key, item, expected))?;
        for value in array.iter() {
            let span = value.span().unwrap_or_else(|| self.span_of(key));
            let Some(table) = value.as_inline_table() else {
                let fault = ConfigFault::WrongType { key: key.to_owned(), expected, found: type_of_value(value) };
                return Err(self.source.fault(span, fault));
            };
            readers.push(TableReader::new(self.source, table, name, span, known)?);
        }
        Ok(readers)
    }

    pub(super) fn refuse_nul(&self, key: &str, text: &str) -> Result<(), ConfigError> {
        if text.contains('\0') {
            return Err(self.bad(key, "contains a zero byte, which no program can be given", "remove \\u0000"));
        }
        Ok(())
    }
}

/// What messages show of a word that may be endless.
pub(super) fn shortened(word: &str) -> String {
    match word.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &word[..cut]),
        None => word.to_owned(),
    }
}

fn type_of(item: &Item) -> &'static str {
    match item {
        Item::None => "nothing",
        Item::Value(value) => type_of_value(value),
        Item::Table(_) => "a table",
        Item::ArrayOfTables(_) => "an array of tables",
    }
}

fn type_of_value(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date or time",
        Value::Array(_) => "an array",
        Value::InlineTable(_) => "a table",
    }
}
