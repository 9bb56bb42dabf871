//! `coordinator check`: validates config and data, and prints the plan.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use common::config::{Config, name_of};
use common::dataset;
use common::dense::{DenseLayer, FEWEST_WEIGHTS, Way, dense_layers};
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
    let dense = dense_layers(&config, info.input(config.data.pixels.image_size));
    let (world, batch) = (u64::from(workers), u64::from(config.train.global_batch));
    let width = if config.train.reproducible { Encoding::Fixed } else { Encoding::from(config.cluster.wire) }.width() as u64;
    let others = parameters - dense.iter().map(|layer| layer.inputs * layer.units).sum::<u64>();
    let sent_of_others = 2.0 * (world - 1) as f64 * (others * width) as f64 / world as f64;
    let sent = sent_of_others + dense.iter().map(|layer| layer.bytes(world, batch)).sum::<f64>();
    let gathered: u64 = dense.iter().map(|layer| layer.gathered_bytes(batch)).sum();
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
    ];
    let layer = |layer: &DenseLayer| {
        let [of_sum, of_factors] = [layer.bytes_of_sum(world), layer.bytes_of_factors(world, batch)].map(|bytes| bytes * 1e-6);
        let (takes, rows) = match layer.way {
            Way::Factors => ("factors", format!("{batch} rows, factors pay below {:.0}", layer.most_rows)),
            Way::Sum if layer.inputs * layer.units < FEWEST_WEIGHTS => ("sum", format!("fewer than {FEWEST_WEIGHTS} weights")),
            Way::Sum => ("sum", format!("{batch} rows, factors pay below {:.0}", layer.most_rows)),
        };
        let (inputs, units) = (layer.inputs, layer.units);
        (layer.name.clone(), format!("{inputs} x {units}: {takes}; {of_sum:.2} MB as sum, {of_factors:.2} MB as factors; {rows}"))
    };
    let rows = rows.into_iter().map(|(name, value)| (name.to_owned(), value));
    let rows = rows.chain(dense.iter().map(layer)).chain([(
        "wire".to_owned(),
        format!(
            "{:.1} MB sent by each worker a step ({}), {:.1} MB of gathered factors in memory",
            sent * 1e-6,
            name_of(config.cluster.wire),
            gathered as f64 * 1e-6
        ),
    )]);
    Ok(rows.map(|(name, value)| format!("{name:>22}  {value}\n")).collect())
}
