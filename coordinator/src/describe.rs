//! What a model of one's own consists of: the coordinator has none of its code, so it asks the
//! worker binary, once, when a run starts. The answer becomes a part of the run's config.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use common::config::{Config, Described, InputShape, ModelConfig};
use common::run_dir::RunView;

/// Adds the description to the config of a model of one's own. `binary` is asked; without one,
/// what `run_dir` knows of the same model serves, or what the config says already.
///
/// # Errors
/// The binary does not have the model, or the model cannot have this input.
pub fn describe(config: &mut Config, input: InputShape, binary: Option<&Path>, run_dir: Option<&Path>) -> Result<()> {
    let toml = config.to_toml();
    let ModelConfig::Own(own) = &mut config.model else { return Ok(()) };
    if let Some(binary) = binary {
        own.described = Some(ask(binary, &toml, input)?);
        return Ok(());
    }
    // A run that goes on is held against its config; a description that is there is taken on
    // trust by nobody but the workers, who refuse one that is not their own.
    if own.described.is_none()
        && let Some(run) = run_dir.and_then(|path| RunView::open(path).ok())
        && let ModelConfig::Own(before) = &run.config().model
        && (&before.name, &before.own) == (&own.name, &own.own)
    {
        own.described = before.described.clone();
    }
    Ok(())
}

fn ask(binary: &Path, toml: &str, input: InputShape) -> Result<Described> {
    let mut resolved = tempfile::NamedTempFile::with_suffix(".toml")?;
    resolved.write_all(toml.as_bytes())?;
    let output = Command::new(binary)
        .arg("describe")
        .arg(resolved.path())
        .args(["--channels", &input.channels.to_string(), "--size", &input.image_size.to_string()])
        .args(["--classes", &input.classes.to_string()])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", binary.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` cannot train this model: {}", binary.display(), said.trim().trim_start_matches("error: "));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("`{} describe` printed something else than a model", binary.display()))
}
