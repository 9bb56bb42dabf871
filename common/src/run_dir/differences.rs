//! Says what makes two configs those of different runs.

use crate::config::Config;

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
        // A change that alone would not be valid decides as well.
        let decides = match &is {
            Some(v) => {
                Config::parse(&kept.to_toml(), "config.toml", &[format!("{key}={v}")]).map_or(true, |c| c.identity() != kept.identity())
            }
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
