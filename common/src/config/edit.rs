//! `--set key=value`, and messages for unknown keys that name the nearest known one.

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

/// The parser's message, with the nearest known key if the key is unknown.
pub(super) fn explain(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let text = text.trim_end();
    match nearest(error.message()) {
        Some(key) => format!("{text}\ndid you mean `{key}`?"),
        None => text.to_owned(),
    }
}

/// serde says "unknown field `epoch`, expected one of `epochs`, `lr`": the
/// first quoted word is the wrong one, the others are known.
fn nearest(message: &str) -> Option<&str> {
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return None;
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let wrong = words.next()?;
    words
        .map(|known| (strsim::damerau_levenshtein(wrong, known), known))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 2)
        .map(|(_, known)| known)
}
