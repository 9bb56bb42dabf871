//! `--set key=value`, and messages for wrong keys and values that say what was
//! probably meant.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

/// The sections of a config, as they stand before a key ("train.", or nothing), and the
/// keys of each.
pub(super) type Sections = [(&'static str, Vec<String>)];

/// Sets the dotted `key` of `key=value`. The value is TOML if it parses as
/// such, and otherwise a string, so that paths and names need no quotes.
pub(super) fn apply(table: &mut toml::Table, argument: &str) -> Result<(), String> {
    let Some((key, text)) = argument.split_once('=') else {
        return Err("expected key=value, for example train.epochs=3".to_owned());
    };
    let value = toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut t| t.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    if parts.iter().any(|p| p.is_empty()) {
        return Err(format!("`{key}` is not a key"));
    }
    let Some(last) = parts.pop() else { return Err(format!("`{key}` is not a key")) };
    let mut at = table;
    for part in parts {
        let entry = at.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = entry.as_table_mut().ok_or_else(|| format!("`{part}` is a value, not a section"))?;
    }
    if let Some(other) = other_name(last) {
        at.remove(other);
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// The one key that has two names: setting either replaces both.
fn other_name(key: &str) -> Option<&'static str> {
    match key {
        "epochs" => Some("max_epochs"),
        "max_epochs" => Some("epochs"),
        _ => None,
    }
}

/// The parser's message, and what was probably meant.
pub(super) fn explain(error: &toml::de::Error, sections: &Sections) -> String {
    let text = error.to_string();
    let message = error.message();
    let hint = meant(message, sections).or_else(|| wants_text(message).then(|| "a text stands in quotes: \"...\"".to_owned()));
    with_hint(text.trim_end(), hint)
}

/// The same for what the `key=value` of a `--set` has caused.
pub(super) fn explain_set(error: &toml::de::Error, argument: &str, sections: &Sections) -> String {
    let (key, value) = argument.split_once('=').unwrap_or((argument, ""));
    let (key, value) = (key.trim(), value.trim());
    let text = error.to_string();
    let message = error.message();
    let hint = if wants_text(message) {
        Some(format!("a text that reads as something else needs quotes within quotes: --set '{key}=\"{value}\"'"))
    } else if message.starts_with("invalid type: string") && value.contains(',') && value.replace(',', ".").parse::<f64>().is_ok() {
        Some(format!("a number has a decimal point: {key}={}", value.replace(',', ".")))
    } else {
        meant(message, sections)
    };
    with_hint(text.trim_end(), hint)
}

fn with_hint(text: &str, hint: Option<String>) -> String {
    hint.map_or_else(|| text.to_owned(), |hint| format!("{text}\n{hint}"))
}

/// Whether a number, or another value that is no text, stands where a text belongs.
fn wants_text(message: &str) -> bool {
    message.starts_with("invalid type: ") && (message.ends_with("expected a string") || message.ends_with("expected path string"))
}

/// serde says "unknown field `epoch`, expected one of `epochs`, `lr`": the first quoted
/// word is the wrong one, the others are known there. A key that another section has
/// is meant to stand there; else the nearest known one is meant.
fn meant(message: &str, sections: &Sections) -> Option<String> {
    let field = message.starts_with("unknown field");
    if !field && !message.starts_with("unknown variant") {
        return None;
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let wrong = words.next()?;
    let known: Vec<&str> = words.collect();
    let elsewhere = if field { places(wrong, &known, sections) } else { Vec::new() };
    if !elsewhere.is_empty() {
        return Some(format!("did you mean {}?", elsewhere.join(" or ")));
    }
    let nearest = known.into_iter().map(|known| (strsim::damerau_levenshtein(wrong, known), known)).min();
    nearest.filter(|(distance, known)| *distance <= 1 + known.len() / 2).map(|(_, known)| format!("did you mean `{known}`?"))
}

/// The full names of a key in the sections that have it, but for the one that has the
/// keys `known`, where it was found.
fn places(key: &str, known: &[&str], sections: &Sections) -> Vec<String> {
    let has = |keys: &[String], key: &str| keys.iter().any(|k| k == key);
    let elsewhere = sections.iter().filter(|(_, keys)| has(keys, key) && !known.iter().all(|k| has(keys, k)));
    elsewhere.map(|(section, _)| format!("`{section}{key}`")).collect()
}

/// The keys of a section, as serde names them where it is given one that does not exist.
pub(super) fn keys_of<Section: DeserializeOwned>() -> Vec<String> {
    let unknown = toml::Table::from_iter([("?".to_owned(), toml::Value::Boolean(true))]);
    let message = unknown.try_into::<Section>().err().map(|e| e.message().to_owned()).unwrap_or_default();
    message.split('`').skip(1).step_by(2).skip(1).map(str::to_owned).collect()
}

/// The single values of a config in TOML by their keys, such as `train.lr`. Lists are one
/// value.
pub(super) fn single_values(config: &str) -> BTreeMap<String, toml::Value> {
    fn add(prefix: &str, table: toml::Table, found: &mut BTreeMap<String, toml::Value>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(inner) => add(&format!("{prefix}{key}."), inner, found),
                value => _ = found.insert(format!("{prefix}{key}"), value),
            }
        }
    }
    let mut found = BTreeMap::new();
    add("", toml::from_str(config).unwrap_or_default(), &mut found);
    found
}
