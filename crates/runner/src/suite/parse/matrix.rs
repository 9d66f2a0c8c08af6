//! `suite.matrix`: every combination of its axes, less what is excluded, and what is included beside them.

use std::collections::BTreeMap;
use std::ops::Range;

use testyard_model::{BackendName, ImageReference};
use toml_edit::Item;

use super::settings::read_env_table;
use crate::suite::error::{ConfigError, ConfigFault};
use crate::suite::keys;
use crate::suite::read::TableReader;
use crate::suite::{Located, Variant};

/// More variants than this are a mistake.
const MOST: usize = 1_000;

/// The variants that `matrix = { … }` names; none where there is no matrix.
pub(super) fn read_matrix(suite: &TableReader<'_>) -> Result<Vec<Variant>, ConfigError> {
    let Some(matrix) = suite.table("matrix", "suite.matrix", keys::MATRIX)? else { return Ok(Vec::new()) };
    for key in ["image", "backend"] {
        if matrix.get(key).is_some() && suite.get(key).is_some() {
            let fault = ConfigFault::Combination(
                "the suite has an image or backend of its own, and so has its matrix",
                "write it in one of the two places",
            );
            return Err(suite.source.fault(suite.span_of(key), fault));
        }
    }
    let mut variants = vec![Variant::default()];
    if let Some(images) = matrix.strings("image")? {
        let images: Vec<ImageReference> = parsed(&matrix, "image", images, "list images with `testyard image list`")?;
        variants = crossed(&matrix, &variants, &images, |variant, image| variant.image = Some(image.clone()))?;
    }
    if let Some(backends) = matrix.strings("backend")? {
        let backends: Vec<BackendName> = parsed(&matrix, "backend", backends, "write host or namespace")?;
        variants = crossed(&matrix, &variants, &backends, |variant, name| variant.backend = Some(name.clone()))?;
    }
    if let Some(sets) = read_sets(&matrix)? {
        variants = crossed(&matrix, &variants, &sets, |variant, set| variant.env.clone_from(set))?;
    }
    if variants.len() == 1 && variants[0].is_empty() {
        variants.clear();
    }
    for excluded in matrix.tables("exclude", "exclude", keys::VARIANT)? {
        let pattern = read_variant(&excluded)?;
        let before = variants.len();
        variants.retain(|variant| !variant.has(&pattern));
        if variants.len() == before {
            return Err(useless(&matrix, &excluded, "no variant is such a one", "correct it, or remove it"));
        }
    }
    for included in matrix.tables("include", "include", keys::VARIANT)? {
        let variant = read_variant(&included)?;
        if variants.contains(&variant) {
            return Err(useless(&matrix, &included, "this variant is there already", "remove it"));
        }
        variants.push(variant);
    }
    if variants.is_empty() {
        return Err(suite.bad(
            "matrix",
            "leaves no variant",
            "give it an axis such as image = [\"host\", \"debian:12\"]",
        ));
    }
    refuse_impossible(suite, &matrix, &variants)?;
    Ok(variants)
}

fn read_variant(table: &TableReader<'_>) -> Result<Variant, ConfigError> {
    let image = table.parsed::<ImageReference>("image", "list images with `testyard image list`")?;
    let backend = table.parsed::<BackendName>("backend", "write host or namespace")?;
    let env = table.get("env").map(|item| read_env_table(table, item)).transpose()?.unwrap_or_default();
    let variant = Variant { image: image.map(|it| it.value), backend: backend.map(|it| it.value), env };
    if variant.is_empty() {
        return Err(table.missing("image", "at least one of image, backend and env"));
    }
    Ok(variant)
}

/// `env = [{ … }, { … }]`.
fn read_sets(matrix: &TableReader<'_>) -> Result<Option<Vec<BTreeMap<String, String>>>, ConfigError> {
    let Some(item) = matrix.get("env") else { return Ok(None) };
    let expected = "an array of tables such as [{ DB = \"a\" }, { DB = \"b\" }]";
    let array = item.as_array().ok_or_else(|| matrix.wrong_type("env", item, expected))?;
    let mut sets = Vec::new();
    for value in array {
        if !value.is_inline_table() {
            return Err(matrix.wrong_type("env", &Item::Value(value.clone()), expected));
        }
        sets.push(read_env_table(matrix, &Item::Value(value.clone()))?);
    }
    Ok(Some(sets))
}

fn parsed<T>(
    matrix: &TableReader<'_>,
    key: &str,
    words: Vec<Located<String>>,
    hint: &str,
) -> Result<Vec<T>, ConfigError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let parse = |word: Located<String>| {
        let refused = |error: T::Err| {
            let (key, hint) = (key.to_owned(), hint.to_owned());
            matrix.source.fault(word.span.clone(), ConfigFault::BadValue { key, reason: error.to_string(), hint })
        };
        word.value.parse().map_err(refused)
    };
    words.into_iter().map(parse).collect()
}

/// Each variant with each value of one more axis.
fn crossed<T: PartialEq>(
    matrix: &TableReader<'_>,
    variants: &[Variant],
    values: &[T],
    set: impl Fn(&mut Variant, &T),
) -> Result<Vec<Variant>, ConfigError> {
    let refuse = |reason: &str| {
        let hint = "give each axis at least one value, and each value once".to_owned();
        let fault = ConfigFault::BadValue { key: "matrix".to_owned(), reason: reason.to_owned(), hint };
        Err(matrix.source.fault(matrix.span(), fault))
    };
    if values.is_empty() {
        return refuse("an axis has no value");
    }
    if values.iter().enumerate().any(|(at, value)| values[..at].contains(value)) {
        return refuse("an axis has a value twice");
    }
    if variants.len() * values.len() > MOST {
        return refuse("more than 1000 variants");
    }
    let mut all = Vec::with_capacity(variants.len() * values.len());
    for variant in variants {
        for value in values {
            let mut variant = variant.clone();
            set(&mut variant, value);
            all.push(variant);
        }
    }
    Ok(all)
}

fn useless(matrix: &TableReader<'_>, entry: &TableReader<'_>, reason: &'static str, hint: &'static str) -> ConfigError {
    let span: Range<usize> = entry.span();
    matrix.source.fault(span, ConfigFault::Combination(reason, hint))
}

/// Backend `host` starts from no image.
fn refuse_impossible(
    suite: &TableReader<'_>,
    matrix: &TableReader<'_>,
    variants: &[Variant],
) -> Result<(), ConfigError> {
    let own_backend = suite.string("backend")?.map(|backend| backend.value);
    let own_image = suite.string("image")?.map(|image| image.value);
    for variant in variants {
        let backend = variant.backend.as_ref().map(|name| name.as_str()).or(own_backend.as_deref());
        let image = variant.image.as_ref().map(ToString::to_string).or_else(|| own_image.clone());
        if backend == Some("host") && image.as_deref().is_some_and(|image| image != "host") {
            let fault = ConfigFault::BadValue {
                key: "matrix".to_owned(),
                reason: format!("variant `{variant}` cannot be: backend `host` starts from no image"),
                hint: "exclude it, such as exclude = [{ backend = \"host\", image = \"…\" }]".to_owned(),
            };
            return Err(matrix.source.fault(matrix.span(), fault));
        }
    }
    Ok(())
}
