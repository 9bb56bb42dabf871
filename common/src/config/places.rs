//! `~` and `$NAME` in the paths of a config, as a shell has them. A config that has been
//! read names whole paths: those who get it have other homes and another environment.

use std::path::PathBuf;

use super::data::DataConfig;
use super::error::{ConfigError, invalid};
use super::model::ModelConfig;
use super::run::RunConfig;

/// Puts the home folder where a path begins with `~`, and the environment's values where it
/// names them, by `$NAME` or `${NAME}`; `$$` stands for `$`. `variable` looks a name up.
pub(super) fn expand(
    data: &mut DataConfig,
    model: &mut ModelConfig,
    run: &mut RunConfig,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(), ConfigError> {
    let weights = model.weights_mut().map(|path| ("model.weights", path));
    for (key, path) in data.places_mut().chain(weights) {
        // A path that is no text is none that a config has: TOML is text.
        if let Some(text) = path.to_str() {
            *path = PathBuf::from(expanded(key, text, &variable)?);
        }
    }
    if let Some(mirror) = &mut run.mirror {
        *mirror = expanded("run.mirror", mirror, &variable)?;
    }
    Ok(())
}

fn expanded(key: &'static str, text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, ConfigError> {
    let home = || variable("HOME").filter(|home| !home.is_empty());
    let look_up = |name: &str| variable(name).map(Some).ok_or("is not set");
    let found = shellexpand::full_with_context(text, home, look_up).map(std::borrow::Cow::into_owned);
    found.map_err(|e| {
        invalid(
            key,
            format!(
                "is `{text}`, and the environment's `{}` {}: set it, or write the whole path; `$$` stands for `$`",
                e.var_name, e.cause
            ),
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn expanded_in(toml: &str) -> Result<Config, ConfigError> {
        let mut config = Config::parse(toml, "test", &[]).unwrap();
        let variable = |name: &str| match name {
            "HOME" => Some("/home/me".to_owned()),
            "SET" => Some("pictures".to_owned()),
            _ => None,
        };
        expand(&mut config.data, &mut config.model, &mut config.run, variable).map(|()| config)
    }

    fn config(data: &str, rest: &str) -> String {
        format!("name = \"t\"\n[model]\nkind = \"alexnet\"\nweights = \"~/w.pth\"\n[data]\n{data}\n[train]\n{rest}\n")
    }

    #[test]
    fn paths_are_those_of_the_shell() {
        let data = "kind = \"webdataset\"\npath = \"~/$SET/{000..146}.tar\"\nval_path = \"/x/${SET}s/a$$b~\"";
        let config = expanded_in(&config(data, "[run]\nmirror = \"s3://bucket/$SET\"")).unwrap();
        let places: Vec<String> = config.data.places().map(|path| path.display().to_string()).collect();
        assert_eq!(places, ["/home/me/pictures/{000..146}.tar", "/x/picturess/a$b~"]);
        assert_eq!(config.model.weights().unwrap().to_str(), Some("/home/me/w.pth"));
        assert_eq!(config.run.mirror.unwrap(), "s3://bucket/pictures");
    }

    #[test]
    fn a_variable_that_is_not_set_is_named_with_its_key() {
        let error = expanded_in(&config("kind = \"images\"\npath = \"$GONE/data\"", "")).unwrap_err().to_string();
        assert!(["`data.path`", "`$GONE/data`", "`GONE` is not set", "whole path"].iter().all(|word| error.contains(word)), "{error}");
    }
}
