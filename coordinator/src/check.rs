//! `coordinator check`: validates config and data, and prints the plan.

use anyhow::{Result, anyhow};
use common::config::{Config, WireEncoding};
use common::dataset;
use common::plan::owned_shards;
use common::recorder::{Length, plan};
use common::ui::{group, index_progress};

use crate::cli::CheckArgs;

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
    let width = if config.cluster.wire == WireEncoding::Bf16 { 2 } else { 4 };
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
        ("model", format!("{}, {} parameters, {:.1} MB as f32", config.model.kind(), group(parameters), parameters as f64 * 4e-6)),
        (
            "data",
            format!(
                "{} classes, {} training and {} validation samples",
                info.classes.len(),
                group(info.train.into()),
                group(info.val.into())
            ),
        ),
        ("fingerprint", info.fingerprint.chars().take(16).collect()),
        ("shards", format!("{} of {} to {} samples", plan.shards(), plan.shard_len(plan.shards() - 1), plan.shard_len(0))),
        (
            "steps",
            format!("{} of {} samples in an epoch, {} in the run", length.steps_per_epoch, config.train.global_batch, group(length.steps)),
        ),
        ("last step of an epoch", format!("{} samples", plan.global_count(length.steps_per_epoch - 1))),
        ("workers", format!("{workers}; {}", shards.join("; "))),
        ("wire", format!("{:.1} MB sent by each worker a step ({})", sent as f64 * 1e-6, if width == 2 { "bf16" } else { "f32" })),
    ];
    Ok(rows.iter().map(|(name, value)| format!("{name:>22}  {value}\n")).collect())
}
