//! `coordinator check`: validates config and data, and prints the plan.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use common::config::{Config, name_of};
use common::dataset;
use common::plan::owned_shards;
use common::recorder::{Length, plan};
use common::ring::Encoding;
use common::ui::index_progress;
use indicatif::HumanCount;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The config to check, a TOML file.
    pub config: PathBuf,
    /// Change one key of the config, for example train.epochs=3.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print the plan for this many workers.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub workers: u32,
}

/// The plan as text. Errors when config or data cannot be trained on.
pub fn report(args: &CheckArgs) -> Result<String> {
    let config = Config::load(&args.config, &args.overrides)?;
    let progress = index_progress(false);
    let source = dataset::open(&config.data, config.seed, &progress)?;
    drop(progress);
    let info = source.info();
    let plan = plan(&config, info).map_err(|e| anyhow!(e))?;
    let length = Length::of(&config, &plan);
    let parameters = config.model.parameters(info.input(config.data.pixels.image_size));
    let workers = args.workers.clamp(1, config.train.shards);
    let width = Encoding::from(config.cluster.wire).width() as u64;
    let sent = 2 * u64::from(workers - 1) * parameters * width / u64::from(workers);
    let shards: Vec<String> = (0..workers)
        .map(|rank| {
            let own = owned_shards(rank, workers, config.train.shards);
            let samples: u32 = own.clone().map(|s| plan.shard_len(s)).sum();
            format!("rank {rank}: shards {}-{}, {samples} samples", own.start, own.end - 1)
        })
        .collect();
    let rows = [
        ("config", format!("{} ({})", args.config.display(), config.name)),
        ("model", format!("{}, {} parameters, {:.1} MB as f32", config.model.kind(), HumanCount(parameters), parameters as f64 * 4e-6)),
        (
            "data",
            format!(
                "{} classes, {} training and {} validation samples",
                info.classes.len(),
                HumanCount(info.train.into()),
                HumanCount(info.val.into())
            ),
        ),
        ("fingerprint", info.fingerprint.short()),
        ("shards", format!("{} of {} to {} samples", plan.shards(), plan.shard_len(plan.shards() - 1), plan.shard_len(0))),
        (
            "steps",
            format!(
                "{} of {} samples in an epoch, {} in the run",
                length.steps_per_epoch,
                config.train.global_batch,
                HumanCount(length.steps)
            ),
        ),
        ("last step of an epoch", format!("{} samples", plan.global_count(length.steps_per_epoch - 1))),
        ("workers", format!("{workers}; {}", shards.join("; "))),
        ("wire", format!("{:.1} MB sent by each worker a step ({})", sent as f64 * 1e-6, name_of(config.cluster.wire))),
    ];
    Ok(rows.iter().map(|(name, value)| format!("{name:>22}  {value}\n")).collect())
}
