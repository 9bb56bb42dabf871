//! Describes why two configs, or two descriptions of data, belong to different runs.

use super::view::DataDescription;
use crate::config::Config;

/// The most classes that are named one by one.
const NAMED: usize = 5;

/// The differences of `found` from `kept`, each with both values.
pub(super) fn of_data(kept: &DataDescription, found: &DataDescription) -> String {
    let mut named = Vec::new();
    let mut differs = |what: &str, is: String, was: String| {
        if is != was {
            named.push(format!("{what} {is}, was {was}"));
        }
    };
    let (is, was) = (&found.info, &kept.info);
    let lacking = |list: &[String], of: &[String]| list.iter().filter(|c| !of.contains(c)).cloned().collect::<Vec<_>>();
    let (new, gone) = (lacking(&is.classes, &was.classes), lacking(&was.classes, &is.classes));
    if new.is_empty() && gone.is_empty() {
        // The same names in another order: the labels mean other classes.
        let moved = is.classes.iter().zip(&was.classes).position(|(a, b)| a != b);
        moved.into_iter().for_each(|at| differs(&format!("class {at}"), quoted(&is.classes[at..=at]), quoted(&was.classes[at..=at])));
    } else {
        differs("classes", format!("{} with {}", is.classes.len(), quoted(&new)), format!("{} with {}", was.classes.len(), quoted(&gone)));
    }
    differs("training samples", is.train.to_string(), was.train.to_string());
    differs("validation samples", is.val.to_string(), was.val.to_string());
    differs("format", format!("{:?}", is.format), format!("{:?}", was.format));
    let columns = |data: &DataDescription| quoted(&data.columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>());
    differs("features", columns(found), columns(kept));
    let contents = |data: &DataDescription| data.contents().map(|digest| digest.short());
    if let (Some(is), Some(was)) = (contents(found), contents(kept)) {
        differs("contents of the files", is, was);
    }
    differs("fingerprint of names, labels and contents", is.fingerprint.short(), was.fingerprint.short());
    if named.is_empty() { "means and deviations of the features".to_owned() } else { named.join("; ") }
}

fn quoted(names: &[String]) -> String {
    let mut text = names.iter().take(NAMED).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED {
        text += &format!(" and {} more", names.len() - NAMED);
    }
    if text.is_empty() { "none".to_owned() } else { text }
}

/// Names the keys whose new value alone makes the run another one.
pub(super) fn deciding_keys(kept: &Config, wanted: &Config) -> String {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    flatten("", &parse(kept), &mut old);
    flatten("", &parse(wanted), &mut new);
    let value = |of: &[(String, String)], key: &str| of.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let mut keys: Vec<&String> = old.iter().chain(&new).map(|(key, _)| key).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut named = Vec::new();
    for key in keys {
        let (was, is) = (value(&old, key), value(&new, key));
        if was == is {
            continue;
        }
        // A change that would not be valid alone decides as well.
        let decides = match &is {
            Some(v) => kept.with(&[format!("{key}={v}")]).map_or(true, |c| c.identity() != kept.identity()),
            None => true,
        };
        if decides {
            let or_default = |v: Option<String>| v.unwrap_or_else(|| "not set".to_owned());
            named.push(format!("{key} ({}, was {})", or_default(is), or_default(was)));
        }
    }
    if named.is_empty() { "config".to_owned() } else { named.join(", ") }
}

fn parse(config: &Config) -> toml::Value {
    toml::Value::try_from(config).unwrap_or_else(|e| unreachable!("a config is always representable in TOML: {e}"))
}

/// Every key of a nested table with its value in TOML, as `table.key`.
fn flatten(prefix: &str, value: &toml::Value, into: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, inner) in table {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(&format!("{prefix}{dot}{key}"), inner, into);
            }
        }
        leaf => into.push((prefix.to_owned(), leaf.to_string())),
    }
}
